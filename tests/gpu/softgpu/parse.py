"""PTX text as Triton writes it, taken apart: one kernel, its parameters, and its instructions in straight runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["Instruction", "Kernel", "UnknownForm", "parse"]


class UnknownForm(NotImplementedError):
    """PTX that this interpreter does not know: it never guesses."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        guard: the predicate register that it depends on, or None; negated: whether it runs where that is false.
        opcode: the name with all its modifiers.
        operands: their text; a vector is one operand, braces and all.
        line: number in the text, from 1.
    """

    guard: str | None
    negated: bool
    opcode: str
    operands: tuple[str, ...]
    line: int

    @property
    def parts(self) -> list[str]:
        """The opcode's parts between its dots."""
        return self.opcode.replace("::", "__").split(".")


@dataclass
class Kernel:
    """A kernel.

    Attributes:
        parameters: type and name of each, in order.
        threads: of a block.
        widths: bits of every register, 1 for a predicate.
        runs: instructions between labels and branches; labels: the number of the run after each label.
        text: all of it.
    """

    name: str
    parameters: list[tuple[str, str]]
    threads: int
    text: str
    widths: dict[str, int] = field(default_factory=dict)
    runs: list[list[Instruction]] = field(default_factory=lambda: [[]])
    labels: dict[str, int] = field(default_factory=dict)


_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)")
_LABEL = re.compile(r"(\$[\w$]+):")
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_IGNORED = (".loc", ".file", ".pragma", ".section", ".maxntid", ".reqntid")


def _operands(text: str) -> tuple[str, ...]:
    """Split at the commas outside brackets."""
    found, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            found.append(text[start:i].strip())
            start = i + 1
    return tuple(part for part in [*found, text[start:].strip()] if part)


def _declare(kernel: Kernel, kind: str, names: str) -> None:
    width = 1 if kind == "pred" else int(re.sub(r"\D", "", kind))
    for name in _operands(names):
        many = re.fullmatch(r"(%\w+)<(\d+)>", name)
        if many:
            kernel.widths |= {f"{many[1]}{i}": width for i in range(int(many[2]))}
        else:
            kernel.widths[name] = width


def _statement(kernel: Kernel, text: str, line: int) -> None:
    declared = _REGISTERS.fullmatch(text)
    if declared:
        return _declare(kernel, declared[1], declared[2])
    found = _INSTRUCTION.fullmatch(text)
    if found is None:
        raise UnknownForm(f"line {line}: {text!r}")
    kernel.runs[-1].append(Instruction(found[2], found[1] == "!", found[3], _operands(found[4]), line))
    if found[3].split(".")[0] in ("bra", "ret"):
        kernel.runs.append([])


def parse(text: str) -> Kernel:
    """Take the only kernel of a PTX module apart.

    Raises:
        UnknownForm: for text that is no kernel of the kind that Triton writes.
    """
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\n\{", text, re.S)
    if entry is None or text.count(".entry") != 1 or ".func" in text:
        raise UnknownForm("expected one .entry and no .func")
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)(?:\s*,\s*1)*\s*(?:\n|$)", entry[3])
    if threads is None:
        raise UnknownForm("expected .reqntid: how many threads a block has")
    parameters = re.findall(r"\.param\s+\.(\w+)[^,\n]*?\s(\w+)\s*(?:,|\n|$)", entry[2])
    kernel = Kernel(entry[1], parameters, int(threads[1]), text)
    line = text.count("\n", 0, entry.end()) + 1
    for raw in text[entry.end() :].split("\n"):
        code = raw.split("//")[0].strip()
        line += 1 if raw is not None else 0
        if code == "}":
            break
        if not code or code.startswith(_IGNORED):
            continue
        if label := _LABEL.fullmatch(code):
            if kernel.runs[-1]:
                kernel.runs.append([])
            kernel.labels[label[1]] = len(kernel.runs) - 1
            continue
        for statement in code.split(";"):
            if statement.strip():
                _statement(kernel, statement.strip(), line - 1)
    return kernel
