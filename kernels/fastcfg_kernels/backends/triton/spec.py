"""What a kernel is compiled for, as one value: a tuple of plain numbers, so that it is a key of Triton's caches."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...formula.program import Program
from ..torch.tiles import accumulator
from .launch_plan import VECTOR, LaunchPlan

__all__ = ["Spec", "make_spec"]


class Spec(NamedTuple):
    """The compile-time parameters of every kernel; the formula, which is code, is an argument of its own.

    Attributes:
        pairs: the sums, ``(centred, a, b)`` each: of two of :attr:`centred` by their places there, or of two vectors.
        centred: vectors whose mean is needed; means: places there of those that the formula takes.
        parameters: of each parameter whether it is a number (-1) or a tensor: one value (0), one a sample (1) or a
            group (2).
        results: the result that each output tensor receives; outputs, rows: of the combine and of the step.
        clamps: whether the result is clamped; stats: numbers that are told of each group.
        size: predictions; width: vectors that carry weights.
        factor, mask: places of the elementwise inputs among the tensors read, 0 where there is none.
        affine: whether the formulas work in another space; see :func:`.tiles.affine_space`.
        groups: groups of a program; tile: elements of a tile, which is what a program holds of each.
        repeats, lanes, vector: what a tile is dealt out to; see :func:`.tiles.load_tile`.
        wide: whether a group's elements need 64-bit numbers.
        whole: whether every program's block is full: no element has to be masked; full: nor left out by the mask.
        slots: numbers of a tile in the workspace: the means, the pairs' sums and, where a mask decides it, the size.
        acc: Triton's dtype of sums and weights.
    """

    pairs: tuple[tuple[bool, int, int], ...]
    centred: tuple[int, ...]
    means: tuple[int, ...]
    parameters: tuple[int, ...]
    results: tuple[int, ...]
    outputs: int
    rows: int
    clamps: bool
    stats: int
    size: int
    width: int
    factor: int
    mask: int
    affine: bool
    groups: int
    tile: int
    repeats: int
    lanes: int
    vector: int
    wide: bool
    whole: bool
    full: bool
    slots: int
    acc: Any


def make_spec(
    program: Program,
    plan: LaunchPlan,
    dtype: Any,
    *,
    parameters: tuple[int, ...],
    results: tuple[int, ...],
    wide: bool,
    whole: bool,
) -> Spec:
    """Return the compile-time parameters of a program's kernels for a launch; ``dtype`` is the predictions'."""
    import torch
    import triton.language as tl

    centred = program.centred
    vector = min(VECTOR, plan.tile)
    return Spec(
        pairs=tuple(
            (True, centred.index(a), centred.index(b)) if kind == "cov" else (False, a, b)
            for kind, a, b in program.pairs
        ),
        centred=centred,
        means=tuple(centred.index(v) for v in program.means),
        parameters=parameters,
        results=results,
        outputs=program.outputs,
        rows=program.rows,
        clamps=program.clamps,
        stats=len(program.stats),
        size=len(program.predictions),
        width=program.width,
        factor=(program.width + program.affine) * program.scaled,
        mask=(program.width + program.affine + program.scaled) * program.masked,
        affine=program.affine,
        groups=plan.groups,
        tile=plan.tile,
        repeats=plan.repeats,
        lanes=plan.tile // (plan.repeats * vector),
        vector=vector,
        wide=wide,
        whole=whole,
        full=whole and not program.masked,
        slots=len(centred) + len(program.pairs) + program.masked,
        acc=tl.float64 if accumulator(dtype) == torch.float64 else tl.float32,
    )
