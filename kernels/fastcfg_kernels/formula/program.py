"""Programs: the sums that named formulas need, and one function from sums to weights.

A **formula** is a plain Python function of scalars. Its argument names say what it needs:

=================  ==============================================================================
``dot_A_B``        the sum of ``A*B`` over a sample
``cov_A_B``        the centred sum of ``(A-mean A)*(B-mean B)`` (divide by ``count-1`` for a covariance)
``sum_A``          the sum of ``A``
``count``          the number of elements that the sums run over
anything else      a parameter of the rule: a number, a 0-dim tensor, or a ``[B]`` tensor
=================  ==============================================================================

``A`` and ``B`` are a prediction's name (``cond``), or a delta from the first prediction (``d_cond = cond - uncond``,
written ``d`` where there are just two predictions). A rule's formula returns the weights of the **difference
basis**, the first prediction and the deltas::

    def cfg(scale):
        return 1.0, scale            # uncond + scale * (cond - uncond)

A **modifier** works on the result of what stands before it, named ``y``, and returns a factor for it, or the
bounds of a clamp. A **step** comes last, and returns the rows of a matrix: each is one output, as weights of the
finished result and of further inputs. So a solver's step runs in the pass that guides, after a clamp too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

import torch

from ..tracing import constant_when_traced, kept_property
from .capture import by_value
from .check import check_formula
from .generated import function_from_source
from .stats import stat_functions, write_stat
from .writer import FormulaWriter

__all__ = ["Pair", "Program", "Stage", "compile_program"]

Kind = Literal["weights", "factor", "clamp", "step"]
Pair = tuple[str, str, str]  # (kind, vector, vector), kind being "dot" or "cov"


@dataclass(frozen=True)
class Stage:
    """One formula of a program.

    Args:
        fn: the formula, a plain function of scalars. It is kept by value: numbers and functions that it names are
            those of now (:mod:`fastcfg_kernels.formula.capture`).
        kind: ``"weights"`` (first stage), ``"factor"`` (``y *= f``), ``"clamp"`` (``y = clip(y, low, high)``) or
            ``"step"`` (last stage: ``rows`` outputs in the place of y).
        rename: pairs ``(argument, public name)`` for parameters that callers know by another name.
        vectors: pairs ``(name, prediction)`` for sums of a vector that the formula calls by a name of its own.
        width: for weights, how many of the predictions they are for (default all); the others weigh nothing, and
            serve modifiers.
        onto: for weights, a prediction whose delta is added to the first output: what the formula adds to the base,
            it adds to this one.
        reads: for a step, names of the inputs that it weighs beside y.
        rows: for a step, its outputs. The formula returns ``1 + len(reads)`` weights for each, y's first.
        limited: 1 where this formula's own limit took hold, for the stat of that name: a formula of the same
            arguments, and of ``factor`` for a stage that is one.
    """

    fn: Callable[..., Any]
    kind: Kind = "weights"
    rename: tuple[tuple[str, str], ...] = ()
    vectors: tuple[tuple[str, str], ...] = ()
    width: int | None = None
    onto: str | None = None
    reads: tuple[str, ...] = ()
    rows: int = 0
    limited: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():  # A trace meets it again when it compiles the program.
            object.__setattr__(self, "fn", by_value(self.fn))
            if self.limited is not None:
                object.__setattr__(self, "limited", by_value(self.limited))


@dataclass(frozen=True)
class Program:
    """A compiled guidance: what to sum, and the function from sums and parameters to weights.

    Attributes:
        predictions: names of the inputs, the base first.
        extras: names of further inputs that are no predictions and have no delta (a momentum, a noise, ``x``).
        tail: how many of the extras, the last ones, are no vectors: they are read after the combine alone (``x`` of
            an affine program, and what a step weighs).
        outputs: results of the combine: the guided prediction, then new values of state.
        rows: outputs of the step, which stand in the place of the guided prediction; 0 without a step.
        scaled: whether the deltas are multiplied by an elementwise input that comes after the extras.
        masked: whether the sums leave out the elements where a further input, the last, is zero.
        pairs: the sums needed, as ``(kind, vector, vector)``. Vectors are numbered: ``0 … K-1`` is the difference
            basis, ``K … K+E-1`` the extras, and after them come the predictions other than the base. The first
            K+E carry weights.
        means: vectors whose mean is needed.
        params: public names of the parameters, in call order.
        clamps: whether the result is clipped to ``[low, high]``.
        affine: whether the formulas work on ``shift * x + gain * prediction`` and the result is taken back. ``x`` is
            the first of the tail then, and ``shift`` and ``gain`` are the last two parameters.
        stats: names of what is written of each group beside the results; see :mod:`fastcfg_kernels.formula.stats`.
        source: the text of :attr:`weigh`, a function ``weigh(sums, count, params)`` of two tuples and a number;
            ``sums`` holds the pairs' sums and then the means. It returns K+E weights for each output, then
            ``low, high`` for the first where :attr:`clamps`, then the step's rows, then the stats.
    """

    predictions: tuple[str, ...]
    extras: tuple[str, ...]
    tail: int
    outputs: int
    rows: int
    scaled: bool
    masked: bool
    pairs: tuple[tuple[str, int, int], ...]
    means: tuple[int, ...]
    params: tuple[str, ...]
    clamps: bool
    affine: bool
    stats: tuple[str, ...]
    source: str
    stages: tuple[Stage, ...]
    weigh: Callable[..., tuple[Any, ...]] = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        # Before Python 3.12 the first read of a cached property takes a lock, which Dynamo can't trace.
        for name, value in vars(type(self)).items():
            if isinstance(value, kept_property):
                getattr(self, name)

    def __hash__(self) -> int:
        return self._hash

    @kept_property
    def _hash(self) -> int:
        return hash((self.predictions, self.extras, self.stages, self.affine, self.scaled, self.masked, self.stats))

    @kept_property
    def width(self) -> int:
        """Vectors that carry weights: the difference basis and the extras without the tail."""
        return len(self.predictions) + len(self.extras) - self.tail

    @kept_property
    def results(self) -> int:
        """Return what a call gives: the step's rows or the guided prediction, and then the other outputs."""
        return (self.rows or 1) + self.outputs - 1

    @kept_property
    def reduces(self) -> bool:
        """Return whether any sum over the elements is needed."""
        return bool(self.pairs or self.means)

    @kept_property
    def is_lerp(self) -> bool:
        """Return whether it can be one ``torch.lerp``: two predictions, no sums, no clamp."""
        return (
            len(self.predictions) == 2
            and not self.extras
            and not self.scaled
            and self.outputs == 1
            and not self.reduces
            and not self.clamps
            and not self.stats
        )

    @kept_property
    def short(self) -> bool:
        """Return whether it takes predictions and parameters alone, and gives the guided prediction alone."""
        special = self.scaled or self.masked or self.affine or self.rows or self.stats or self.extras
        return self.outputs == 1 and not special

    @kept_property
    def centred(self) -> tuple[int, ...]:
        """Vectors whose tile means are needed: those of ``cov`` pairs, and those in :attr:`means`."""
        vectors = {v for kind, a, b in self.pairs if kind == "cov" for v in (a, b)}
        return tuple(sorted(vectors | set(self.means)))

    @kept_property
    def in_graph(self) -> Callable[[], str]:
        """Gives the program's name in graphs, under which :data:`IN_GRAPHS` then has it; a trace runs it as it is."""

        @constant_when_traced
        def name() -> str:
            found = f"program_{hash(self) % 2**64:x}"
            IN_GRAPHS[found] = self
            return found

        return name

    def function(self, wrap: Callable[[Callable[..., Any]], Any] | None = None) -> Callable[..., Any]:
        """``weigh`` as a fresh function whose formulas went through ``wrap`` (Triton's ``jit``, say)."""
        return _build(self.source, self.stages, self.stats, wrap or (lambda fn: fn))


IN_GRAPHS: dict[str, Program] = {}
"""The programs of graphs by name: equal programs share one."""


def _build(
    source: str, stages: Sequence[Stage], stats: Sequence[str], wrap: Callable[[Callable[..., Any]], Any]
) -> Callable[..., Any]:
    scope = {f"formula{i}": wrap(s.fn) for i, s in enumerate(stages)}
    scope |= {name: wrap(fn) for name, fn in stat_functions(stages, stats).items()}
    return function_from_source("weigh", source, scope)


def _returned(stage: Stage, weights: int) -> int | None:
    """Return how many values a stage's formula returns; None is a single one, and no tuple."""
    rows = stage.rows * (1 + len(stage.reads))
    return {"weights": weights, "factor": None, "clamp": 2, "step": rows}[stage.kind]


MOST_VECTORS = 64
"""Predictions and further inputs of a program at most."""

MOST_STAGES = 24
"""Formulas of a program at most: a rule, its modifiers and a step."""

MOST_SUMS = 256
"""Sums of a program at most: the norm of a result over K vectors takes K (K + 1) / 2."""


def compile_program(
    predictions: tuple[str, ...],
    stages: tuple[Stage, ...],
    extras: tuple[str, ...] = (),
    outputs: int = 1,
    affine: bool = False,
    scaled: bool = False,
    masked: bool = False,
    stats: tuple[str, ...] = (),
) -> Program:
    """Compile formulas over named predictions into a :class:`Program` (cached).

    Args:
        predictions: names, the base first.
        stages: the rule's formula and then its modifiers, innermost first; then a clamp; then a step.
        extras: names of further inputs.
        outputs: how many results the rule's formula returns weights for. It returns the weights of all of them one
            after the other, each over the difference basis and then the extras.
        affine: work on ``shift * x + gain * prediction``; adds the input ``x`` and the parameters ``shift, gain``.
        scaled: multiply the deltas by a further input, elementwise, before anything else.
        masked: leave elements out of the sums by a further input.
        stats: names of what to write of each group beside the results, with the sums that it takes.

    Raises:
        ValueError: for a name that is not known, an argument list that cannot be read, or stages out of order.
    """
    options = (extras, outputs, affine, scaled, masked, stats)
    if not torch.compiler.is_compiling():
        return compiled(predictions, stages, *options)
    # A trace runs this as it is, which takes plain values alone.
    plain = tuple([(s.fn, s.kind, s.rename, s.vectors, s.width, s.onto, s.reads, s.rows, s.limited) for s in stages])
    found: Program = getattr(_TRACED, _name_when_traced(predictions, plain, options))
    return found


_TRACED = ModuleType("programs made while torch.compile traced")
"""Programs by name, where a trace finds and guards them as it does any module's attributes."""


@constant_when_traced
def _name_when_traced(predictions: Any, stages: Any, options: Any) -> str:
    program = compiled(predictions, tuple(Stage(*stage) for stage in stages), *options)
    name = program.in_graph()
    setattr(_TRACED, name, program)
    return name


# Bounded, for names and formulas may come with each request of a server.
@lru_cache(maxsize=512)
def compiled(
    predictions: tuple[str, ...],
    stages: tuple[Stage, ...],
    extras: tuple[str, ...],
    outputs: int,
    affine: bool,
    scaled: bool,
    masked: bool,
    stats: tuple[str, ...],
) -> Program:
    """:func:`compile_program` itself, kept."""
    if not predictions or len({*predictions, *extras}) != len(predictions) + len(extras):
        raise ValueError(f"predictions: expected distinct names, got {predictions!r} and extras {extras!r}")
    if meant := [name for name in (*predictions, *extras) if name in ("y", "d") or name.startswith("d_")]:
        raise ValueError(f"predictions: {meant} mean the result and the deltas in formulas; choose other names")
    if len(predictions) + len(extras) > MOST_VECTORS or len(stages) > MOST_STAGES:
        raise ValueError(
            f"predictions, stages: expected at most {MOST_VECTORS} inputs and {MOST_STAGES} formulas, "
            f"got {len(predictions) + len(extras)} and {len(stages)}"
        )
    if not stages or stages[0].kind != "weights" or any(s.kind == "weights" for s in stages[1:]):
        raise ValueError("stages: the first, and only the first, returns weights")
    step = stages[-1] if stages[-1].kind == "step" else None
    modifiers = stages[1 : -1 if step else None]
    if any(s.kind == "step" for s in modifiers):
        raise ValueError("stages: a step comes last")
    if any(s.kind == "clamp" for s in modifiers[:-1]):
        raise ValueError("stages: a clamp is elementwise and has to be the outermost modifier")
    if step and (step.rows < 1 or len({*step.reads, *extras}) != len(step.reads) + len(extras)):
        raise ValueError(f"stages: a step has at least one row, and inputs of its own, got {step.rows}, {step.reads}")
    if step and affine and step.reads[:1] != ("x",):
        raise ValueError(f"stages: the step of an affine program reads x first, got {step.reads}")
    width = stages[0].width or len(predictions)
    if not 1 <= width <= len(predictions):
        raise ValueError(f"stages: width: expected 1 ... {len(predictions)}, got {width}")
    if stages[0].onto not in (None, *predictions[1:width]):
        raise ValueError(f"stages: onto: expected one of {predictions[1:width]}, got {stages[0].onto!r}")
    writer = FormulaWriter(predictions, extras, width, outputs, scaled)
    for index, stage in enumerate(stages):
        writer.stage(index, stage)
        check_formula(stage.fn, _returned(stage, outputs * len(writer.weighed)))
    writer.stats = [write_stat(writer, name, stages) for name in stats]
    source = writer.source()
    tail = step.reads if step else ("x",) * affine
    if len(writer.pairs) > MOST_SUMS:
        raise ValueError(
            f"stages: expected at most {MOST_SUMS} sums, got {len(writer.pairs)} over {len(predictions)} predictions; "
            "guide with fewer of them, or without the modifier that measures the result"
        )
    return Program(
        predictions=predictions,
        extras=(*extras, *tail),
        tail=len(tail),
        outputs=outputs,
        rows=step.rows if step else 0,
        scaled=scaled,
        masked=masked,
        pairs=tuple(writer.pairs),
        means=tuple(writer.means),
        params=(*writer.params, "shift", "gain") if affine else tuple(writer.params),
        clamps=bool(writer.bounds),
        affine=affine,
        stats=stats,
        source=source,
        stages=stages,
        weigh=_build(source, stages, stats, lambda fn: fn),
    )
