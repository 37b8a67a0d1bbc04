"""Launches worked out once for a signature, shapes and strides and dtypes, and kept with their compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...formula.program import Program
from ..torch.tiles import accumulator
from .formula import weigh_constant, writable_cache
from .launch_plan import MOST_REGISTERS, LaunchPlan, Strategy, plan_launch
from .layout import Layout, strided_layout
from .spec import make_spec

__all__ = ["OPTIONS", "Launch", "Prepared", "Signature", "alignments", "prepare"]

OPTIONS = {"enable_fp_fusion": False}
"""What every kernel is compiled with: contraction to fma would follow the layout; where it is wanted it is written."""


class Launch:
    """One kernel with everything that a signature fixes.

    Triton's own call works out each time which compiled kernel the arguments need; a signature and the pointers'
    alignment settle that, so that the compiled kernel is called directly from the second time on.
    """

    def __init__(self, kernel: Any, programs: int, fixed: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._kernel = kernel
        self._programs = programs
        self._names = tuple(kernel.arg_names)
        self._fixed = {name: value for name, value in fixed.items() if name in self._names}
        self._options = {**OPTIONS, **options}
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, given: Mapping[str, Any], alignment: tuple[int, ...]) -> None:
        """Launch with the arguments that a signature does not fix, on the current device and stream.

        Args:
            alignment: of every pointer, in bytes modulo 16.
        """
        compiled = self._compiled.get(alignment)
        if compiled is not None:
            fixed = self._fixed
            arguments = [fixed[name] if name in fixed else given[name] for name in self._names]
            compiled[(self._programs, 1, 1)](*arguments)
            return
        writable_cache()
        named = {name: given[name] for name in self._names if name not in self._fixed}
        compiled = self._kernel[(self._programs,)](**self._fixed, **named, **self._options)
        if compiled is not None:  # The interpreter compiles nothing.
            self._compiled[alignment] = compiled

    def ready(self, alignment: tuple[int, ...]) -> tuple[Any, ...] | None:
        """Return what a launch needs beside pointers and values; None while nothing is compiled for an alignment.

        That is the launcher, the kernel's handle and metadata, the number of programs, all arguments with None for
        those that a signature does not fix, and these ones' places and names.
        """
        compiled = self._compiled.get(alignment)
        if compiled is None:
            return None
        arguments = [self._fixed.get(name) for name in self._names]
        places = [(place, name) for place, name in enumerate(self._names) if name not in self._fixed]
        run = compiled.run  # Loads the kernel, which has to be before its handle is there.
        return run, compiled.function, compiled.packed_metadata, self._programs, arguments, places


class Signature(NamedTuple):
    """What a launch depends on beside its pointers and parameters' values.

    Attributes:
        shape: of every tensor; strides, dtypes: of the inputs that sums read, the rest of the inputs, the outputs.
        reads, tail: how many of them are what.
        sizes: of each parameter how many values a ``[B]`` or ``[G]`` tensor has; 0 for a 0-dim one, -1 for a number.
        kinds: the dtype of each parameter that is a tensor, None for a number.
    """

    shape: torch.Size
    strides: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    reads: int
    tail: int
    sizes: tuple[int, ...]
    kinds: tuple[torch.dtype | None, ...]
    results: tuple[int, ...]
    dims: tuple[int, ...] | None
    strategy: Strategy | None
    cooperative: int
    device: torch.device


class Prepared(NamedTuple):
    """The launches of a signature.

    Attributes:
        launches: in order; workspace: shape of the partial sums, or None where none are kept.
        accumulator: the workspace's dtype.
    """

    plan: LaunchPlan
    layout: Layout
    launches: tuple[Launch, ...]
    workspace: tuple[int, int, int] | None
    accumulator: torch.dtype


def _kinds(sizes: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """What each parameter is: a number (-1), one value (0), one for each sample (1) or group (2)."""
    samples = layout.groups // layout.per_sample
    return tuple(size if size < 1 else 2 if size == layout.groups != samples else 1 for size in sizes)


@lru_cache(maxsize=1024)
def prepare(program: Program, signature: Signature) -> Prepared:
    """Work out the launches of a program for a signature."""
    from . import kernels

    layout = strided_layout(signature.shape, signature.strides, signature.dims)
    acc = accumulator(signature.dtypes[0])
    reads = signature.reads
    plan = plan_launch(
        layout.count,
        reads,
        max(dtype.itemsize for dtype in signature.dtypes[:reads]),
        groups=layout.groups,
        reduces=program.reduces,
        strategy=signature.strategy,
        cooperative=signature.cooperative,
    )
    pitch = -(-plan.tiles // 16) * 16

    def flat(start: int, end: int | None) -> tuple[int, ...]:
        return tuple(step for tensor in layout.strides[start:end] for step in tensor)

    fixed = {
        "WEIGH": weigh_constant(program),
        "SPEC": make_spec(
            program,
            plan,
            signature.dtypes[0],
            parameters=_kinds(signature.sizes, layout),
            results=signature.results,
            wide=layout.count > 2**31 - plan.tile,
            whole=layout.count % plan.tile == 0 and layout.groups % plan.groups == 0,
        ),
        "strides": flat(0, reads),
        "tail_strides": flat(reads, reads + signature.tail),
        "out_strides": flat(reads + signature.tail, None),
        "outer": layout.outer,
        "inner": layout.inner,
        "groups": layout.groups,
        "per_sample": layout.per_sample,
        "count": layout.count,
        "tiles": plan.tiles,
        "pitch": pitch,
    }
    if not program.stats:
        fixed["stats"] = ()
    options: dict[str, Any] = {"num_warps": plan.num_warps}
    chosen = [kernels.tile_kernel, kernels.apply_kernel] if program.reduces else [kernels.apply_kernel]
    if plan.strategy == "row":
        chosen = [kernels.row_kernel]
    elif plan.strategy == "cooperative":
        chosen = [kernels.cooperative_kernel]
        options |= {"launch_cooperative_grid": True, "maxnreg": MOST_REGISTERS}
    programs = plan.programs(layout.groups)
    slots = len(program.centred) + len(program.pairs) + program.masked
    return Prepared(
        plan,
        layout,
        tuple(Launch(kernel, programs, fixed, options) for kernel in chosen),
        None if plan.strategy == "row" else (layout.groups, max(slots, 1), pitch),
        acc,
    )


def alignments(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Every pointer modulo 16 bytes, which a compiled kernel depends on."""
    return tuple(t.data_ptr() % 16 for t in tensors)
