"""Who denoises against whom: a model, a scheduler and a guidance, as diffusers runs them and with fastcfg."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcfg import CFG, GuidedDenoiser, NormCap, Rule, State
from fastcfg.samplers import from_scheduler

from .cases import REFERENCE
from .pipelines import CLASSIC, MODULAR, Subject
from .timelines import Timeline

__all__ = ["STEPS", "STOCK", "Bout", "Contest", "Run", "contests"]

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
