"""Solvers' steps in float64, each in the form of its own paper. Levels are of ``x = α·x0 + σ·ε``."""

from __future__ import annotations

import numpy as np

from .arrays import Array

__all__ = ["clean_and_noise", "ddim", "dpm_solver_2m", "euler", "euler_ancestral", "flow_euler", "sde_dpm_solver_2m"]


def clean_and_noise(*, prediction: Array, x: Array, kind: str, alpha: float, sigma: float) -> tuple[Array, Array]:
    """``(x0, ε)`` of a prediction at a level."""
    if kind == "eps":
        return (x - sigma * prediction) / alpha, prediction
    if kind == "x0":
        return prediction, (x - alpha * prediction) / sigma
    if kind == "v":  # Salimans & Ho, arXiv 2202.00512, appendix D; α² + σ² = 1.
        return alpha * x - sigma * prediction, alpha * prediction + sigma * x
    assert kind == "flow"  # ε − x0 with α + σ = 1.
    return x - sigma * prediction, x + alpha * prediction


def euler(*, x: Array, x0: Array, sigma: float, next_sigma: float) -> Array:
    """Karras et al., arXiv 2206.00364, algorithm 1 without churn: ``x + (σ' − σ)·(x − x0)/σ``."""
    return x + (next_sigma - sigma) * (x - x0) / sigma


def euler_ancestral(*, x: Array, x0: Array, noise: Array, sigma: float, next_sigma: float) -> Array:
    """k-diffusion's ancestral Euler: down to ``σ_down``, then noise of ``σ_up``."""
    up = min(next_sigma, np.sqrt(next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2))
    down = np.sqrt(next_sigma**2 - up**2)
    return euler(x=x, x0=x0, sigma=sigma, next_sigma=down) + up * noise


def flow_euler(*, x: Array, velocity: Array, sigma: float, next_sigma: float) -> Array:
    """Lipman et al., arXiv 2210.02747: one Euler step of ``dx/dσ = v``."""
    return x + (next_sigma - sigma) * velocity


def ddim(*, x0: Array, eps: Array, noise: Array, product: float, next_product: float, eta: float) -> Array:
    """Song et al., arXiv 2010.02502, eq. 12 and 16, products being ``ᾱ``."""
    spread = eta * np.sqrt((1 - next_product) / (1 - product)) * np.sqrt(1 - product / next_product)
    return np.sqrt(next_product) * x0 + np.sqrt(1 - next_product - spread**2) * eps + spread * noise


def _log_snr(level: tuple[float, float]) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(level[0]) - np.log(level[1]))


def dpm_solver_2m(
    *,
    x: Array,
    x0: Array,
    previous_x0: Array | None,
    levels: tuple[tuple[float, float], ...],
    solver_type: str = "midpoint",
) -> Array:
    """Lu et al., arXiv 2211.01095, algorithm 2; levels ``(α, σ)`` before, now, after; first order without history."""
    before, now, after = levels
    h = _log_snr(after) - _log_snr(now)
    decay = after[0] * (np.exp(-h) - 1)
    result = after[1] / now[1] * x - decay * x0
    if previous_x0 is None:
        return result
    slope = (x0 - previous_x0) * h / (_log_snr(now) - _log_snr(before))
    if solver_type == "heun":
        return result + after[0] * ((np.exp(-h) - 1) / h + 1) * slope
    return result - 0.5 * decay * slope


def sde_dpm_solver_2m(
    *, x: Array, x0: Array, previous_x0: Array | None, noise: Array, levels: tuple[tuple[float, float], ...]
) -> Array:
    """SDE-DPM-Solver++ (2M), Lu et al., arXiv 2211.01095, sec. 4.2 (midpoint)."""
    before, now, after = levels
    h = _log_snr(after) - _log_snr(now)
    growth = after[0] * (1 - np.exp(-2 * h))
    result = after[1] / now[1] * np.exp(-h) * x + growth * x0 + after[1] * np.sqrt(1 - np.exp(-2 * h)) * noise
    if previous_x0 is None:
        return result
    slope = (x0 - previous_x0) * h / (_log_snr(now) - _log_snr(before))
    return result + 0.5 * growth * slope
