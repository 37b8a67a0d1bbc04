"""``python -m benchmarks.gating_demo``: what fewer unconditional passes cost, on the demo's model.

The same noise, labels and sampler for each guidance: the images are compared with those of full guidance, and judged by
the demo's classifier and by the metrics on its features.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fastcfg import CFG, Gate, GuidedDenoiser, Rule, State, schedules
from fastcfg.cli.tune import demo_job
from fastcfg.demo.checkpoint import load_denoiser
from fastcfg.demo.judge import Judge
from fastcfg.denoiser import fit_weights, gram_of, tune
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


Guided = tuple[Rule, Gate | None]


def guidances(scale: float, tuned: Mapping[str, Gate] = MappingProxyType({})) -> dict[str, Guided]:
    """Full guidance first, then what runs fewer unconditional passes, and none at all last."""
    gates = {f"every n, {k}": Gate(every=k) for k in (2, 3, 4)}
    gates |= {f"share, {share:g}": Gate(until=share) for share in (0.5, 0.25)}
    gates |= {f"drift, {bound:g}": Gate(every=8, drift=bound) for bound in (1.2,)}
    gates |= {f"Adaptive Guidance, {cosine:g}": Gate(cosine=cosine) for cosine in (0.99, 0.97)}
    gates |= tuned
    windows = {"first half": (0.0, 0.5)}
    interval: dict[str, Guided] = {
        f"interval, {name}": (CFG(schedules.Interval(scale, *share)), None) for name, share in windows.items()
    }
    gated: dict[str, Guided] = {name: (CFG(scale), gate) for name, gate in gates.items()}
    return {"full": (CFG(scale), None), **gated, **interval, "none": (CFG(1.0), None)}


def tuned_gates(scale: float, steps: int, samples: int, log: Path) -> dict[str, Gate]:
    """LinearAG at every second and third step, and the gates of searches, on other noise than what is judged."""
    job = demo_job(CFG(scale), steps, samples, seed=10_000)
    deltas = job.deltas() or []
    gram, found = gram_of(deltas), {}
    for every in (3,):
        fresh = tuple(range(0, steps, every))
        found[f"LinearAG, every {every}"] = Gate(steps=fresh, weights=fit_weights(gram, fresh), num_steps=steps)
    for budget in (0.7, 0.6):
        best = tune(job.run, steps, budget=budget, deltas=deltas, log=log, name=job.name).best
        found[f"tuned, {budget:g}"] = best.gate
    return found


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
    gate: dict[str, Any] | None
    unconditional: float
    passes: float
    difference: float
    digit: float
    colour: float
    quality: Quality


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    guided: Guided,
    conditions: Mapping[str, Mapping[str, Tensor]],
    noise: Tensor,
    steps: int,
) -> tuple[Tensor, int]:
    """Images by DDIM, and the passes that they took."""
    rule, gate = guided
    denoiser, state, x = GuidedDenoiser(model, rule, gate=gate), State(), noise
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
    scale: float,
    samples: int,
    steps: int,
    batch: int,
    seed: int,
    tuned: Mapping[str, Gate],
    progress: Callable[[list[Any]], Any],
) -> list[Row]:
    """A row for each guidance, on the same noise and labels."""
    model, _ = load_denoiser()
    judge, start = Judge(samples), Start.draw(samples, seed)
    rows: list[Row] = []
    full: Tensor | None = None
    for name, guided in progress(list(guidances(scale, tuned).items())):
        parts, passes = [], 0
        for part in start.parts(batch):
            images, run = sample(model, guided, part.conditions("both", ("uncond", "cond")), part.noise, steps)
            parts.append(images)
            passes += run
        images = torch.cat(parts)
        full = images if full is None else full
        calls = steps * len(parts)
        look = judge.look(images)
        rows.append(
            Row(
                name=name,
                rule=repr(guided[0]),
                gate=None if guided[1] is None else guided[1].to_dict(),
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


def picture(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """An SVG of what each policy's passes buy: difference, digits, Fréchet distance and recall."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.6), facecolor="white")
    FigureCanvasSVG(figure)
    kinds = list(dict.fromkeys(row.name.partition(",")[0] for row in rows))
    measures: dict[str, Callable[[Row], float]] = {
        "difference to full guidance": lambda row: row.difference,
        "right digits, %": lambda row: 100 * row.digit,
        "Fréchet distance": lambda row: row.quality.frechet_distance,
        "recall": lambda row: row.quality.recall,
    }
    for axes, (title, value) in zip(figure.subplots(2, 2).flat, measures.items(), strict=True):
        for index, kind in enumerate(kinds):
            of = sorted((r for r in rows if r.name.partition(",")[0] == kind), key=lambda r: r.passes)
            style = {"marker": "*" if kind == "tuned" else "o", "markersize": 9 if kind == "tuned" else 4}
            axes.plot([100 * r.passes for r in of], list(map(value, of)), color=f"C{index}", label=kind, lw=1, **style)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("passes, % of full guidance", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        if title.startswith("difference"):
            axes.set_ylim(0, 0.15)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(f"The demo's model, {settings['steps']} steps, {settings['samples']} samples a point", fontsize=10)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


@app.command()
def main(
    scale: Annotated[float, typer.Option(help="Guidance scale.")] = 3.0,
    samples: Annotated[int, typer.Option(min=20, help="Samples of each guidance.")] = 1000,
    steps: Annotated[int, typer.Option(min=4, help="Steps of DDIM.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 100,
    seed: Annotated[int, typer.Option(help="Of noise and labels.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the JSON and Markdown.")] = RESULTS,
) -> None:
    """Sample the demo's model with fewer and fewer unconditional passes; writes gating-demo.json and .md."""

    def progress(items: list[Any]) -> Any:
        return track(items, "guidances", console=Console(stderr=True))

    settings = {"scale": scale, "samples": samples, "steps": steps, "batch": batch, "seed": seed}
    tuned = tuned_gates(scale, steps, 10, output / "gating-demo-runs.json")
    rows = measure(scale, samples, steps, batch, seed, tuned, progress)
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
    write_atomically(output / "gating-demo.svg", picture(rows, settings))
    Console().print(text, highlight=False, markup=False)


if __name__ == "__main__":
    app()
