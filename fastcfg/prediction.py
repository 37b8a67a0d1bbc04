"""Kinds of prediction, and the affine maps between them.

The forward process is ``x = alpha * x0 + sigma * eps``. Variance preserving: ``alpha = sqrt(alphas_cumprod)`` and
``sigma = sqrt(1 - alphas_cumprod)``; flow matching: ``alpha = 1 - t`` and ``sigma = t``; EDM: ``alpha = 1``.

========  =====================================  ======================
kind      meaning                                source
========  =====================================  ======================
``eps``   the noise                              2006.11239
``x0``    the clean sample                       2006.11239
``v``     ``alpha * eps - sigma * x0``           2202.00512
``flow``  ``eps - x0``, the velocity to noise    2209.03003
``score`` ``-eps / sigma``                       2011.13456
========  =====================================  ======================

Guidance by weights that add to 1 commutes with these maps; rules with norms do not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from fastcfg_kernels.memory import observed
from torch import Tensor

from .validate import Weight, check_choice, check_tensor, number, weighted_sum, weights_like

__all__ = ["Kind", "Prediction", "affine_map", "convert", "domain_map", "latent_at", "posterior_mean"]

Kind = Literal["eps", "x0", "v", "flow", "score"]
_KINDS = get_args(Kind)


def _on_host(*levels: Weight) -> bool:
    """Return whether levels can be looked at without waiting for a device or breaking a trace."""
    return not any([isinstance(v, Tensor) and (v.device.type != "cpu" or observed()) for v in levels])


def _over(numerator: Weight, level: Weight, name: str) -> Weight:
    if _on_host(level) and bool((level == 0).any() if isinstance(level, Tensor) else level == 0):
        raise ValueError(f"{name}: this conversion divides by {name}, which is 0 here")
    return numerator / level


def _as_x0(source: str, alpha: Weight, sigma: Weight) -> tuple[Weight, Weight]:
    if source == "x0":
        return 0.0, 1.0
    if source == "eps":
        return _over(1.0, alpha, "alpha"), -_over(sigma, alpha, "alpha")
    if source == "score":
        return _over(1.0, alpha, "alpha"), _over(sigma * sigma, alpha, "alpha")
    if source == "v":
        norm = alpha * alpha + sigma * sigma
        return alpha / norm, -sigma / norm
    return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)


def _as_eps(source: str, alpha: Weight, sigma: Weight) -> tuple[Weight, Weight]:
    if source == "eps":
        return 0.0, 1.0
    if source == "x0":
        return _over(1.0, sigma, "sigma"), -_over(alpha, sigma, "sigma")
    if source == "score":
        return 0.0, -sigma
    if source == "v":
        norm = alpha * alpha + sigma * sigma
        return sigma / norm, alpha / norm
    return 1.0 / (alpha + sigma), alpha / (alpha + sigma)


def affine_map(source: Kind, target: Kind, alpha: Weight, sigma: Weight) -> tuple[Weight, Weight]:
    """``(a, b)`` such that the ``target`` is ``a * x + b * prediction``.

    Args:
        source, target: kinds of prediction.
        alpha, sigma: levels of ``x = alpha * x0 + sigma * eps``: finite numbers, or tensors ``[]`` or ``[B]``.

    Returns:
        Numbers where both levels are, else tensors; a coefficient that is zero whatever the levels is the number 0.

    Raises:
        ValueError: naming the argument; also where a level given as a number is 0 and the map divides by it.
    """
    check_choice("source", source, _KINDS)
    check_choice("target", target, _KINDS)
    if source == target:
        return 0.0, 1.0
    if target == "x0":
        return _as_x0(source, alpha, sigma)
    e_x, e_p = _as_eps(source, alpha, sigma)
    if target == "eps":
        return e_x, e_p
    if target == "score":
        return 0.0 if source == "eps" else -_over(e_x, sigma, "sigma"), -_over(e_p, sigma, "sigma")
    x_x, x_p = _as_x0(source, alpha, sigma)
    if target == "v":
        return alpha * e_x - sigma * x_x, alpha * e_p - sigma * x_p
    return e_x - x_x, e_p - x_p


NEAREST = 2.0**-26
"""How near an end of the noise range is approached, where a space does not depend on the prediction at the end.

The limit there is taken in float64, in which both its own error and the rounding of what it divides by are below that
of float32. Levels that are still on a device are taken in float32, as near as :data:`NEAR`.
"""

NEAR = 2.0**-12

_WIDE = 2.0**-8
"""Below this gain beside the shift, float32 loses more digits than half precision has to spare."""


def _vanishing(source: Kind, target: Kind) -> str | None:
    """The level at whose zero the target does not depend on the prediction any more."""
    if target in ("eps", "score") and source in ("x0", "v", "flow"):
        return "alpha"
    return "sigma" if source == "score" or (target == "x0" and source != "x0") else None


def domain_map(prediction: Prediction, domain: Kind) -> tuple[Weight, Weight, bool]:
    """``(shift, gain)`` of ``shift * x + gain * prediction``, which can be taken back, at every noise level.

    Where the target does not depend on the prediction (the noise that a flow or v model stands for at alpha = 0, the
    clean sample that eps stands for at sigma = 0), guidance there is a limit: it is taken just beside the end.

    Returns:
        The coefficients, and whether they are so unlike that the call has to compute in float64.

    Raises:
        ValueError: naming the level, where the target itself is not defined there (x0 of an eps model at alpha = 0). A
            level on a device is not looked at.
    """
    alpha, sigma = prediction.alpha, prediction.sigma
    level = _vanishing(prediction.kind, domain)
    host = _on_host(alpha, sigma)
    if level is not None:
        wide_levels = [v.double() if host and isinstance(v, Tensor) else v for v in (alpha, sigma)]
        own, other = wide_levels if level == "alpha" else wide_levels[::-1]
        least = NEAREST if host or (isinstance(own, Tensor) and own.dtype == torch.float64) else NEAR
        own = _at_least(own, other, least)
        alpha, sigma = (own, other) if level == "alpha" else (other, own)
    shift, gain = affine_map(prediction.kind, domain, alpha, sigma)
    if not host or level is None:
        return shift, gain, False
    few: Any = _WIDE * _size(shift) > _size(gain)
    return shift, gain, bool(few.any() if isinstance(few, Tensor) else few)


def _size(value: Weight) -> Weight:
    return value.abs() if isinstance(value, Tensor) else abs(value)


def _at_least(level: Weight, other: Weight, share: float) -> Weight:
    """A level, or that share of the other where it is less."""
    if not isinstance(level, Tensor) and not isinstance(other, Tensor):
        return max(level, share * abs(other))
    least = share * _size(other)
    level = torch.as_tensor(level) if not isinstance(level, Tensor) else level
    return torch.maximum(level, torch.as_tensor(least, dtype=level.dtype, device=level.device))


def latent_at(
    x: Tensor, sigma: Tensor, kind: Kind, spaces: Collection[str], *, flow: bool
) -> tuple[Tensor, Prediction]:
    """A latent at noise level ``sigma`` and what predictions of a kind are there, as the spaces are defined.

    Args:
        x: ``x0 + sigma * eps``, or ``(1 - sigma) * x0 + sigma * eps`` where it is a ``flow``.
        sigma: ``[]`` or ``[B]``, of any dtype: levels are kept in float32 (float64 for float64), where its square is
            finite for every sampler.
        spaces: what rules work on, and what the model predicts; for v, x is scaled to a variance-preserving process.
    """
    sigma = sigma.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    if flow:
        return x, Prediction(kind, 1.0 - sigma, sigma)
    if "v" not in spaces:
        return x, Prediction(kind, 1.0, sigma)
    alpha = torch.rsqrt(1.0 + sigma * sigma)
    whole = alpha.view(-1, *[1] * (x.dim() - 1)) if alpha.dim() else alpha
    return (x * whole).to(x.dtype), Prediction(kind, alpha, alpha * sigma)


@dataclass(frozen=True)
class Prediction:
    """A kind of prediction at a noise level.

    Args:
        kind: ``"eps"``, ``"x0"``, ``"v"``, ``"flow"`` or ``"score"``.
        alpha, sigma: levels of ``x = alpha * x0 + sigma * eps``: numbers, or tensors ``[]`` or ``[B]``. Values with
            numbers hash and compare.

    Raises:
        ValueError: naming the argument.
    """

    kind: Kind
    alpha: Weight
    sigma: Weight

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, _KINDS)
        for name in ("alpha", "sigma"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                object.__setattr__(self, name, number(name, value))

    def to(self, kind: Kind) -> tuple[Weight, Weight]:
        """Coefficients ``(a, b)`` such that the prediction as ``kind`` is ``a * x + b * prediction``."""
        return affine_map(self.kind, kind, self.alpha, self.sigma)

    def convert(self, prediction: Tensor, x: Tensor, target: Kind, *, dtype: torch.dtype | None = None) -> Tensor:
        """:func:`convert` of a prediction of this kind and level."""
        return convert(prediction, x, self.kind, target, alpha=self.alpha, sigma=self.sigma, dtype=dtype)


def convert(
    prediction: Tensor,
    x: Tensor,
    source: Kind,
    target: Kind,
    *,
    alpha: Weight,
    sigma: Weight,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A prediction of one kind as another: ``a * x + b * prediction`` in one pass.

    Args:
        prediction, x: tensors ``[B, ...]`` of one shape; ``x`` is the noisy latent.
        source, target: kinds; equal ones return ``prediction`` itself.
        alpha, sigma: levels of ``x = alpha * x0 + sigma * eps``: numbers, or tensors ``[]`` or ``[B]``.
        dtype: of the result; default that of the inputs (the wider where they differ).

    Returns:
        ``[B, ...]``, accumulated in float32 (float64 for float64) and rounded once.

    Raises:
        TypeError, ValueError: naming the argument; also where a level that is the number 0 would divide.
    """
    check_tensor("prediction", prediction)
    check_tensor("x", x, prediction)
    wider = x if x.dtype.itemsize > prediction.dtype.itemsize else prediction
    a, b = affine_map(source, target, *weights_like({"alpha": alpha, "sigma": sigma}, wider))
    if source == target:
        return prediction.to(dtype or prediction.dtype)
    return weighted_sum({"x": (a, x), "prediction": (b, prediction)}, dtype=dtype)


def posterior_mean(
    prediction: Tensor,
    x: Tensor,
    *,
    alpha_t: Weight,
    alphas_cumprod: Weight | None = None,
    kind: Literal["eps", "score"] = "eps",
) -> Tensor:
    """The mean of DDPM's reverse step.

    ``kind="eps"``: ``(x - (1 - alpha_t) / sqrt(1 - alphas_cumprod) * eps) / sqrt(alpha_t)``;
    ``kind="score"``: ``(x + (1 - alpha_t) * score) / sqrt(alpha_t)``. The two agree for
    ``score = -eps / sqrt(1 - alphas_cumprod)``. A score in the eps form does not (its step is wrong by that root
    and by its sign), which is why the kind has to be named.

    Args:
        prediction, x: tensors ``[B, ...]``.
        alpha_t: ``1 - beta_t``, a number or a tensor ``[]`` or ``[B]``.
        alphas_cumprod: the product up to t; needed by the eps form.

    Returns:
        ``[B, ...]`` in the inputs' dtype, float32 inside, one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Ho et al., 2006.11239, eq. 11.
    """
    check_choice("kind", kind, ("eps", "score"))
    check_tensor("prediction", prediction)
    check_tensor("x", x, prediction)
    (step,) = weights_like({"alpha_t": alpha_t}, prediction)
    root = step**0.5
    weight = (1.0 - step) / root
    if kind == "eps":
        if alphas_cumprod is None:
            raise ValueError("alphas_cumprod: the eps form needs it")
        (bar,) = weights_like({"alphas_cumprod": alphas_cumprod}, prediction)
        weight = -weight / (1.0 - bar) ** 0.5
    return weighted_sum({"x": (1.0 / root, x), "prediction": (weight, prediction)})
