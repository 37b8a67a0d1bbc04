"""Every rule beside its fp64 oracle: what the conformance tests and the error table run through.

A case holds the oracle, and the weights of the difference basis as its paper's formula gives them, from which
:mod:`conformance.tolerances` derives a bound. Nothing here reads the formulas under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import fastcfg_kernels as fk
import numpy as np
import torch

from fastcfg import (
    CFG,
    Clamp,
    ClassifierGuidance,
    DualCFG,
    HistoryGuidance,
    InnerGuidance,
    InstructPix2Pix,
    Linear,
    MultiCondition,
    NegativePrompt,
    PerpNeg,
    Rescale,
    Rule,
    guide,
)

from .oracles import classifier, classifier_free, rescale
from .oracles.arrays import Array, dot, norm, ratio, std

Named = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """A rule and what it should give.

    Attributes:
        oracle: the exact result of exact predictions ``[B, ...]``.
        terms: arrays that add up to the result before a clamp, as an exact difference-basis sum has them.
        wander: the change of the result, elementwise, per unit of relative error in every sum over a sample.
    """

    name: str
    rule: Rule
    oracle: Callable[[Named], Array]
    terms: Callable[[Named], list[Array]]
    wander: Callable[[Named], Array]

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.rule.conditions

    def __str__(self) -> str:
        return self.name


def _linear(
    name: str, rule: Rule, oracle: Callable[[Named], Array], weights: Sequence[float], own: float = 1.0
) -> Case:
    """A case whose weights are known numbers: ``own`` of the first prediction, ``weights`` of the deltas."""
    base, *others = rule.conditions

    def terms(p: Named) -> list[Array]:
        return [own * p[base], *(w * (p[o] - p[base]) for w, o in zip(weights, others, strict=True))]

    return Case(name, rule, oracle, terms, lambda p: np.zeros_like(p[base]))


def _perp_neg(name: str, rule: PerpNeg, scale: float, scales: tuple[float, ...], scale_negative: bool) -> Case:
    negatives = rule.conditions[2:]
    strengths = [s * scale if scale_negative else s for s in scales]

    def oracle(p: Named) -> Array:
        return classifier_free.perp_neg(
            cond=p["cond"], uncond=p["uncond"], negative=[p[n] for n in negatives],
            scale=scale, negative_scale=list(scales), scale_negative=scale_negative,
        )  # fmt: skip

    def terms(p: Named) -> list[Array]:
        d = p["cond"] - p["uncond"]
        out = [p["uncond"], scale * d]
        for n, s in zip(negatives, strengths, strict=True):
            e = p[n] - p["uncond"]
            out += [-s * e, s * ratio(dot(e, d), dot(d, d), 0.0) * d]
        return out

    def wander(p: Named) -> Array:
        # <n, p> is wrong by gamma |n||p| at most (Cauchy-Schwarz), <p, p> by gamma |p|^2.
        d = p["cond"] - p["uncond"]
        return sum(2 * abs(s) * ratio(norm(p[n] - p["uncond"]), norm(d), 0.0) * abs(d)
                   for n, s in zip(negatives, strengths, strict=True))  # fmt: skip

    return Case(name, rule, oracle, terms, wander)


def _centred(x: Array) -> Array:
    return x - x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)


def rescaled(case: Case, kind: str, phi: float, reference: str = "cond", rule: Rule | None = None) -> Case:
    """A rescale on top of a case; ``rule`` where the rule has a shorthand for it."""
    apply = {"std": rescale.rescale_std, "l2": rescale.rescale_l2}[kind]
    measure = {"std": _centred, "l2": lambda x: x}[kind]

    def factor(p: Named) -> Array:
        y = case.oracle(p)
        return 1 - phi + phi * ratio(norm(measure(p[reference])), norm(measure(y)), 1.0)

    def wander(p: Named) -> Array:
        # |y|^2 is a sum of products of the terms: cancellation multiplies its error by (sum |t|)^2 / |y|^2.
        y = case.oracle(p)
        lengths = sum(norm(measure(t)) for t in case.terms(p))
        loss = ratio(lengths, norm(measure(y)), 1.0) ** 2
        share = phi * ratio(norm(measure(p[reference])), norm(measure(y)), 1.0)
        # The inner rule's own wandering moves y, and through |y| the factor, by as much again.
        inner = case.wander(p)
        moved = ratio(norm(inner), norm(measure(y)), 0.0)
        return factor(p) * inner + share * abs(y) * (0.5 * (loss + 1) + moved)

    return Case(
        f"{case.name}+rescale_{kind}" if rule is None else f"{case.name}(rescale)",
        rule or Rescale(case.rule, phi=phi, norm=kind, reference=reference),
        lambda p: apply(guided=case.oracle(p), cond=p[reference], phi=phi),
        lambda p: [factor(p) * t for t in case.terms(p)],
        wander,
    )


def clamped(case: Case, k: float, reference: str = "cond") -> Case:
    """A clamp on top of a case."""

    def wander(p: Named) -> Array:
        # Clipping never widens an error; where the bound is taken, its own error is half that of the variance.
        return np.maximum(case.wander(p), 0.5 * k * std(p[reference]))

    return Case(
        f"{case.name}+clamp",
        Clamp(case.rule, k=k, reference=reference),
        lambda p: rescale.clamp_std(guided=case.oracle(p), cond=p[reference], k=k),
        case.terms,
        wander,
    )


def _multi(scales: tuple[float, ...]) -> Case:
    rule = MultiCondition(scales)
    conds = rule.conditions[1:]
    return _linear(
        f"MultiCondition_{len(scales)}", rule,
        lambda p: classifier_free.multi_condition(uncond=p["uncond"], conds=[p[c] for c in conds], scales=scales),
        scales,
    )  # fmt: skip


def _weighted_sum(p: Named, weights: tuple[tuple[str, float], ...]) -> Array:
    return sum(w * p[name] for name, w in weights)


_LINEAR = (("uncond", -1.5), ("cond", 3.0), ("image", -0.25))

_CFG = _linear("CFG", CFG(7.5), lambda p: classifier_free.cfg(**p, scale=7.5), [7.5])
_CFG_COND = _linear(
    "CFG_cond", CFG(2.5, base="cond"), lambda p: classifier_free.cfg(**p, scale=2.5, base="cond"), [3.5]
)
_NEGATIVE = _linear(
    "NegativePrompt", NegativePrompt(4.0), lambda p: classifier_free.negative_prompt(**p, scale=4.0), [4.0]
)
_DUAL = _linear(
    "DualCFG", DualCFG(7.5, 2.0), lambda p: classifier_free.dual(**p, scale=7.5, negative_scale=2.0), [7.5, -2.0]
)
_PIX2PIX = _linear(
    "InstructPix2Pix",
    InstructPix2Pix(7.5, 1.5),
    lambda p: classifier_free.instruct_pix2pix(**p, scale=7.5, image_scale=1.5),
    [1.5 - 7.5, 7.5],
)
_FIXED = _linear(
    "Linear", Linear(_LINEAR), partial(_weighted_sum, weights=_LINEAR), [3.0, -0.25], own=-1.5 + 3.0 - 0.25
)
_PERP = _perp_neg("PerpNeg_1", PerpNeg(7.5, (1.5,)), 7.5, (1.5,), False)
_PERP_2 = _perp_neg("PerpNeg_2", PerpNeg(5.0, (1.0, 0.5)), 5.0, (1.0, 0.5), False)
_PERP_SCALED = _perp_neg("PerpNeg_2_scaled", PerpNeg(5.0, (1.0, 0.5), True), 5.0, (1.0, 0.5), True)
_MULTI_2 = _multi((5.0, 2.5))
_MULTI_3 = _multi((5.0, 2.5, -1.0))

_CLASSIFIER = _linear(
    "ClassifierGuidance",
    ClassifierGuidance(2.0, sigma=0.6),
    lambda p: classifier.eps_form(eps=p["uncond"], gradient=p["gradient"], sigma=0.6, scale=2.0),
    [-1.2],
    own=-0.2,
)

_HISTORY = _linear(
    "HistoryGuidance", HistoryGuidance(4.0), lambda p: classifier_free.history_vanilla(**p, scale=4.0), [4.0]
)
_HISTORY_TEMPORAL = _linear(
    "HistoryGuidance_temporal",
    HistoryGuidance((2.0, 1.5, -0.5), kind="temporal"),
    lambda p: classifier_free.history_general(
        uncond=p["uncond"], conds=[p[f"cond_{i}"] for i in (1, 2, 3)], weights=[2.0, 1.5, -0.5]
    ),
    [2.0, 1.5, -0.5],
)
_HISTORY_FRACTIONAL = _linear(
    "HistoryGuidance_fractional",
    HistoryGuidance(4.0, kind="fractional"),
    lambda p: classifier_free.history_fractional(**p, weight=3.0),
    [1.0, 3.0],
)
_HISTORY_BETWEEN = _linear(
    "HistoryGuidance_between",
    HistoryGuidance((3.0, 1.5), kind="between"),
    lambda p: classifier_free.history_between_levels(
        uncond=p["uncond"], starts=[p["start_1"], p["start_2"]], ends=[p["end_1"], p["end_2"]], weights=[3.0, 1.5]
    ),
    [3.0, -3.0, 1.5, -1.5],
)
_INNER = Case(
    "InnerGuidance",
    InnerGuidance(5.0, 3.0),
    lambda p: classifier_free.inner_guidance(**p, scale=5.0, inner_scale=3.0),
    lambda p: [p["cond"], -5.0 * (p["uncond"] - p["cond"]), -3.0 * (p["without_inner"] - p["cond"])],
    lambda p: np.zeros_like(p["cond"]),
)

PLAIN: tuple[Case, ...] = (
    _CFG, _CFG_COND, _NEGATIVE, _DUAL, _multi((7.5,)), _MULTI_2, _MULTI_3, _PIX2PIX, _FIXED, _PERP, _PERP_2,
    _PERP_SCALED, _CLASSIFIER, _HISTORY, _HISTORY_TEMPORAL, _HISTORY_FRACTIONAL, _HISTORY_BETWEEN, _INNER,
)  # fmt: skip

_REFERENCE = {"MultiCondition_3": "cond_1"}

MODIFIED: tuple[Case, ...] = (
    rescaled(_linear("CFG", CFG(7.5), _CFG.oracle, [7.5]), "std", 0.7, rule=CFG(7.5, rescale=0.7)),
    *(
        modified
        for case in (_CFG, _CFG_COND, _NEGATIVE, _DUAL, _MULTI_3, _PIX2PIX, _FIXED, _PERP, _PERP_2, _PERP_SCALED)
        for reference in [_REFERENCE.get(case.name, "cond")]
        for modified in (
            rescaled(case, "std", 0.7, reference),
            rescaled(case, "l2", 1.0, reference),
            clamped(case, 2.0, reference),
        )
    ),
    clamped(rescaled(_CFG, "std", 0.5), 1.5),
    rescaled(rescaled(_PERP, "l2", 0.5), "std", 0.3),
    rescaled(_HISTORY_FRACTIONAL, "std", 0.7),
    clamped(_INNER, 2.0),
    rescaled(_MULTI_2, "std", 0.7, "cond"),  # The reference is a prediction that the rule itself does not take.
)

CASES: tuple[Case, ...] = PLAIN + MODIFIED
BY_NAME = {case.name: case for case in CASES}

EPSILON = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-24, torch.float16: 2.0**-24}
"""Unit roundoff of the accumulator for each dtype of the predictions."""


def draw(
    case: Case | Sequence[str], shape: Sequence[int], dtype: torch.dtype, seed: int = 0, mean: float = 0.1
) -> dict[str, torch.Tensor]:
    """Predictions that share most of what they hold, as a denoiser's do: ``mean``, unit spread, deltas of half."""
    rng = np.random.default_rng([seed, *shape])
    common = rng.normal(size=shape) + mean
    names = case.conditions if isinstance(case, Case) else case
    return {name: torch.from_numpy(common + 0.5 * rng.normal(size=shape)).to(dtype) for name in names}


def exact(predictions: dict[str, torch.Tensor]) -> Named:
    """The same predictions in float64, without change."""
    return {name: p.double().numpy() for name, p in predictions.items()}


def run(rule: Rule, predictions: dict[str, torch.Tensor], path: str, **kwargs: object) -> torch.Tensor:
    """Guide by ``path``: ``auto``, ``torch``, ``cpp``, ``row`` or ``two_launch``."""
    if path in ("row", "two_launch"):
        lowered = rule.lowered
        inputs = [predictions[name] for name in lowered.predictions]
        params = {**lowered.params, **kwargs.pop("params", {})}
        return fk.guide(inputs, lowered.program, params, backend="triton", strategy=path, **kwargs)
    return guide(rule, backend=path, **predictions, **kwargs)
