"""The nodes that change what a rule gives, when it acts, or add a pass to it; they come after any node of a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...denoiser import Gate
from ...rules import Clamp, NormCap, Rescale, Rule
from ...schedules import Cosine, Exponential, Ramp, Schedule
from ...validate import check_choice
from .hooks import attach, recipe_of
from .perturbed import Patch, attach_perturbed, layers, skip_attention, skip_layer
from .recipe import Modifier
from .space import Space, check_space
from .spec import MODEL, Node, choice, number, percent, space, text, whole

__all__ = ["MODIFIER_NODES"]


def _changed(model: Any, change: Callable[[Rule], Rule], space: Space | None, *, apart: bool = False) -> Any:
    check_space(space)
    recipe = recipe_of(model)
    modifier = Modifier(change, space, apart)
    return attach(model, replace(recipe, modifiers=(*recipe.modifiers, modifier)))


def _levels(model: Any, start_percent: float, end_percent: float) -> tuple[float, float]:
    """The noise levels (low, high) between two shares of the schedule.

    Raises:
        ValueError: if the first is not below the second.
    """
    if not start_percent < end_percent:
        raise ValueError(f"start_percent, end_percent: expected start below end, got {start_percent}, {end_percent}")
    sampling = model.get_model_object("model_sampling")
    return float(sampling.percent_to_sigma(end_percent)), float(sampling.percent_to_sigma(start_percent))


def _rescale(model: Any, multiplier: float, norm: str, space: Space) -> Any:
    return _changed(model, lambda rule: Rescale(rule, multiplier, norm), space)  # type: ignore[arg-type]


def _norm_cap(model: Any, cap: float, mode: str, over: str, space: Space) -> Any:
    def change(rule: Rule) -> Rule:
        return NormCap(rule, cap, mode, over=over, eps=1e-8)  # type: ignore[arg-type]

    # Norms by pixel can't share a launch with a rule's sums over samples.
    return _changed(model, change, space, apart=over != "sample")


def _clamp(model: Any, deviations: float, space: Space) -> Any:
    return _changed(model, lambda rule: Clamp(rule, deviations), space)


_CURVES: dict[str, Callable[[float, float], Schedule]] = {
    "linear": Ramp,
    "cosine": Cosine,
    "exponential": Exponential,
}


def _schedule(model: Any, curve: str, start: float, end: float) -> Any:
    check_choice("curve", curve, tuple(_CURVES))
    return attach(model, replace(recipe_of(model), schedule=_CURVES[curve](start, end)))


def _interval(model: Any, start_percent: float, end_percent: float) -> Any:
    return attach(model, replace(recipe_of(model), window=_levels(model, start_percent, end_percent)))


def _gate(
    model: Any, every: int, until: float, drift: float, stop: float, cosine: float, policy: str
) -> Any:  # fmt: skip
    if policy.strip():
        gate = Gate.from_json(policy)
    else:
        gate = Gate(
            every=every or None, until=until if until < 1 else None, drift=drift or None, stop=stop or None,
            cosine=cosine if cosine < 1 else None,
        )  # fmt: skip
    return attach(model, replace(recipe_of(model), gate=gate))


def _perturbed_attention(model: Any, scale: float, block: str, number: int, rescale: float) -> Any:
    check_choice("block", block, ("input", "middle", "output"))
    return attach_perturbed(model, [Patch(skip_attention, "attn1", block, number)], scale, phi=rescale)


def _skip_layers(
    model: Any, double_layers: str, single_layers: str, scale: float, rescale: float,
    start_percent: float, end_percent: float,
) -> Any:  # fmt: skip
    patches = [Patch(skip_layer, "dit", "double_block", layer) for layer in layers(double_layers)]
    patches += [Patch(skip_layer, "dit", "single_block", layer) for layer in layers(single_layers)]
    return attach_perturbed(model, patches, scale, phi=rescale, window=_levels(model, start_percent, end_percent))


MODIFIER_NODES = (
    Node(
        "FastcfgRescale", "Rescale guidance (fastcfg)",
        "Scales the guided result towards the spread of cond (2305.08891), per sample; after any guidance node.",
        (
            MODEL,
            number("multiplier", 0.7, 0.0, 1.0, 0.01, "0 is off, 1 gives it exactly the spread of cond."),
            choice("norm", "std", ("std", "l2"), "The standard deviation, or the L2 norm."),
            space("v"),
        ),
        _rescale,
    ),
    Node(
        "FastcfgNormCap", "Norm cap (fastcfg)",
        "Bounds the norm of the guided result by cond's; after any guidance node.",
        (
            MODEL,
            number("cap", 1.0, 0.0, 100.0, 0.01, "Factor on the norm of cond."),
            choice("mode", "cap", ("cap", "full"), "At most that norm, or exactly."),
            choice("over", "sample", ("sample", "channel"), "Norms of whole samples, or over the channels of a pixel."),
            space("x0"),
        ),
        _norm_cap,
    ),
    Node(
        "FastcfgClamp", "Clamp guidance (fastcfg)",
        "Clips the guided result to some standard deviations of cond; after any guidance node.",
        (MODEL, number("deviations", 4.0, 0.1, 100.0, 0.1, "The bound."), space("x0")),
        _clamp,
    ),
    Node(
        "FastcfgSchedule", "CFG schedule (fastcfg)",
        "A scale for each step in the place of the CFG value; where it is 1, one pass is run.",
        (
            MODEL,
            choice("curve", "linear", tuple(_CURVES), "From start to end in equal steps, along a cosine, by factors."),
            number("start", 2.0, 0.0, 100.0, 0.1, "Scale of the first step of this sampler."),
            number("end", 7.0, 0.0, 100.0, 0.1, "Scale of the last step."),
        ),
        _schedule,
    ),
    Node(
        "FastcfgInterval", "Guidance interval (fastcfg)",
        "Guides in a part of the noise schedule alone (2404.07724); one pass is run outside of it.",
        (
            MODEL,
            percent("start_percent", 0.0, "Share of the noise schedule where it begins."),
            percent("end_percent", 1.0, "Share of the noise schedule where it ends."),
        ),
        _interval,
    ),
    Node(
        "FastcfgGate", "Fewer passes (fastcfg)",
        "Leaves passes beside cond out at some steps, and takes cond less their last difference; over any guidance.",
        (
            MODEL,
            whole("every", 2, 0, 100, "Most steps from one fresh pass to the next; 0 sets no limit."),
            percent("until", 1.0, "Share of the steps after which passes are fresh no more; 1 is off."),
            number("drift", 0.0, 0.0, 10.0, 0.01, "How far a difference may have moved, by its norm; 0 is off."),
            number("stop", 0.0, 0.0, 10.0, 0.001, "Length beside cond at which guidance ends; 0 is off."),
            number("cosine", 1.0, -1.0, 1.0, 0.0001, "Cosine of cond and uncond at which guidance ends; 1 is off."),
            text("policy", "", "A policy's JSON, as fastcfg tune writes it, in place of all these.", multiline=True),
        ),
        _gate,
    ),
    Node(
        "FastcfgPerturbedAttention", "Perturbed attention guidance (fastcfg)",
        "Away from a pass without one self-attention (2403.17377), for U-Nets; after any guidance.",
        (
            MODEL,
            number("scale", 3.0, 0.0, 100.0, 0.01, "Scale of the difference."),
            choice("block", "middle", ("input", "middle", "output"), "Part of the U-Net."),
            whole("number", 0, 0, 100, "Block of that part."),
            number("rescale", 0.0, 0.0, 1.0, 0.01, "Share of a rescale to the spread of cond, per sample; 0 is off."),
        ),
        _perturbed_attention,
    ),
    Node(
        "FastcfgSkipLayers", "Skip-layer guidance (fastcfg)",
        "Away from a pass without some transformer blocks; after any guidance.",
        (
            MODEL,
            text("double_layers", "7, 8, 9", "Double-stream blocks to skip."),
            text("single_layers", "7, 8, 9", "Single-stream blocks to skip."),
            number("scale", 3.0, 0.0, 100.0, 0.01, "Scale of the difference."),
            number("rescale", 0.0, 0.0, 1.0, 0.01, "Share of a rescale to the spread of cond, per sample; 0 is off."),
            percent("start_percent", 0.01, "Share of the noise schedule where it begins."),
            percent("end_percent", 0.15, "Share of the noise schedule where it ends."),
        ),
        _skip_layers,
    ),
)  # fmt: skip
