"""``python -m benchmarks.steps``: a whole sampler step, from the predictions to the next batch of model inputs.

fastcfg's one pass beside what a pipeline of diffusers does: the guidance, the scheduler's step, the scaling of the
next model input, and its copies for the passes. Operations and bytes are counted, times are raced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastcfg import CFG, Rule, State, guide_step
from fastcfg.samplers import from_scheduler

from . import peers
from .cases import DTYPES, REFERENCE, SHAPES
from .counting import Counted, count
from .race import CudaTimer, HostTimer, Timer, race, summarise

__all__ = ["RULES", "SCHEDULERS", "StepCase", "contestants", "step_cases"]

_SCALE, _PHI, _STEPS, _INDEX = 7.5, 0.7, 20, 9
app = typer.Typer(add_completion=False)


def _scheduler(name: str) -> Any:
    import diffusers

    options = {"clip_sample": False} if name == "DDIMScheduler" else {}
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(_STEPS)
    return scheduler


SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler",
    "EulerDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
)
RULES: dict[str, tuple[Rule, Callable[[Tensor, Tensor], Tensor]]] = {
    "CFG": (CFG(_SCALE), lambda u, c: peers.cfg(u, c, scale=_SCALE)),
    "CFG + rescale 0.7": (CFG(_SCALE, rescale=_PHI), lambda u, c: peers.cfg_rescale(u, c, scale=_SCALE, phi=_PHI)),
}


@dataclass(frozen=True)
class StepCase:
    """One step in the middle of a run of 20."""

    rule: str
    scheduler: str
    shape: tuple[int, ...]
    dtype_name: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    def __str__(self) -> str:
        name = self.scheduler.replace("Scheduler", "").replace("Discrete", "")
        return f"{self.rule}, {name}, {'×'.join(map(str, self.shape))} {self.dtype_name}"


def step_cases(device: str) -> Iterator[StepCase]:
    """All cases of a device; float16 on CUDA only."""
    for rule in RULES:
        for scheduler in SCHEDULERS:
            for shape in SHAPES:
                for name in DTYPES:
                    if name != "fp16" or device == "cuda":
                        yield StepCase(rule, scheduler, shape, name)


def contestants(case: StepCase, device: str) -> tuple[dict[str, peers.Call], Tensor, int]:
    """The calls by name, fastcfg first; the next latent in float64; and the bytes that one pass has to move.

    A call takes the same step again and again; what it keeps for the next step is put back first.
    """
    generator = torch.Generator().manual_seed(0)
    uncond, delta, x, previous = (torch.randn(case.shape, generator=generator) for _ in range(4))
    cond = (uncond + 0.3 * delta).to(device, case.dtype)
    uncond, x, previous = (t.to(device, case.dtype) for t in (uncond, x, previous))
    rule, formula = RULES[case.rule]
    scheduler = _scheduler(case.scheduler)
    step = from_scheduler(scheduler).steps[_INDEX]
    batch = torch.empty(2 * case.shape[0], *case.shape[1:], device=device, dtype=case.dtype)
    state = State()
    history = previous.float()

    def fused() -> Tensor:
        if step.keeps_x0:
            state["previous_x0"] = history
        return guide_step(rule, step, x=x, state=state, uncond=uncond, cond=cond, batch_out=batch)

    def pipeline() -> Tensor:
        """Return what ``StableDiffusionPipeline`` does after the model, and before it at the next step."""
        if case.scheduler != "DDIMScheduler":
            scheduler._step_index = _INDEX
        scheduler.is_scale_input_called = True
        if step.keeps_x0:
            scheduler.model_outputs, scheduler.lower_order_nums = [None, previous], 2
        after: Tensor = scheduler.step(formula(uncond, cond), scheduler.timesteps[_INDEX], x, return_dict=False)[0]
        inputs = torch.cat([after] * 2)
        if hasattr(scheduler, "scale_model_input"):
            inputs = scheduler.scale_model_input(inputs, scheduler.timesteps[_INDEX + 1])
        batch.copy_(inputs)
        return after

    guided = formula(uncond.double(), cond.double())
    exact = step.prediction * guided + step.x * x.double() + (step.previous_x0 or 0.0) * previous.double()
    tensors = [uncond, cond, x, x, batch] + [history, history] * step.keeps_x0  # x and what follows it; history too.
    needed = sum(t.numel() * t.element_size() for t in tensors)
    return {REFERENCE: fused, "diffusers": pipeline}, exact, needed


@app.command()
def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each case.")] = 50,
    largest: Annotated[int, typer.Option(min=0, max=len(SHAPES) - 1, help="Largest shape, by number.")] = 2,
) -> None:
    """Race a whole sampler step against diffusers', each checked against float64 first."""
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here", param_hint="--device")
    timer: Timer = CudaTimer() if device == "cuda" else HostTimer()
    table = Table("case", "who", "operations", "passes", "MB", "ms (p50)", "× fastcfg")
    console = Console(width=None if Console().is_terminal else 160)
    with torch.no_grad():
        for case in step_cases(device):
            if case.shape not in SHAPES[: largest + 1]:
                continue
            calls, exact, needed = contestants(case, device)
            times, _, refused = race(calls, exact, case.dtype, timer, rounds=rounds)
            timed = summarise(times["time" if device == "cpu" else "device"], REFERENCE)
            for name, call in calls.items():
                if name in refused:
                    console.print(f"left out: {case}: {name}: {refused[name]}", highlight=False, markup=False)
                    continue
                found, row = count(call, exact.numel()), timed[name]
                if name == REFERENCE:  # Its own kernel: one pass, or one after another over what is in the cache.
                    found = Counted(found.operations, found.passes + 1, found.traffic + needed)
                table.add_row(
                    str(case), name, str(found.operations), str(found.passes), f"{found.traffic / 1e6:.2f}",
                    f"{row.p50:.3f}", f"{row.ratio:.1f}",
                )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    app()
