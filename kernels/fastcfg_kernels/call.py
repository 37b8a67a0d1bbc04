"""One guidance as one object: a program, its tensors and values, and where the results go, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends.torch.functional import Merge
from .backends.torch.tiles import accumulator
from .backends.triton.launch_plan import Strategy
from .checks import check_elementwise, check_extras, check_out, check_stats, check_tensors
from .formula.program import Program
from .groups import Groups
from .memory import readable

__all__ = ["Call", "Target", "make_call"]

Target = tuple[int, torch.dtype | Tensor]
"""A result of a program by number, and the tensor that it is written to or the dtype of a new one."""


class Call(NamedTuple):
    """A guidance of tensors ``[B, ...]``, which every backend takes.

    Attributes:
        program: what to do.
        inputs: the predictions in the order of ``program.predictions``, of one shape, dtype and device; then the
            extras in theirs.
        elementwise: scale and mask of a program that has them, as views of the predictions' shape.
        values: parameters in the order of ``program.params``: numbers, or ``[]`` or ``[B]`` tensors.
        targets: results to give, in order.
        groups: what the sums run over where that is not a sample.
        stats: what the statistics of a program that has them are written to, ``[G, F]``.
        merge: makes the sums of whole samples where the tensors are parts of them.
        strategy: a Triton launch strategy that is asked for.
        native: whether native code may read and write the memory of all tensors; where it may not (a gradient, a
            transform, a trace, a tensor without memory of its own), the call takes torch operations.
    """

    program: Program
    inputs: tuple[Tensor, ...]
    elementwise: tuple[Tensor, ...]
    values: tuple[Any, ...]
    targets: tuple[Target, ...]
    groups: Groups | None
    stats: Tensor | None
    merge: Merge | None
    strategy: Strategy | None
    native: bool

    @property
    def first(self) -> Tensor:
        """The first prediction, whose shape, dtype and device are those of all."""
        return self.inputs[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every input, in the order that kernels take them."""
        return (*self.inputs, *self.elementwise)

    @property
    def results(self) -> tuple[int, ...]:
        """The program's result that each target takes."""
        return tuple([number for number, _ in self.targets])

    def outputs(self) -> list[Tensor]:
        """The targets' tensors; new ones hold nothing yet."""
        first = self.inputs[0]
        return [torch.empty_like(first, dtype=t) if isinstance(t, torch.dtype) else t for _, t in self.targets]

    def deliver(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Results of the predictions' shape, one for each target, in the targets' tensors and dtypes."""
        pairs = zip(results, self.targets, strict=True)
        return [t.copy_(made) if isinstance(t, Tensor) else made.to(t) for made, (_, t) in pairs]

    def by_rows(self) -> Call:
        """The call whose samples are this one's groups, ``[G, N]``; its results are new tensors."""
        assert self.groups is not None
        groups = self.groups
        return self._replace(
            inputs=tuple([groups.rows(t) for t in self.inputs]),
            elementwise=tuple([groups.rows(t) for t in self.elementwise]),
            values=tuple([groups.values(v) for v in self.values]),
            targets=tuple([(k, t.dtype if isinstance(t, Tensor) else t) for k, t in self.targets]),
            groups=None,
        )


def make_call(
    program: Program,
    predictions: Sequence[Tensor],
    values: Sequence[Any],
    *,
    extras: Sequence[Tensor] = (),
    scale_map: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    targets: Sequence[Target] | None = None,
    dims: Sequence[int] | None = None,
    merge: Merge | None = None,
    strategy: Strategy | None = None,
    stats: Tensor | None = None,
) -> Call:
    """Check everything that a backend relies on.

    Args:
        values: as :func:`~fastcfg_kernels.checks.check_param` returns them.
        others: as for :func:`fastcfg_kernels.guide_checked`.

    Raises:
        TypeError, ValueError: naming the argument, for anything that does not fit.
    """
    first = predictions[0]
    check_tensors(program.predictions, predictions)
    if extras or program.extras:
        check_extras(program, first, extras)
    if out is not None:
        check_tensors((program.predictions[0], "out"), (first, out))
    elementwise = check_elementwise(program, first, scale_map, mask)
    if targets is None:
        acc = accumulator(first.dtype)
        targets = [(0, first.dtype if out is None else out), *((k, acc) for k in range(1, program.results))]
    for _, target in targets:
        if isinstance(target, Tensor):
            check_out(target, first)
    groups = None if dims is None else Groups(first.shape, dims)
    if stats is not None or program.stats:
        check_stats(program, stats, first, first.shape[0] if groups is None else groups.number)
    if groups is not None and groups.whole:
        values = [groups.values(v) for v in values]
    inputs = (*predictions, *extras)
    places = [t for _, t in targets if isinstance(t, Tensor)]
    native = merge is None and readable((*inputs, *elementwise, *places), values)
    return Call(
        program, inputs, tuple(elementwise), tuple(values), tuple(targets), groups, stats, merge, strategy, native
    )
