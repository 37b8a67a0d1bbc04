"""The optimiser of distillation: orthogonal steps for matrices, AdamW for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MuonAdamW", "matrices", "orthogonalised"]

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix ``[m, n]`` with its singular values brought near 1, its singular vectors kept, float32.

    Five steps of a Newton-Schulz iteration whose quintic rises steeply at zero: singular values above a few thousandths
    of the Frobenius norm end in about 0.7 ... 1.2; which of them exactly does not matter to a step's direction.
    """
    wide: Tensor = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    wide = wide / wide.norm().clamp_min(1e-12)
    a, b, c = _QUINTIC
    for _ in range(5):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def matrices(network: nn.Module) -> set[str]:
    """Names of the weights that multiply a vector of channels: those of linear layers and convolutions."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {f"{name}.weight" for name, layer in network.named_modules() if isinstance(layer, layers)}


class MuonAdamW(torch.optim.AdamW):
    """Muon for the groups with ``matrix=True``, torch's AdamW for the others, with one learning rate.

    Muon takes the momentum of a weight (a convolution's ``[out, in * kernel]``) and steps along the nearest orthogonal
    matrix, so that the directions in which the gradient is small move as far as the others: a student's targets have no
    noise, and what is left of the error lies in those. The step has the root mean square that AdamW's typically has,
    0.2 times the learning rate.

    Args:
        groups: parameter groups with ``matrix``.
        lr: learning rate of groups that give none.
        momentum: of Muon.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the size of the step: Liu et
    al., 2502.16982. torch's own ``Muon`` (2.9) takes two-dimensional weights alone; this one, a network's all.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        groups = [{"matrix": False, "momentum": momentum, **group} for group in groups]
        super().__init__(groups, lr, betas, eps, weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        every = self.param_groups
        self.param_groups = [group for group in every if not group["matrix"]]
        try:
            loss: float | None = super().step(closure)  # type: ignore[assignment, arg-type]
        finally:
            self.param_groups = every
        for group in every:
            for parameter in group["params"] if group["matrix"] else ():
                if parameter.grad is not None:
                    self._orthogonal(parameter, group)
        return loss

    def _orthogonal(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)
        size = group["lr"] * 0.2 * math.sqrt(max(ahead.shape))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalised(ahead).view_as(parameter).to(parameter.dtype), alpha=-size)
