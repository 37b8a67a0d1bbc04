"""Rescaling of the predicted noise after guidance: epsilon scaling and temporal score rescaling."""

from __future__ import annotations

from torch import Tensor

from ..validate import Weight, check_tensor, number, weighted_sum, weights_like

__all__ = ["epsilon_scaling", "temporal_score_rescaling"]


def epsilon_scaling(x: Tensor, denoised: Tensor, *, factor: Weight = 1.005) -> Tensor:
    """``x - (x - denoised) / factor``: the predicted noise divided by ``factor``, against exposure bias.

    On an eps prediction itself it is ``eps / factor``.

    Args:
        x: the noisy sample; denoised: the (guided) clean sample, both ``[B, ...]`` with ``x = denoised + noise``
            (EDM's and ComfyUI's scaling, alpha = 1).
        factor: above 0; 1 is off. A number, or a tensor ``[]`` or ``[B]``.

    Returns:
        The new clean sample ``[B, ...]`` in the inputs' dtype, float32 inside and one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Ning et al., 2308.15321, the uniform schedule.
    """
    check_tensor("x", x)
    check_tensor("denoised", denoised, x)
    (value,) = weights_like({"factor": factor}, x)
    if not isinstance(value, Tensor) and value <= 0:
        raise ValueError(f"factor: expected a number above 0, got {value}")
    share = 1.0 / value
    return weighted_sum({"x": (1.0 - share, x), "denoised": (share, denoised)})


def temporal_score_rescaling(
    x: Tensor, denoised: Tensor, *, alpha: Weight, sigma: Weight, k: float = 0.95, spread: float = 1.0
) -> Tensor:
    """TSR: the score of a distribution sharpened by ``k``, as a clean sample.

    The noise is scaled by ``r = (snr * v + 1) / (snr * v / k + 1)`` with ``snr = (alpha / sigma)^2`` and
    ``v = spread^2``; the clean sample is then ``(1 - r) * x / alpha + r * denoised``. Without noise (sigma = 0)
    ``r = k``.

    Args:
        x: the noisy sample; denoised: the (guided) clean sample, both ``[B, ...]``.
        alpha, sigma: levels of ``x = alpha * x0 + sigma * eps``: numbers, or tensors ``[]`` or ``[B]``.
        k: above 0; 1 is off, smaller gives more detail.
        spread: above 0; larger acts earlier.

    Returns:
        The new clean sample ``[B, ...]`` in the inputs' dtype, float32 inside and one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: 2510.01184, eq. 6.
    """
    check_tensor("x", x)
    check_tensor("denoised", denoised, x)
    for name, value in (("k", k), ("spread", spread)):
        if number(name, value) <= 0:
            raise ValueError(f"{name}: expected a number above 0, got {value}")
    a, s = weights_like({"alpha": alpha, "sigma": sigma}, x)
    if not isinstance(a, Tensor) and a == 0:
        raise ValueError("alpha: divides x, and is 0 here")
    signal = a * a * spread**2
    # 1 - r, without the cancellation of a ratio that is close to 1.
    left = signal * (1.0 / k - 1.0) / (signal / k + s * s)
    return weighted_sum({"x": (left / a, x), "denoised": (1.0 - left, denoised)})
