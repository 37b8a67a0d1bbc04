"""The guidance of an exported model inside its graph and outside: a step in ONNX Runtime and in eager torch.

All contestants run the two passes as one batch and take turns in one process. Their results are compared first with
eager torch's, beside a control: eager torch from a latent that is one unit in the last place larger.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from fastcfg_export import Axis, Engine, adapt, export_onnx
from fastcfg_export.verification import ALLOWED
from torch import Tensor, nn

import fastcfg
from fastcfg import CFG, GuidedDenoiser

from .cases import REFERENCE
from .environment import Environment
from .peers import Call
from .race import HostTimer, summarise, take_turns
from .records import Record, markdown_table, terminal_table
from .sections import Measured, Plan, Progress, wanted

__all__ = ["Subject", "contestants", "errors", "measure", "section", "subjects"]

KIND = "export"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SCALE, PHI, TIME = 5.0, 0.7, 500.0
LARGEST = 16
EAGER = "eager torch, guidance outside"
Conditions = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Subject:
    """A model that exporters know, and its inputs.

    Attributes:
        make: the model; draw: of a batch size, the latent and the conditions ``uncond`` and ``cond``.
    """

    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, Conditions]]


@fastcfg.rule("cond")
def unguided() -> tuple[float]:
    """One pass as it is."""
    return (1.0,)


def _demo() -> nn.Module:
    from fastcfg.demo.checkpoint import load_denoiser

    return load_denoiser()[0]


def _digits(batch: int) -> tuple[Tensor, Conditions]:
    from fastcfg.demo.data import NUM_COLOURS, NUM_DIGITS
    from fastcfg.demo.sample import draw_noise, labels

    noise, digits = draw_noise(batch, 0), torch.arange(batch)
    return noise, {"uncond": labels(like=noise), "cond": labels(digits % NUM_DIGITS, digits % NUM_COLOURS, like=noise)}


def _unet() -> nn.Module:
    from .export_models import build

    return build("unet")


def _texts(batch: int) -> tuple[Tensor, Conditions]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 4, 16, 16, generator=generator)
    texts = torch.randn(2, batch, 8, 16, generator=generator)
    return noise, {"uncond": {"encoder_hidden_states": texts[0]}, "cond": {"encoder_hidden_states": texts[1]}}


def subjects(full: bool) -> list[Subject]:
    """The demo's denoiser; a full run adds a U-Net of diffusers' with random weights."""
    return [Subject("demo", _demo, _digits), *([Subject("unet", _unet, _texts)] if full else [])]


def contestants(
    subject: Subject, folder: Path
) -> Callable[[int], tuple[Tensor, dict[str, Callable[[Tensor], Tensor]]]]:
    """Export a model with its guidance and without, into a folder.

    Returns:
        A function of the batch size: the latent, and by name a function from the latent to the guided prediction.
    """
    from fastcfg.demo.stock import stock_guidance

    model, rule = subject.make(), CFG(SCALE, PHI)
    inside = Engine(export_onnx(model, rule, folder / f"{subject.name}-guided.onnx").path)
    axes = {"batch": Axis(1, 2, 2 * LARGEST)}
    bare = Engine(export_onnx(model, unguided(), folder / f"{subject.name}.onnx", axes=axes).path)
    combine, eager = stock_guidance(SCALE, PHI), adapt(model).module
    denoiser = GuidedDenoiser(eager, rule)

    def of_batch(batch: int) -> tuple[Tensor, dict[str, Callable[[Tensor], Tensor]]]:
        latent, conditions = subject.draw(batch)
        uncond, cond = conditions["uncond"], conditions["cond"]
        both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}
        times, time = torch.full((2 * batch,), TIME), torch.full((batch,), TIME)
        return latent, {
            REFERENCE: lambda x: inside(x, time, conditions=conditions),
            f"{REFERENCE}, eager": lambda x: denoiser(x, time, conditions=conditions),
            "ONNX Runtime, guidance outside": lambda x: combine(
                *bare(torch.cat([x, x]), times, conditions={"cond": both}).chunk(2)
            ),
            EAGER: lambda x: combine(*eager(torch.cat([x, x]), times, **both).chunk(2)),
        }

    return of_batch


def errors(x: Tensor, calls: Mapping[str, Callable[[Tensor], Tensor]]) -> tuple[dict[str, float], float]:
    """By contestant how far its result is from eager torch's, and the bound: shares of the largest value.

    Raises:
        RuntimeError: if one is above the bound.
    """
    exact = calls[EAGER](x)
    size = exact.abs().max()
    control = (calls[EAGER](torch.nextafter(x, x.sign() * inf)) - exact).abs().max() / size
    found = {name: float((call(x) - exact).abs().max() / size) for name, call in calls.items()}
    bound = ALLOWED * max(float(control), torch.finfo(exact.dtype).eps)
    for name, error in found.items():
        if not error <= bound:  # Written so that NaN fails.
            raise RuntimeError(f"{name} differs by {error:.2g} of the largest value; the bound is {bound:.2g}")
    return found, bound


def measure(subject: Subject, batches: Sequence[int], rounds: int, folder: Path) -> list[dict[str, Any]]:
    """The rows of a model, its graphs in a folder.

    Raises:
        RuntimeError: as :func:`errors`.
    """
    of_batch = contestants(subject, folder)
    rows = []
    for batch in batches:
        latent, runs = of_batch(batch)
        found, bound = errors(latent, runs)
        calls: dict[str, Call] = {name: partial(run, latent) for name, run in runs.items()}
        times = take_turns(calls, HostTimer(), rounds=rounds)["time"]
        what = {"model": subject.name, "rule": f"CFG + rescale {PHI:g}", "dtype": "fp32", "batch": batch}
        for name, summary in summarise(times, REFERENCE).items():
            rows.append({**what, "provider": name, **asdict(summary), "error": found[name], "bound": bound})
    return rows


HEADER = ("model", "rule", "batch", "provider", "ms a step", "÷ fastcfg", "difference", "bound")


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    measured = f"{row['p50']:.2f}", f"{row['ratio']:.2f}", f"{row['error']:.1e}", f"{row['bound']:.1e}"
    return row["model"], row["rule"], str(row["batch"]), row["provider"], *measured


def to_markdown(rows: Sequence[Mapping[str, Any]], environment: Environment) -> str:
    """The environment and all rows."""
    parts = [
        f"# Guidance inside a graph and outside, on {environment.label}",
        environment.origin,
        "One step: both passes in one batch, and their guidance. *fastcfg* is the exported graph with the guidance "
        "inside, in ONNX Runtime; *outside* means a few eager operations after the passes. All take turns in one "
        "process; milliseconds are medians, and *÷ fastcfg* is the median over rounds of the ratio: above 1 the graph "
        "with the guidance inside is faster. *Difference* is to eager torch, as a share of the largest value; its "
        f"bound is {ALLOWED:g} times what the latent one unit in the last place up changes.",
        markdown_table(HEADER, map(_line, rows)),
    ]
    return "\n\n".join(parts) + "\n"


def section(plan: Plan, progress: Progress) -> Measured:
    """The section of ``fastcfg bench``."""
    # It says of each operation that torchvision is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for subject in subjects(plan.all_sizes):
            rule = f"CFG + rescale {PHI:g}"
            batches = [
                b
                for b in ((1, 4, LARGEST) if plan.all_sizes else (1, 4))
                if wanted(plan, KIND, subject.name, rule, str(b))
            ]
            if batches:
                progress(subject.name)
                rows += measure(subject, batches, plan.rounds_of(50 if plan.full else 20), Path(folder))
    environment = Environment.of("cpu", *PACKAGES)
    text = to_markdown(rows, environment)
    record = Record(KIND, f"export-steps-{environment.name}", environment, rows, text, {"schema": 1, "unit": "ms"})
    return Measured(record, [terminal_table(environment.label, HEADER, map(_line, rows))])
