"""Whole denoising runs: diffusers' own pipelines, schedulers and guiders as they are, and with fastcfg plugged in.

Both run the same passes of the same model from the same noise, in turns in one process. The last latents are compared
first: they may differ as far as roundings do, which the network amplifies, so the measure is a control, the stock run
from noise that is one unit in the last place larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from math import inf
from statistics import median
from typing import Any, NamedTuple

import torch
from fastcfg_export.verification import ALLOWED
from torch import Tensor

from fastcfg import CFG, GuidedDenoiser, NormCap, Rule, State
from fastcfg.samplers import from_scheduler

from .cases import REFERENCE
from .environment import Environment
from .peers import Call
from .pipelines import CLASSIC, MODULAR, Subject
from .race import Reading, summarise, take_turns, wait_for
from .records import Record, markdown_table, terminal_table
from .sections import Measured, Plan, Progress, wanted
from .timelines import FUSED, GUIDANCE, NEXT, PASSES, SCHEDULER, Timeline

__all__ = ["Bout", "Contest", "contests", "differences", "measure", "section"]

KIND = "samplers"
STOCK = "diffusers"
STEPS, SCALE, PHI = 8, 5.0, 0.7
IMAGES = 4
Run = Callable[[Tensor, Timeline], Tensor]


class Bout(NamedTuple):
    """Starting noise, and by provider a run from it."""

    noise: Tensor
    runs: Mapping[str, Run]


@dataclass(frozen=True)
class Contest:
    """A model, a scheduler and a guidance; ``how`` fastcfg is plugged in, and ``make`` sets both up on a device."""

    model: str
    scheduler: str
    rule: str
    how: str
    make: Callable[[str], Bout]


def _demo(scheduler: str, rescale: float) -> Callable[[str], Bout]:
    """The demo's denoiser in a loop as pipelines have it, and in :meth:`.GuidedDenoiser.step`."""

    def make(device: str) -> Bout:
        import diffusers

        from fastcfg.demo.checkpoint import load_denoiser
        from fastcfg.demo.data import NUM_COLOURS
        from fastcfg.demo.diffusion import noise_scheduler
        from fastcfg.demo.sample import draw_noise, labels
        from fastcfg.demo.stock import stock_guidance

        model, _ = load_denoiser(device=device)
        noise = draw_noise(IMAGES, 0, device)
        digits = torch.arange(IMAGES, device=device)
        uncond, cond = labels(like=noise), labels(digits, digits % NUM_COLOURS, like=noise)
        table = getattr(diffusers, f"{scheduler}Scheduler").from_config(noise_scheduler().config)
        both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}
        combine = stock_guidance(SCALE, rescale)

        def stock(x: Tensor, timeline: Timeline) -> Tensor:
            table.set_timesteps(STEPS)
            denoise, step = timeline.passing(model), timeline.stepping(table.step)
            for t in table.timesteps:
                inputs = table.scale_model_input(torch.cat([x, x]), t)
                x = step(combine(*denoise(inputs, t, **both).chunk(2)), t, x, return_dict=False)[0]
            return x

        def fused(x: Tensor, timeline: Timeline) -> Tensor:
            table.set_timesteps(STEPS)
            denoiser, state = GuidedDenoiser(timeline.passing(model), CFG(SCALE, rescale)), State()
            for step in from_scheduler(table):
                x = denoiser.step(x, step, conditions={"uncond": uncond, "cond": cond}, state=state)
                timeline.stepped()
            return x

        return Bout(noise, {REFERENCE: fused, STOCK: stock})

    return make


def _pipeline(subject: Subject, arguments: Mapping[str, Any], plug: Callable[[Any], Any]) -> Callable[[str], Bout]:
    """A pipeline as it is, and in the context that ``plug`` makes of it."""

    def make(device: str) -> Bout:
        pipe = subject.make().to(device)
        noise = torch.randn(subject.shape, generator=torch.Generator().manual_seed(0)).to(device)
        given = {"num_inference_steps": STEPS, **arguments}

        def runner(context: Callable[[Any], Any]) -> Run:
            def run(x: Tensor, timeline: Timeline) -> Tensor:
                with ExitStack() as stack:
                    stack.enter_context(timeline.watching(getattr(pipe, subject.denoiser), pipe.scheduler))
                    stack.enter_context(context(pipe))
                    return subject.call(pipe, x, given)

            return run

        return Bout(noise, {REFERENCE: runner(plug), STOCK: runner(nullcontext)})

    return make


def _classic(name: str, arguments: Mapping[str, Any], rule: Rule) -> Callable[[str], Bout]:
    def plug(pipe: Any) -> Any:
        from fastcfg.adapters.diffusers import guided

        return guided(pipe, rule)

    return _pipeline(CLASSIC[name], arguments, plug)


def _modular(name: str, guider: str, **config: Any) -> Callable[[str], Bout]:
    subject = MODULAR[name]

    def build() -> Any:
        import diffusers.guiders

        pipe = subject.make()
        pipe.update_components(guider=getattr(diffusers.guiders, guider)(guidance_scale=SCALE, **config))
        return pipe

    def plug(pipe: Any) -> Any:
        from fastcfg.adapters.diffusers import fuse

        return fuse(pipe)

    with_guider = Subject(build, subject.call, subject.denoiser, subject.shape, subject.scheduler)
    return _pipeline(with_guider, {}, plug)


def contests(full: bool) -> Iterator[Contest]:
    """All contests; a quick run leaves out larger pictures and further guiders."""
    rescaled, scale = f"CFG + rescale {PHI:g}", {"guidance_scale": SCALE}
    for scheduler in ("DDIM", "DPMSolverMultistep"):
        for name, phi in (("CFG", 0.0), (rescaled, PHI)):
            if full or (scheduler == "DDIM") == (phi > 0):
                yield Contest("demo", scheduler, name, "GuidedDenoiser.step", _demo(scheduler, phi))
    for model in ("SDXL", "SDXL, 512 px") if full else ("SDXL",):
        make = _classic(model, {**scale, "guidance_rescale": PHI}, CFG(SCALE, PHI))
        yield Contest(model, CLASSIC[model].scheduler, rescaled, "guided(pipe, rule)", make)
    for model, arguments in (("Flux", {"true_cfg_scale": SCALE}), ("Wan", scale)):
        make = _classic(model, arguments, CFG(SCALE))
        yield Contest(model, CLASSIC[model].scheduler, "CFG", "guided(pipe, rule)", make)
    if full:
        make = _classic("QwenImage", {"true_cfg_scale": SCALE}, NormCap(CFG(SCALE), mode="full", over="token"))
        yield Contest("QwenImage", CLASSIC["QwenImage"].scheduler, "CFG + norm", "guided(pipe, rule)", make)
    guiders: dict[str, tuple[str, dict[str, Any]]] = {
        "APG": ("AdaptiveProjectedGuidance", {"adaptive_projected_guidance_momentum": -0.5, "eta": 0.0}),
        "CFG-Zero*": ("ClassifierFreeZeroStarGuidance", {}),
        "CFG": ("ClassifierFreeGuidance", {}),
        "TCFG": ("TangentialClassifierFreeGuidance", {}),
    }
    for rule, (guider, config) in guiders.items() if full else [("APG", guiders["APG"])]:
        yield Contest("Wan, modular", MODULAR["Wan"].scheduler, rule, "fuse(pipe)", _modular("Wan", guider, **config))


def differences(bout: Bout) -> tuple[float, float]:
    """How far fastcfg's last latent is from the stock one, and the bound: shares of the largest stock value.

    Raises:
        RuntimeError: if the difference is above the bound.
    """
    stock, ours = (bout.runs[name](bout.noise, Timeline()) for name in (STOCK, REFERENCE))
    size = stock.abs().max()
    ulp_up = torch.nextafter(bout.noise, bout.noise.sign() * inf)
    control = (bout.runs[STOCK](ulp_up, Timeline()) - stock).abs().max() / size
    error = float((ours - stock).abs().max() / size)
    bound = ALLOWED * max(float(control), torch.finfo(stock.dtype).eps)
    if not error <= bound:  # Written so that NaN fails.
        raise RuntimeError(f"the last latent differs by {error:.2g} of its largest value; the bound is {bound:.2g}")
    return error, bound


class _Timed:
    """A run that notes where it spent its time."""

    def __init__(self, run: Run, noise: Tensor, wait: Callable[[], None]) -> None:
        self._run, self._noise, self._wait = run, noise, wait
        self.timeline = Timeline(wait)

    def __call__(self) -> Tensor:
        self.timeline = Timeline(self._wait)
        return self._run(self._noise, self.timeline)


class _TimelineTimer:
    """Milliseconds of a step, as ``step``, of what is ``outside`` its passes, and of its parts."""

    def measure(self, call: Call) -> Reading:
        call()
        timeline: Timeline = call.timeline  # type: ignore[attr-defined]
        parts = timeline.parts()
        outside = sum(ms for name, ms in parts.items() if name != PASSES)
        return lambda: {"step": timeline.ms_per_step, "outside": outside, **parts}


def measure(contest: Contest, device: str, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows and the timelines of a contest.

    Raises:
        RuntimeError: as :func:`differences`.
    """
    try:
        bout = contest.make(device)
        error, bound = differences(bout)
    except RuntimeError as wrong:
        raise RuntimeError(f"{contest.model}, {contest.scheduler}, {contest.rule}: {wrong}") from None
    wait = wait_for(device)
    calls = {name: _Timed(run, bout.noise, wait) for name, run in bout.runs.items()}
    times = take_turns(calls, _TimelineTimer(), rounds=rounds, warmup=1)
    summaries, outside = summarise(times["step"], REFERENCE), summarise(times["outside"], REFERENCE)
    what = {"model": contest.model, "scheduler": contest.scheduler, "rule": contest.rule}
    rows, timelines = [], []
    for name, summary in summaries.items():
        parts = {
            part: median(times[part][name])
            for part in (NEXT, PASSES, GUIDANCE, SCHEDULER, FUSED)
            if name in times.get(part, {})
        }
        guidance = parts[FUSED if FUSED in parts else GUIDANCE]
        found = asdict(summary)
        rows.append(
            {
                **what,
                "provider": name,
                "how": contest.how if name == REFERENCE else "as it is",
                "shape": list(bout.noise.shape),
                "dtype": str(bout.noise.dtype).removeprefix("torch."),
                "steps": STEPS,
                "ms_per_step": found.pop("p50"),
                **found,
                "guidance_ms": guidance,
                "guidance_share": guidance / summary.p50,
                "outside_ms": outside[name].p50,
                "outside_ratio": outside[name].ratio,
                "outside_ratio_p20": outside[name].ratio_p20,
                "outside_ratio_p80": outside[name].ratio_p80,
                "error": error if name == REFERENCE else 0.0,
                "bound": bound,
            }
        )
        timelines.append({**what, "provider": name, "parts": [{"name": n, "ms": ms} for n, ms in parts.items()]})
    return rows, timelines


HEADER = (
    "model", "noise", "scheduler", "rule", "provider", "how", "ms a step", "÷ fastcfg", "outside the passes, ms",
    "÷ fastcfg's", "guidance, ms", "% of a step", "difference", "bound",
)  # fmt: skip


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["model"], "×".join(map(str, row["shape"])), row["scheduler"], row["rule"], row["provider"], row["how"],
        f"{row['ms_per_step']:.2f}", f"{row['ratio']:.2f}", f"{row['outside_ms']:.3f}", f"{row['outside_ratio']:.2f}",
        f"{row['guidance_ms']:.3f}", f"{100 * row['guidance_share']:.1f}", f"{row['error']:.1e}",
        f"{row['bound']:.1e}",
    )  # fmt: skip


def to_markdown(rows: Sequence[Mapping[str, Any]], environment: Environment) -> str:
    """The environment and all rows."""
    parts = [
        f"# Whole denoising runs on {environment.label}",
        environment.origin,
        f"diffusers' pipelines and loops of {STEPS} steps as they are, and with fastcfg plugged in; small denoisers "
        "with random weights, and the demo's. Both take turns in one process; milliseconds are medians over rounds of "
        "the median step (the first is left out), and *÷ fastcfg* is the median over rounds of the ratio: above 1 "
        "fastcfg is faster. *Guidance* lasts from the last pass's return to the scheduler's step; of "
        "`GuidedDenoiser.step`, which takes guidance, scheduler and the next model input in one, it is all three. "
        "*Difference* is of the last latents, as a share of the largest value; its bound is "
        f"{ALLOWED:g} times what the noise one unit in the last place up changes in the stock run.",
        "The passes are the same: where they take nearly all of a step, nothing is gained.",
        markdown_table(HEADER, map(_line, rows)),
    ]
    return "\n\n".join(parts) + "\n"


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without what it says of every guider that is put into a pipeline."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def section(plan: Plan, progress: Progress) -> Measured:
    """The section of ``fastcfg bench``."""
    chosen = [c for c in contests(plan.all_sizes) if wanted(plan, KIND, c.model, c.scheduler, c.rule)]
    rows: list[dict[str, Any]] = []
    timelines: list[dict[str, Any]] = []
    with torch.no_grad(), _quiet_diffusers():
        for number, contest in enumerate(chosen, 1):
            progress(f"{number}/{len(chosen)} {contest.model}, {contest.scheduler}, {contest.rule}")
            found = measure(contest, plan.device, plan.rounds_of(30 if plan.full else 6))
            rows += found[0]
            timelines += found[1]
    environment = Environment.of(plan.device)
    text = to_markdown(rows, environment)
    more = {"schema": 1, "unit": "ms", "timelines": timelines}
    record = Record(KIND, f"{KIND}-{environment.name}", environment, rows, text, more)
    shown = [place for place, name in enumerate(HEADER) if name not in ("noise", "how", "% of a step")]
    header, *lines = ([line[place] for place in shown] for line in (HEADER, *map(_line, rows)))
    return Measured(record, [terminal_table(environment.label, header, lines)])
