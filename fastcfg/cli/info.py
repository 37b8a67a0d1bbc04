"""Facts about this machine: packages, devices, backends and why not."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any

import torch
from fastcfg_kernels.backends.cpu import build as cpp_build
from fastcfg_kernels.backends.triton import backend as triton_backend
from fastcfg_kernels.backends.triton.verified import device_key, verified

from ..version import __version__

__all__ = ["Availability", "collect"]

_PACKAGES = ("torch", "numpy", "triton", "diffusers", "transformers", "onnx", "onnxruntime", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Availability:
    """A backend or launch strategy on a device: usable, or why not."""

    name: str
    device: str
    usable: bool
    reason: str


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {properties.name} (compute capability {properties.major}.{properties.minor})")
    return found


def _cooperative() -> Availability:
    """The strategy whose programs wait for each other: NVIDIA's GPUs, once it has passed there."""
    if not torch.cuda.is_available():
        reason: str | None = "no CUDA device"
    elif (reason := triton_backend.unavailable(torch.device("cuda"))) is None and not torch.version.hip:
        known = "cooperative" in verified(device_key(torch.cuda.current_device()))
        reason = None if known else "not verified on this device: fastcfg info --verify"
    elif reason is None:
        reason = "AMD's GPUs run such launches one after the other"
    return Availability("triton cooperative", "cuda", reason is None, reason or "")


def backends() -> list[Availability]:
    """Every backend and launch strategy, on the CPU and on the first GPU."""
    rows = [Availability("torch", "any", True, "torch operations; differentiable and traceable")]
    native = cpp_build.compiler() is not None
    rows.append(Availability("cpp", "cpu", native, "" if native else "no C++ compiler was found"))
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            reason: str | None = "no CUDA device"
        else:
            reason = triton_backend.unavailable(torch.device(device))
        for strategy in ("row", "two_launch"):
            rows.append(Availability(f"triton {strategy}", device, reason is None, reason or ""))
    rows.append(_cooperative())
    return rows


def exports() -> list[Availability]:
    """Return what runs exported graphs and engines, and how far each has been executed."""
    installed = {name: _version(name) is not None for name in ("onnxruntime", "tensorrt-rtx", "tensorrt")}
    rows = [
        Availability(
            "graph, onnxruntime",
            "cpu",
            installed["onnxruntime"],
            "executed and compared with eager torch" if installed["onnxruntime"] else "onnxruntime is not installed",
        )
    ]
    known = {
        "tensorrt-rtx": ("plan, tensorrt_rtx", "plans are built without a GPU; none has been run yet"),
        "tensorrt": ("plan, tensorrt", "the library's calls are checked on a stand-in; none has been run yet"),
    }
    for package, (name, executed) in known.items():
        here = installed[package] and torch.cuda.is_available()
        missing = f"{package} is not installed" if not installed[package] else "no CUDA device to run on"
        rows.append(Availability(name, "cuda", here, executed if here else f"{missing}; {executed}"))
    return rows


def collect() -> dict[str, Any]:
    """Versions, devices and backends, as a JSON object."""
    return {
        "fastcfg": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "backends": [vars(row) for row in (*backends(), *exports())],
    }
