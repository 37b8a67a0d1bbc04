"""Puts this project's kernels on the software GPU: CPU tensors go the way of CUDA tensors, launch path and all.

Three functions of ours look at CUDA itself, which is not here, and are replaced; everything else is what runs on a GPU.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from .softgpu.driver import Device
from .softgpu.driver import install as install_driver

__all__ = ["DEVICE", "install"]

DEVICE: Device | None = None
"""The device of this process, once it is installed."""


def _replace(name: str, function: Any) -> None:
    """Put a function in the place of the Triton backend's of that name, wherever it has been imported to."""
    import fastcfg_kernels.backends.triton.backend as backend

    ours = getattr(backend, name)
    for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "fastcfg_kernels"]:
        if getattr(module, name, None) is ours:
            setattr(module, name, function)


def install(arch: int = 90) -> Device:
    """Make the software GPU Triton's device and the one that ``backend="triton"`` runs CPU tensors on.

    Memory that torch hands out holds NaN until it is written, and a kernel that reads such a NaN is at fault.
    """
    global DEVICE
    from fastcfg_kernels.backends.triton.arrivals import Arrivals

    device = DEVICE = install_driver(arch)
    counters = Arrivals()
    _replace("unavailable", lambda _: None)
    _replace("_cooperative_programs", lambda _, strategy: device.resident if strategy == "cooperative" else 0)
    _replace("_arrivals", lambda groups, where: counters.take(groups, where, stream=0, capturing=False))
    torch.use_deterministic_algorithms(True)
    return device
