"""How the oracles and the peers' installed code are compared.

Tolerances are derived: float64 peers get ``n·2⁻⁵³`` per sum of n terms plus a few roundings, times the
magnitude of what is added up; where a peer works in float32 inside, the same with 2⁻²⁴.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["SCALES", "SHAPES", "U32", "U64", "agree", "draw", "per_sample_size", "size", "t"]

U64, U32 = 2.0**-53, 2.0**-24
SHAPES = [(3, 7), (2, 5, 6), (2, 4, 8, 16), (1, 2, 3, 4, 5)]
SCALES = [-1.5, 0.0, 0.4, 3.0, 7.5, 20.0]


def draw(shape: tuple[int, ...], count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, *shape])
    common = rng.normal(size=shape)
    return [common + 0.5 * rng.normal(size=shape) + 0.1 for _ in range(count)]


def t(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def per_sample_size(x: np.ndarray) -> int:
    return x[0].size


def agree(peer: torch.Tensor, oracle: np.ndarray, *, magnitude: float, units: float = 8, unit: float = U64) -> None:
    assert tuple(peer.shape) == oracle.shape
    error = float(np.abs(peer.to(torch.float64).numpy() - oracle).max())
    assert error <= units * unit * magnitude, f"{error:.3e} > {units * unit * magnitude:.3e}"


def size(*arrays: np.ndarray) -> float:
    return max(float(np.abs(a).max()) for a in arrays)
