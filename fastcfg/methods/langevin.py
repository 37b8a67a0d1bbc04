"""Sampling from a score: Langevin steps, the score of a continuous autoregressive model, and its temperature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..validate import Weight, check_tensor, number, per_sample, upcast, weighted_sum, weights_like

__all__ = ["langevin", "sequence_score", "temper"]


def temper(score: Tensor, gamma: Weight) -> Tensor:
    """``gamma * score``: the score of ``p^gamma``, that is of temperature ``1 / gamma``.

    It is the baseline that guidance is measured against: for a diffusion model it is the score of no noised
    distribution (noising and powers don't commute), and it narrows everything where guidance narrows what the
    condition says.

    Args:
        score: a score ``[B, ...]``, or an eps prediction, which is proportional to one.
        gamma: a number, or a tensor ``[]`` or ``[B]``.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_tensor("score", score)
    (weight,) = weights_like({"gamma": gamma}, score)
    return weighted_sum({"score": (weight, score)})


def sequence_score(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The score of a continuous autoregressive model, ``grad_x sum_t log p(x_t | x_<t)``.

    Args:
        log_prob: from ``x [B, T, ...]`` to the conditional log densities ``[B, T]``; samples must not mix.
        x: sequences ``[B, T, ...]``.

    Returns:
        ``[B, T, ...]`` in x's dtype, detached; the graph is freed.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_tensor("x", x)
    with torch.inference_mode(False), torch.enable_grad():
        variable = x.detach().clone().requires_grad_(True)
        terms = log_prob(variable)
        if not isinstance(terms, Tensor) or terms.shape[:1] != x.shape[:1]:
            raise ValueError(f"log_prob: expected log densities [{x.shape[0]}, T], got {_shape(terms)}")
        (gradient,) = torch.autograd.grad(upcast(terms).sum(), variable)
    return gradient


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def langevin(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    step: Weight,
    steps: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``x + step / 2 * score(x) + sqrt(step * temperature) * noise``, repeated: unadjusted Langevin.

    With a score from a subset of the data it is stochastic gradient Langevin dynamics. The stationary distribution
    of a Gaussian score of variance v has variance ``v / (1 - step / (4 v))`` at temperature 1.

    Args:
        score: from ``x [B, ...]`` to the (guided) score of its shape.
        x: where to start, ``[B, ...]``; float32 or float64 is advised, half types lose small steps.
        step: step size above 0, a number, or a tensor ``[]`` or ``[B]``.
        steps: how many.
        temperature: 0 is gradient ascent.
        generator: of x's device.

    Returns:
        ``[B, ...]`` in x's dtype.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Welling & Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011.
    """
    check_tensor("x", x)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps: expected a non-negative integer, got {steps!r}")
    if not isinstance(step, Tensor):
        step = number("step", step, low=0.0)
    temperature = number("temperature", temperature, low=0.0)
    width = per_sample("step", step, x)
    spread = (width * temperature) ** 0.5
    state = upcast(x)
    for _ in range(steps):
        drift = score(state.to(x.dtype))
        check_tensor("score", drift, x)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=state.dtype)
        state = state + 0.5 * width * drift + spread * noise
    return state.to(x.dtype)
