"""Rules that project or damp the guidance by sums over a sample: APG, CFG-Zero*, TCFG, MaMBO-G."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import fastcfg_kernels as fk
from fastcfg_kernels.math import abs as absolute
from fastcfg_kernels.math import exp, maximum, minimum, sqrt, where

from ..schedules import Schedule, check_step
from .base import AT_LEAST_ZERO, Lowered, Parameter, Rule, check_choice, check_range, number_or_schedule
from .linear import Linear

__all__ = ["APG", "TCFG", "APGMix", "CFGZeroStar", "MaMBOG"]

Base = Literal["uncond", "cond"]
Dims = tuple[int, ...] | None


def _by_base(base: str, uncond: Callable[..., Any], cond: Callable[..., Any]) -> Callable[..., Any]:
    return uncond if base == "uncond" else cond


def _onto(base: str) -> str | None:
    """The prediction in the place of ``uncond`` that a formula adds its change to."""
    return None if base == "uncond" else base


def _check_dims(dims: Any) -> Dims:
    if dims is None:
        return None
    values = (dims,) if isinstance(dims, int) and not isinstance(dims, bool) else dims
    if not isinstance(values, tuple | list) or not values or not all(type(d) is int and d != 0 for d in values):
        raise ValueError(f"dims: expected None (all but the batch) or dimensions other than 0, got {dims!r}")
    return tuple(values)


# --- APG ---------------------------------------------------------------------------------------------------------


def apg_limit(dot_d_d: Any, norm_threshold: Any) -> Any:
    """Return what brings d to the threshold's norm where it is longer."""
    return where(norm_threshold > 0.0, minimum(1.0, norm_threshold / sqrt(dot_d_d)), 1.0)


def apg_limited(dot_d_d: Any, norm_threshold: Any) -> Any:
    """1 where the threshold took hold."""
    return where(apg_limit(dot_d_d, norm_threshold) < 1.0, 1.0, 0.0)


def apg_share(dot_cond_d: Any, dot_cond_cond: Any) -> Any:
    """``k`` of the part ``k c`` of d along c."""
    return where(dot_cond_cond > 0.0, dot_cond_d / dot_cond_cond, 0.0)


def apg(dot_d_d: Any, dot_cond_d: Any, dot_cond_cond: Any, scale: Any, eta: Any, norm_threshold: Any) -> Any:
    """``u + s L (d - (1 - eta) k c)``, L the norm's limit and k c the part of d along c."""
    limit = apg_limit(dot_d_d, norm_threshold)
    along = (1.0 - eta) * apg_share(dot_cond_d, dot_cond_cond)
    return 1.0 - scale * limit * along, scale * limit * (1.0 - along)


def apg_momentum_limit(
    dot_d_d: Any, dot_d_average: Any, dot_average_average: Any, norm_threshold: Any, momentum: Any
) -> Any:
    """:func:`apg_limit` of ``D = d + m A``."""
    square = dot_d_d + 2.0 * momentum * dot_d_average + momentum * momentum * dot_average_average
    return apg_limit(maximum(square, 0.0), norm_threshold)


def apg_momentum_limited(
    dot_d_d: Any, dot_d_average: Any, dot_average_average: Any, norm_threshold: Any, momentum: Any
) -> Any:
    """:func:`apg_limited` of ``D = d + m A``."""
    limit = apg_momentum_limit(dot_d_d, dot_d_average, dot_average_average, norm_threshold, momentum)
    return where(limit < 1.0, 1.0, 0.0)


def apg_momentum_share(dot_cond_d: Any, dot_cond_average: Any, dot_cond_cond: Any, momentum: Any) -> Any:
    """:func:`apg_share` of ``D = d + m A``."""
    return apg_share(dot_cond_d + momentum * dot_cond_average, dot_cond_cond)


def apg_momentum(
    dot_d_d: Any,
    dot_d_average: Any,
    dot_average_average: Any,
    dot_cond_d: Any,
    dot_cond_average: Any,
    dot_cond_cond: Any,
    scale: Any,
    eta: Any,
    norm_threshold: Any,
    momentum: Any,
) -> Any:
    """As :func:`apg` with ``D = d + m A`` for d; the second output is D, the next A."""
    limit = apg_momentum_limit(dot_d_d, dot_d_average, dot_average_average, norm_threshold, momentum)
    along = (1.0 - eta) * apg_momentum_share(dot_cond_d, dot_cond_average, dot_cond_cond, momentum)
    step = scale * limit
    return 1.0 - step * along, step * (1.0 - along), step * momentum, 0.0, 1.0, momentum


_APG_RANGES = {"norm_threshold": AT_LEAST_ZERO}


@dataclass(frozen=True)
class APG(Rule):
    """Adaptive projected guidance: momentum, a limit of the norm, and less of the part along ``cond``.

    ``D = (cond - uncond) + momentum * D_before``, ``D' = D * min(1, norm_threshold/|D|)``, split along ``cond`` into
    ``D'_par + D'_perp``; ``base + scale * (D'_perp + eta * D'_par)``.

    Args:
        scale: guidance scale; eta: weight of the parallel part: 0 leaves it out, as the paper does, 1 keeps it.
        norm_threshold: largest norm of D; 0 is off. 15 is the one for SDXL's latents of 4 x 128 x 128; D's norm grows
            with the square root of a sample's size. With ``eta=1``, 0 and no momentum the rule is plain CFG.
        momentum: 0 is off, which makes the rule stateless; otherwise each call needs ``state=``, where ``average``
            is D_before (zero at first). The paper has -0.5.
        base: ``"uncond"`` (diffusers); ``"cond"`` with ``scale - 1`` is the paper, with ``scale`` ComfyUI's node.
        dims: dimensions of the norms and the projection; None is all but the batch.

    Works best on x0 predictions: see ``domain`` of :func:`fastcfg.guide`. Source: Sadat et al., 2410.02416, alg. 1.
    """

    scale: Parameter = 7.5
    eta: Parameter = 0.0
    norm_threshold: Parameter = 15.0
    momentum: Parameter = 0.0
    base: Base = "uncond"
    dims: Dims = None

    title = "base + scale * (D_perp + eta * D_par), D = limited d + momentum * D_before  [2410.02416]"

    def __post_init__(self) -> None:
        for name in ("scale", "eta", "norm_threshold", "momentum"):
            object.__setattr__(self, name, number_or_schedule(name, getattr(self, name)))
        check_range("norm_threshold", self.norm_threshold, AT_LEAST_ZERO)
        check_choice("base", self.base, ("uncond", "cond"))
        object.__setattr__(self, "dims", _check_dims(self.dims))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond")

    def lower(self) -> Lowered:
        params = {"scale": self.scale, "eta": self.eta, "norm_threshold": self.norm_threshold}
        if self.momentum == 0.0:
            stage = fk.Stage(apg, onto=_onto(self.base), limited=apg_limited)
            return Lowered(self.conditions, (stage,), params, dims=self.dims, ranges=_APG_RANGES)
        params["momentum"] = self.momentum
        stage = fk.Stage(apg_momentum, onto=_onto(self.base), limited=apg_momentum_limited)
        return Lowered(self.conditions, (stage,), params, ("average",), ("average",), self.dims, ranges=_APG_RANGES)


def cfg_with_momentum(scale: Any, momentum: Any) -> Any:
    """CFG; the second output is ``D = d + m A``."""
    return 1.0, scale, 0.0, 0.0, 1.0, momentum


@dataclass(frozen=True)
class APGMix(Rule):
    """CFG up to a step, then :class:`APG`, whose momentum is kept up to date from the start (diffusers).

    Args:
        scale: of CFG, while ``step <= start_step``; apg_scale: of APG after it.
        eta, norm_threshold, momentum, base: as for :class:`APG`; each call needs ``state=``.
        start_step: last step of CFG.
        phase: ``"auto"`` until ``rule.at(step, num_steps)`` makes it ``"cfg"`` or ``"apg"``.
    """

    scale: Parameter = 3.5
    apg_scale: Parameter = 10.0
    eta: Parameter = 0.0
    norm_threshold: Parameter = 10.0
    momentum: Parameter = -0.5
    start_step: int = 5
    base: Base = "uncond"
    phase: Literal["auto", "cfg", "apg"] = "auto"

    title = "CFG while step <= start_step, then APG  [2410.02416, diffusers]"

    def __post_init__(self) -> None:
        for name in ("scale", "apg_scale", "eta", "norm_threshold", "momentum"):
            object.__setattr__(self, name, number_or_schedule(name, getattr(self, name)))
        check_range("norm_threshold", self.norm_threshold, AT_LEAST_ZERO)
        check_choice("base", self.base, ("uncond", "cond"))
        check_choice("phase", self.phase, ("auto", "cfg", "apg"))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond")

    @property
    def scheduled(self) -> bool:
        return self.phase == "auto" or self._holds_schedules()

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> Rule:
        rule = super().at(step, num_steps, sigma=sigma)
        assert isinstance(rule, APGMix)
        return replace(rule, phase="apg" if step > self.start_step else "cfg")

    def lower(self) -> Lowered:
        if self.phase == "apg":
            rename = (("scale", "apg_scale"),)
            stage = fk.Stage(apg_momentum, rename=rename, onto=_onto(self.base), limited=apg_momentum_limited)
            params = {"apg_scale": self.apg_scale, "eta": self.eta, "norm_threshold": self.norm_threshold}
        else:
            stage = fk.Stage(cfg_with_momentum, onto=_onto(self.base))
            params = {"scale": self.scale}
        params["momentum"] = self.momentum
        return Lowered(self.conditions, (stage,), params, ("average",), ("average",), ranges=_APG_RANGES)


# --- CFG-Zero* ---------------------------------------------------------------------------------------------------


def fit(dot_uncond_uncond: Any, dot_uncond_d: Any, eps: Any) -> Any:
    """``a - 1`` of ``a = c.u/(|u|^2 + eps)``, formed without cancellation."""
    square = dot_uncond_uncond + eps
    return where(square > 0.0, (dot_uncond_d - eps) / square, 0.0)


def cfg_zero_star(dot_uncond_uncond: Any, dot_uncond_d: Any, scale: Any, eps: Any) -> Any:
    """``a u + s (c - a u)``."""
    shift = fit(dot_uncond_uncond, dot_uncond_d, eps)
    return 1.0 + (1.0 - scale) * shift, scale


def cfg_zero_star_from_cond(dot_uncond_uncond: Any, dot_uncond_d: Any, scale: Any, eps: Any) -> Any:
    """``c + s (c - a u)``."""
    shift = fit(dot_uncond_uncond, dot_uncond_d, eps)
    return 1.0 - scale * shift, 1.0 + scale


def zeros() -> Any:
    """Nothing of either."""
    return 0.0, 0.0


@dataclass(frozen=True)
class CFGZeroStar(Rule):
    """CFG-Zero*: the unconditional prediction scaled to fit, and zeros for the first steps.

    ``alpha * uncond + scale * (cond - alpha * uncond)`` with ``alpha = <cond, uncond> / (|uncond|^2 + eps)``.

    Args:
        scale: guidance scale.
        zero_init_steps: steps at the start whose guided prediction is zero; 0 is off. It is meant for flow models.
        eps: added to the squared norm (diffusers 1e-8).
        base: ``"uncond"``, or ``"cond"`` for ``cond + scale * (cond - alpha * uncond)``.
        phase: ``"auto"`` until ``rule.at(step, num_steps)`` makes it ``"zero"`` or ``"guided"``.

    Source: Fan et al., 2503.18886, eq. 9-11.
    """

    scale: Parameter = 7.5
    zero_init_steps: int = 1
    eps: float = 1e-8
    base: Base = "uncond"
    phase: Literal["auto", "zero", "guided"] = "auto"

    title = "alpha * uncond + scale * (cond - alpha * uncond), alpha = <c,u>/(|u|^2 + eps)  [2503.18886]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        if type(self.zero_init_steps) is not int or self.zero_init_steps < 0:
            raise ValueError(f"zero_init_steps: expected 0 or more steps, got {self.zero_init_steps!r}")
        eps = number_or_schedule("eps", self.eps)
        if isinstance(eps, Schedule) or eps < 0:
            raise ValueError(f"eps: expected a number of 0 or more, got {self.eps!r}")
        check_choice("base", self.base, ("uncond", "cond"))
        check_choice("phase", self.phase, ("auto", "zero", "guided"))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond")

    @property
    def scheduled(self) -> bool:
        return (self.phase == "auto" and self.zero_init_steps > 0) or self._holds_schedules()

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> Rule:
        check_step(step, num_steps)
        rule = super().at(step, num_steps, sigma=sigma)
        assert isinstance(rule, CFGZeroStar)
        return replace(rule, phase="zero" if step < self.zero_init_steps else "guided")

    def lower(self) -> Lowered:
        if self.phase == "zero":
            return Lowered(self.conditions, (fk.Stage(zeros),), {})
        formula = _by_base(self.base, cfg_zero_star, cfg_zero_star_from_cond)
        stage = fk.Stage(formula)
        params: dict[str, Parameter] = {"scale": self.scale, "eps": self.eps}
        return Lowered(self.conditions, (stage,), params, ranges={"eps": AT_LEAST_ZERO})

    def simplify(self) -> Rule:
        return Linear((("cond", 0.0),)) if self.phase == "zero" else self


# --- TCFG --------------------------------------------------------------------------------------------------------


def tangential(dot_uncond_uncond: Any, dot_uncond_d: Any, dot_d_d: Any, scale: Any) -> Any:
    """``u' + s (c - u')``, u' the projection of u on the first singular vector of (c, u).

    The singular vector of two rows is an eigenvector of their 2x2 Gram matrix, so that no SVD is needed.
    """
    twice = 2.0 * (dot_uncond_uncond + dot_uncond_d)
    gap = dot_d_d + 2.0 * dot_uncond_d
    largest = maximum(absolute(twice), absolute(gap))
    x = where(largest > 0.0, twice / largest, 0.0)
    y = where(largest > 0.0, gap / largest, 0.0)
    length = sqrt(x * x + y * y)
    of_cond = 0.5 * where(largest > 0.0, x / length, 0.0)
    of_uncond = 0.5 * (1.0 - where(largest > 0.0, y / length, 0.0))
    return (1.0 - scale) * (of_cond + of_uncond) + scale, (1.0 - scale) * of_cond + scale


def tangential_from_cond(dot_uncond_uncond: Any, dot_uncond_d: Any, dot_d_d: Any, scale: Any) -> Any:
    """``c + s (c - u')``: :func:`tangential` at ``s + 1``."""
    twice = 2.0 * (dot_uncond_uncond + dot_uncond_d)
    gap = dot_d_d + 2.0 * dot_uncond_d
    largest = maximum(absolute(twice), absolute(gap))
    x = where(largest > 0.0, twice / largest, 0.0)
    y = where(largest > 0.0, gap / largest, 0.0)
    length = sqrt(x * x + y * y)
    of_cond = 0.5 * where(largest > 0.0, x / length, 0.0)
    of_uncond = 0.5 * (1.0 - where(largest > 0.0, y / length, 0.0))
    return 1.0 + scale - scale * (of_cond + of_uncond), 1.0 + scale - scale * of_cond


@dataclass(frozen=True)
class TCFG(Rule):
    """Tangential damping CFG: CFG with the unconditional prediction's misaligned part taken out.

    ``uncond'`` is ``uncond`` projected on the first right singular vector of ``(cond, uncond)``, in closed form:
    ``r = sqrt((2 c.u)^2 + (|c|^2 - |u|^2)^2)``, ``u' = (c.u/r) c + (1 - (|c|^2 - |u|^2)/r)/2 u``. Where r = 0 no
    direction is singled out, and ``u' = u/2``.

    Args:
        scale: guidance scale; base: ``"uncond"``, or ``"cond"`` for ``cond + scale * (cond - uncond')``.

    Source: Kwon et al., 2503.18137, alg. 1.
    """

    scale: Parameter = 7.5
    base: Base = "uncond"

    title = "uncond' + scale * (cond - uncond'), uncond' on the first singular vector of (c, u)  [2503.18137]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        check_choice("base", self.base, ("uncond", "cond"))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond")

    def lower(self) -> Lowered:
        formula = _by_base(self.base, tangential, tangential_from_cond)
        return Lowered(self.conditions, (fk.Stage(formula),), {"scale": self.scale})


# --- MaMBO-G -----------------------------------------------------------------------------------------------------


def damping(dot_d_d: Any, dot_uncond_uncond: Any, alpha: Any) -> Any:
    """``e = exp(-alpha |d|/|u|)``."""
    ratio = where(dot_d_d > 0.0, sqrt(dot_d_d / dot_uncond_uncond), 0.0)
    return where(alpha > 0.0, exp(-alpha * ratio), 1.0)


def magnitude_aware(dot_d_d: Any, dot_uncond_uncond: Any, scale: Any, alpha: Any) -> Any:
    """``u + (1 + (s - 1) e) d``."""
    return 1.0, 1.0 + (scale - 1.0) * damping(dot_d_d, dot_uncond_uncond, alpha)


def magnitude_aware_from_cond(dot_d_d: Any, dot_uncond_uncond: Any, scale: Any, alpha: Any) -> Any:
    """``c + s e d``."""
    return 1.0, 1.0 + scale * damping(dot_d_d, dot_uncond_uncond, alpha)


@dataclass(frozen=True)
class MaMBOG(Rule):
    """Magnitude-aware guidance: the larger the delta beside the unconditional prediction, the less of it.

    ``uncond + s' * (cond - uncond)`` with ``s' = 1 + (scale - 1) * exp(-alpha * |cond - uncond| / |uncond|)``.

    Args:
        scale: guidance scale; alpha: strength of the damping, 0 is off.
        base: ``"uncond"``, or ``"cond"`` for ``cond + scale * exp(...) * (cond - uncond)``.

    Source: 2508.03442.
    """

    scale: Parameter = 7.5
    alpha: Parameter = 8.0
    base: Base = "uncond"

    title = "uncond + (1 + (scale - 1) * exp(-alpha |d|/|u|)) * d  [2508.03442]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "alpha", number_or_schedule("alpha", self.alpha))
        check_range("alpha", self.alpha, AT_LEAST_ZERO)
        check_choice("base", self.base, ("uncond", "cond"))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond")

    def lower(self) -> Lowered:
        formula = _by_base(self.base, magnitude_aware, magnitude_aware_from_cond)
        stage = fk.Stage(formula)
        return Lowered(
            self.conditions, (stage,), {"scale": self.scale, "alpha": self.alpha}, ranges={"alpha": AT_LEAST_ZERO}
        )
