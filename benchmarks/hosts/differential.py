"""A pipeline's call beside the same call under fastcfg: bits, or how far off, and the passes saved by an interval."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastcfg import CFG, Rule
from fastcfg.adapters.diffusers import coverage, fuse, guided, own_rule
from fastcfg.adapters.diffusers.pipelines.arguments import INSTEAD
from fastcfg.adapters.diffusers.pipelines.table import GUIDERS, form_of, has_guiders
from fastcfg.schedules import Interval

__all__ = ["compare"]

SCALE = 3.0


class Seen:
    """Arguments that a scheduler was given at each step."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[None]:
        scheduler = vars(pipe)["scheduler"]
        step = scheduler.step

        @functools.wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(step).bind(*args, **kwargs).arguments
            output = given.get("model_output", next(iter(given.values())))
            self.outputs.append(output.detach().clone())
            return step(*args, **kwargs)

        scheduler.step = watched
        try:
            yield
        finally:
            del scheduler.step


def _last(result: Any) -> Tensor:
    first = result[0]
    while isinstance(first, list | tuple):
        first = first[0]
    return torch.as_tensor(first) if not hasattr(first, "getbands") else torch.zeros(1)


def _run(pipe: Any, inputs: Callable[[], Mapping[str, Any]], around: Any = None) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    seen = Seen()
    with torch.no_grad(), seen.watching(pipe), nullcontext() if around is None else around:
        result = pipe(**inputs(), return_dict=False)
    return seen.outputs, _last(result)


def _same(a: Tensor, b: Tensor) -> bool:
    """Bits; a tiny model with random weights that gives NaN gives it to both."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    if len(ours) != len(theirs):
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)]
    return max((float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs), default=0.0)


def _switched_on(pipe: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The fast test's inputs with the pipeline's own guidance turned on, at a scale that is known."""
    takes = inspect.signature(type(pipe).__call__).parameters
    switch = form_of(pipe).switch if not has_guiders(pipe) else None
    if switch in takes:
        inputs[switch] = SCALE
    for name, value in (("guidance_scale_2", None), ("min_guidance_scale", SCALE), ("callback_on_step_end", None)):
        if name in takes:
            inputs[name] = value
    written = isinstance(inputs.get("prompt"), str | list)
    if switch == "true_cfg_scale" and "negative_prompt" in takes and written and not inputs.get("negative_prompt"):
        inputs["negative_prompt"] = "blurry"
    inputs.pop("return_dict", None)
    return inputs


def _own(pipe: Any, inputs: Mapping[str, Any]) -> tuple[Rule, str]:
    form = form_of(pipe)
    named = {}
    takes = inspect.signature(type(pipe).__call__).parameters
    values = {name: inputs.get(name, p.default) for name, p in takes.items()}
    for key, argument in (
        ("rescale", "guidance_rescale"), ("image_scale", "image_guidance_scale"), ("perturbed_scale", "pag_scale"),
    ):  # fmt: skip
        if key in form.own and argument in takes:
            named[key] = float(values[argument] or 0.0)
    return own_rule(pipe, SCALE, **named), form.own


def compare(pipe: Any, inputs: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what one pipeline shows: whether steps and result have the pipeline's bits, else the relative error.

    Args:
        inputs: makes the arguments of a call anew, generators included.
    """
    name = type(pipe).__name__

    def given() -> dict[str, Any]:
        return _switched_on(pipe, inputs())

    def ours_given() -> dict[str, Any]:
        return {name: value for name, value in given().items() if name not in INSTEAD}

    theirs, result = _run(pipe, given)
    found: dict[str, Any] = {"steps": len(theirs), "dtype": str(theirs[0].dtype).removeprefix("torch.")}
    if has_guiders(pipe):
        with fuse(pipe) as report:
            found["rule"] = str(report)
            eager = {"numerics": "eager"} if all(new._eager for _, new in report.swapped.values()) else {}
        ours, again = _run(pipe, given, fuse(pipe, **eager))  # type: ignore[arg-type]
        found["how"] = "fuse"
        interval = guided(pipe, CFG(Interval(SCALE, 0.0, 0.5)))
    else:
        rule, found["rule"] = _own(pipe, given())
        plain = rule == CFG(SCALE) or (isinstance(rule, CFG) and rule == CFG(SCALE, base=rule.base))
        one_pass = form_of(pipe).names == ("cond",)
        if one_pass:
            rule, plain = CFG(1.0), False
        elementwise = "InstructPix2Pix" in found["rule"] or "Perturbed" in type(rule).__name__
        numerics: Any = "eager" if plain or elementwise else "fp32"
        ours, again = _run(pipe, ours_given, guided(pipe, rule, numerics=numerics))
        found["how"] = "guided"
        interval = guided(pipe, CFG(1.0) if one_pass else CFG(Interval(SCALE, 0.0, 0.5)))
    found["bits"] = _same(again, result) and all(_same(a, b) for a, b in zip(ours, theirs, strict=True))
    found["error"] = 0.0 if found["bits"] else _relative(ours, theirs)
    torch.manual_seed(0)
    with torch.no_grad(), interval as run:
        pipe(**ours_given(), return_dict=False)
    found["passes"], found["saved"] = run.passes_run, run.passes_saved
    assert name in coverage() or name in GUIDERS
    return found
