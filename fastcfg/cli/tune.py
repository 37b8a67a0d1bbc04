"""``fastcfg tune``: the gate of a model and a run that changes its results least within a budget of passes."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..core.state import State
from ..denoiser import Gate, GuidedDenoiser, Trial, tune
from ..denoiser.planner import run_cost
from ..files import write_atomically
from ..rules import Rule
from .console import Table, console

__all__ = ["Job", "command", "demo_job", "pipeline_job"]

REFERENCES: dict[str, Gate] = {
    **{f"every {k}": Gate(every=k) for k in (2, 3, 4)},
    **{f"until {share:g}": Gate(until=share) for share in (0.75, 0.5, 0.25)},
}
"""Policies that a tuned one is shown beside."""


@dataclass(frozen=True)
class Job:
    """The job of a search.

    Attributes:
        run: a whole run under a gate; None is the full guidance. rule: its guidance.
        deltas: those of the full run's steps, or None where they can't be had.
        name: of everything that the results depend on.
    """

    run: Callable[[Gate | None], Tensor]
    rule: Rule
    num_steps: int
    deltas: Callable[[], list[Tensor] | None]
    name: str


def demo_job(rule: Rule, steps: int, samples: int, seed: int) -> Job:
    """The demo's model and its sampler, with the digits and colours in turn."""
    from ..demo.checkpoint import load_denoiser
    from ..demo.data import NUM_COLOURS, NUM_DIGITS
    from ..demo.diffusion import noise_scheduler
    from ..demo.sample import draw_noise, labels
    from ..samplers import from_scheduler

    if sorted(rule.conditions) != ["cond", "uncond"]:
        raise ValueError(f"rule: the demo is tuned for rules of uncond and cond, got {list(rule.conditions)}")
    model, _ = load_denoiser()
    scheduler = noise_scheduler()
    scheduler.set_timesteps(steps)
    sampler, noise, index = from_scheduler(scheduler), draw_noise(samples, seed), torch.arange(samples)
    digit, colour = index % NUM_DIGITS, (index % NUM_DIGITS + index // NUM_DIGITS) % NUM_COLOURS
    conditions = {"uncond": labels(like=noise), "cond": labels(digit, colour, like=noise)}

    @torch.no_grad()
    def run(gate: Gate | None, deltas: list[Tensor] | None = None) -> Tensor:
        denoiser, state, x = GuidedDenoiser(model, rule, gate=gate), State(), noise
        for step in sampler:
            x = denoiser.step(x, step, conditions=conditions, state=state)
            if deltas is not None:
                deltas.append(state["gate.delta.uncond"])
        return x

    def deltas() -> list[Tensor]:
        found: list[Tensor] = []
        run(Gate(every=1), found)
        return found

    return Job(run, rule, steps, deltas, f"demo {rule.to_json()} {steps} {samples} {seed}")


def pipeline_job(path: str, rule: Rule, prompts: list[str], steps: int, seed: int) -> Job:
    """A classic pipeline of diffusers, by its folder or its name on the hub, over prompts."""
    import diffusers

    from ..adapters.diffusers import guided
    from ..adapters.diffusers.pipelines.table import form_of

    if not prompts:
        raise ValueError("prompts: expected one or more, a line each")
    pipe = diffusers.DiffusionPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    form = form_of(pipe)

    def run(gate: Gate | None) -> Tensor:
        found = []
        for number, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed + number)
            with guided(pipe, rule, gate=gate, check=number == 0):
                result = pipe(
                    prompt=prompt, num_inference_steps=steps, generator=generator, output_type="latent",
                    return_dict=False, **{form.switch: 2.0},
                )  # fmt: skip
            found.append(torch.as_tensor(result[0]))
        return torch.cat(found)

    text = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
    return Job(run, rule, steps, lambda: None, f"{path} {rule.to_json()} {steps} {seed} {text}")


def metric_of(name: str) -> Callable[[Tensor], float] | None:
    """The function that ``MODULE:FUNCTION`` names, or None for an empty name."""
    if not name:
        return None
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(module), function, None) if function else None
    if not callable(found):
        raise ValueError(f"metric: expected MODULE:FUNCTION, got {name!r}")
    return found  # type: ignore[no-any-return]


def command(job: Job, output: Path, budget: float, metric: str = "") -> Trial:
    """Tune a job, print what was found, and write ``policy.json``, ``tuning.json`` and ``tuning.png`` to a folder.

    Args:
        budget: as for :func:`fastcfg.denoiser.tune`; metric: ``MODULE:FUNCTION`` of the final latents, or empty.

    Raises:
        ImportError, OSError, TypeError, ValueError: naming what is wrong.
    """
    score, passes = metric_of(metric), len(job.rule.conditions)
    output.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("runs", total=3 * job.num_steps)

        def progress(trial: Trial, best: Trial | None) -> None:
            if best is not None:
                bar.update(task, description=f"runs, error {best.error:.4f}")
            bar.advance(task)
            if bar.tasks[0].completed >= (bar.tasks[0].total or 0):  # How many there will be is not known.
                bar.update(task, total=bar.tasks[0].completed + job.num_steps)

        found = tune(
            job.run, job.num_steps, budget=budget, predictions=passes, deltas=job.deltas(), metric=score,
            log=output / "runs.json", name=f"{job.name} {metric}", progress=progress,
        )  # fmt: skip
        bar.update(task, total=bar.tasks[0].completed)
    full = job.run(None).double()
    rows = [("tuned", found.best), *((name, _reference(job, gate, full, score)) for name, gate in REFERENCES.items())]
    table = Table("policy", "passes", "error", *([] if score is None else [metric]), title=f"budget {budget:g}")
    for name, trial in rows:
        cells = [name, f"{100 * trial.passes:.1f} %", f"{trial.error:.4f}"]
        table.add_row(*cells, *([] if trial.metric is None else [f"{trial.metric:.4g}"]))
    console.print(table)
    found.best.gate.save(output / "policy.json")
    points = [{"policy": name, "passes": t.passes, "error": t.error, "metric": t.metric} for name, t in rows]
    tried = [{"gate": t.gate.to_dict(), "passes": t.passes, "error": t.error, "metric": t.metric} for t in found.trials]
    content = {"job": job.name, "budget": budget, "policies": points, "runs": tried}
    write_atomically(output / "tuning.json", json.dumps(content, indent=1) + "\n")
    write_atomically(output / "tuning.png", picture(rows, found.trials))
    console.print(f"fresh steps: {', '.join(map(str, found.best.gate.steps or ()))}", highlight=False)
    console.print(f"wrote {output / 'policy.json'}: Gate.load(path), in every host", highlight=False, soft_wrap=True)
    return found.best


def _reference(job: Job, gate: Gate, full: Tensor, score: Callable[[Tensor], float] | None) -> Trial:
    result = job.run(gate)
    error = float((result.double() - full).norm() / full.norm())
    cost = run_cost(job.rule, job.num_steps, gate=gate).nfe / (len(job.rule.conditions) * job.num_steps)
    return Trial(gate, cost, error, None if score is None else float(score(result)))


def picture(rows: list[tuple[str, Trial]], trials: list[Trial]) -> bytes:
    """A PNG of passes against error: what was run, the references, and the best."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    axes.scatter([100 * t.passes for t in trials], [t.error for t in trials], s=6, color="#bbbbbb", label="runs")
    for (name, trial), marker in zip(rows, "*ooosss", strict=True):
        axes.scatter(
            100 * trial.passes, trial.error, marker=marker, s=90 if marker == "*" else 28, label=name, zorder=3
        )
    axes.set(xlabel="passes, % of full guidance", ylabel="|x - full| / |full|", yscale="log")
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.25)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
