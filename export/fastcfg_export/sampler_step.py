"""Steps of samplers that a graph can end in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fastcfg import ddim_step
from fastcfg.prediction import Kind

__all__ = ["STEPS", "SamplerStep"]


@dataclass(frozen=True)
class SamplerStep:
    """A step as a function of tensors.

    Args:
        levels: inputs ``[B]`` besides ``alpha`` and ``sigma``.
        run: ``run(prediction, x, kind, levels)``, the next latent.
    """

    levels: tuple[str, ...]
    run: Callable[[Tensor, Tensor, Kind, Mapping[str, Tensor]], Tensor]

    def __call__(self, prediction: Tensor, x: Tensor, levels: Mapping[str, Tensor], kind: Kind) -> Tensor:
        return self.run(prediction, x, kind, levels)


def _ddim(prediction: Tensor, x: Tensor, kind: Kind, levels: Mapping[str, Tensor]) -> Tensor:
    return ddim_step(
        prediction,
        x,
        kind=kind,
        alpha=levels["alpha"],
        sigma=levels["sigma"],
        next_alpha=levels["next_alpha"],
        next_sigma=levels["next_sigma"],
    )


STEPS: dict[str, SamplerStep] = {"ddim": SamplerStep(("next_alpha", "next_sigma"), _ddim)}
"""Steps by name. DDIM without noise is also the Euler step of a flow and of the probability flow ODE."""
