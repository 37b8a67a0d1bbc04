"""Guidance inside exported graphs and engines.

:func:`export_onnx` writes a model and its rule as one ONNX graph, and :func:`verify` compares it with eager torch.
"""

from .models import GraphModel, Input, adapt, from_example
from .module import GuidedModule
from .onnx_export import Exported, ExportError, export_onnx, read_signature
from .sampler_step import STEPS, SamplerStep
from .signature import Axis, Signature, TensorSpec
from .verification import Parity, verify

__all__ = [
    "STEPS",
    "Axis",
    "ExportError",
    "Exported",
    "GraphModel",
    "GuidedModule",
    "Input",
    "Parity",
    "SamplerStep",
    "Signature",
    "TensorSpec",
    "adapt",
    "export_onnx",
    "from_example",
    "read_signature",
    "verify",
]
