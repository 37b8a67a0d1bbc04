"""The nodes that make guiders, for rules of three and more conditions."""

from __future__ import annotations

from typing import Any

from ...rules import DualCFG, InstructPix2Pix, MultiCondition, PerpNeg, Perturbed
from ...schedules import Schedule
from .guiders import rule_guider
from .recipe import Recipe
from .spec import Input, Node, flag, number, socket

__all__ = ["GUIDER_NODES"]

_MODEL = socket("model", "MODEL", "The model to guide; modifiers, schedules and intervals before this node count.")
_POSITIVE = socket("positive", "CONDITIONING", "What is asked for.")
_NEGATIVE = socket("negative", "CONDITIONING", "What is not wanted.")
_EMPTY = socket("empty_conditioning", "CONDITIONING", "The encoded empty prompt.")


def _scale(name: str, default: float, tooltip: str) -> Input:
    return number(name, default, 0.0, 100.0, 0.1, tooltip)


def _perp_neg(
    model: Any, positive: Any, negative: Any, empty_conditioning: Any, cfg: float, neg_scale: float,
    scale_negative: bool,
) -> Any:  # fmt: skip
    sources = (("uncond", "empty"), ("cond", "positive"), ("negative", "negative"))
    recipe = Recipe(lambda scale: PerpNeg(scale, (neg_scale,), scale_negative), None, sources)
    return rule_guider(model, recipe, cfg, {"positive": positive, "negative": negative, "empty": empty_conditioning})


def _dual(model: Any, positive: Any, negative: Any, empty_conditioning: Any, cfg: float, neg_scale: float) -> Any:
    sources = (("uncond", "empty"), ("cond", "positive"), ("negative", "negative"))
    recipe = Recipe(lambda scale: DualCFG(scale, neg_scale), None, sources)
    return rule_guider(model, recipe, cfg, {"positive": positive, "negative": negative, "empty": empty_conditioning})


def _between(model: Any, positive: Any, middle: Any, negative: Any, cfg: float, middle_cfg: float) -> Any:
    sources = (("uncond", "negative"), ("image", "middle"), ("cond", "positive"))
    recipe = Recipe(lambda scale: InstructPix2Pix(scale, middle_cfg), None, sources)
    return rule_guider(model, recipe, cfg, {"positive": positive, "middle": middle, "negative": negative})


def _two(model: Any, positive: Any, positive_2: Any, negative: Any, cfg: float, cfg_2: float) -> Any:
    def rule(scale: float | Schedule) -> MultiCondition:
        return MultiCondition((scale, cfg_2))

    # Modifiers measure by cond, the first.
    sources = (("uncond", "negative"), ("cond_1", "positive"), ("cond_2", "positive_2"), ("cond", "positive"))
    given = {"positive": positive, "positive_2": positive_2, "negative": negative}
    return rule_guider(model, Recipe(rule, None, sources), cfg, given)


def _autoguidance(model: Any, weak_model: Any, positive: Any, negative: Any, cfg: float, weak_scale: float) -> Any:
    sources = (("uncond", "negative"), ("cond", "positive"), ("perturbed", "weak"))
    recipe = Recipe(lambda scale: Perturbed(scale, weak_scale - 1.0), None, sources)
    return rule_guider(model, recipe, cfg, {"positive": positive, "negative": negative}, weak_model)


GUIDER_NODES = (
    Node(
        "FastcfgPerpNegGuider", "Perp-Neg guider (fastcfg)",
        "The negative acts only across the positive direction (2304.04968), per sample.",
        (
            _MODEL, _POSITIVE, _NEGATIVE, _EMPTY,
            _scale("cfg", 8.0, "Scale of the positive."),
            number("neg_scale", 1.0, 0.0, 100.0, 0.01, "Scale of the negative; 0 leaves its pass out."),
            flag("scale_negative", True, "Multiply the negative by cfg too, as ComfyUI's PerpNegGuider does."),
        ),
        _perp_neg, "GUIDER",
    ),
    Node(
        "FastcfgDualCFGGuider", "Positive and negative guider (fastcfg)",
        "Towards the positive and away from the negative with a scale each, both seen from the empty prompt.",
        (
            _MODEL, _POSITIVE, _NEGATIVE, _EMPTY,
            _scale("cfg", 7.5, "Scale of the positive."),
            _scale("neg_scale", 1.0, "Scale of the negative; cfg - 1 is the usual negative prompt, in two passes."),
        ),
        _dual, "GUIDER",
    ),
    Node(
        "FastcfgTwoStageGuider", "Positive over middle over negative guider (fastcfg)",
        "negative + middle_cfg * (middle - negative) + cfg * (positive - middle), as for InstructPix2Pix (2211.09800).",
        (
            _MODEL, _POSITIVE,
            socket("middle", "CONDITIONING", "The condition between, such as the image alone."),
            _NEGATIVE,
            _scale("cfg", 7.5, "Scale from middle to positive."),
            _scale("middle_cfg", 1.5, "Scale from negative to middle."),
        ),
        _between, "GUIDER",
    ),
    Node(
        "FastcfgMultiConditionGuider", "Two conditions guider (fastcfg)",
        "negative + cfg * (positive - negative) + cfg_2 * (positive_2 - negative) (2206.01714).",
        (
            _MODEL, _POSITIVE,
            socket("positive_2", "CONDITIONING", "What else is asked for."),
            _NEGATIVE,
            _scale("cfg", 5.0, "Scale of the first."),
            _scale("cfg_2", 5.0, "Scale of the second."),
        ),
        _two, "GUIDER",
    ),
    Node(
        "FastcfgAutoguidanceGuider", "Autoguidance guider (fastcfg)",
        "CFG, and away from a weaker model of the same kind (2406.02507).",
        (
            _MODEL,
            socket("weak_model", "MODEL", "A smaller or less trained checkpoint with the same latents and prompts."),
            _POSITIVE, _NEGATIVE,
            _scale("cfg", 1.0, "Scale of CFG; 1 is autoguidance alone."),
            _scale("weak_scale", 2.0, "Scale from the weak model to the model; 1 is off."),
        ),
        _autoguidance, "GUIDER",
    ),
)  # fmt: skip
