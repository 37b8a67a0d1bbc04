"""What the tests of the nodes share: nodes by name, a run's only call, spaces in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcfg.adapters import comfyui as pack

from . import protocol as fake

__all__ = ["EMPTY", "FLOW", "SHAPES", "SIGMAS", "UNIT", "apply", "defaults", "in_space", "noise", "one_call"]

UNIT = 2.0**-24
SIGMAS = torch.tensor([8.0, 5.0, 2.0, 0.5, 0.0])
FLOW = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
SHAPES = {"image": (3, 4, 6, 8), "video": (2, 4, 3, 6, 8)}
EMPTY = fake.conditioning(0.2)


def defaults(node: str) -> dict[str, Any]:
    """A node's widgets as they stand."""
    required = pack.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]
    return {name: options["default"] for name, (_, options) in required.items() if "default" in options}


def apply(node: str, model: Any, **inputs: Any) -> Any:
    """The output of a node with some widgets changed."""
    return pack.NODE_CLASS_MAPPINGS[node]().execute(model=model, **{**defaults(node), **inputs})[0]


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def one_call(model: Any, x: Tensor, cfg: float, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The guided sample of a run's only call; and, in float64, x and the predictions (cond, uncond)."""
    seen: list[Tensor] = []

    def solver(denoise: Callable[..., Tensor], start: Tensor, sigmas: Tensor) -> Tensor:
        seen.append(denoise(start, sigmas[:1].expand(start.shape[0])))
        return start

    fake.run(model, x, cfg, torch.tensor([sigma, 0.0]), solver=solver)
    return seen[0], x.double(), fake.predict(x, 1.0).double(), fake.predict(x, -0.5).double()


def in_space(space: str, flow: bool, sigma: float) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """To a prediction of a space and back, in float64."""
    if space == "x0":
        return lambda x, p: p, lambda x, q: q
    if space == "noise" or flow:  # For a flow x - x0 is along the velocity.
        return lambda x, p: (x - p) / sigma, lambda x, q: x - sigma * q
    # v of a variance-preserving process, whose latent is x / root.
    root = (1 + sigma**2) ** 0.5
    return lambda x, p: (x / root - root * p) / sigma, lambda x, q: (x / root - sigma * q) / root
