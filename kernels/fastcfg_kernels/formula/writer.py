"""The source of ``weigh``: from argument names to sums, and from formulas to one function of them."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .program import Stage

__all__ = ["FormulaWriter"]

_RESULT = "y"


class _Vectors:
    """Names of the fixed vectors of a list of predictions, and their numbers."""

    def __init__(self, predictions: tuple[str, ...], extras: tuple[str, ...], width: int) -> None:
        base, *others = predictions
        size = len(predictions) + len(extras)
        self.number: dict[str, int] = {base: 0}
        for k, name in enumerate(others, start=1):
            self.number[f"d_{name}"] = k
            self.number[name] = size - 1 + k
        for k, name in enumerate(extras, start=len(predictions)):
            self.number[name] = k
        if width == 2:
            self.number.setdefault("d", 1)
        self.size = size

    def split(self, text: str, aliases: dict[str, str]) -> tuple[str, str] | None:
        """``"cond_d_cond"`` as ``("cond", "d_cond")``: the names may hold underscores themselves."""
        names = {*self.number, *aliases, _RESULT}
        found = [(text[:i], text[i + 1 :]) for i, ch in enumerate(text) if ch == "_"]
        found = [(a, b) for a, b in found if a in names and b in names]
        if len(found) > 1:
            raise ValueError(f"formula: the sum of {text!r} reads in several ways: {found}; rename the predictions")
        return (aliases.get(found[0][0], found[0][0]), aliases.get(found[0][1], found[0][1])) if found else None


class FormulaWriter:
    """Writes the source of ``weigh``, and collects the sums and parameters on the way."""

    def __init__(
        self, predictions: tuple[str, ...], extras: tuple[str, ...], width: int, outputs: int, scaled: bool = False
    ) -> None:
        self.vectors = _Vectors(predictions, extras, width)
        # The delta of each prediction that can stand for the base, which is it less its delta unless that is scaled.
        self.deltas = (
            {} if scaled else {self.vectors.number[name]: self.vectors.number[f"d_{name}"] for name in predictions[1:]}
        )
        self.reference: dict[str, int] = {}
        # The rule weighs its own predictions and the extras; what only modifiers read stands between them.
        self.weighed = [*range(width), *range(len(predictions), self.vectors.size)]
        self.outputs = outputs
        self.pairs: list[tuple[str, int, int]] = []
        self._number: dict[tuple[str, int, int], int] = {}
        self.means: list[int] = []
        self.params: list[str] = []
        self.lines: list[str] = []
        self.bounds: list[str] = []
        self.steps: list[str] = []
        self.stats: list[str] = []
        # Names that stats go by in any program: its first prediction, and the one that is guided towards.
        base, *others = predictions
        target = "cond" if "cond" in others else others[0] if others else None
        self.aliases = {"base": base} | ({} if target is None else {"target": target, "d": f"d_{target}"})

    def pair(self, kind: str, a: int, b: int) -> str:
        key = (kind, min(a, b), max(a, b))
        number = self._number.setdefault(key, len(self.pairs))
        if number == len(self.pairs):
            self.pairs.append(key)
        return f"PAIR{number}_"

    def _terms(self, kind: str) -> list[tuple[str, int]]:
        """Weights and vectors that ``y`` is the sum of, for sums of a kind.

        The difference basis and the extras; but where the sum of a prediction with itself is taken anyway, it stands
        for the base, so that rescaling to it takes three sums and not four.
        """
        weights = [(f"w{i}", i) for i in range(self.vectors.size)]
        if kind in self.reference:
            stands = self.reference[kind]
            delta = self.deltas[stands]
            weights[0] = ("w0", stands)
            weights[delta] = (f"(w{delta} - w0)", delta)
        return weights

    def _expand(self, kind: str, a: str, b: str) -> str:
        """The sum of two vectors as an expression; ``y`` is expanded."""
        number = self.vectors.number
        if a == _RESULT and b == _RESULT:
            parts = self._terms(kind)
            terms = [f"{w} * {w} * {self.pair(kind, i, i)}" for w, i in parts]
            terms += [
                f"2.0 * {v} * {w} * {self.pair(kind, i, j)}"
                for n, (v, i) in enumerate(parts)
                for w, j in parts[n + 1 :]
            ]
            return " + ".join(terms)
        if _RESULT in (a, b):
            other = number[b if a == _RESULT else a]
            return " + ".join(f"{w} * {self.pair(kind, i, other)}" for w, i in self._terms(kind))
        return self.pair(kind, number[a], number[b])

    def _choose_references(self, stage: Stage, sums: list[str]) -> None:
        """Note the prediction whose sum with itself a stage takes, for each kind of sum."""
        for name in sums:
            kind, _, rest = name.partition("_")
            a, b = self.vectors.split(rest, dict(stage.vectors)) or ("", "")
            if a == b and self.vectors.number.get(a) in self.deltas:
                self.reference.setdefault(kind, self.vectors.number[a])

    def mean(self, vector: int) -> str:
        if vector not in self.means:
            self.means.append(vector)
        return f"MEAN{self.means.index(vector)}_"

    def sum(self, name: str, aliases: dict[str, str]) -> str | None:
        """A sum by its name, or ``count``, as an expression; None for another name."""
        if name == "count":
            return "count"
        kind, _, rest = name.partition("_")
        if kind in ("dot", "cov") and (split := self.vectors.split(rest, aliases)):
            return self._expand(kind, *split)
        if kind == "sum" and rest == _RESULT:
            return " + ".join(f"w{i} * {self.mean(i)} * count" for i in range(self.vectors.size))
        rest = aliases.get(rest, rest)
        if kind == "sum" and rest in self.vectors.number:
            return f"{self.mean(self.vectors.number[rest])} * count"
        return None

    def argument(self, name: str, stage: Stage) -> str:
        text = self.sum(name, dict(stage.vectors))
        if text is not None:
            return text
        kind, _, rest = name.partition("_")
        if kind in ("dot", "cov", "sum") and rest:
            known = sorted({*self.vectors.number, _RESULT})
            raise ValueError(
                f"formula {stage.fn.__name__}: argument {name!r} names an unknown vector; known are {known}"
            )
        public = dict(stage.rename).get(name, name)
        if public not in self.params:
            self.params.append(public)
        return f"params[{self.params.index(public)}]"

    def stage(self, index: int, stage: Stage) -> None:
        arguments = list(inspect.signature(stage.fn).parameters)
        sums = [name for name in arguments if name.startswith(("dot_", "cov_", "sum_"))]
        if index == 0 and any(_RESULT in name.split("_")[1:] for name in sums):
            raise ValueError(f"formula {stage.fn.__name__}: the result 'y' is known to modifiers only")
        self._choose_references(stage, sums)
        call = f"formula{index}({', '.join(self.argument(name, stage) for name in arguments)})"
        if stage.kind == "weights":
            names = [self.weight(output, i) for output in range(self.outputs) for i in self.weighed]
            self.lines.append(f"{', '.join(names)}{',' * (len(names) == 1)} = {call}")
            idle = [i for i in range(self.vectors.size) if i not in self.weighed]
            self.lines.extend(f"{self.weight(output, i)} = 0.0" for output in range(self.outputs) for i in idle)
            if stage.onto is not None:
                weight = self.weight(0, self.vectors.number[f"d_{stage.onto}"])
                self.lines.append(f"{weight} = 1.0 + {weight}")
        elif stage.kind == "factor":
            self.lines.append(f"factor{index} = {call}")
            self.lines.extend(f"w{i} = w{i} * factor{index}" for i in range(self.vectors.size))
        elif stage.kind == "clamp":
            self.lines.append(f"low, high = {call}")
            self.bounds = ["low", "high"]
        else:
            self.steps = [f"row{i}" for i in range(stage.rows * (1 + len(stage.reads)))]
            self.lines.append(f"{', '.join(self.steps)} = {call}")

    @staticmethod
    def weight(output: int, vector: int) -> str:
        """The variable that holds an output's weight of a vector; modifiers work on the first output."""
        return f"w{vector}" if output == 0 else f"update{output}_{vector}"

    def source(self) -> str:
        results = [self.weight(output, i) for output in range(self.outputs) for i in range(self.vectors.size)]
        results += self.bounds + self.steps + self.stats
        result = ", ".join(results) + "," * (len(results) == 1)
        text = "\n".join(["def weigh(sums, count, params):", *(f"    {line}" for line in self.lines)])
        text += f"\n    return {result}\n"
        text = re.sub(r"PAIR(\d+)_", r"sums[\1]", text)
        return re.sub(r"MEAN(\d+)_", lambda found: f"sums[{len(self.pairs) + int(found[1])}]", text)
