"""Solvers: from noise levels to the weights of a step.

With ``x = alpha * x0 + sigma * eps`` every first-order step is ``alpha' * x0 + d * eps + s * noise``. What it is called
follows from the levels: Euler in sigma space where ``alpha = 1``, Euler of flow matching where ``alpha = 1 - sigma``,
DDIM where the variance is preserved; with ``eta = 1`` ancestral Euler, and DDPM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..validate import Weight, check_choice, number

__all__ = ["DDIM", "DPMSolver2M", "Solver", "first_order"]

Level = tuple[float, float]
"""``(alpha, sigma)`` of ``x = alpha * x0 + sigma * eps``."""


def first_order(
    alpha: Weight, sigma: Weight, next_alpha: Weight, next_sigma: Weight, eta: float = 0.0
) -> tuple[Weight, Weight, Weight]:
    """Weights ``(of x0, of eps, of noise)`` of a step to the next level: ``(alpha', sqrt(sigma'^2 - s^2), s)``.

    ``s = eta * sigma' / sigma * sqrt(sigma^2 - (alpha / alpha')^2 * sigma'^2)``.

    Source: Song et al., 2010.02502, eq. 12 and 16.
    """
    if eta == 0.0:
        return next_alpha, next_sigma, 0.0
    ratio = alpha / next_alpha
    spread = eta * next_sigma / sigma * _root(sigma * sigma - ratio * ratio * next_sigma * next_sigma)
    return next_alpha, _root(next_sigma * next_sigma - spread * spread), spread


def _root(value: Weight) -> Weight:
    """The square root of what is negative by rounding alone."""
    return torch.sqrt(value.clamp(min=0)) if isinstance(value, Tensor) else max(value, 0.0) ** 0.5


@dataclass(frozen=True)
class Solver:
    """Base of the solvers: frozen values.

    Args:
        eta: share of the posterior's noise, at least 0; 0 is deterministic.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", number("eta", self.eta, low=0.0))

    @property
    def keeps_x0(self) -> bool:
        """Return whether a step reads the clean sample of the step before."""
        return False

    def weights(self, levels: Sequence[tuple[Level, Level]], index: int) -> tuple[float, float, float, float]:
        """Weights ``(of x0, of eps, of the x0 of the step before, of noise)`` of a step.

        Args:
            levels: for each step the level now and after it.
        """
        (alpha, sigma), (next_alpha, next_sigma) = levels[index]
        x0, eps, noise = first_order(alpha, sigma, next_alpha, next_sigma, self.eta)
        return float(x0), float(eps), 0.0, float(noise)


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM; by the levels it is given also Euler, Euler of flow matching, and with ``eta = 1`` ancestral Euler.

    Source: Song et al., 2010.02502; Karras et al., 2206.00364, alg. 1.
    """


def _log_snr(level: Level) -> float:
    """``log(alpha / sigma)``, infinite where one of them is 0."""
    alpha, sigma = level
    if alpha == 0:
        return -math.inf
    return math.inf if sigma == 0 else math.log(alpha) - math.log(sigma)


@dataclass(frozen=True)
class DPMSolver2M(Solver):
    """DPM-Solver++ (2M): the first-order step, and a correction by the change of the clean sample since the last one.

    With ``h`` the step in ``log(alpha / sigma)`` and ``h'`` the one before it, ``c * (h / h') * (x0 - x0')`` is added:
    for ``"midpoint"`` ``c = (alpha' - alpha / sigma * d) / 2``, d being the weight of eps; for ``"heun"``
    ``c = alpha' * ((exp(-h) - 1) / h + 1)``. With ``eta = 1`` it is SDE-DPM-Solver++ (2M).

    Args:
        eta: 0 or 1.
        solver_type: ``"midpoint"``, or ``"heun"`` (eta 0 only).
        lower_order_final: make the last step of a run of fewer than 15 first-order.
        euler_at_final: make the last step first-order. A step to ``sigma = 0`` always is.

    Source: Lu et al., 2211.01095, eq. 3.2 and alg. 2.
    """

    solver_type: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver_type", self.solver_type, ("midpoint", "heun"))
        if self.eta not in (0.0, 1.0) or (self.eta and self.solver_type == "heun"):
            raise ValueError(f"eta: expected 0, or 1 with solver_type 'midpoint', got {self.eta}, {self.solver_type!r}")

    @property
    def keeps_x0(self) -> bool:
        return True

    def weights(self, levels: Sequence[tuple[Level, Level]], index: int) -> tuple[float, float, float, float]:
        x0, eps, _, noise = super().weights(levels, index)
        now, after = levels[index]
        last = index == len(levels) - 1
        first_order_last = self.euler_at_final or (self.lower_order_final and len(levels) < 15)
        if index == 0 or after[1] == 0 or (last and first_order_last):
            return x0, eps, 0.0, noise
        step = _log_snr(after) - _log_snr(now)
        before = _log_snr(now) - _log_snr(levels[index - 1][0])
        if not (step > 0 and before > 0):
            raise ValueError(
                f"levels: expected less noise from step to step, got {levels[index - 1][0]}, {now}, {after}"
            )
        if self.solver_type == "midpoint":
            share = 0.5 * (after[0] - now[0] / now[1] * eps)
        else:
            share = after[0] * (math.expm1(-step) / step + 1.0)
        correction = share * step / before
        return x0 + correction, eps, -correction, noise
