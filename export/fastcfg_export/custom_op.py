"""Guidance as one node ``fastcfg::…`` whose function body every runtime can take apart.

ONNX Runtime, and TensorRT without a plugin of that name, inline the body; TensorRT with the plugin runs the kernel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastcfg

from .module import GuidedModule, guide_tensors

__all__ = ["DOMAIN", "Body", "body_of", "node_of", "op_name"]

DOMAIN = "fastcfg"


def op_name(rule: fastcfg.Rule, dtype: torch.dtype, parameters: Sequence[str]) -> str:
    """``cfg_0a1b2c3d``: the rule's name, and a hash of all that the node's body depends on."""
    text = "|".join((rule.program.source, rule.to_json(), str(dtype), ",".join(parameters)))
    word = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(rule).__name__).lower()
    return f"{word}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class _Guidance(torch.nn.Module):
    """The guidance alone, with the tensors of the node."""

    def __init__(self, module: GuidedModule) -> None:
        super().__init__()
        assert module.rule is not None
        self.rule, self.parameters_in, self.kind = module.rule, module.parameters_in, module.kind

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(guide_tensors(self.rule, tensors, self.parameters_in, self.kind))


@dataclass(frozen=True)
class Body:
    """The function of a node.

    Attributes:
        name: of the operator in :data:`DOMAIN`; function: the ``onnx_ir.Function``.
        outputs: how many results it has.
    """

    name: str
    function: Any
    outputs: int

    def attach(self, model: Any) -> None:
        """Add the function to an ``onnx_ir.Model`` that has the node."""
        model.functions[self.function.identifier()] = self.function
        model.opset_imports[DOMAIN] = 1


def body_of(module: GuidedModule) -> Body:
    """Export the guidance of a module by itself, and make a function of the graph.

    Raises:
        ValueError: for a module without a rule.
    """
    import onnx_ir

    from .onnx_export import OPSET

    rule = module.rule
    if rule is None:
        raise ValueError("custom_op: a graph without a rule has no guidance to make a node of")
    graph = module.graph_model
    dtype = torch.float32 if module.step is not None and graph.float_dtype != torch.float64 else graph.float_dtype
    shape = [2, *(5 + 2 * i for i, _ in enumerate(graph.sample.dims[1:]))]
    batch, *sides = (torch.export.Dim(f"d{i}", min=1) for i, _ in enumerate(shape))
    open_dims = {0: batch, **dict(enumerate(sides, start=1))}
    lowered = rule.lowered
    state = [torch.randn(shape, dtype=torch.float32) for _ in lowered.extras]
    tensors = [*(torch.randn(shape).to(dtype) for _ in rule.conditions), *state]
    shapes: list[Any] = [open_dims] * len(tensors)
    rows = len(module.parameters_in)
    if lowered.domain is not None:
        tensors.append(torch.randn(shape).to(dtype))
        shapes.append(open_dims)
        rows += 2
    tensors += [torch.rand(shape[0]) + 0.5 for _ in range(rows)]
    shapes += [{0: batch}] * rows
    with torch.no_grad():
        program = torch.export.export(
            _Guidance(module).eval(), tuple(tensors), dynamic_shapes=(tuple(shapes),), strict=False
        )
        translated = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    assert translated is not None
    model = translated.model
    _constants_for_initializers(model.graph)
    name = op_name(rule, dtype, module.parameters_in)
    for node in model.graph:
        # Inlined, they stand among the model's own nodes.
        node.name = f"{name}/{node.name}"
    outputs = len(model.graph.outputs)
    function = onnx_ir.Function(domain=DOMAIN, name=name, graph=model.graph, attributes=[])
    function.opset_imports.update(model.opset_imports)
    return Body(name, function, outputs)


def _constants_for_initializers(graph: Any) -> None:
    """A function has no initializers: each becomes a ``Constant`` node in front."""
    import onnx_ir

    for name, value in list(graph.initializers.items()):
        if not value.uses():
            graph.initializers.pop(name)
            continue
        constant = onnx_ir.node("Constant", inputs=[], attributes={"value": value.const_value})
        constant.outputs[0].name = f"{name}_constant"
        value.replace_all_uses_with(constant.outputs[0])
        graph.initializers.pop(name)
        graph.insert_before(graph[0], constant)


def node_of(body: Body) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """The node as a function of tensors, for use while exporting."""

    def node(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        like = tensors[0]
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        others = body.outputs - 1
        return torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{body.name}",
            list(tensors),
            dtypes=[like.dtype] + [wide] * others,
            shapes=[like.shape] * (1 + others),
            version=1,
        )

    return node
