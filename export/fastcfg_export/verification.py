"""Verification of graphs: ONNX's checker, and ONNX Runtime beside eager torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import ExportError
from .metadata import require_onnx
from .module import GuidedModule
from .ort import OrtSession, retyped
from .sample_inputs import draw_inputs
from .signature import BATCH, Signature

__all__ = ["Parity", "Row", "default_cases", "one_ulp_up", "verify"]

EXACT_PARAMETERS = 20_000_000
"""Models up to here are also compared with their float64 twin."""

PROTOBUF_BYTES = 2**31 - 1
"""A graph in memory can be no larger."""

ALLOWED = 8.0
"""How often the control's change the difference may be.

The control rounds the inputs once; a graph and eager torch round differently in each of a network's layers, some dozens
of times, and roundings add up as the root of their number.
"""


@dataclass(frozen=True)
class Row:
    """One comparison; differences in units of the dtype: ``eps * max|eager|`` of the output where they are largest.

    Attributes:
        sizes: of the axes; parameters: of the rule.
        difference: ONNX Runtime and eager torch; largest: the same as a number.
        control: eager torch and itself, with the sample and the timestep one ulp up, and a student's scale, of which
            its network embeds a thousandfold.
        graph_to_exact, eager_to_exact: to the float64 twin, or None.
    """

    sizes: Mapping[str, int]
    parameters: Mapping[str, float]
    difference: float
    largest: float
    control: float
    graph_to_exact: float | None = None
    eager_to_exact: float | None = None

    @property
    def ok(self) -> bool:
        """Return whether the difference is that of rounding."""
        return math.isfinite(self.difference) and self.difference <= ALLOWED * max(self.control, 1.0)


@dataclass(frozen=True)
class Parity:
    """All comparisons of a graph.

    Attributes:
        dtype: whose units the differences are in; note: how a dtype was compared that ONNX Runtime does not run.
    """

    rows: tuple[Row, ...]
    dtype: str
    note: str = ""

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    @property
    def worst(self) -> Row:
        """The row with the largest difference beside its control."""
        return max(self.rows, key=lambda row: row.difference / max(row.control, 1.0))

    def to_markdown(self) -> str:
        """A table of the rows."""
        columns = ["sizes", "parameters", f"graph − eager ({self.dtype} units)", "one-ulp control"]
        columns += ["graph − fp64", "eager − fp64"]
        lines = [f"| {' | '.join(columns)} |", "|---|---|---:|---:|---:|---:|"]
        for row in self.rows:
            sizes = ", ".join(f"{name} {size}" for name, size in row.sizes.items())
            values = ", ".join(f"{name} {value:g}" for name, value in row.parameters.items())
            exact = ("–" if v is None else f"{v:.1f}" for v in (row.graph_to_exact, row.eager_to_exact))
            lines.append(f"| {sizes} | {values} | {row.difference:.1f} | {row.control:.1f} | {' | '.join(exact)} |")
        return "\n".join([*lines, *([f"\n{self.note}"] if self.note else [])]) + "\n"


def one_ulp_up(tensor: Tensor) -> Tensor:
    """Every element one unit in the last place larger in size."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return (tensor.contiguous().view(integer) + 1).view(tensor.dtype)


def default_cases(signature: Signature) -> list[tuple[dict[str, int], dict[str, float]]]:
    """Sizes and parameters to compare at: the ends and the middle of small sizes, scales from none to extreme."""

    def size(name: str, steps: int) -> int:
        axis = signature.axes[name]
        return min(axis.high, axis.low + steps * axis.multiple)

    axes = list(signature.axes)
    layouts = [
        {name: size(name, 0) for name in axes},
        {name: size(name, 2 + i) for i, name in enumerate(axes)},
        {name: size(name, 9 - 2 * i if name != BATCH else 1) for i, name in enumerate(axes)},
    ]
    scales = [{}] if not any(spec.key == "scale" for spec in signature.inputs) else [{"scale": s} for s in (7.5, 1, 15)]
    return [(layouts[i % 3], dict(scales[i % len(scales)])) for i in range(3)] + [(layouts[1], dict(scales[-1]))]


def _units(a: Sequence[Tensor], b: Sequence[Tensor], eps: float) -> tuple[float, float]:
    """The largest difference in units, and as a number."""
    units, largest = 0.0, 0.0
    for x, y in zip(a, b, strict=True):
        gap = float((x.double() - y.double()).abs().max())
        size = float(y.double().abs().max())
        if gap != gap or not (x.isfinite().all() and y.isfinite().all()):
            return float("inf"), float("inf")
        largest = max(largest, gap)
        units = max(units, gap / (eps * size) if size else (0.0 if gap == 0 else float("inf")))
    return units, largest


def verify(
    path: Path | str,
    module: GuidedModule,
    *,
    cases: Sequence[tuple[Mapping[str, int], Mapping[str, float]]] | None = None,
    exact: bool | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Run ONNX's checker, then compare the graph in ONNX Runtime with the module in eager torch.

    ONNX Runtime does not run bfloat16 on a CPU: such a graph is widened to float32, operation by operation, and
    compared with a float32 twin of the module that has the same (bfloat16) weights. That shows the graph's operations
    and weights; what bfloat16 itself rounds is in the column of the control.

    Args:
        path: the ONNX file; module: what it was exported from (:attr:`Exported.module`).
        cases: pairs of sizes by axis and parameters by key; see :func:`default_cases`.
        exact: also compare with a float64 twin; default for up to 20 million parameters in float32.
        progress: called with the number of cases done, and of all.

    Returns:
        The table; ``parity.ok`` says whether every difference is one of rounding.

    Raises:
        ImportError: if onnx or onnxruntime is not installed.
        ExportError: if the checker refuses the graph.
    """
    dtype = module.graph_model.float_dtype
    _check(Path(path), dtype)
    signature = module.signature
    eps = torch.finfo(dtype).eps
    wide = dtype == torch.bfloat16
    session = OrtSession(path, widen=wide)
    weights = sum(p.numel() for p in module.parameters())
    if exact is None:
        exact = dtype == torch.float32 and weights <= EXACT_PARAMETERS
    twin = copy.deepcopy(module).double() if exact else None
    reference = copy.deepcopy(module).float() if wide else module
    moved = {"sample", "timestep"} | ({"parameter"} if signature.rule is None else set())
    rows = []
    chosen = default_cases(signature) if cases is None else list(cases)
    for done, (sizes, parameters) in enumerate(chosen):
        progress(done, len(chosen))
        inputs = draw_inputs(signature, sizes, seed=seed + done, parameters=parameters)
        given = [_wide(t) for t in inputs] if wide else inputs
        with torch.no_grad():
            eager = reference(*given)
            if wide:
                control = module(*inputs)
            else:
                shifted = [
                    one_ulp_up(t) if s.role in moved else t for s, t in zip(signature.inputs, inputs, strict=True)
                ]
                control = module(*shifted)
            best = None
            if twin is not None:
                best = twin(*draw_inputs(signature, sizes, seed=seed + done, parameters=parameters, double=True))
        graph = session.run(given)
        units, largest = _units(graph, eager, eps)
        rows.append(
            Row(
                dict(sizes),
                dict(parameters),
                units,
                largest,
                _units(control, eager, eps)[0],
                None if best is None else _units(graph, best, eps)[0],
                None if best is None else _units(eager, best, eps)[0],
            )
        )
    progress(len(chosen), len(chosen))
    note = "bfloat16 graph widened to float32; control: bfloat16 eager beside its float32 twin." if wide else ""
    return Parity(tuple(rows), str(dtype).removeprefix("torch."), note)


def _size(path: Path) -> int:
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _check(path: Path, dtype: torch.dtype) -> None:
    """ONNX's checker, and its inference of types and shapes."""
    onnx = require_onnx()
    try:
        onnx.checker.check_model(str(path), full_check=dtype != torch.bfloat16)
        if dtype == torch.bfloat16 and _size(path) < PROTOBUF_BYTES:
            # Below opset 22 the schemas leave bfloat16 out of operators that TensorRT has it for: float16 stands in.
            onnx.checker.check_model(retyped(path, "float16"), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"graph: ONNX's checker refuses it: {str(error)[:400]}") from None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
