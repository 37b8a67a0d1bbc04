"""Checks of a written graph's dimensions: open or fixed, and their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import ExportError
from .signature import Signature

__all__ = ["check_dims"]


def check_dims(translated: Any, signature: Signature) -> None:
    """Compare a graph's inputs and outputs with a signature, and name its open dimensions by their axes.

    Raises:
        ExportError: naming the tensor, for a dimension that is fixed and should be open, or the reverse.
    """
    symbols: dict[str, str] = {}
    for specs, values in ((signature.inputs, translated.graph.inputs), (signature.outputs, translated.graph.outputs)):
        found = [value.name for value in values]
        if found != [spec.name for spec in specs]:
            raise ExportError(f"graph: expected {[spec.name for spec in specs]}, got {found}")
        for spec, value in zip(specs, values, strict=True):
            if len(value.shape) != len(spec.dims):
                raise ExportError(f"{spec.name}: expected {spec.dims}, got {value.shape} in the graph")
            for dim, got in zip(spec.dims, value.shape, strict=True):
                fixed = isinstance(got, int)
                open_ = isinstance(dim, str) and not signature.axes[dim].fixed
                expected = signature.axes[dim].low if isinstance(dim, str) and not open_ else dim
                if fixed == open_ or (fixed and got != expected):
                    raise ExportError(
                        f"{spec.name}: expected {dim} to be {'open' if open_ else expected}, "
                        f"the graph has {value.shape}: the model fixes or loses it"
                    )
                symbol = str(got).split("*")[-1]
                if open_ and symbols.setdefault(symbol, str(dim)) != dim:
                    raise ExportError(f"{spec.name}: {dim} and {symbols[symbol]} became one dimension, {got}")
    _name_dims(translated, signature, symbols)


def _name_dims(translated: Any, signature: Signature, symbols: Mapping[str, str]) -> None:
    """Give the tracer's symbols (``s15``) the names of their axes, all through the graph."""
    import onnx_ir

    names = {}
    for symbol, axis in symbols.items():
        multiple = signature.axes[axis].multiple
        names[symbol] = axis if multiple == 1 else f"{axis}_{multiple}"
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names) or r"(?!)")

    def renamed(dim: Any) -> Any:
        if isinstance(dim, int) or dim.value is None:
            return dim
        return onnx_ir.SymbolicDim(pattern.sub(lambda found: names[found[0]], str(dim.value)))

    values = [*translated.graph.inputs, *(output for node in translated.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None and not value.shape.is_static():
            value.shape = onnx_ir.Shape([renamed(dim) for dim in value.shape])
