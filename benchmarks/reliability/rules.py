"""Random rules, and what they should give: the conformance tests' float64 oracles, put together by a rule's parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

import numpy as np
from conformance.oracles import classifier, classifier_free, nonlinear, perturbed, projection, rescale
from conformance.oracles.arrays import Array

import fastcfg
from fastcfg import Rule, schedules

__all__ = ["Oracle", "draw_rule", "number", "with_schedule"]

Named = Mapping[str, Array]
Scale = float | Array

BASES = ("uncond", "cond")
KINDS = ("eps", "x0", "v", "flow", "score")


def number(rng: Random, low: float, high: float) -> float:
    """A number that float32 holds, now and then one of the ends or a value at which rules change."""
    if rng.random() < 0.25:
        special = [v for v in (low, high, 0.0, 1.0) if low <= v <= high]
        return float(rng.choice(special))
    return round(rng.uniform(low, high) * 64) / 64


def _scale(rng: Random) -> float:
    return number(rng, -4.0, 16.0)


def _several(rng: Random, most: int = 4) -> tuple[float, ...]:
    return tuple(number(rng, -3.0, 8.0) for _ in range(rng.randint(1, most)))


def _history(rng: Random) -> Rule:
    kind: Any = rng.choice(["vanilla", "temporal", "fractional", "between"])
    scale = _several(rng, 3) if kind in ("temporal", "between") else _scale(rng)
    return fastcfg.HistoryGuidance(scale, kind=kind)


def _classifier(rng: Random) -> Rule:
    form: Any = rng.choice(["eps", "score", "mean"])
    level = {"eps": {"sigma": number(rng, 0.0, 2.0)}, "mean": {"variance": number(rng, 0.0, 2.0)}}.get(form, {})
    return fastcfg.ClassifierGuidance(_scale(rng), form=form, base=rng.choice(BASES), **level)  # type: ignore[arg-type]


def _linear(rng: Random) -> Rule:
    names = rng.sample(["uncond", "cond", "image", "a", "b"], rng.randint(1, 4))
    return fastcfg.Linear(tuple((name, number(rng, -3.0, 4.0)) for name in names))


def _apg(rng: Random, momentum: bool) -> Rule:
    return fastcfg.APG(
        _scale(rng),
        eta=number(rng, 0.0, 1.0),
        norm_threshold=rng.choice([0.0, number(rng, 0.0, 20.0)]),
        momentum=rng.choice([-0.5, 0.25, 0.75]) if momentum else 0.0,
        base=rng.choice(BASES),  # type: ignore[arg-type]
        dims=rng.choice([None, None, (1,), (-1,)]),
    )


_MAKERS: dict[str, Any] = {
    "CFG": lambda r: fastcfg.CFG(_scale(r), rescale=r.choice([0.0, number(r, 0.0, 1.0)]), base=r.choice(BASES)),
    "NegativePrompt": lambda r: fastcfg.NegativePrompt(_scale(r)),
    "DualCFG": lambda r: fastcfg.DualCFG(_scale(r), number(r, -2.0, 4.0)),
    "MultiCondition": lambda r: fastcfg.MultiCondition(_several(r)),
    "InstructPix2Pix": lambda r: fastcfg.InstructPix2Pix(_scale(r), number(r, 0.0, 4.0)),
    "Linear": _linear,
    "PerpNeg": lambda r: fastcfg.PerpNeg(_scale(r), _several(r, 3), scale_negative=r.random() < 0.3),
    "ClassifierGuidance": _classifier,
    "HistoryGuidance": _history,
    "InnerGuidance": lambda r: fastcfg.InnerGuidance(_scale(r), number(r, 0.0, 5.0)),
    "Autoguidance": lambda r: fastcfg.Autoguidance(_scale(r), base=r.choice(("perturbed", "cond"))),
    "Perturbed": lambda r: fastcfg.Perturbed(_scale(r), number(r, 0.0, 5.0), base=r.choice(BASES)),
    "SelfAttentionGuidance": lambda r: fastcfg.SelfAttentionGuidance(_scale(r), number(r, 0.0, 2.0)),
    "LTX2": lambda r: fastcfg.LTX2(_scale(r), number(r, 0.0, 3.0), number(r, 0.0, 4.0)),
    "APG": lambda r: _apg(r, False),
    "APG_momentum": lambda r: _apg(r, True),
    "APGMix": lambda r: fastcfg.APGMix(
        _scale(r), number(r, 0.0, 12.0), norm_threshold=number(r, 0.0, 20.0), base=r.choice(BASES),
        phase=r.choice(("cfg", "apg")),
    ),
    "CFGZeroStar": lambda r: fastcfg.CFGZeroStar(
        _scale(r), 1, eps=r.choice([0.0, 1e-8]), base=r.choice(BASES), phase=r.choice(("guided", "guided", "zero"))
    ),
    "TCFG": lambda r: fastcfg.TCFG(_scale(r), base=r.choice(BASES)),
    "MaMBOG": lambda r: fastcfg.MaMBOG(_scale(r), number(r, 0.0, 10.0), base=r.choice(BASES)),
    "GatedCFG": lambda r: fastcfg.GatedCFG(_scale(r), phase=r.choice(("refresh", "reuse", "off"))),
    "ResidualCFG": lambda r: fastcfg.ResidualCFG(_scale(r), number(r, 0.0, 2.0)),
    "FDG": lambda r: fastcfg.FDG(_several(r, 2), parallel_weights=number(r, 0.0, 1.0), base=r.choice(BASES)),
}  # fmt: skip


def _modified(rng: Random, rule: Rule) -> Rule:
    reference = rng.choice(("cond", rule.conditions[0]))
    match rng.choice(("rescale", "clamp", "cap")):
        case "rescale":
            return fastcfg.Rescale(rule, number(rng, 0.0, 1.0), rng.choice(("std", "l2")), reference)  # type: ignore[arg-type]
        case "clamp":
            return fastcfg.Clamp(rule, number(rng, 0.5, 6.0), rng.choice(("unbiased", "biased")), reference)  # type: ignore[arg-type]
        case _:
            return fastcfg.NormCap(
                rule,
                number(rng, 0.25, 2.0),
                rng.choice(("cap", "full", "clamp")),  # type: ignore[arg-type]
                low=number(rng, 0.0, 0.75),
                over=rng.choice(("sample", "sample", "token", "channel")),  # type: ignore[arg-type]
                eps=rng.choice((0.0, 1e-8)),
                reference=reference,
            )


def draw_rule(rng: Random) -> Rule:
    """Any rule of the catalogue with random numbers, under up to two modifiers and in any space."""
    rule: Rule = _MAKERS[rng.choice(list(_MAKERS))](rng)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        try:
            rule = _modified(rng, rule)
        except ValueError:  # Sums over other dimensions, or something around a clamp: refused when it is made.
            break
    if rng.random() < 0.1 and not rule.prepares:
        rule = fastcfg.InDomain(rule, rng.choice(KINDS))  # type: ignore[arg-type]
    return rule


def with_schedule(rng: Random, rule: Rule, steps: int) -> tuple[Rule, list[float]] | None:
    """The rule with a schedule for its scale, and the values that it should have at each step; None without a scale."""
    inner = getattr(rule, "rule", None)
    if isinstance(inner, Rule):
        found = with_schedule(rng, inner, steps)
        return None if found is None else (replace(rule, rule=found[0]), found[1])  # type: ignore[call-arg]
    if not any(f.name == "scale" for f in fields(rule)) or not isinstance(rule.scale, float):  # type: ignore[attr-defined]
        return None
    low, high = number(rng, 0.0, 4.0), number(rng, 4.0, 12.0)
    made: schedules.Schedule
    match rng.choice(("linear", "cosine", "interval", "values")):
        case "linear":
            made = schedules.Ramp(low, high)
            values = [classifier_free.linear_schedule(i, steps, low, high) for i in range(steps)]
        case "cosine":
            made = schedules.Cosine(low, high)
            values = [classifier_free.cosine_schedule(i, steps, low, high) for i in range(steps)]
        case "interval":
            made = schedules.Interval(high, 0.25, 0.75)
            values = [classifier_free.interval_schedule(i, steps, high, start=0.25, stop=0.75) for i in range(steps)]
        case _:
            values = [number(rng, low, high) for _ in range(steps)]
            made = schedules.Values(tuple(values))
    return replace(rule, scale=made), values  # type: ignore[call-arg]


@dataclass(frozen=True)
class Oracle:
    """The exact result of a rule on float64 predictions ``[B, ...]``.

    Attributes:
        rule: what guides.
        scale: an override of its innermost ``scale``, a number or ``[B]``; None is the rule's own.
        levels: ``x, alpha, sigma, source`` for a rule in a domain.
        state: what the rule remembers.
        measured: the predictions that norms are of, where the deltas carry an elementwise factor.
    """

    rule: Rule
    scale: Scale | None = None
    levels: Mapping[str, Any] | None = None
    state: Named | None = None
    measured: Named | None = None

    def __call__(self, p: Named) -> Array:
        rule = self.rule
        if isinstance(rule, fastcfg.InDomain):
            assert self.levels is not None
            levels = dict(self.levels)
            source = levels.pop("source")
            if source == rule.domain:
                return replace(self, rule=rule.rule)(p)
            moved = {n: classifier.convert(v, source=source, target=rule.domain, **levels) for n, v in p.items()}
            inner = replace(self, rule=rule.rule, measured=None)(moved)
            return classifier.convert(inner, source=rule.domain, target=source, **levels)
        if isinstance(rule, fastcfg.Rescale | fastcfg.Clamp | fastcfg.NormCap):
            y = replace(self, rule=rule.rule)(p)
            cond = (self.measured or p)[rule.reference]
            if isinstance(rule, fastcfg.Rescale):
                apply = {"std": rescale.rescale_std, "l2": rescale.rescale_l2}[rule.norm]
                return apply(guided=y, cond=cond, phi=rule.phi)
            if isinstance(rule, fastcfg.Clamp):
                return rescale.clamp_std(guided=y, cond=cond, k=rule.k, std_kind=rule.std)
            dims = {"sample": None, "token": -1, "channel": 1}[rule.over]
            return rescale.norm_cap(
                guided=y, cond=cond, cap=rule.cap, mode=rule.mode, low=rule.low, eps=rule.eps, dims=dims
            )
        return self._innermost(p)

    def _innermost(self, p: Named) -> Array:
        rule: Any = self.rule
        state = self.state or {}
        s = getattr(rule, "scale", None) if self.scale is None else self.scale
        deltas = [p[n] for n in rule.conditions[1:]]
        match type(rule).__name__:
            case "CFG":
                y = classifier_free.cfg(**p, scale=s, base=rule.base)
                cond = (self.measured or p)["cond"]
                return rescale.rescale_std(guided=y, cond=cond, phi=rule.rescale) if rule.rescale else y
            case "NegativePrompt":
                return classifier_free.negative_prompt(**p, scale=s)
            case "DualCFG":
                return classifier_free.dual(**p, scale=s, negative_scale=rule.negative_scale)
            case "MultiCondition":
                return classifier_free.multi_condition(uncond=p["uncond"], conds=deltas, scales=rule.scales)
            case "InstructPix2Pix":
                return classifier_free.instruct_pix2pix(**p, scale=s, image_scale=rule.image_scale)
            case "Linear":
                return np.sum([w * p[n] for n, w in rule.weights], axis=0)
            case "PerpNeg":
                return classifier_free.perp_neg(
                    cond=p["cond"], uncond=p["uncond"], negative=deltas[1:], scale=s,
                    negative_scale=list(rule.negative_scales), scale_negative=rule.scale_negative,
                )  # fmt: skip
            case "ClassifierGuidance":
                first, g = p[rule.conditions[0]], p["gradient"]
                if rule.form == "eps":
                    return classifier.eps_form(eps=first, gradient=g, sigma=rule.sigma, scale=s)
                if rule.form == "mean":
                    return classifier.mean_form(mean=first, gradient=g, variance=rule.variance, scale=s)
                return classifier.score_form(score=first, gradient=g, scale=s)
            case "HistoryGuidance":
                return self._history(p, deltas, s)
            case "InnerGuidance":
                return classifier_free.inner_guidance(**p, scale=s, inner_scale=rule.inner_scale)
            case "Autoguidance":
                return perturbed.autoguidance(**p, scale=s, base=rule.base)
            case "Perturbed":
                return perturbed.perturbed_sum(**p, scale=s, perturbed_scale=rule.perturbed_scale, base=rule.base)
            case "SelfAttentionGuidance":
                y = classifier_free.cfg(uncond=p["uncond"], cond=p["cond"], scale=s)
                return perturbed.self_attention_guidance(
                    guided=y, uncond=p["uncond"], perturbed=p["perturbed"], scale=rule.perturbed_scale
                )
            case "LTX2":
                return perturbed.ltx2(
                    **p, scale=s, perturbed_scale=rule.perturbed_scale, modality_scale=rule.modality_scale
                )
            case "APG":
                return projection.apg(
                    **p, scale=s, eta=rule.eta, norm_threshold=rule.norm_threshold, momentum=rule.momentum,
                    average=state.get("average"), dims=rule.dims, base=rule.base,
                )[0]  # fmt: skip
            case "APGMix" if rule.phase == "cfg":
                return classifier_free.cfg(**p, scale=s, base=rule.base)
            case "APGMix":
                return projection.apg(
                    **p, scale=rule.apg_scale, eta=rule.eta, norm_threshold=rule.norm_threshold,
                    momentum=rule.momentum, average=state.get("average"), base=rule.base,
                )[0]  # fmt: skip
            case "CFGZeroStar":
                if rule.phase == "zero":
                    return np.zeros_like(p["cond"])
                return projection.cfg_zero_star(**p, scale=s, eps=rule.eps, base=rule.base)
            case "TCFG":
                return projection.tcfg(**p, scale=s, base=rule.base, method="closed_form")
            case "MaMBOG":
                return projection.mambo_g(**p, scale=s, alpha=rule.alpha, base=rule.base)
            case "GatedCFG" if rule.phase == "refresh":
                return classifier_free.cfg(**p, scale=s)
            case "GatedCFG" if rule.phase == "reuse":
                return nonlinear.gated_guidance(cond=p["cond"], cached_delta=state["delta"], scale=s)
            case "GatedCFG":
                return p["cond"]
            case "ResidualCFG":
                return nonlinear.residual_cfg(cond=p["cond"], stock=state["stock"], scale=s, delta=rule.delta)
            case "FDG":
                shares = rule.parallel_weights
                weights = shares if isinstance(shares, tuple) else (shares,) * len(rule.scales)
                return projection.fdg(**p, scales=rule.scales, parallel_weights=weights, base=rule.base)
        raise NotImplementedError(f"no oracle for {rule!r}")

    def _history(self, p: Named, deltas: list[Array], s: Any) -> Array:
        rule: Any = self.rule
        match rule.kind:
            case "vanilla":
                return classifier_free.history_vanilla(**p, scale=s)
            case "temporal":
                return classifier_free.history_general(uncond=p["uncond"], conds=deltas, weights=rule.scale)
            case "fractional":  # The rule's scale counts both deltas.
                return classifier_free.history_fractional(**p, weight=s - 1)
        starts, ends = deltas[::2], deltas[1::2]
        return classifier_free.history_between_levels(uncond=p["uncond"], starts=starts, ends=ends, weights=rule.scale)
