"""A graph in ONNX Runtime, on torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["OrtSession", "retyped"]


class OrtSession:
    """An ONNX file in ONNX Runtime's CPU provider, or its CUDA provider where that is installed and asked for.

    Args:
        path: the ONNX file.
        widen: run a bfloat16 graph, which ONNX Runtime does not take, in float32 with the same weights.
        threads: of one operation; default torch's number.

    Raises:
        ImportError: if onnxruntime is not installed.
        ValueError: naming ``path``, for a graph that it refuses.
    """

    def __init__(self, path: Path | str, *, widen: bool = False, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"running a graph here needs onnxruntime ({error}); pip install 'fastcfg-diffusion[export]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source: Any = retyped(Path(path)) if widen else str(path)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"path: ONNX Runtime refuses {path}: {str(error)[:400]}") from None
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs in order for inputs in order."""
        arrays: dict[str, Any] = {}
        for name, tensor in zip(self.inputs, inputs, strict=True):
            arrays[name] = np.ascontiguousarray(tensor.detach().cpu().numpy())
        return [torch.from_numpy(array) for array in self._session.run(self.outputs, arrays)]


def retyped(path: Path, dtype: str = "float32") -> bytes:
    """A bfloat16 graph with float32, or float16, in the place of bfloat16, all through it."""
    import onnx_ir

    narrow = onnx_ir.DataType.BFLOAT16
    wide = onnx_ir.DataType.FLOAT if dtype == "float32" else onnx_ir.DataType.FLOAT16
    model = onnx_ir.load(path)

    def tensor(value: Any) -> Any:
        return onnx_ir.tensor(value.numpy().astype(dtype)) if value.dtype == narrow else value

    def value(entry: Any) -> None:
        if entry is not None and entry.dtype == narrow:
            entry.dtype = wide
        if entry is not None and entry.const_value is not None:
            entry.const_value = tensor(entry.const_value)

    graphs: list[Any] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for entry in graph.inputs:
            value(entry)
        for entry in getattr(graph, "initializers", {}).values():
            value(entry)
        for node in graph.all_nodes():
            for entry in node.outputs:
                value(entry)
            for name, attribute in list(node.attributes.items()):
                if attribute.type == onnx_ir.AttributeType.TENSOR:
                    node.attributes[name] = onnx_ir.AttrTensor(name, tensor(attribute.value))
                elif node.op_type == "Cast" and name == "to" and attribute.value == narrow:
                    node.attributes[name] = onnx_ir.AttrInt64(name, int(wide))
    proto: bytes = onnx_ir.to_proto(model).SerializeToString()
    return proto
