"""A node described once, as a V1 class and as a V3 schema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .space import SPACES, Space

__all__ = [
    "MODEL", "Input", "Node", "choice", "flag", "number", "percent", "socket", "space", "text", "v1", "v3", "whole",
]  # fmt: skip

CATEGORY = "fastcfg"


@dataclass(frozen=True)
class Input:
    """An input of a node: ``kind`` is ComfyUI's type, ``options`` what its widget takes."""

    name: str
    kind: Literal["MODEL", "CONDITIONING", "FLOAT", "INT", "BOOLEAN", "STRING", "COMBO"]
    tooltip: str
    options: tuple[tuple[str, Any], ...] = ()


def socket(name: str, kind: Literal["MODEL", "CONDITIONING"], tooltip: str) -> Input:
    """A connection."""
    return Input(name, kind, tooltip)


def number(name: str, default: float, low: float, high: float, step: float, tooltip: str) -> Input:
    """A FLOAT."""
    return Input(name, "FLOAT", tooltip, (("default", default), ("min", low), ("max", high), ("step", step)))


def whole(name: str, default: int, low: int, high: int, tooltip: str) -> Input:
    """An INT."""
    return Input(name, "INT", tooltip, (("default", default), ("min", low), ("max", high)))


def flag(name: str, default: bool, tooltip: str) -> Input:
    """A BOOLEAN."""
    return Input(name, "BOOLEAN", tooltip, (("default", default),))


def text(name: str, default: str, tooltip: str, *, multiline: bool = False) -> Input:
    """A STRING."""
    return Input(name, "STRING", tooltip, (("default", default), ("multiline", multiline)))


def choice(name: str, default: str, names: tuple[str, ...], tooltip: str) -> Input:
    """A COMBO."""
    return Input(name, "COMBO", tooltip, (("default", default), ("options", list(names))))


def percent(name: str, default: float, tooltip: str) -> Input:
    """A FLOAT from 0 to 1."""
    return number(name, default, 0.0, 1.0, 0.001, tooltip)


def space(default: Space) -> Input:
    """The COMBO of what a rule works on."""
    tooltip = "What it works on: clean samples (x0), the noise, v (a flow's velocity), or what the model predicts."
    return choice("space", default, SPACES, tooltip)


MODEL = socket("model", "MODEL", "The model to guide.")


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        name: its id, unique among all packs.
        title, description: what the user sees.
        inputs: in their order; ``run`` takes them by name and returns the output.
        output: ``MODEL`` or ``GUIDER``.
    """

    name: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    run: Callable[..., Any]
    output: Literal["MODEL", "GUIDER"] = "MODEL"

    @property
    def category(self) -> str:
        """Return where the menu has it."""
        return f"{CATEGORY}/{'guiders' if self.output == 'GUIDER' else 'guidance'}"


def _v1_input(entry: Input) -> tuple[Any, dict[str, Any]]:
    options = {**dict(entry.options), "tooltip": entry.tooltip}
    return (options.pop("options") if entry.kind == "COMBO" else entry.kind), options


def v1(node: Node) -> type:
    """The node as a class of ComfyUI's first interface."""

    def input_types(cls: type) -> dict[str, Any]:
        return {"required": {entry.name: _v1_input(entry) for entry in node.inputs}}

    def execute(self: Any, **inputs: Any) -> tuple[Any]:
        return (node.run(**inputs),)

    body = {
        "__doc__": node.description, "INPUT_TYPES": classmethod(input_types), "RETURN_TYPES": (node.output,),
        "OUTPUT_TOOLTIPS": (_OUTPUTS[node.output],), "FUNCTION": "execute", "CATEGORY": node.category,
        "DESCRIPTION": node.description, "execute": execute,
    }  # fmt: skip
    return type(node.name, (), body)


_OUTPUTS = {"MODEL": "The model with this guidance.", "GUIDER": "A guider for SamplerCustomAdvanced."}
_V3_TYPES = {
    "MODEL": "Model", "CONDITIONING": "Conditioning", "FLOAT": "Float", "INT": "Int", "BOOLEAN": "Boolean",
    "STRING": "String", "COMBO": "Combo", "GUIDER": "Guider",
}  # fmt: skip


def v3(node: Node, io: Any) -> type:
    """The node as a class of ComfyUI's third interface.

    Args:
        io: ``comfy_api.latest.io``.
    """

    def define_schema(cls: type) -> Any:
        inputs = [
            getattr(io, _V3_TYPES[entry.kind]).Input(entry.name, tooltip=entry.tooltip, **dict(entry.options))
            for entry in node.inputs
        ]
        output = getattr(io, _V3_TYPES[node.output]).Output(tooltip=_OUTPUTS[node.output])
        return io.Schema(
            node_id=node.name, display_name=node.title, category=node.category, description=node.description,
            inputs=inputs, outputs=[output],
        )  # fmt: skip

    def execute(cls: type, /, **inputs: Any) -> Any:
        return io.NodeOutput(node.run(**inputs))

    body = {
        "__doc__": node.description,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    return type(node.name, (io.ComfyNode,), body)
