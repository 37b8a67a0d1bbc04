"""The table of all rules, made from the code."""

from __future__ import annotations

import dataclasses
import html
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..rules import PerpNeg, Rule, registry

__all__ = ["Entry", "Function", "entries", "example", "functions", "to_markdown"]

_EXAMPLES: dict[str, dict[str, object]] = {
    "ClassifierGuidance": {"sigma": 1.0},
    "Linear": {"weights": (("cond", 1.0), ("uncond", 0.5))},
}


@dataclass(frozen=True)
class Entry:
    """A rule as the table shows it.

    Attributes:
        name: class name; formula, source: from the rule's title.
        conditions: predictions in batch order, with default arguments.
        parameters: fields and their defaults.
        sums: what its formula reduces over a sample; empty for an elementwise rule.
        state: tensors it carries from step to step.
        space: ``"any"`` where the result is the same on eps, v and x0, else ``"as given"`` (see ``InDomain``).
        backends: what runs it.
    """

    name: str
    formula: str
    source: str
    conditions: tuple[str, ...]
    parameters: tuple[str, ...]
    sums: tuple[str, ...]
    state: tuple[str, ...]
    space: str
    backends: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """Guidance that is no rule (on logits, attention, gradients, frames, steps), as the table shows it.

    Attributes:
        name: as exported by :mod:`fastcfg`; parameters: with their defaults.
        summary: first line of the docstring; sources: arXiv numbers in it.
    """

    name: str
    parameters: tuple[str, ...]
    summary: str
    sources: tuple[str, ...]


def functions() -> list[Function]:
    """Everything that fastcfg exports with a paper in its docstring and that is no rule."""
    import fastcfg

    rows = []
    for name in sorted(fastcfg.__all__):
        value = getattr(fastcfg, name)
        text = inspect.getdoc(value) or ""
        sources = tuple(dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", text)))
        is_rule = isinstance(value, type) and issubclass(value, Rule)
        if not callable(value) or is_rule or not sources:
            continue
        parameters = tuple(
            p.name if p.default is p.empty else f"{p.name}={p.default!r}"
            for p in inspect.signature(value).parameters.values()
        )
        rows.append(Function(name, parameters, text.splitlines()[0], sources))
    return rows


def _space(rule: Rule) -> str:
    program = rule.program
    if program.reduces and not isinstance(rule, PerpNeg):
        return "as given"
    if program.clamps or program.extras or rule.prepares:
        return "as given"
    if program.reduces:
        return "any"  # Perp-neg: u keeps weight 1, and its ratio of sums is the same on scaled deltas.
    base = program.weigh((), 1.0, tuple(0.25 for _ in program.params))[0]
    return "any" if base == 1 else "as given"


def example(cls: type[Rule]) -> Rule:
    """A rule of a class: its defaults; a modifier stands over CFG."""
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
        rule = example(cls)
        formula, _, source = cls.title.partition("  [")
        # A rule that changes by step may carry state in one phase only.
        phases = [rule] + [rule.at(step, 16) for step in (0, 15)]
        carried = {n for r in phases for n in (*r.lowered.extras, *r.lowered.updates)}
        sums = dict.fromkeys(s for r in phases for s in _sums(r))
        fields = tuple(
            f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}" for f in dataclasses.fields(cls)
        )
        rows.append(
            Entry(
                name,
                formula,
                source.rstrip("]"),
                rule.conditions,
                fields,
                tuple(sums),
                tuple(sorted(carried)),
                _space(rule),
                ("torch",) if rule.prepares else ("torch", "cpp", "triton"),
            )
        )
    return rows


def to_markdown() -> str:
    """Return the tables as the documentation shows them: narrow ones, each of one subject."""
    rules = entries()
    formulas = [(_code(e.name), _code(e.formula), re.sub(r"(\d{4}\.\d{5})", r"arXiv \1", e.source)) for e in rules]
    arguments = [(_code(e.name), _codes(e.conditions), _codes(e.parameters)) for e in rules]
    cost = [(_code(e.name), _codes(e.sums), _codes(e.state), e.space, ", ".join(e.backends)) for e in rules]
    others = [
        (_code(f.name), _CODE.sub(lambda found: _code(found[2]), f.summary), ", ".join(f"arXiv {n}" for n in f.sources))
        for f in functions()
    ]
    signatures = [(_code(f.name), _codes(f.parameters)) for f in functions()]
    return "\n".join(
        [
            "## Formulas\n",
            _table(("rule", "formula", "source"), formulas),
            "## Arguments\n",
            _table(("rule", "predictions", "parameters"), arguments),
            "## What a launch reads and where it runs\n",
            _table(("rule", "sums", "state", "space", "backends"), cost),
            "## Guidance that is no rule\n",
            _table(("function", "what it does", "source"), others),
            _table(("function", "parameters"), signatures),
        ]
    )


_CODE = re.compile(r"(``?)(.+?)\1")


def _code(text: str) -> str:
    """Return code for a cell; a bar would end the cell, and GitHub and MkDocs escape it in different ways."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _codes(values: Sequence[str]) -> str:
    return ", ".join(map(_code, values)) or "none"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
