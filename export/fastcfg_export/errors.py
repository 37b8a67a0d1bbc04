"""Errors of the export, each with a message for a user."""

from __future__ import annotations

__all__ = ["PLUGIN_REMOVED", "BuildError", "ExportError", "SidecarError"]

PLUGIN_REMOVED = (
    "the TensorRT plugin was removed: graphs hold plain ONNX, which TensorRT fuses itself; use "
    "fastcfg_export.export_onnx without custom_op, then fastcfg_export.build_engine"
)


class ExportError(RuntimeError):
    """A model that cannot become a graph, or a graph that is not what was asked for."""


class BuildError(RuntimeError):
    """A graph that a builder refuses."""


class SidecarError(ValueError):
    """A plan or its sidecar that cannot be trusted."""
