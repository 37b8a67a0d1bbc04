"""``python -m benchmarks.gating_demo``: what fewer unconditional passes cost, on the demo's model.

The same noise, labels and sampler for each guidance: the images are compared with those of full guidance, and judged by
the demo's classifier and by the metrics on its features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fastcfg import CFG, GatedCFG, GuidedDenoiser, InDomain, Rule, State, schedules
from fastcfg.demo.checkpoint import load_denoiser
from fastcfg.demo.judge import Judge
from fastcfg.files import write_atomically
from fastcfg.metrics import Quality

from .environment import Environment
from .quality.sampling import Start, ddim

__all__ = ["Row", "guidances", "sample", "sweet_spot"]

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "guidance", "unconditional, %", "passes, %", "difference", "digit, %", "colour, %", "FD", "precision", "recall",
    "coverage",
)  # fmt: skip
app = typer.Typer(add_completion=False)


def guidances(scale: float) -> dict[str, Rule]:
    """Full guidance first, then what runs fewer unconditional passes, and none at all last."""
    gated: dict[str, Rule] = {f"cached, every {k}": GatedCFG(scale, every=k) for k in (2, 3, 4)}
    clean: dict[str, Rule] = {f"cached in x0, every {k}": InDomain(GatedCFG(scale, every=k), "x0") for k in (2, 4)}
    drift: dict[str, Rule] = {f"cached, drift {d:g}": GatedCFG(scale, every=8, drift=d) for d in (0.3, 0.6, 1.2)}
    windows = {"first 3/4": (0.0, 0.75), "last 3/4": (0.25, 1.0), "first half": (0.0, 0.5), "middle half": (0.25, 0.75)}
    windows |= {"last half": (0.5, 1.0), "first 1/4": (0.0, 0.25), "second 1/4": (0.25, 0.5)}
    interval: dict[str, Rule] = {
        f"interval, {name}": CFG(schedules.Interval(scale, *share)) for name, share in windows.items()
    }
    return {"full": CFG(scale), **gated, **clean, **drift, **interval, "none": CFG(1.0)}


@dataclass(frozen=True)
class Row:
    """One guidance.

    Attributes:
        unconditional: share of the unconditional passes of full guidance that were run.
        passes: all passes, as a share of those of full guidance.
        difference: root mean square over the pixels, which span [-1, 1], to the images of full guidance.
        digit, colour: share of the samples whose digit and whose colour the classifier finds to be the one asked for.
        quality: of the samples, in the classifier's features.
    """

    name: str
    rule: str
    unconditional: float
    passes: float
    difference: float
    digit: float
    colour: float
    quality: Quality


@torch.no_grad()
def sample(
    model: Callable[..., Any], rule: Rule, conditions: Mapping[str, Mapping[str, Tensor]], noise: Tensor, steps: int
) -> tuple[Tensor, int]:
    """Images by DDIM, and the passes that they took."""
    denoiser, state, x = GuidedDenoiser(model, rule), State(), noise
    for step in ddim(steps):
        x = denoiser.step(x, step, conditions=conditions, state=state)
    return x, denoiser.passes_run


def sweet_spot(rows: Sequence[Row]) -> Row:
    """The fewest passes whose digits are within a point of full guidance's, and whose Fréchet distance within 10 %."""
    full = rows[0]

    def as_good(row: Row) -> bool:
        near = row.quality.frechet_distance <= 1.1 * full.quality.frechet_distance
        return near and row.digit >= full.digit - 0.01

    return min(filter(as_good, rows), key=lambda row: (row.passes, row.difference))


def measure(
    scale: float, samples: int, steps: int, batch: int, seed: int, progress: Callable[[list[Any]], Any]
) -> list[Row]:
    """A row for each guidance, on the same noise and labels."""
    model, _ = load_denoiser()
    judge, start = Judge(samples), Start.draw(samples, seed)
    rows: list[Row] = []
    full: Tensor | None = None
    for name, rule in progress(list(guidances(scale).items())):
        parts, passes = [], 0
        for part in start.parts(batch):
            images, run = sample(model, rule, part.conditions("both", ("uncond", "cond")), part.noise, steps)
            parts.append(images)
            passes += run
        images = torch.cat(parts)
        full = images if full is None else full
        calls = steps * len(parts)
        look = judge.look(images)
        rows.append(
            Row(
                name=name,
                rule=repr(rule),
                unconditional=passes / calls - 1,
                passes=passes / (2 * calls),
                difference=(images - full).square().mean().sqrt().item(),
                digit=(look.digit == start.digit).float().mean().item(),
                colour=(look.colour == start.colour).float().mean().item(),
                quality=judge.quality(look, start.digit),
            )
        )
    return rows


def to_markdown(rows: Sequence[Row], settings: Mapping[str, Any], environment: Environment) -> str:
    """The table, and where the sweet spot lies."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    best = sweet_spot(rows)
    lines = [
        "# Fewer unconditional passes, on the demo's model",
        "",
        f"{settings['samples']} samples of coloured digits, DDIM with {settings['steps']} steps, CFG at scale "
        f"{settings['scale']:g}, the same noise and labels in each row (`python -m benchmarks.gating_demo`).",
        "",
        f"Commit {environment.commit}; {versions}.",
        "",
        "*Unconditional* is the share of full guidance's unconditional passes that were run, *passes* that of all "
        "passes. *Difference* is the root mean square over pixels in [-1, 1] to the images of full guidance. FD "
        "(Fréchet distance), precision, recall and coverage are in the features of the demo's classifier, against as "
        "many held-out real images. FD falls with weaker guidance: it is lowest far from the images of full guidance, "
        "and says how good they are only together with the difference and the digits.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---{'|---:' * (len(COLUMNS) - 1)}|",
    ]
    for row in rows:
        q = row.quality
        lines.append(
            f"| {row.name} | {100 * row.unconditional:.0f} | {100 * row.passes:.0f} | {row.difference:.3f} "
            f"| {100 * row.digit:.1f} | {100 * row.colour:.1f} | {q.frechet_distance:.3f} | {q.precision:.2f} "
            f"| {q.recall:.2f} | {q.coverage:.2f} |"
        )
    lines += [
        "",
        f"The fewest passes as good as full guidance (digits within a point, FD within 10 %): **{best.name}**, with "
        f"{100 * best.unconditional:.0f} % of the unconditional passes.",
    ]
    return "\n".join(lines) + "\n"


@app.command()
def main(
    scale: Annotated[float, typer.Option(help="Guidance scale.")] = 3.0,
    samples: Annotated[int, typer.Option(min=20, help="Samples of each guidance.")] = 300,
    steps: Annotated[int, typer.Option(min=4, help="Steps of DDIM.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 100,
    seed: Annotated[int, typer.Option(help="Of noise and labels.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the JSON and Markdown.")] = RESULTS,
) -> None:
    """Sample the demo's model with fewer and fewer unconditional passes; writes gating-demo.json and .md."""

    def progress(items: list[Any]) -> Any:
        return track(items, "guidances", console=Console(stderr=True))

    settings = {"scale": scale, "samples": samples, "steps": steps, "batch": batch, "seed": seed}
    rows = measure(scale, samples, steps, batch, seed, progress)
    environment = Environment.of("cpu")
    text = to_markdown(rows, settings, environment)
    data = {
        "kind": "gating",
        "schema": 1,
        "settings": settings,
        "environment": asdict(environment),
        "sweet_spot": sweet_spot(rows).name,
        "rows": [asdict(row) for row in rows],
    }
    write_atomically(output / "gating-demo.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    write_atomically(output / "gating-demo.md", text)
    Console().print(text, highlight=False, markup=False)


if __name__ == "__main__":
    app()
