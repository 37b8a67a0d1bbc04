"""One step of a sampler from a guided prediction: DDIM with any amount of noise, and CFG++."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..prediction import Kind, affine_map
from ..validate import Weight, check_tensor, number, weighted_sum, weights_like
from .solvers import first_order

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
    Over a run, and in the guidance's own pass: :func:`fastcfg.guide_step`.

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
    if eta != 0.0 and noise is None:
        raise ValueError("noise: expected a tensor, since eta is not 0")
    a, s, a_next, s_next = _levels(x, given)
    of_x0, of_eps, of_noise = first_order(a, s, a_next, s_next, eta)
    (x_x, x_p), (e_x, e_p) = affine_map(kind, "x0", a, s), affine_map(kind, "eps", a, s)
    terms = {"x": (of_x0 * x_x + of_eps * e_x, x), "prediction": (of_x0 * x_p + of_eps * e_p, prediction)}
    if eta != 0.0 and noise is not None:
        terms["noise"] = (of_noise, noise)
    return weighted_sum(terms)


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
    of_x0, of_eps, _ = first_order(a, s, a_next, s_next)
    (x_x, x_p), (e_x, e_p) = affine_map(kind, "x0", a, s), affine_map(kind, "eps", a, s)
    clean = weighted_sum({"x": (x_x, x), "uncond": (x_p * (1.0 - lam), uncond), "cond": (x_p * lam, cond)})
    after = weighted_sum(
        {
            "x": (of_x0 * x_x + of_eps * e_x, x),
            "uncond": (of_x0 * x_p * (1.0 - lam) + of_eps * e_p, uncond),
            "cond": (of_x0 * x_p * lam, cond),
        }
    )
    return after, clean
