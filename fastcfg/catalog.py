"""The table of all rules, made from the code."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from .rules import Rule, registry

__all__ = ["Entry", "entries", "to_markdown"]

_EXAMPLES: dict[str, dict[str, object]] = {"Linear": {"weights": (("cond", 1.0), ("uncond", 0.5))}}


@dataclass(frozen=True)
class Entry:
    """A rule as the table shows it.

    Attributes:
        name: class name; formula, source: from the rule's title.
        conditions: predictions in batch order, with default arguments.
        parameters: fields and their defaults.
        sums: what its formula reduces over a sample; empty for an elementwise rule.
        state: tensors it carries from step to step.
    """

    name: str
    formula: str
    source: str
    conditions: tuple[str, ...]
    parameters: tuple[str, ...]
    sums: tuple[str, ...]
    state: tuple[str, ...]


def _example(cls: type[Rule]) -> Rule:
    """The rule with its defaults; a modifier stands over CFG."""
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    if required == ["rule"]:
        return cls(registry["CFG"]())  # type: ignore[call-arg]
    return cls(**_EXAMPLES.get(cls.__name__, {}))


def _sums(rule: Rule) -> tuple[str, ...]:
    program = rule.program
    names = [program.predictions[0], *(f"d_{n}" for n in program.predictions[1:])]
    names += [*program.extras, *program.predictions[1:]]
    mark = {"dot": "<{}, {}>", "cov": "cov({}, {})"}
    return tuple(mark[kind].format(names[a], names[b]) for kind, a, b in program.pairs)


def entries() -> list[Entry]:
    """All rules of fastcfg itself, by name. A user's own rules are not listed."""
    rows = []
    for name in sorted(registry):
        cls = registry[name]
        if not cls.__module__.startswith("fastcfg."):
            continue
        rule = _example(cls)
        formula, _, source = cls.title.partition("  [")
        # A rule that changes by step may carry state in one phase only.
        phases = [rule] + [rule.at(step, 16) for step in (0, 15)]
        carried = {n for r in phases for n in (*r.lowered.extras, *r.lowered.updates)}
        sums = dict.fromkeys(s for r in phases for s in _sums(r))
        fields = tuple(
            f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}" for f in dataclasses.fields(cls)
        )
        rows.append(
            Entry(name, formula, source.rstrip("]"), rule.conditions, fields, tuple(sums), tuple(sorted(carried)))
        )
    return rows


def to_markdown() -> str:
    """The table as the documentation shows it."""
    lines = [
        "| rule | formula | source | predictions | parameters | sums | state |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in entries():
        cells = [f"`{e.name}`", f"`{e.formula}`", re.sub(r"(\d{4}\.\d{5})", r"arXiv \1", e.source)]
        for values in (e.conditions, e.parameters, e.sums, e.state):
            cells.append(", ".join(f"`{v}`" for v in values) or "none")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
