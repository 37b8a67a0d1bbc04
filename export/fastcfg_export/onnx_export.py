"""From a model and a rule to an ONNX file whose every open dimension is open."""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastcfg
from fastcfg.parameterization import Kind
from fastcfg.version import __version__

from .files import folder_beside, move_into_place, sha256_of
from .models import GraphModel, adapt
from .module import GuidedModule
from .signature import Axis, Signature, TensorSpec, merge_axes

__all__ = ["OPSET", "ExportError", "Exported", "draw_inputs", "export_onnx", "read_signature", "require_onnx"]

OPSET = 20
"""ONNX operator set: the newest that ONNX Runtime and TensorRT both take whole."""

INLINE_BYTES = 256 * 2**20
"""Weights up to here are kept in the ONNX file itself; larger ones in ``NAME.onnx.data`` beside it."""

METADATA = "fastcfg"
"""Prefix of the keys of a graph's metadata."""


class ExportError(RuntimeError):
    """A model that cannot become a graph, or a graph that is not what was asked for."""


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


def require_onnx() -> Any:
    """The module ``onnx``.

    Raises:
        ImportError: naming the extra.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it.
    except ImportError as error:
        raise ImportError(f"exporting needs onnx and onnxscript ({error}); pip install 'fastcfg[export]'") from None
    return onnx


def draw_inputs(
    signature: Signature,
    sizes: Mapping[str, int],
    *,
    seed: int = 0,
    parameters: Mapping[str, float] | None = None,
    double: bool = False,
) -> list[Tensor]:
    """Random tensors for every input of a graph, in order.

    Args:
        sizes: of the axes; those not named are at their lowest.
        parameters: values by key; a rule's own by default.
        double: floating tensors as float64, the same values.
    """
    full = {name: axis.low for name, axis in signature.axes.items()} | dict(sizes)
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for spec in signature.inputs:
        tensor = _draw(spec, spec.shape(full), generator, parameters or {})
        tensors.append(tensor.double() if double and tensor.is_floating_point() else tensor)
    return tensors


def _draw(
    spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator, parameters: Mapping[str, float]
) -> Tensor:
    dtype = spec.torch_dtype
    if not dtype.is_floating_point:
        low, high = spec.span or (0, 2)
        return torch.randint(int(low), int(high), shape, generator=generator).to(dtype)
    if spec.role == "parameter":
        default = {"scale": 7.5, "embedded_scale": 3.5}.get(spec.key, 0.5) if spec.default is None else spec.default
        value = parameters.get(spec.key, default)
        # A value for each image, as no two have to agree.
        return torch.linspace(value, value * 0.75, shape[0], dtype=dtype)
    if spec.role == "level":
        alpha, sigma = (0.8, 0.6) if not spec.key.startswith("next") else (0.9, 0.4359)
        return torch.full(shape, alpha if spec.key.endswith("alpha") else sigma, dtype=dtype)
    if spec.span is not None:
        low, high = spec.span
        drawn = torch.rand(shape, generator=generator) * (high - low) + low
        # Whole timesteps where there are hundreds of them, as samplers have.
        return (drawn.round() if high > 10 else drawn).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def _tracing_sizes(axes: Mapping[str, Axis]) -> dict[str, int]:
    """Sizes to trace at: small, and no two the same, so that none is taken for another."""
    sizes: dict[str, int] = {}
    for name, axis in axes.items():
        size = axis.low if axis.fixed else max(axis.low, 2 * axis.multiple)
        while size in sizes.values() and size + axis.multiple <= axis.high:
            size += axis.multiple
        sizes[name] = min(size, axis.high)
    return sizes


def _dynamic_shapes(signature: Signature) -> tuple[Any, ...]:
    dims: dict[str, Any] = {}
    for name, axis in signature.axes.items():
        if not axis.fixed:
            unit = name if axis.multiple == 1 else f"{name}_{axis.multiple}"
            low, high = axis.low // axis.multiple, axis.high // axis.multiple
            dims[name] = axis.multiple * torch.export.Dim(unit, min=low, max=high)
    shapes = ({i: dims[d] for i, d in enumerate(spec.dims) if d in dims} for spec in signature.inputs)
    return (tuple(shapes),)


def trace(module: GuidedModule) -> torch.export.ExportedProgram:
    """The module as a program with open dimensions.

    Raises:
        ExportError: saying what in the model fixes a dimension or cannot be traced.
    """
    signature = module.signature
    inputs = draw_inputs(signature, _tracing_sizes(signature.axes))
    model = type(module.graph_model.module).__name__
    try:
        with torch.no_grad(), warnings.catch_warnings():
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
    custom_op: bool = False,
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
        rule: the guidance; None for a student, whose scale is then the only parameter.
        path: the file to write, ``NAME.onnx``.
        parameters: the rule's parameters that are inputs, default ``scale`` (all of them, where it has none).
        axes: sizes in the place of the model's defaults.
        kind: what the model predicts, for a rule with a domain and for ``step``.
        step: end the graph in a sampler's step, a key of :data:`fastcfg_export.STEPS`.
        custom_op: make the guidance one node ``fastcfg::…`` with a function body, for plugins.
        external_data: weights in a file of their own; default where they are larger than 256 MiB.
        progress: called with the name of each stage.

    Raises:
        ImportError: if onnx is not installed.
        TypeError, ValueError: naming the argument.
        ExportError: if the model cannot be traced, or the graph has another signature than the model was given.
    """
    onnx = require_onnx()
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: expected NAME.onnx, got {path}")
    graph = adapt(model)
    graph = graph.with_axes(merge_axes(graph.axes, axes))
    module = GuidedModule(graph, rule, parameters=parameters, kind=kind, step=step).eval()
    started = time.perf_counter()

    body = None
    if custom_op:
        from . import custom_op as nodes

        progress("function body")
        body = nodes.body_of(module)
        module.guide_with(nodes.node_of(body))
    progress("trace")
    program = trace(module)
    progress("translate to ONNX")
    translated = _translate(program, module.signature)
    module.guide_with(module._guided)
    if body is not None:
        body.attach(translated)
    check_dims(translated, module.signature)
    translated.metadata_props.update(_metadata(module, onnx))

    progress("write")
    size = sum(value.const_value.nbytes for value in translated.graph.initializers.values() if value.const_value)
    apart = size > INLINE_BYTES if external_data is None else external_data
    data = path.with_name(path.name + ".data") if apart else None
    with folder_beside(path) as folder:
        import onnx_ir

        onnx_ir.save(translated, folder / path.name, external_data=data.name if data else None)
        if data:
            # The graph last: it names the data.
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


def _metadata(module: GuidedModule, onnx: Any) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")}
    rule = module.rule
    return {
        f"{METADATA}.version": __version__,
        f"{METADATA}.rule": "" if rule is None else rule.to_json(),
        f"{METADATA}.program": "" if rule is None else rule.program.source,
        f"{METADATA}.signature": json.dumps(module.signature.to_dict(), sort_keys=True),
        f"{METADATA}.model": type(module.graph_model.module).__name__.lstrip("_"),
        f"{METADATA}.weights_sha256": weights_hash(module.graph_model.module),
        f"{METADATA}.versions": json.dumps(versions, sort_keys=True),
    }


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a module's parameters and buffers."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_signature(path: Path | str) -> Signature:
    """The signature that :func:`export_onnx` wrote into a graph's metadata.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: naming ``path``, if it is no ONNX graph of fastcfg's.
    """
    onnx = require_onnx()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file, there is none at {path}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ValueError(f"path: {path} is not a readable ONNX file ({type(error).__name__})") from None
    found = {entry.key: entry.value for entry in model.metadata_props}
    if f"{METADATA}.signature" not in found:
        raise ValueError(f"path: {path} has no fastcfg signature; it was not written by fastcfg export")
    return Signature.from_dict(json.loads(found[f"{METADATA}.signature"]))


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a graph's file, and of every file of weights that it names, by file name."""
    onnx = require_onnx()
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = onnx.load(path, load_external_data=False)
    names = {ExternalDataInfo(t).location for t in model.graph.initializer if uses_external_data(t)}
    return {name: sha256_of(path.with_name(name)) for name in (path.name, *sorted(names))}
