"""Export of a model and a rule to ONNX, with every open dimension checked."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastcfg_kernels.partial import errors_name, move_into_place, partial_folder
from torch.overrides import TorchFunctionMode

import fastcfg
from fastcfg.prediction import Kind

from .dimensions import check_dims
from .errors import ExportError
from .metadata import describe, require_onnx, seal
from .models import GraphModel, adapt
from .module import GuidedModule
from .sample_inputs import draw_inputs, tracing_sizes
from .signature import Axis, Signature, merge_axes

__all__ = ["OPSET", "Exported", "export_onnx", "trace"]

OPSET = 20
"""ONNX operator set: the newest that ONNX Runtime and TensorRT both take whole."""

INLINE_BYTES = 256 * 2**20
"""Weights up to here are kept in the ONNX file itself; larger ones in ``NAME.onnx.data`` beside it."""


@dataclass(frozen=True)
class Exported:
    """A written graph.

    Attributes:
        path: the ONNX file; data: the file with its weights, or None where they are inside.
        signature: its inputs, outputs and axes.
        seconds: that the export took; bytes: of both files.
        module: what was exported, to compare with.
    """

    path: Path
    data: Path | None
    signature: Signature
    seconds: float
    bytes: int
    module: GuidedModule


def _dynamic_shapes(signature: Signature) -> tuple[Any, ...]:
    dims: dict[str, Any] = {}
    for name, axis in signature.axes.items():
        if not axis.fixed:
            unit = name if axis.multiple == 1 else f"{name}_{axis.multiple}"
            low, high = axis.low // axis.multiple, axis.high // axis.multiple
            dims[name] = axis.multiple * torch.export.Dim(unit, min=low, max=high)
    shapes = ({i: dims[d] for i, d in enumerate(spec.dims) if d in dims} for spec in signature.inputs)
    return (tuple(shapes),)


class _OneDtype(TorchFunctionMode):
    """Casts what is concatenated to one dtype, as torch does inside the operation and ONNX's ``Concat`` does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.cat, torch.concat, torch.concatenate, torch.stack) and args:
            tensors = list(args[0])
            dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
            args = ([t.to(dtype) for t in tensors], *args[1:])
        return func(*args, **(kwargs or {}))


def trace(module: GuidedModule) -> torch.export.ExportedProgram:
    """The module as a program with open dimensions.

    Raises:
        ExportError: saying what in the model fixes a dimension or cannot be traced.
    """
    signature = module.signature
    inputs = draw_inputs(signature, tracing_sizes(signature.axes))
    model = type(module.graph_model.module).__name__
    try:
        with torch.no_grad(), warnings.catch_warnings(), _OneDtype():
            warnings.simplefilter("ignore")
            return torch.export.export(module, tuple(inputs), dynamic_shapes=_dynamic_shapes(signature), strict=False)
    except Exception as error:
        reason = str(error).strip().split("\n\n")[0][:600]
        raise ExportError(
            f"model: {model} cannot be traced with open dimensions ({type(error).__name__}: {reason}); "
            "give the axis one size with axes=, or make the model's shapes follow its inputs"
        ) from error


def export_onnx(
    model: torch.nn.Module | GraphModel,
    rule: fastcfg.Rule | None,
    path: Path | str,
    *,
    parameters: Sequence[str] | None = None,
    axes: Mapping[str, Axis] | None = None,
    kind: Kind | None = None,
    step: str | None = None,
    external_data: bool | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Exported:
    """Write a model and its guidance as one ONNX graph.

    Inputs are ``sample``, ``timestep`` ``[B]``, one ``PASS_ARGUMENT`` for each pass (``uncond_encoder_hidden_states``,
    …), ``guidance_scale`` ``[B]`` and what else the rule, its state or the step needs; dim 0 of all of them, and of
    every output, is the number of images. The graph is traced by ``torch.export`` first, which refuses a model that
    fixes an open dimension; afterwards the written dimensions are read back and compared. Compare values with
    :func:`fastcfg_export.verify`.

    Args:
        model: a :class:`GraphModel`, or a model that :func:`fastcfg_export.adapt` knows, in the dtype to export.
            It is put into evaluation mode.
        rule: the guidance; None for a student, whose scale is then the only parameter.
        path: the file to write, ``NAME.onnx``.
        parameters: the rule's parameters that are inputs, default ``scale`` (all of them, where it has none).
        axes: sizes in the place of the model's defaults.
        kind: what the model predicts, for a rule with a domain and for ``step``.
        step: end the graph in a sampler's step, a key of :data:`fastcfg_export.STEPS`.
        external_data: weights in a file of their own; default where they are larger than 256 MiB.
        progress: called with the name of each stage.

    Raises:
        ImportError: if onnx is not installed.
        TypeError, ValueError: naming the argument.
        ExportError: if the model cannot be traced, or the graph has another signature than the model was given.
    """
    require_onnx()
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: expected NAME.onnx, got {path}")
    graph = adapt(model)
    graph = graph.with_axes(merge_axes(graph.axes, axes))
    module = GuidedModule(graph, rule, parameters=parameters, kind=kind, step=step).eval()
    started = time.perf_counter()

    progress("trace")
    program = trace(module)
    progress("translate to ONNX")
    translated = _translate(program, module.signature)
    check_dims(translated, module.signature)
    translated.metadata_props.update(describe(module))

    progress("write")
    size = sum(value.const_value.nbytes for value in translated.graph.initializers.values() if value.const_value)
    apart = size > INLINE_BYTES if external_data is None else external_data
    data = path.with_name(path.name + ".data") if apart else None
    with errors_name(path), partial_folder(path) as folder:
        import onnx_ir

        onnx_ir.save(translated, folder / path.name, external_data=data.name if data else None)
        seal(folder / path.name)
        if data:
            # The graph last, for it names the data: at no moment does an old one stand beside new weights.
            path.unlink(missing_ok=True)
            move_into_place(folder / data.name, data)
        move_into_place(folder / path.name, path)
    total = path.stat().st_size + (data.stat().st_size if data else 0)
    return Exported(path, data, module.signature, time.perf_counter() - started, total, module)


def _translate(program: torch.export.ExportedProgram, signature: Signature) -> Any:
    """The program as an ``onnx_ir.Model`` with the signature's names."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().split("\n\n")[0][:600]
        raise ExportError(
            f"model: an operation has no ONNX form at opset {OPSET} ({type(error).__name__}: {reason})"
        ) from error
    assert translated is not None
    return translated.model
