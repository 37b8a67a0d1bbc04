"""``python -m benchmarks.bench_guided_step``: whole guided steps, passes batched, one by one, skipped.

Small denoisers of diffusers' architectures with random weights run a few steps of a flow sampler. All contestants take
turns in one process; what differs is how many passes they run and how.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fastcfg import CFG, GatedCFG, GuidedDenoiser, Rule, Sampler, State, schedules
from fastcfg.files import write_atomically

from .export_models import ARCHITECTURES
from .peers import Call
from .race import HostTimer, summarise, take_turns
from .report import Environment

__all__ = ["Row", "Setting", "contestants", "settings"]

RESULTS = Path(__file__).parent / "results"
STEPS, SCALE = 8, 5.0
SAMPLER = Sampler.flow(
    [1 - k / STEPS for k in range(STEPS + 1)], timesteps=[1000 * (1 - k / STEPS) for k in range(STEPS)]
)
REFERENCE = "batched"
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Setting:
    """A model with its inputs.

    Attributes:
        model: ``model(x, t, **condition)``; x: the starting noise; conditions: of ``uncond`` and ``cond``.
    """

    name: str
    model: Callable[..., Any]
    x: Tensor
    conditions: Mapping[str, Mapping[str, Tensor]]

    @property
    def size(self) -> str:
        return "×".join(map(str, self.x.shape))


def settings() -> Iterator[Setting]:
    """The models: a U-Net, two image transformers, a video transformer."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    grid = torch.stack([torch.zeros(256), torch.arange(256.0) // 16, torch.arange(256.0) % 16], 1)
    text = torch.zeros(8, 3)
    inputs: dict[str, tuple[Tensor, Callable[[], dict[str, Tensor]]]] = {
        "unet": (draw(1, 4, 16, 16), lambda: {"encoder_hidden_states": draw(1, 8, 16)}),
        "sd3": (
            draw(1, 4, 32, 32),
            lambda: {"encoder_hidden_states": draw(1, 8, 16), "pooled_projections": draw(1, 16)},
        ),
        "flux": (
            draw(1, 256, 16),
            lambda: {
                "encoder_hidden_states": draw(1, 8, 16),
                "pooled_projections": draw(1, 16),
                "img_ids": grid,
                "txt_ids": text,
            },
        ),
        "wan": (draw(1, 4, 3, 16, 16), lambda: {"encoder_hidden_states": draw(1, 8, 16)}),
    }
    for name, (x, condition) in inputs.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = ARCHITECTURES[name]().eval().requires_grad_(False)

        def model(x: Tensor, t: Any, module: torch.nn.Module = module, first: str = name, **kwargs: Any) -> Any:
            when = torch.full(x.shape[:1], float(t))
            if first == "unet":
                return module(x, when, **kwargs)
            return module(hidden_states=x, timestep=when, **kwargs)

        yield Setting(name, model, x, {"uncond": condition(), "cond": condition()})


def _ours(setting: Setting, rule: Rule, mode: Any) -> tuple[Call, Callable[[], int]]:
    denoiser = GuidedDenoiser(setting.model, rule, mode=mode)

    def run() -> Tensor:
        x, state = setting.x, State()
        for step in SAMPLER:
            x = denoiser.step(x, step, conditions=setting.conditions, state=state)
        return x

    def passes() -> int:
        denoiser.reset()
        run()
        return denoiser.passes_run

    return run, passes


def _by_hand(setting: Setting) -> Call:
    """A loop as pipelines have it: concatenate, call, split, combine, step."""
    uncond, cond = setting.conditions["uncond"], setting.conditions["cond"]
    shared = ("img_ids", "txt_ids")
    both = {k: cond[k] if k in shared else torch.cat([uncond[k], cond[k]]) for k in cond}

    def run() -> Tensor:
        x = setting.x
        for step in SAMPLER:
            result = setting.model(torch.cat([x, x]), step.timestep, **both)
            u, c = (result.sample if hasattr(result, "sample") else result[0]).chunk(2)
            x = x - (u + SCALE * (c - u)) / STEPS
        return x

    return run


def contestants(setting: Setting) -> dict[str, tuple[Call, int]]:
    """A call of a whole run and its passes, by name; ``batched`` is what ratios are taken to."""
    rules: dict[str, tuple[Rule, Any]] = {
        "batched": (CFG(SCALE), "batched"),
        "sequential": (CFG(SCALE), "sequential"),
        "auto": (CFG(SCALE), "auto"),
        "interval, middle half": (CFG(schedules.Interval(SCALE, 0.25, 0.75)), "batched"),
        "gated, every 2": (GatedCFG(SCALE, every=2), "batched"),
        "gated, every 4": (GatedCFG(SCALE, every=4), "batched"),
        "no guidance": (CFG(1.0), "batched"),
    }
    made = {name: _ours(setting, *rule) for name, rule in rules.items()}
    found = {name: (run, passes()) for name, (run, passes) in made.items()}
    return {**found, "by hand": (_by_hand(setting), 2 * STEPS)}


@dataclass(frozen=True)
class Row:
    """One contestant with one model; times in milliseconds a step.

    Attributes:
        passes: of the model in a run, out of ``full``; ratio: its time ÷ batched, the median over rounds.
    """

    model: str
    shape: str
    contestant: str
    passes: int
    full: int
    p20: float
    p50: float
    p80: float
    ratio: float
    rounds: int


def measure(rounds: int, progress: Callable[[Sequence[Setting]], Any]) -> list[Row]:
    """All rows."""
    rows = []
    with torch.no_grad():
        for setting in progress(list(settings())):
            racing = contestants(setting)
            times = take_turns({n: call for n, (call, _) in racing.items()}, HostTimer(), rounds=rounds)["time"]
            for name, summary in summarise(times, REFERENCE).items():
                spread = (summary.p20 / STEPS, summary.p50 / STEPS, summary.p80 / STEPS)
                rows.append(
                    Row(
                        setting.name, setting.size, name, racing[name][1], 2 * STEPS, *spread, summary.ratio,
                        summary.rounds,
                    )
                )  # fmt: skip
    return rows


def to_markdown(rows: Sequence[Row], environment: Environment) -> str:
    """The environment and all rows."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    lines = [
        f"# A guided step on {environment.hardware} ({environment.device}, threads: {environment.threads})",
        "",
        f"Commit {environment.commit}; {versions}.",
        "",
        f"Small models of diffusers with random weights, {STEPS} steps of a flow sampler, CFG. Contestants take turns "
        "in one process; milliseconds are medians of a step, and a ratio is the median over rounds of the contestant's "
        "time ÷ batched's.",
        "",
        "| model | latent | contestant | passes | ms a step | ÷ batched |",
        "|---|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {r.model} | {r.shape} | {r.contestant} | {r.passes}/{r.full} | {r.p50:.2f} | {r.ratio:.2f} |" for r in rows
    ]
    return "\n".join(lines) + "\n"


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which each contestant runs once.")] = 30,
    output: Annotated[Path, typer.Option(help="Folder for the JSON and Markdown.")] = RESULTS,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
) -> None:
    """Time whole guided steps on the CPU; writes guided-step-cpu-Nthreads.json and .md."""
    if threads:
        torch.set_num_threads(threads)

    def progress(items: Sequence[Setting]) -> Any:
        return track(items, "models", console=Console(stderr=True))

    rows = measure(rounds, progress)
    environment = Environment.of("cpu")
    text = to_markdown(rows, environment)
    data = {
        "schema": 1,
        "unit": "ms a step",
        "environment": asdict(environment),
        "rows": [asdict(row) for row in rows],
    }
    stem = f"guided-step-{environment.name}"
    write_atomically(output / f"{stem}.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    write_atomically(output / f"{stem}.md", text)
    Console(width=160).print(text, highlight=False, markup=False)


if __name__ == "__main__":
    app()
