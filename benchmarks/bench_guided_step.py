"""Whole guided steps: passes batched, one by one, skipped.

Small denoisers of diffusers' architectures with random weights run a few steps of a flow sampler. All contestants take
turns in one process; what differs is how many passes they run and how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastcfg import CFG, GatedCFG, GuidedDenoiser, Rule, Sampler, State, schedules

from .environment import Environment
from .export_models import ARCHITECTURES
from .peers import Call
from .race import HostTimer, Timer, summarise, take_turns, wait_for
from .records import Record, markdown_table, terminal_table
from .sections import Measured, Plan, Progress, wanted

__all__ = ["Row", "Setting", "contestants", "measure", "section", "settings"]

KIND = "guided-step"
STEPS, SCALE = 8, 5.0
SAMPLER = Sampler.flow(
    [1 - k / STEPS for k in range(STEPS + 1)], timesteps=[1000 * (1 - k / STEPS) for k in range(STEPS)]
)
REFERENCE = "batched"


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


def settings(device: str = "cpu") -> Iterator[Setting]:
    """The models: a U-Net, two image transformers, a video transformer."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    grid = torch.stack([torch.zeros(256), torch.arange(256.0) // 16, torch.arange(256.0) % 16], 1)
    grid, text = grid.to(device), torch.zeros(8, 3, device=device)
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
            module = ARCHITECTURES[name]().eval().requires_grad_(False).to(device)

        def model(x: Tensor, t: Any, module: torch.nn.Module = module, first: str = name, **kwargs: Any) -> Any:
            when = torch.full(x.shape[:1], float(t), device=x.device)
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
        passes: of the model in a run, out of ``full``; ratio: its time ÷ batched, the median over rounds; its
            percentiles likewise.
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
    ratio_p20: float
    ratio_p80: float


def measure(setting: Setting, timer: Timer, rounds: int) -> list[Row]:
    """Every contestant with one model."""
    racing = contestants(setting)
    calls = {name: call for name, (call, _) in racing.items()}
    (times,) = take_turns(calls, timer, rounds=rounds, warmup=1).values()
    return [
        Row(
            setting.name, setting.size, name, racing[name][1], 2 * STEPS, found.p20 / STEPS, found.p50 / STEPS,
            found.p80 / STEPS, found.ratio, found.rounds, found.ratio_p20, found.ratio_p80,
        )
        for name, found in summarise(times, REFERENCE).items()
    ]  # fmt: skip


HEADER = ("model", "latent", "contestant", "passes", "ms a step", "÷ batched")


def _line(row: Row) -> tuple[str, ...]:
    passes = f"{row.passes}/{row.full}"
    return row.model, row.shape, row.contestant, passes, f"{row.p50:.2f}", f"{row.ratio:.2f}"


def to_markdown(rows: Sequence[Row], environment: Environment) -> str:
    """The environment and all rows."""
    parts = [
        f"# A guided step on {environment.label}",
        environment.origin,
        f"Small models of diffusers with random weights, {STEPS} steps of a flow sampler, CFG. Contestants take turns "
        "in one process; milliseconds are medians of a step, and a ratio is the median over rounds of the contestant's "
        "time ÷ batched's. *By hand* is the loop of a pipeline: concatenate, call, split, combine, step.",
        markdown_table(HEADER, map(_line, rows)),
    ]
    return "\n\n".join(parts) + "\n"


def section(plan: Plan, progress: Progress) -> Measured:
    """The section of ``fastcfg bench``."""
    timer = HostTimer(wait_for(plan.device))
    rows: list[Row] = []
    with torch.no_grad():
        for setting in settings(plan.device):
            if wanted(plan, KIND, setting.name):
                progress(setting.name)
                rows += measure(setting, timer, plan.rounds_of(30 if plan.full else 5))
    environment = Environment.of(plan.device)
    text = to_markdown(rows, environment)
    more = {"schema": 1, "unit": "ms a step"}
    record = Record(KIND, f"{KIND}-{environment.name}", environment, [asdict(row) for row in rows], text, more)
    return Measured(record, [terminal_table(environment.label, HEADER, map(_line, rows))])
