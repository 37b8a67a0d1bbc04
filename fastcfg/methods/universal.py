"""Universal guidance: a classifier of clean samples, differentiated through the denoiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..prediction import Kind, affine_map, convert
from ..samplers.steps import ddim_step
from ..validate import Weight, check_tensor, upcast, weighted_sum, weights_like

__all__ = ["universal_gradient", "universal_step"]

LogProb = Callable[[Tensor], Tensor]


def universal_gradient(x: Tensor, denoise: Callable[[Tensor], Tensor], log_prob: LogProb) -> Tensor:
    """``grad_x log p(y | x0(x))``, back through the denoiser.

    Args:
        x: noisy samples ``[B, ...]``.
        denoise: from x to the denoiser's clean sample ``[B, ...]`` (a prediction and :func:`fastcfg.convert`).
        log_prob: from clean samples to the log-likelihood of each, ``[B]``.

    Returns:
        ``[B, ...]`` in x's dtype, detached; the graph is freed. It works inside ``no_grad`` and ``inference_mode``.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Bansal et al., 2302.07121.
    """
    check_tensor("x", x)
    with torch.inference_mode(False), torch.enable_grad():
        variable = x.detach().clone().requires_grad_(True)
        return _gradient(variable, denoise(variable), log_prob)


def _gradient(variable: Tensor, x0: Tensor, log_prob: LogProb) -> Tensor:
    values = log_prob(x0)
    if not isinstance(values, Tensor) or values.shape != variable.shape[:1]:
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"log_prob: expected one value a sample, [{variable.shape[0]}], got {found}")
    (gradient,) = torch.autograd.grad(upcast(values).sum(), variable)
    return gradient


def universal_step(
    x: Tensor,
    predict: Callable[[Tensor], Tensor],
    log_prob: LogProb,
    *,
    alpha: Weight,
    sigma: Weight,
    next_alpha: Weight,
    next_sigma: Weight,
    scale: Weight = 1.0,
    kind: Kind = "eps",
    recurrences: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A DDIM step with forward universal guidance, and the prediction it was made of.

    The score becomes ``score + scale * grad_x log p(y | x0(x))``; for eps predictions that is
    ``eps - scale * sigma * grad``. With ``recurrences = k`` the step is made k times, and noised back to x's level
    in between, which lets sample and condition settle at one noise level.

    Args:
        x: noisy samples ``[B, ...]``.
        predict: the denoiser's (guided) prediction of ``kind``, from x. It runs k times, with a graph each.
        log_prob: from clean samples to the log-likelihood of each, ``[B]``.
        alpha, sigma, next_alpha, next_sigma: levels of ``x = alpha * x0 + sigma * eps`` now and after the step;
            these and ``scale`` are numbers, or tensors ``[]`` or ``[B]``.
        recurrences: k, at least 1.
        generator: of x's device, for the noise in between.

    Returns:
        ``(next x, guided prediction)``, both ``[B, ...]`` and detached.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Bansal et al., 2302.07121, forward universal guidance with per-step self-recurrence.
    """
    check_tensor("x", x)
    if isinstance(recurrences, bool) or not isinstance(recurrences, int) or recurrences < 1:
        raise ValueError(f"recurrences: expected a positive integer, got {recurrences!r}")
    given = {"scale": scale, "alpha": alpha, "sigma": sigma, "next_alpha": next_alpha, "next_sigma": next_sigma}
    lam, a, s, a_next, s_next = weights_like(given, x)
    _, of_score = affine_map("score", kind, a, s)
    ratio = a / a_next
    variance = s * s - ratio * ratio * s_next * s_next
    for left in reversed(range(recurrences)):
        with torch.inference_mode(False), torch.enable_grad():
            variable = x.detach().clone().requires_grad_(True)
            prediction = check_tensor("predict", predict(variable), x)
            clean = convert(prediction, variable, kind, "x0", alpha=alpha, sigma=sigma)
            gradient = _gradient(variable, clean, log_prob)
            prediction = prediction.detach()
            del clean, variable
        guided = weighted_sum({"prediction": (1.0, prediction), "gradient": (lam * of_score, gradient)})
        after = ddim_step(guided, x, alpha=alpha, sigma=sigma, next_alpha=next_alpha, next_sigma=next_sigma, kind=kind)
        if left:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=upcast(x[:0]).dtype)
            spread = torch.sqrt(variance) if isinstance(variance, Tensor) else variance**0.5
            x = weighted_sum({"x": (ratio, after), "noise": (spread, noise)}, dtype=x.dtype)
    return after, guided
