"""``python -m benchmarks.bench_adapters guiders``: the guidance part of a step, with diffusers' own guider and ours.

What is timed is what a modular pipeline does besides running its model: saying which step it is, preparing the
batches, and combining their predictions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fastcfg.files import write_atomically

from .environment import Environment
from .race import CudaTimer, HostTimer, Summary, race, summarise

__all__ = ["GUIDERS", "SHAPES", "Row", "guidance_part", "measure_guiders"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS, THEIRS = "fastcfg", "diffusers"

GUIDERS: Mapping[str, Mapping[str, Any]] = {
    "ClassifierFreeGuidance": {"guidance_scale": 5.0},
    "ClassifierFreeGuidance, rescale": {"guidance_scale": 5.0, "guidance_rescale": 0.7},
    "AdaptiveProjectedGuidance": {"eta": 0.0, "adaptive_projected_guidance_momentum": -0.5},
    "AdaptiveProjectedMixGuidance": {"adaptive_projected_guidance_start_step": 1},
    "ClassifierFreeZeroStarGuidance": {"guidance_scale": 5.0},
    "TangentialClassifierFreeGuidance": {"guidance_scale": 5.0},
    "MagnitudeAwareGuidance": {},
    "FrequencyDecoupledGuidance": {},
    "AutoGuidance": {"auto_guidance_layers": [0], "dropout": 1.0},
    "SkipLayerGuidance": {"skip_layer_guidance_layers": [0], "skip_layer_guidance_stop": 1.0},
    "PerturbedAttentionGuidance": {"perturbed_guidance_layers": [0], "perturbed_guidance_stop": 1.0},
    "SmoothedEnergyGuidance": {"seg_guidance_layers": [0]},
    "LTX2Guidance": {"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7},
}
"""Configs by class, after a comma what tells them apart."""

SHAPES: Mapping[str, tuple[int, ...]] = {
    "SDXL": (1, 4, 128, 128),
    "packed tokens": (1, 4096, 64),
    "Wan 480p": (1, 16, 21, 60, 104),
}
"""Shapes of a prediction by what they are of."""

app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Row:
    """A guider's times at a shape, ratios to ours; or why it was not timed."""

    guider: str
    shape: tuple[int, ...]
    dtype: str
    provider: str
    metric: str
    times: Summary | None
    error: float | None = None
    reason: str | None = None


def guidance_part(guider: Any, predictions: Mapping[str, Tensor], step: int, steps: int) -> Callable[[], Tensor]:
    """A call that does what a modular pipeline does at a step, the model's predictions given."""
    inputs = {"encoder_hidden_states": (None, None, None, None)}
    timestep = torch.tensor(500)

    def call() -> Tensor:
        guider.set_state(step=step, num_inference_steps=steps, timestep=timestep)
        batches = guider.prepare_inputs(inputs)
        for batch in batches:
            batch.noise_pred = predictions[batch["__guidance_identifier__"]]
        guided: Tensor = guider(batches)[0]
        return guided

    return call


def measure_guiders(
    name: str, shape: tuple[int, ...], dtype: str, timer: Any, rounds: int, device: str = "cpu"
) -> list[Row]:
    """Both guiders of a class, taking turns; each is first checked against float64.

    The float64 is ours, which the tests hold to oracles; some of diffusers' compute in float32 whatever they get. A
    momentum's first step is timed: what comes later depends on how often each was called.
    """
    from diffusers import guiders

    import fastcfg.adapters.diffusers as fused

    cls, config = name.partition(",")[0], GUIDERS[name]
    stock = getattr(guiders, cls)
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(shape, generator=generator, dtype=torch.float64)
    names = stock._input_predictions
    exact = {n: common + 0.5 * torch.randn(shape, generator=generator, dtype=common.dtype) for n in names}
    given = {n: tensor.to(device, DTYPES[dtype]) for n, tensor in exact.items()}
    step, steps = (0, 10) if "momentum" in str(config) else (3, 10)
    ours = getattr(fused, f"Fused{cls}")
    truth = guidance_part(ours(**config), {n: t.double() for n, t in given.items()}, step, steps)()
    calls = {
        OURS: guidance_part(ours(**config), given, step, steps),
        THEIRS: guidance_part(stock(**config), given, step, steps),
    }
    times, errors, refused = race(calls, truth, DTYPES[dtype], timer, rounds=rounds)
    rows = [Row(name, shape, dtype, provider, "time", None, reason=why) for provider, why in refused.items()]
    for metric, samples in times.items():
        for provider, summary in summarise(samples, OURS).items():
            rows.append(Row(name, shape, dtype, provider, metric, summary, errors[provider]))
    return rows


@app.callback()
def _commands() -> None:
    """The adapters beside what they replace."""


@app.command()
def guiders(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each case.")] = 50,
    shape: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SHAPES)}; default all.")] = None,
    guider: Annotated[list[str] | None, typer.Option(help="Only guiders whose name has this in it.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """diffusers' guiders and their fused counterparts: time of the guidance part of a step."""
    console = Console()
    console.width = max(console.width, 120)
    chosen = [name for name in GUIDERS if not guider or any(part.lower() in name.lower() for part in guider)]
    unknown = sorted(set(shape or ()) - set(SHAPES))
    if unknown or not chosen:
        what = f"shape: {', '.join(unknown)}; expected {', '.join(SHAPES)}" if unknown else f"guider: none has {guider}"
        console.print(f"[red]{what}")
        raise typer.Exit(2)
    logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)
    timer = CudaTimer() if device == "cuda" else HostTimer()
    cases = [(n, s, d) for s in shape or SHAPES for d in DTYPES for n in chosen]
    rows: list[Row] = []
    with torch.no_grad():
        for name, of, dtype in track(cases, "guiders", console=console, transient=True):
            rows += measure_guiders(name, SHAPES[of], dtype, timer, rounds, device)
    console.print(_table(rows))
    for row in rows:
        if row.reason:
            console.print(f"{row.guider} {list(row.shape)} {row.dtype}: {row.provider} left out, {row.reason}")
    if output is not None:
        data = {"kind": "guiders", "environment": asdict(Environment.of(device)), "unit": "ms"}
        write_atomically(output, json.dumps({**data, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def _table(rows: list[Row]) -> Table:
    table = Table(title="guidance part of a step, ms")
    for heading in ("guider", "shape", "dtype", "metric", OURS, THEIRS, "ratio"):
        table.add_column(heading, no_wrap=True)
    found = {(r.guider, r.shape, r.dtype, r.metric, r.provider): r.times for r in rows if r.times is not None}
    for key in dict.fromkeys(key[:-1] for key in found):
        ours, theirs = found.get((*key, OURS)), found.get((*key, THEIRS))
        label, shape, dtype, metric = key
        if ours is not None:
            other = ("", "") if theirs is None else (f"{theirs.p50:.3f}", f"{theirs.ratio:.1f}")
            table.add_row(label, "x".join(map(str, shape)), dtype, metric, f"{ours.p50:.3f}", *other)
    return table


if __name__ == "__main__":
    app()
