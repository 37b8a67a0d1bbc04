"""One step of a sampler from a guided prediction: DDIM with any amount of noise, and CFG++."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .combination import Weight, check_tensor, number, weighted_sum, weights_like
from .parameterization import Kind, affine_map

__all__ = ["cfg_pp_step", "ddim_step"]


def _levels(x: Tensor, levels: Mapping[str, Weight]) -> list[Weight]:
    check_tensor("x", x)
    return weights_like(levels, x)


def ddim_step(
    prediction: Tensor,
    x: Tensor,
    *,
    alpha: Weight,
    sigma: Weight,
    next_alpha: Weight,
    next_sigma: Weight,
    kind: Kind = "eps",
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """``next_alpha * x0 + sqrt(next_sigma^2 - s^2) * eps + s * noise`` of a (guided) prediction.

    ``s = eta * next_sigma / sigma * sqrt(sigma^2 - (alpha / next_alpha)^2 * next_sigma^2)``: ``eta = 0`` is DDIM and
    deterministic, ``eta = 1`` has the variance of DDPM's posterior. It is one weighted sum of x, prediction and noise.

    Args:
        prediction, x: tensors ``[B, ...]`` of one shape.
        alpha, sigma, next_alpha, next_sigma: levels of ``x = alpha * x0 + sigma * eps`` now and after the step:
            numbers, or tensors ``[]`` or ``[B]``.
        kind: what ``prediction`` is.
        eta: share of the posterior's noise, at least 0.
        noise: standard normal ``[B, ...]``; needed if ``eta`` is not 0.

    Returns:
        The next x ``[B, ...]`` in the inputs' dtype (the wider where they differ), float32 inside, one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Song et al., 2010.02502, eq. 12 and 16.
    """
    check_tensor("prediction", prediction, check_tensor("x", x))
    eta = number("eta", eta, low=0.0)
    given = {"alpha": alpha, "sigma": sigma, "next_alpha": next_alpha, "next_sigma": next_sigma}
    a, s, a_next, s_next = _levels(x, given)
    spread: Weight = 0.0
    direction = s_next
    if eta != 0.0:
        if noise is None:
            raise ValueError("noise: expected a tensor, since eta is not 0")
        ratio = a / a_next
        spread = eta * s_next / s * _root(s * s - ratio * ratio * s_next * s_next)
        direction = _root(s_next * s_next - spread * spread)
    (x_x, x_p), (e_x, e_p) = affine_map(kind, "x0", a, s), affine_map(kind, "eps", a, s)
    terms = {
        "x": (a_next * x_x + direction * e_x, x),
        "prediction": (a_next * x_p + direction * e_p, prediction),
    }
    if eta != 0.0 and noise is not None:
        terms["noise"] = (spread, noise)
    return weighted_sum(terms)


def _root(value: Weight) -> Weight:
    """The square root of what is negative by rounding alone."""
    return torch.sqrt(value.clamp(min=0)) if isinstance(value, Tensor) else max(value, 0.0) ** 0.5


def cfg_pp_step(
    x: Tensor,
    *,
    uncond: Tensor,
    cond: Tensor,
    scale: Weight,
    alpha: Weight,
    sigma: Weight,
    next_alpha: Weight,
    next_sigma: Weight,
    kind: Kind = "eps",
) -> tuple[Tensor, Tensor]:
    """CFG++ with a DDIM step: the clean sample of the guided prediction, renoised with the unconditional one.

    ``x0 = x0(uncond + scale * (cond - uncond))`` and ``next_alpha * x0 + next_sigma * eps(uncond)``. Each output is
    one weighted sum of x and the two predictions.

    Args:
        x, uncond, cond: tensors ``[B, ...]`` of one shape.
        scale: the paper's lambda: 0 is unconditional; 0 ... 1 in the paper, and not limited here. A number, or a
            tensor ``[]`` or ``[B]``, as are the levels of ``x = alpha * x0 + sigma * eps`` now and after the step.
        kind: what the predictions are.

    Returns:
        ``(next x, x0)``, both ``[B, ...]`` in the inputs' dtype (the wider where they differ), float32 inside and
        one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Chung et al., 2406.08070, algorithm 2.
    """
    check_tensor("x", x)
    check_tensor("uncond", uncond, x)
    check_tensor("cond", cond, x)
    given = {"scale": scale, "alpha": alpha, "sigma": sigma, "next_alpha": next_alpha, "next_sigma": next_sigma}
    lam, a, s, a_next, s_next = _levels(x, given)
    (x_x, x_p), (e_x, e_p) = affine_map(kind, "x0", a, s), affine_map(kind, "eps", a, s)
    clean = weighted_sum({"x": (x_x, x), "uncond": (x_p * (1.0 - lam), uncond), "cond": (x_p * lam, cond)})
    after = weighted_sum(
        {
            "x": (a_next * x_x + s_next * e_x, x),
            "uncond": (a_next * x_p * (1.0 - lam) + s_next * e_p, uncond),
            "cond": (a_next * x_p * lam, cond),
        }
    )
    return after, clean
