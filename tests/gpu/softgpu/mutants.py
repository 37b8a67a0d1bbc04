"""Kernels with one fault put in: what the checks have to catch.

Each function yields ``(what was changed, PTX)``. Lines keep their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["dropped_barriers", "fewer_lanes", "relaxed_orders", "swapped_operands", "wider_masks"]

Mutant = tuple[str, str]


def _each(text: str, pattern: str, replacement: str, every: int = 1) -> Iterator[Mutant]:
    """The text with one line that fits changed, for each such line (or every so many)."""
    lines = text.split("\n")
    found = [i for i, line in enumerate(lines) if re.search(pattern, line)]
    for i in found[::every]:
        changed = [*lines[:i], re.sub(pattern, replacement, lines[i]), *lines[i + 1 :]]
        yield f"line {i + 1}: {lines[i].strip()}", "\n".join(changed)


def dropped_barriers(text: str) -> Iterator[Mutant]:
    """One barrier of the block's threads less, where that can matter: not beside another one.

    Between two barriers without an access to memory between them, one is enough.
    """
    lines = text.split("\n")
    waits = re.compile(r"\bbar\.sync")
    touches = re.compile(r"\b(ld\.shared|st\.shared|ldmatrix|stmatrix|ld\.(acquire|relaxed|global)|st\.global|atom)")
    last, since = -1, False
    doubled = set()
    for i, line in enumerate(lines):
        if waits.search(line):
            if last >= 0 and not since:
                doubled |= {last, i}
            last, since = i, False
        elif touches.search(line) or re.match(r"\$|.*\bbra\b", line):
            since = True
    for i, line in enumerate(lines):
        if waits.search(line) and i not in doubled:
            yield f"line {i + 1}: {line.strip()} dropped", "\n".join([*lines[:i], "", *lines[i + 1 :]])


def relaxed_orders(text: str) -> Iterator[Mutant]:
    """An atomic that no longer releases or acquires."""
    yield from _each(text, r"\b((?:atom|ld|st)\.global\.[\w.]*?)\b(acquire|release|acq_rel)\b", r"\1relaxed")


def swapped_operands(text: str, every: int = 1) -> Iterator[Mutant]:
    """``b - a`` for ``a - b``."""
    yield from _each(text, r"(\bsub\.(?:rn\.)?f(?:32|64)\s+%\w+), (%\w+), (%\w+);", r"\1, \3, \2;", every)


def wider_masks(text: str) -> Iterator[Mutant]:
    """``<=`` for ``<`` in all comparisons with one and the same number: one element more than there is."""
    pattern = r"\bsetp\.lt\.(s32|s64)(\s+%p\d+, %\w+, )({limit});"
    for limit in dict.fromkeys(found[2] for found in re.findall(pattern.format(limit=r"%\w+"), text)):
        yield f"< {limit}", re.sub(pattern.format(limit=limit), r"setp.le.\1\2\3;", text)


def fewer_lanes(text: str, every: int = 1) -> Iterator[Mutant]:
    """Another partner in a butterfly: some lanes are added twice, others never."""
    yield from _each(text, r"(shfl\.sync\.bfly\.b32\s+%\w+, %\w+), (?:16|8|4|2),", r"\1, 1,", every)
