"""The nodes of rules. The sampler's CFG value is the scale of all rules, unless a schedule takes its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastcfg_kernels as fk

from ...denoiser.gates import unfold
from ...rules import APG, CFG, FDG, TCFG, CFGZeroStar, MaMBOG, PerpNeg, Rule
from ...rules.base import Lowered, Parameter
from ...schedules import Schedule
from ...validate import check_choice
from ..common import with_scale
from .hooks import attach, recipe_of
from .recipe import Recipe, with_base
from .space import Space, check_space
from .spec import MODEL, Node, choice, flag, number, socket, space, text, whole

__all__ = ["RULE_NODES"]


def _with_rule(model: Any, base: Callable[[float | Schedule], Rule], space: Space | None, **options: Any) -> Any:
    check_space(space)
    return attach(model, with_base(recipe_of(model), Recipe(base, space, **options)), {})


def _cfg(model: Any) -> Any:
    return _with_rule(model, CFG, None)


def _apg(model: Any, eta: float, norm_threshold: float, momentum: float, base: str, space: Space) -> Any:
    check_choice("base", base, ("cond", "uncond"))

    def rule(scale: float | Schedule) -> Rule:
        return APG(scale, eta, norm_threshold, momentum, base)  # type: ignore[arg-type]

    return _with_rule(model, rule, space, always=base == "cond")


def zero_star_of_noise(dot_d_uncond_d_uncond: Any, dot_d_uncond_d_cond: Any, scale: Any) -> tuple[Any, Any, Any]:
    """``a u + s (c - a u)`` of clean samples in x and their deltas from it, a being that of ``x - u`` and ``x - c``."""
    alpha = dot_d_uncond_d_cond / (dot_d_uncond_d_uncond + 1e-8)
    return (1.0 - scale) * alpha + scale, (1.0 - scale) * alpha, scale


@dataclass(frozen=True)
class ComfyZeroStar(Rule, register=False):
    """ComfyUI's CFGZeroStar: the factor of the noise predictions, put on the clean samples.

    CFG-Zero* puts it on the velocity it was measured on; the two differ by ``(1 - scale) (1 - alpha) x``.
    """

    scale: Parameter = 7.5

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("latent", "uncond", "cond")

    def lower(self) -> Lowered:
        return Lowered(self.conditions, (fk.Stage(zero_star_of_noise),), {"scale": self.scale})


def _cfg_zero_star(model: Any, variant: str, zero_init_steps: int, space: Space) -> Any:
    check_choice("variant", variant, ("paper", "comfyui"))
    if variant == "comfyui":
        if zero_init_steps:
            raise ValueError(f"zero_init_steps: expected 0 with the variant comfyui, got {zero_init_steps}")
        return _with_rule(model, ComfyZeroStar, "x0")
    return _with_rule(model, lambda scale: CFGZeroStar(scale, zero_init_steps), space)


def _tcfg(model: Any, space: Space) -> Any:
    return _with_rule(model, TCFG, space)


def _mambo_g(model: Any, alpha: float, space: Space) -> Any:
    return _with_rule(model, lambda scale: MaMBOG(scale, alpha), space)


def _fdg(model: Any, high: float, low: float, parallel_weight: float) -> Any:
    def rule(scale: float | Schedule) -> Rule:
        if isinstance(scale, Schedule):
            raise ValueError("scale: FDG takes no schedule; its two scales are multiples of the CFG value")
        return FDG((high * scale, low * scale), parallel_weights=parallel_weight)

    return _with_rule(model, rule, "x0")


def _perp_neg(model: Any, empty_conditioning: Any, neg_scale: float, scale_negative: bool) -> Any:
    sources = (("uncond", "empty"), ("cond", "cond"), ("negative", "uncond"))
    recipe = Recipe(lambda scale: PerpNeg(scale, (neg_scale,), scale_negative), None, sources, always=True)
    return attach(model, with_base(recipe_of(model), recipe), {"empty": empty_conditioning})


def _from_json(model: Any, rule: str, space: Space) -> Any:
    try:
        given, gate = unfold(Rule.from_json(rule))
    except json.JSONDecodeError as error:
        raise ValueError(f'rule: expected JSON such as {{"type": "CFG"}}, got {rule!r} ({error})') from None
    if unknown := sorted(set(given.conditions) - {"cond", "uncond"}):
        raise ValueError(f"rule: expected one of cond and uncond alone, got one that also takes {', '.join(unknown)}")
    return _with_rule(model, lambda scale: with_scale(given, scale) or given, space, always=True, gate=gate)


RULE_NODES = (
    Node(
        "FastcfgCFG", "CFG (fastcfg)", "Plain guidance, which modifiers, a schedule or an interval then change.",
        (MODEL,), _cfg,
    ),
    Node(
        "FastcfgAPG", "APG (fastcfg)",
        "Adaptive projected guidance (2410.02416): momentum, a limit of the norm, less of the part along cond.",
        (
            MODEL,
            number("eta", 1.0, -10.0, 10.0, 0.01, "Weight of the part along cond; 1 keeps it."),
            number("norm_threshold", 5.0, 0.0, 1000.0, 0.1, "Largest norm of a sample's difference; 0 is off."),
            number("momentum", 0.0, -5.0, 1.0, 0.01, "Weight of the steps before; 0 is off."),
            choice("base", "cond", ("cond", "uncond"), "What it is added to: cond as in ComfyUI's APG, or uncond."),
            space("x0"),
        ),
        _apg,
    ),
    Node(
        "FastcfgCFGZeroStar", "CFG-Zero* (fastcfg)",
        "CFG with uncond scaled to fit cond, and zeros for the first steps (2503.18886), for flow models.",
        (
            MODEL,
            choice("variant", "paper", ("paper", "comfyui"), "As published, or the value of ComfyUI's CFGZeroStar."),
            whole("zero_init_steps", 0, 0, 100, "Steps of this sampler that stand still; 0 is off."),
            space("noise"),
        ),
        _cfg_zero_star,
    ),
    Node(
        "FastcfgTCFG", "Tangential damping CFG (fastcfg)",
        "CFG without the part of uncond that is not aligned with cond (2503.18137), in closed form.",
        (MODEL, space("noise")), _tcfg,
    ),
    Node(
        "FastcfgMaMBOG", "MaMBO-G (fastcfg)",
        "Magnitude-aware guidance (2508.03442): the larger the difference beside uncond, the less of it.",
        (MODEL, number("alpha", 8.0, 0.0, 100.0, 0.1, "Strength of the damping; 0 is off."), space("model")),
        _mambo_g,
    ),
    Node(
        "FastcfgFDG", "Frequency-decoupled guidance (fastcfg)",
        "A scale for fine and one for coarse structure (2506.19713), as multiples of the CFG value.",
        (
            MODEL,
            number("high", 1.0, 0.0, 10.0, 0.05, "Scale of the high frequencies, times the CFG value."),
            number("low", 0.5, 0.0, 10.0, 0.05, "Scale of the low frequencies, times the CFG value."),
            number("parallel_weight", 1.0, 0.0, 1.0, 0.05, "Weight of the parts along cond; below 1 saturates less."),
        ),
        _fdg,
    ),
    Node(
        "FastcfgPerpNeg", "Perp-Neg (fastcfg)",
        "The negative acts only across the positive direction (2304.04968), per sample. Needs the empty prompt.",
        (
            MODEL,
            socket("empty_conditioning", "CONDITIONING", "The encoded empty prompt."),
            number("neg_scale", 1.0, 0.0, 100.0, 0.01, "Scale of the negative."),
            flag("scale_negative", True, "Multiply the negative by the CFG value too, as ComfyUI's PerpNeg does."),
        ),
        _perp_neg,
    ),
    Node(
        "FastcfgRule", "Guidance rule from JSON (fastcfg)",
        "Any rule of cond and uncond as fastcfg writes it (rule.to_json()); its scale becomes the CFG value.",
        (MODEL, text("rule", '{"type": "CFG"}', "The rule.", multiline=True), space("x0")),
        _from_json,
    ),
)  # fmt: skip
