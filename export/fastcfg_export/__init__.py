"""Guidance inside exported graphs and engines.

:func:`export_onnx` writes a model and its rule as one ONNX graph, :func:`verify` compares it with eager torch,
:func:`build_engine` makes a TensorRT plan of it, and :class:`Engine` runs either as a denoiser.
"""

from .build import Built, build_engine
from .engine import Engine
from .errors import PLUGIN_REMOVED, BuildError, ExportError, SidecarError
from .metadata import read_signature
from .models import GraphModel, Input, adapt, from_example
from .module import GuidedModule
from .onnx_export import Exported, export_onnx
from .sampler_step import STEPS, SamplerStep
from .serving import write_repository
from .signature import Axis, Signature, TensorSpec
from .verification import Parity, verify

__all__ = [
    "STEPS",
    "Axis",
    "BuildError",
    "Built",
    "Engine",
    "ExportError",
    "Exported",
    "GraphModel",
    "GuidedModule",
    "Input",
    "Parity",
    "SamplerStep",
    "SidecarError",
    "Signature",
    "TensorSpec",
    "adapt",
    "build_engine",
    "export_onnx",
    "from_example",
    "read_signature",
    "verify",
    "write_repository",
]


def __getattr__(name: str) -> None:
    """Raise AttributeError, with the remedy for a name that was removed."""
    removed = name in ("custom_op", "plugin", "plugin_kernel")
    raise AttributeError(PLUGIN_REMOVED if removed else f"module {__name__!r} has no attribute {name!r}")
