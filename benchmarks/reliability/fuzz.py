"""Random calls beside the float64 oracle, and what must hold of any call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from conformance.oracles.rounding import ulp
from torch import Tensor

import fastcfg
from fastcfg import InDomain, Prediction, Rule, State, guide
from fastcfg.launch import domain_levels, parameter_values

from .bounds import error_bound
from .cases import Case
from .outcome import Wrong
from .rules import Oracle
from .tensors import Placed, bits, place, values

__all__ = ["Checked", "Wrong", "backends", "check_case", "shrink"]


@dataclass(frozen=True)
class Checked:
    """What was checked of a call.

    Attributes:
        bounded: whether its values were compared with the oracle's; error: largest share of the bound.
        refused: the error's text, where the call has to be refused and was.
    """

    bounded: bool = False
    error: float = 0.0
    refused: str = ""


def backends() -> tuple[str, ...]:
    """The backends that can run here, each by its name."""
    from fastcfg_kernels.cpp.build import compiler
    from fastcfg_kernels.gpu.backend import unavailable

    found = ["auto", "torch"]
    if compiler() is not None:
        found += ["cpp", "inductor"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if unavailable(device) is None:
        found.append("triton")
    return tuple(found)


@dataclass
class _Call:
    """The tensors of a case, and how to call with them."""

    case: Case
    rule: Rule
    placed: dict[str, Placed]
    state: dict[str, Tensor]
    x: Placed | None
    scale: Any
    scale_map: Tensor | None
    mask: Tensor | None

    @property
    def predictions(self) -> dict[str, Tensor]:
        return {n: self.placed[n].tensor for n in self.rule.conditions}

    def run(
        self, rows: slice = slice(None), change: Callable[[Tensor], Tensor] = lambda t: t, out: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The call on some samples, each tensor changed in its layout."""
        state = State({n: change(t[rows]) for n, t in self.state.items()})
        options: dict[str, Any] = {}
        if self.scale is not None:
            batch = isinstance(self.scale, Tensor) and self.scale.dim() == 1 and len(self.scale) > 1
            options["params"] = {"scale": self.scale[rows] if batch else self.scale}
        if self.scale_map is not None:
            options["scale_map"] = self.scale_map[rows] if self.scale_map.shape[0] > 1 else self.scale_map
        if self.mask is not None:
            options["mask"] = self.mask[rows]
        if self.x is not None and self.case.levels is not None:
            options["x"] = change(self.x.tensor[rows])
            options["prediction"] = Prediction(*self.case.levels)
        backend = None if self.case.backend == "auto" else self.case.backend
        given = {n: change(p[rows]) for n, p in self.predictions.items()}
        if not self.case.graph:
            return guide(self.rule, state=state, backend=backend, out=out, **options, **given), state
        torch.compiler.reset()
        traced = torch.compile(guide, backend="eager", fullgraph=True)
        return traced(self.rule, state=state, backend=backend, out=out, **options, **given), state


def _build(case: Case) -> _Call:
    rule = Rule.from_dict(case.rule)
    rng, chance = np.random.default_rng(case.seed), Random(case.seed)
    dtype = getattr(torch, case.dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    shape = tuple(case.shape)
    common = rng.normal(size=shape) + rng.normal()
    placed = {}
    for name in rule.conditions:
        content = values(rng, case.kinds.get(name, "normal"), shape, common).clamp(-6e4, 6e4).to(dtype)
        if case.bad != "none" and name == rule.conditions[-1] and content.numel():
            content[_bad_sample(case)].view(-1)[-1] = float(case.bad)
        placed[name] = place(content, case.layouts.get(name, "contiguous"), chance)
    state = {n: torch.from_numpy(0.5 * rng.normal(size=shape)).to(acc) for n in rule.lowered.extras}
    x = None
    if isinstance(rule, InDomain):
        noisy = torch.from_numpy(rng.normal(size=shape)).to(chance.choice((dtype, acc)))
        x = place(noisy, case.layouts.get("x", "contiguous"), chance)
    return _Call(case, rule, placed, state, x, _scale(case, rng), _map(case, rng, acc), _mask(case, rng))


def _bad_sample(case: Case) -> int:
    return case.seed % max(1, case.shape[0])


def _scale(case: Case, rng: np.random.Generator) -> Any:
    drawn = np.round(rng.uniform(-2, 12, size=max(1, case.shape[0])) * 64) / 64
    kind = torch.float64 if case.seed % 3 == 0 else torch.float32
    return {
        "own": lambda: None,
        "number": lambda: float(drawn[0]),
        "0d": lambda: torch.tensor(drawn[0], dtype=kind),
        "one": lambda: torch.tensor(drawn[:1], dtype=kind),
        "batch": lambda: torch.tensor(drawn[: case.shape[0]], dtype=kind),
    }[case.scale]()


def _map(case: Case, rng: np.random.Generator, acc: torch.dtype) -> Tensor | None:
    shape = list(case.shape)
    small = {
        "whole": shape,
        "pixels": [shape[0], 1, *shape[2:]],
        "sample": [shape[0], *[1] * (len(shape) - 1)],
        "channel": [1, shape[1], *[1] * (len(shape) - 2)],
    }.get(case.scale_map)
    if small is None:
        return None
    return torch.from_numpy(np.round(rng.uniform(0, 2, size=small) * 8) / 8).to(acc)


def _mask(case: Case, rng: np.random.Generator) -> Tensor | None:
    if case.mask == "none":
        return None
    shape = tuple(case.shape)
    made = torch.from_numpy(rng.random(shape) < 0.7)
    if case.mask == "padding" and len(shape) > 2:
        made = torch.arange(shape[1])[None, :] < torch.from_numpy(rng.integers(1, shape[1] + 1, size=(shape[0], 1)))
        made = made.view(*made.shape, *[1] * (len(shape) - 2))
    elif case.mask == "one":
        made = torch.zeros(shape, dtype=torch.bool)
        made[..., -1] = True
    elif case.mask == "nothing":
        made[: (shape[0] + 1) // 2] = False
    return made if case.seed % 2 else made.to(torch.float32)


def _out(call: _Call) -> Placed | None:
    """``out=`` of a case: a tensor of its own, an input, or one that overlaps an input."""
    case, name = call.case, call.rule.conditions[-1]
    first = call.placed[name]
    content = torch.zeros(tuple(case.shape), dtype=first.tensor.dtype)
    chance = Random(case.seed + 1)
    if case.out == "none":
        return None
    layout = case.layouts.get("out", "contiguous")
    if case.out == "strided":
        return place(content, layout if layout not in ("expanded", "negated", "contiguous") else "strided", chance)
    if case.out == "input" and case.layouts.get(name) not in ("expanded", "negated"):
        return first
    if case.out == "overlap" and case.layouts.get(name) == "offset" and content.numel():
        shifted = first.buffer[11 : 11 + content.numel()].view(content.shape)
        inside = torch.zeros(first.buffer.shape, dtype=torch.bool)
        inside[11 : 11 + content.numel()] = True
        return Placed(shifted, first.buffer, inside, first.before)
    return place(content, "contiguous", chance)


def check_case(case: Case) -> Checked:
    """Make the call, and check all that must hold of it.

    Raises:
        Wrong: naming what does not hold; other exceptions are the call's own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        return _check(case)
    finally:
        torch.set_num_threads(threads)


def _check(case: Case) -> Checked:
    call = _build(case)
    kept = {n: p.tensor.clone() for n, p in call.placed.items()}
    expected, memory = call.run(change=lambda t: t.clone(memory_format=torch.preserve_format))
    out = _out(call)
    actual, state = call.run(out=None if out is None else out.tensor)
    if out is not None and actual is not out.tensor:
        raise Wrong("out: the call returned another tensor")
    if tuple(actual.shape) != tuple(case.shape) or actual.dtype != getattr(torch, case.dtype):
        raise Wrong(f"result: {list(actual.shape)} of {actual.dtype}")
    if out is not None and out.strayed():
        raise Wrong("out: memory outside of it was written")
    for name, placed in call.placed.items():
        if out is not None and out.buffer.data_ptr() == placed.buffer.data_ptr():
            continue
        if placed.changed():
            raise Wrong(f"{name}: an input was written")
    result = actual.clone()
    if out is None or not _ordered_by_memory(call):
        _equal("a copy of the inputs", result, expected)
        for name in memory:
            _equal(f"state {name}", state[name], memory[name])
    if out is None:
        _alone(call, result)
        _layout(call, result)
    return _values(call, kept, result)


def _equal(what: str, one: Tensor, other: Tensor) -> None:
    if not torch.equal(*(bits(torch.where(t.isnan(), 0.0, t)) for t in (one, other))) or not torch.equal(
        one.isnan(), other.isnan()
    ):
        rows = (one != other).flatten(1).any(1).nonzero().flatten().tolist()
        worst = float((one.double() - other.double()).nan_to_num().abs().max())
        raise Wrong(f"bits: not those of {what}: samples {rows}, difference up to {worst:.3g}")


def _alone(call: _Call, result: Tensor) -> None:
    """A sample alone has the bits that it has in the batch, whatever its batch mates hold."""
    batch = call.case.shape[0]
    if batch < 2 or not result.numel():
        return
    for b in {call.case.seed % batch, (call.case.seed // 7) % batch}:
        alone, _ = call.run(slice(b, b + 1))
        _equal(f"sample {b} alone", result[b : b + 1], alone)
    if call.case.bad != "none":
        b = (_bad_sample(call.case) + 1) % batch
        if not result[b].isfinite().all() and not any(
            kind in ("large", "subnormal") for kind in call.case.kinds.values()
        ):
            clean = [bool(p.tensor[b].isfinite().all()) for p in call.placed.values()]
            if all(clean) and call.case.dtype in ("float32", "float64"):
                raise Wrong(f"sample {b} is not finite beside a sample that is not")


def _ordered_by_memory(call: _Call) -> bool:
    """Whether sums run in an order of the memory's: where all tensors lie in one dense order (``channels_last``)."""
    strides = {t.stride()[1:] for t in call.predictions.values()}
    dense = all(t.is_contiguous() for t in call.predictions.values())
    return call.rule.program.reduces and not dense and (len(strides) == 1 or call.rule.lowered.dims is not None)


def _layout(call: _Call, result: Tensor) -> None:
    """The bits do not depend on strides, but for the order of sums."""
    if call.rule.prepares or _ordered_by_memory(call):
        return
    dense, _ = call.run(change=lambda t: t.resolve_neg().clone(memory_format=torch.contiguous_format))
    _equal("contiguous copies", result, dense)


def _values(call: _Call, kept: Mapping[str, Tensor], result: Tensor) -> Checked:
    case = call.case
    if not result.numel() or case.bad != "none" or case.numerics != "fp32":
        return Checked()
    # Contiguous, for NumPy adds one after the other where the batch lies innermost.
    exact = {n: np.ascontiguousarray(t.double().numpy()) for n, t in kept.items()}
    expected = _expected(call, exact)
    bound = _bound(call, kept, expected)
    if bound is None or not np.isfinite(expected).all():
        return Checked()
    got = result.double().numpy()
    truncates = case.backend == "triton" and case.device == "cpu" and result.dtype == torch.bfloat16
    allowed = bound + (1.0 if truncates else 0.5) * ulp(expected, result.dtype)
    # Beyond the dtype's range infinity is right.
    held = abs(expected) + allowed < float(torch.finfo(result.dtype).max)
    if call.mask is not None:
        held &= _included(call)
    # The comparison is the other way round for NaN.
    wrong = held & ~(abs(got - expected) <= allowed)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        raise Wrong(
            f"values: {got[at]!r} at {[int(i) for i in at]}, exact {expected[at]!r}, bound {allowed[at]:.3g}; "
            f"{int(wrong.sum())} of {wrong.size} are wrong"
        )
    share = float((abs(got - expected)[held] / allowed[held]).max()) if held.any() else 0.0
    return Checked(bounded=bool(held.any()), error=share)


def _included(call: _Call) -> Any:
    assert call.mask is not None
    return np.broadcast_to((call.mask != 0).numpy(), tuple(call.case.shape))


def _expected(call: _Call, exact: Mapping[str, Any]) -> Any:
    """The oracle's result; where a mask leaves elements out, at the others alone."""
    case, rule = call.case, call.rule
    scale = call.scale.double().numpy() if isinstance(call.scale, Tensor) else call.scale
    if isinstance(scale, np.ndarray) and (scale.ndim == 0 or len(scale) == 1):
        scale = float(scale.reshape(-1)[0])
    state = {n: t.double().numpy() for n, t in call.state.items()}
    levels = None
    if case.levels is not None and call.x is not None:
        source, alpha, sigma = case.levels
        levels = {"x": call.x.tensor.resolve_neg().double().numpy(), "alpha": alpha, "sigma": sigma, "source": source}
    given, measured = dict(exact), None
    if call.scale_map is not None:
        factor = np.broadcast_to(call.scale_map.double().numpy(), tuple(case.shape))
        first = exact[rule.lowered.predictions[0]]
        given = {n: first + factor * (v - first) for n, v in exact.items()}
        measured = dict(exact)
    with np.errstate(all="ignore"):
        if call.mask is None:
            return Oracle(rule, scale, levels, state, measured)(given)
        inside = _included(call)
        made = np.zeros(tuple(case.shape))
        for b, row in enumerate(inside):
            if not row.any():
                continue

            def some(named: Mapping[str, Any], b: int = b, row: Any = row) -> dict[str, Any]:
                return {n: v[b][row][None] for n, v in named.items()}

            here = None if levels is None else {**levels, "x": levels["x"][b][row][None]}
            one = scale[b] if isinstance(scale, np.ndarray) else scale
            of = None if measured is None else some(measured)
            made[b][row] = Oracle(rule, one, here, some(state), of)(some(given))[0]
        return made


def _bound(call: _Call, kept: Mapping[str, Tensor], expected: Any) -> Any:
    """The bound before the store, or None."""
    case, rule = call.case, call.rule
    dtype = getattr(torch, case.dtype)
    if rule.prepares:
        if isinstance(rule, fastcfg.FDG) and "subnormal" not in case.kinds.values():
            unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
            sums = 4 * (expected[0].size / 16) ** 0.5 + 8
            largest = max(float(t.double().abs().max()) for t in kept.values())
            per = unit * (40 * len(rule.scales) + sums) * (max(abs(s) for s in rule.scales) * 2 + 8)
            return np.full(expected.shape, 2 * per * largest)
        return None
    if call.scale_map is not None and "APG" in repr(rule):
        return None  # The oracle projects along the prediction whose delta it scales.
    params = {} if call.scale is None else {"scale": call.scale}
    first = kept[rule.conditions[0]]
    levels: list[Any] = []
    if case.levels is not None and call.x is not None:
        levels = domain_levels(rule, Prediction(*case.levels), call.x.tensor)
    masked = call.mask is not None and rule.program.reduces
    program = rule.lowered.variant(affine=bool(levels), scaled=call.scale_map is not None, masked=masked)
    chosen = [*parameter_values(rule, params, first, False), *levels]
    inputs = [kept[n].double() for n in rule.lowered.predictions]
    inputs += [call.state[n].double() for n in rule.lowered.extras]
    if levels and call.x is not None:
        inputs.append(call.x.tensor.resolve_neg().double())
    if call.scale_map is not None:
        inputs.append(call.scale_map.double().expand(first.shape))
    if masked and call.mask is not None:
        inputs.append(call.mask.double().expand(first.shape))
    found = error_bound(program, inputs, chosen, dtype, rule.lowered.dims)
    return None if found is None else found.numpy()


def shrink(case: Case, still: Callable[[Case], bool], most: int = 60) -> Case:
    """A simpler case that fails too."""
    tried = 0
    progress = True
    while progress and tried < most:
        progress = False
        for simpler in case.simpler():
            tried += 1
            if tried > most:
                break
            if still(simpler):
                case, progress = simpler, True
                break
    return case
