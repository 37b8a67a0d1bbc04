"""What tests of the kernels on the software GPU share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from fastcfg_kernels import guide_outputs
from fastcfg_kernels.backends.triton.gates import PARAMS
from fastcfg_kernels.formula.program import Program
from gpu import harness
from gpu.softgpu.driver import Device
from gpu.softgpu.launch import Launch
from torch import Tensor

__all__ = ["argument", "device_with", "draw", "exact", "guided", "parameters", "whole"]

STRATEGIES = ("row", "two_launch", "cooperative")


def whole(*values: Any) -> Any:
    """Parameters that ``make test`` leaves to ``make gpu-emulated``."""
    return pytest.param(*values, marks=pytest.mark.whole)


@contextmanager
def device_with(**settings: Any) -> Iterator[Device]:
    """The device with other settings for a while."""
    device = harness.DEVICE
    assert device is not None, "run with FASTCFG_SOFTWARE_GPU"
    before = {name: getattr(device, name) for name in settings}
    for name, value in settings.items():
        setattr(device, name, value)
    try:
        yield device
    finally:
        for name, value in before.items():
            setattr(device, name, value)


def argument(launch: Launch, name: str, dtype: Any) -> np.ndarray[Any, Any]:
    """An argument's memory after a launch."""
    buffer = next(b for b in launch.memory.buffers if b.name == name)
    found: np.ndarray[Any, Any] = buffer.storage[buffer.index()].view(dtype)
    return found


def parameters(program: Program) -> dict[str, float]:
    """A number for each parameter."""
    return {name: PARAMS.get(name, 0.5) for name in program.params}


def draw(
    program: Program, shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Predictions and extras."""
    generator = torch.Generator().manual_seed(seed)
    size = len(program.predictions)
    tensors = [torch.randn(*shape, generator=generator) for _ in range(size + len(program.extras))]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [t.to(dtype) for t in tensors[:size]], [t.to(wide) for t in tensors[size:]]


def guided(program: Program, given: Sequence[Tensor], extras: Sequence[Tensor], strategy: str | None) -> list[Tensor]:
    """The results by the kernels."""
    return guide_outputs(given, program, parameters(program), extras=extras, backend="triton", strategy=strategy)


def exact(program: Program, given: Sequence[Tensor], extras: Sequence[Tensor]) -> list[Tensor]:
    """The results in float64."""
    double = [[t.double() for t in tensors] for tensors in (given, extras)]
    return guide_outputs(double[0], program, parameters(program), extras=double[1], backend="torch")
