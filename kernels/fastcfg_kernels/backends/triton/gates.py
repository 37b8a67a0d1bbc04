"""What the compiler makes of every kernel, and the limits that it must keep: no GPU needed.

``python -m fastcfg_kernels.backends.triton.gates`` prints the table, as Markdown or JSON, and fails where a limit is
broken.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import inf
from pathlib import Path

import torch

from ... import math
from ...formula.program import Program, Stage, compile_program
from ...partial import write_whole
from .aot import TARGETS, Compiled, Sizes, compile_ahead
from .formula import OLDEST

__all__ = ["PARAMS", "SUPPORTED", "Row", "broken", "main", "measure", "programs", "to_markdown"]

SUPPORTED = (OLDEST, (3, 9))
"""Oldest and newest version of Triton that these kernels have been compiled with."""

SPILLS = {("cuda:100", "row_kernel"): 96, ("cuda:100", "tile_kernel"): 8}
"""Spill instructions that are allowed, none elsewhere: for this target ptxas keeps float32 copies of a full chunk."""

UNALIGNED_SPILLS = 96
"""The same where nothing is aligned: each of 32 elements a thread has an address of its own."""

WARPS = 16
"""Warps that a multiprocessor holds at least, so that one may wait for memory while others work. Float64 numbers take
two registers each, what is not aligned takes more addresses, and groups that lie across a program more sums."""

WORK = {
    # Plain Triton kernels of these rules, whose order of addition the layout sets: benchmarks/plain_kernels.py.
    ("rescale", 16_384, "row_kernel"): (26.0, 8, 64),
    ("rescale", 2_097_152, "cooperative_kernel"): (38.0, 10, 80),
}
"""Instructions an element, barriers and shuffles at most, of a program, a size and a kernel in bfloat16 on cuda:90."""


def _cfg(scale: float) -> tuple[float, float]:
    return 1.0, scale


def _rescale(cov_y_y: float, cov_cond_cond: float, strength: float) -> float:
    ratio: float = math.sqrt(cov_cond_cond / math.where(cov_y_y > 0.0, cov_y_y, 1.0))
    return 1.0 + strength * (ratio - 1.0)


def _norm_clamp(dot_y_y: float, radius: float, count: float) -> tuple[float, float]:
    bound = radius * math.sqrt(dot_y_y / count)
    return -bound, bound


def _projected(
    dot_d_d: float, dot_cond_d: float, dot_cond_cond: float, dot_momentum_d: float, scale: float, momentum: float
) -> tuple[float, ...]:
    along = (dot_cond_d + momentum * dot_momentum_d) / math.maximum(dot_cond_cond, 1e-12)
    return 1.0 - along, scale, scale * momentum, 0.0, dot_d_d * 0.0 + 1.0, momentum


def _perpendicular(dot_d_cond_d_cond: float, dot_d_cond_d_negative: float, scale: float) -> tuple[float, float, float]:
    return 1.0, scale, -dot_d_cond_d_negative / math.maximum(dot_d_cond_d_cond, 1e-12)


PARAMS = {"scale": 4.0, "strength": 0.7, "radius": 2.0, "momentum": -0.5, "shift": 0.3, "gain": 0.9}
"""A value for each parameter of the programs below."""


def _solver(
    at_y: float, at_x: float, at_previous: float, clean_y: float, clean_x: float, scale: float
) -> tuple[float, ...]:
    return at_y, at_x, at_previous, clean_y, clean_x, 0.0, scale * at_y, scale * at_x, scale * at_previous


@cache
def programs() -> dict[str, Program]:
    """Representative programs: without sums, centred sums, a clamp, plain sums of three, stats with sums of their
    own, a solver's step with a history and the next model input, and state in an affine space."""
    two, three = ("uncond", "cond"), ("uncond", "cond", "negative")
    return {
        "cfg": compile_program(two, (Stage(_cfg),)),
        "rescale": compile_program(two, (Stage(_cfg), Stage(_rescale, "factor"))),
        "clamp": compile_program(two, (Stage(_cfg), Stage(_norm_clamp, "clamp"))),
        "perpendicular": compile_program(three, (Stage(_perpendicular),)),
        "stats": compile_program(two, (Stage(_cfg), Stage(_rescale, "factor")), stats=("delta_ratio", "factor")),
        "step": compile_program(
            two, (Stage(_cfg), Stage(_rescale, "factor"), Stage(_solver, "step", reads=("x", "previous"), rows=3))
        ),
        "projected": compile_program(two, (Stage(_projected),), ("momentum",), 2, affine=True),
    }


@dataclass(frozen=True)
class Row:
    """One kernel of one program: ``compiled`` holds what it became."""

    program: str
    dtype: str
    sizes: Sizes
    compiled: Compiled


LATENT = Sizes(65_536)
TOKENS = Sizes(64, groups=4_096)
CHANNELS = Sizes(16, groups=16_384, across=True)
PROBLEMS: tuple[tuple[str, torch.dtype, Sizes], ...] = (
    *((name, torch.bfloat16, LATENT) for name in ("cfg", "rescale", "clamp", "perpendicular", "projected", "step")),
    ("rescale", torch.bfloat16, Sizes(16_384)),
    ("rescale", torch.bfloat16, TOKENS),
    ("rescale", torch.bfloat16, Sizes(2_097_152)),
    ("rescale", torch.bfloat16, CHANNELS),
    ("rescale", torch.float16, Sizes(16_384)),
    ("rescale", torch.float32, Sizes(16_384)),
    ("rescale", torch.float64, Sizes(4_096)),
    ("perpendicular", torch.float32, Sizes(8_192)),
    ("rescale", torch.bfloat16, Sizes(35_001, aligned=False)),
    ("stats", torch.bfloat16, LATENT),
    ("stats", torch.float32, Sizes(16_384)),
)
"""Program, dtype and sizes."""

EVERYWHERE = 7
"""How many of :data:`PROBLEMS` every target gets; the others are for ``cuda:90``."""


BRIEF = tuple(
    p for p in PROBLEMS if p in (("perpendicular", torch.bfloat16, LATENT), ("rescale", torch.bfloat16, TOKENS))
)
"""Problems that take every kernel once."""


def measure(
    targets: Iterable[str] = tuple(TARGETS), problems: Sequence[tuple[str, torch.dtype, Sizes]] = PROBLEMS
) -> list[Row]:
    """Compile everything; targets other than ``cuda:90`` get those problems that stand for all.

    Args:
        targets: keys of :data:`~fastcfg_kernels.backends.triton.aot.TARGETS`.
    """
    rows = []
    for target in targets:
        for problem in problems:
            if target == "cuda:90" or problem in (*PROBLEMS[:EVERYWHERE], *BRIEF):
                name, dtype, sizes = problem
                # Many small groups are what `row` is for.
                strategies = ("row",) if sizes.groups > 1 else ("row", "cooperative", "two_launch")
                compiled = compile_ahead(programs()[name], dtype, target, sizes, strategies=strategies)
                rows += [Row(name, str(dtype).removeprefix("torch."), sizes, one) for one in compiled]
    return rows


def broken(row: Row) -> list[str]:
    """The limits that a row breaks, in words."""
    found = []
    one = row.compiled
    if one.binary <= 0:
        found.append("no machine code")
    if one.longest_sum > 2:
        found.append(f"sums of {one.longest_sum} at once, in an order that the layout sets")
    if one.registers < 0:  # No tools for this target's machine code.
        return found
    if one.spills > (SPILLS.get((one.target, one.kernel), 0) if row.sizes.aligned else UNALIGNED_SPILLS):
        found.append(f"{one.spills} spill instructions")
    wide = row.dtype == "float64" or row.sizes.across or not row.sizes.aligned
    # ptxas gives one register more than it might, for this target, to groups of tokens: 15 warps.
    if one.warps < WARPS - (one.target == "cuda:100") and not wide:
        found.append(f"{one.warps} warps on a multiprocessor, of {one.registers} registers a thread")
    if one.target == "cuda:90" and row.dtype == "bfloat16" and row.sizes.aligned:
        most, barriers, shuffles = WORK.get((row.program, row.sizes.count, one.kernel), (inf, inf, inf))
        if one.per_element > most:
            found.append(f"{one.per_element:.1f} instructions an element")
        if one.barriers > barriers:
            found.append(f"{one.barriers} barriers")
        if one.shuffles > shuffles:
            found.append(f"{one.shuffles} shuffles")
    if one.loads != 1.0:
        found.append(f"every element is loaded {one.loads} times")
    if row.sizes.aligned and one.load_bits != 128:
        found.append(f"loads of {one.load_bits} bits")
    if row.sizes.aligned and one.kernel != "tile_kernel" and one.store_bits < 64:
        found.append(f"stores of {one.store_bits} bits")
    if one.float64 and row.dtype != "float64":
        found.append(f"{one.float64} float64 instructions")
    return found


def to_markdown(rows: Sequence[Row]) -> str:
    """The table, one line a kernel."""
    import triton

    lines = [
        f"Triton {triton.__version__}. Loads: how often a kernel loads each input element; `two_launch` is "
        "`tile_kernel` and `apply_kernel`, and so loads twice. Warps: that the registers of a multiprocessor hold. An "
        "element: instructions times threads, divided by a program's elements. `–`: the tools for that target's "
        "machine code are not part of Triton.",
        "",
        "| program | dtype | elements | target | strategy | kernel | registers | warps | spills | loads | load bits "
        "| store bits | instructions | an element | barriers | shuffles |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        one = row.compiled
        numbers = (
            one.registers, one.warps, one.spills, one.loads, one.load_bits, one.store_bits, one.instructions,
            round(one.per_element, 1), one.barriers, one.shuffles,
        )  # fmt: skip
        shown = ["–" if number < 0 else f"{number:g}" for number in numbers]
        sizes = row.sizes
        size = f"{sizes.groups} × " * (sizes.groups > 1) + f"{sizes.count}"
        size += " across" * sizes.across + " unaligned" * (not sizes.aligned)
        lines.append(
            f"| {row.program} | {row.dtype} | {size} | {one.target} | {one.strategy} | {one.kernel} | "
            + " | ".join(shown) + " |"
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def version_note() -> str | None:
    """What to say where this version of Triton is outside :data:`SUPPORTED`."""
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    low, high = SUPPORTED
    if low <= version <= high:
        return None
    return (
        f"triton: {triton.__version__} has not been tried with these kernels; "
        f"{low[0]}.{low[1]} to {high[0]}.{high[1]} have"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints or writes the table; 1 where a limit is broken."""
    parser = argparse.ArgumentParser(prog="python -m fastcfg_kernels.backends.triton.gates", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--output", type=Path, help="write to a file")
    parser.add_argument("--target", action="append", choices=TARGETS, help="a target (default: all)")
    parser.add_argument("--program", action="append", choices=programs(), help="a program (default: all)")
    parser.add_argument("--brief", action="store_true", help="every kernel once")
    given = parser.parse_args(arguments)
    if note := version_note():
        print(note, file=sys.stderr)
    problems = BRIEF if given.brief else PROBLEMS
    chosen = [problem for problem in problems if problem[0] in (given.program or programs())]
    rows = measure(given.target or tuple(TARGETS), chosen)
    text = json.dumps([asdict(row) for row in rows], indent=1) + "\n" if given.json else to_markdown(rows)
    if given.output is None:
        print(text, end="")
    else:
        write_whole(given.output, text.encode())
    failures = [(row, reason) for row in rows for reason in broken(row)]
    for row, reason in failures:
        one = row.compiled
        print(f"{row.program} {row.dtype} {row.sizes.count} {one.target} {one.kernel}: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
