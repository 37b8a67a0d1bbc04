"""The results as JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastcfg.distill.card import Card, Mode

from ..environment import Environment
from ..records import markdown_table
from .curves import CURVES, Curve
from .equal_accuracy import TARGET, AtTarget
from .geometry import Trace
from .measure import Point, Settings

__all__ = ["Findings"]

TRAINED: Mapping[Mode, str] = {
    "full": "all weights trained",
    "lora": "an adapter trained",
    "embedding": "the scale input alone trained",
}


@dataclass(frozen=True)
class Findings:
    """Everything that a run found.

    Attributes:
        student: what the student's file says of it.
        exact: points of CFG in float32, the network's products too.
        dynamic: of dynamic thresholding.
    """

    environment: Environment
    student: Card
    settings: Settings
    scales: Sequence[float]
    points: Sequence[Point]
    exact: Sequence[Point]
    dynamic: Point
    compared: Sequence[AtTarget]
    traces: Sequence[Trace]

    def of(self, curve: str) -> list[Point]:
        """The points of a curve, by scale."""
        return [point for point in self.points if point.curve == curve]

    def _about(self, curve: Curve) -> str:
        if curve.who == "teacher":
            return curve.about
        steps = (self.student.training or {}).get("steps")
        trained = TRAINED[self.student.mode] + (f", {steps:,} optimiser steps" if steps else "")
        return f"{curve.about.removesuffix('.')}: {trained}."

    def to_json(self) -> str:
        """See the names in :class:`Point` and :class:`Trace`."""
        settings = asdict(self.settings) | {"scales": list(self.scales), "sampler": "DDIM"}
        settings["geometry_prediction"] = "v"
        settings["curves"] = {curve.name: self._about(curve) for curve in CURVES}
        data = {
            "kind": "quality",
            "environment": asdict(self.environment),
            "settings": settings,
            "curves": [asdict(point) for point in self.points],
            "controls": [asdict(point) for point in (*self.exact, self.dynamic)],
            "at_equal_accuracy": {"accuracy": TARGET, "rows": [asdict(row) for row in self.compared]},
            "geometry": [asdict(one) for one in self.traces],
        }
        return json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the curves at equal accuracy, every figure, and how they were measured."""
        settings = self.settings
        parts = [
            "# Quality and diversity against the guidance scale",
            f"`python -m benchmarks.quality`: {settings.samples} samples of coloured digits for each rule and scale, "
            f"all from the same noise and labels, DDIM with {settings.steps} steps, on the demo's model"
            f"{' with its products in bfloat16' if settings.bf16 else ''}; {self.environment.label}. "
            f"{self.environment.origin}",
            "## At equal accuracy",
            self._equal(),
            "## Every figure",
            self._tables(),
            "## Geometry of guidance",
            "Of v, along CFG's own trajectories, the network in float32; means over the samples at the first, the "
            "middle and the last step. `quality.json` has every step and its deviation.",
            self._geometry(),
            "## How it was measured",
            self._method(),
        ]
        return "\n\n".join(parts) + "\n"

    def _geometry(self) -> str:
        names = ("delta_ratio", "cosine", "parallel_share", "norm_ratio", "spread_ratio")
        steps = sorted({one.step for one in self.traces})
        chosen = (steps[0], steps[len(steps) // 2], steps[-1])
        rows = [
            (f"{one.scale:g}", str(one.step), *(f"{getattr(one, name):.3f}" for name in names))
            for one in self.traces
            if one.step in chosen
        ]
        return markdown_table(("scale", "step", *names), rows)

    def _equal(self) -> str:
        if not self.compared:
            return f"CFG does not reach {100 * TARGET:.0f} % at any of these scales."
        rows = [
            (
                row.curve,
                f"{row.scale:.2f}",
                f"{row.passes_per_sample:.0f}",
                f"{row.frechet_distance:.1f}",
                "" if row.curve == "CFG" else f"{row.difference:+.1f} ± {row.error:.1f}",
                f"{100 * row.recall:.1f}",
                f"{100 * row.coverage:.1f}",
                f"{row.spread:.2f}",
            )
            for row in self.compared
        ]
        header = ("curve", "scale", "passes", "FD", "FD - CFG's", "recall, %", "coverage, %", "spread")
        return (
            f"Where each curve reaches {100 * TARGET:.0f} % of digits read as asked, interpolated between scales. ± is "
            "the standard error of the whole comparison: samples drawn again, the same for both curves, the crossing "
            "found anew.\n\n" + markdown_table(header, rows)
        )

    def _tables(self) -> str:
        forms: list[tuple[str, Callable[[Point], str]]] = [
            ("Digits read as asked, % (± standard error)", lambda p: _with(p.accuracy, p.accuracy_error, 100)),
            ("Fréchet distance (± standard error)", lambda p: _with(p.frechet_distance, p.frechet_error, 1)),
            ("Precision / recall, %", lambda p: f"{100 * p.precision:.0f} / {100 * p.recall:.0f}"),
            ("Density / coverage", lambda p: f"{p.density:.2f} / {p.coverage:.2f}"),
            ("Spread within a class, of real digits'", lambda p: f"{p.spread:.2f}"),
            ("Passes a sample", lambda p: f"{p.passes_per_sample:.0f}"),
            ("Pixels beyond the range, % of its half", lambda p: f"{100 * p.overshoot:.1f}"),
            ("In the colour that the negative names, %", lambda p: f"{100 * p.avoided:.0f}"),
        ]
        parts = []
        for title, form in forms:
            rows = []
            for curve in CURVES:
                own = {point.scale: form(point) for point in self.of(curve.name)}
                rows.append((curve.name, *(own.get(scale, "") for scale in self.scales)))
            header = ("curve", *(f"s = {scale:g}" for scale in self.scales))
            parts.append(f"{title}:\n\n{markdown_table(header, rows)}")
        return "\n\n".join(parts)

    def _method(self) -> str:
        settings = self.settings
        rows = [f"- {curve.name}: {self._about(curve)}" for curve in CURVES]
        return (
            "\n".join(rows) + "\n\nAll figures are in the features of the demo's classifier, against "
            f"{settings.samples} real digits that neither it nor the denoiser has seen; the last two curves against "
            "digits of the colours other than red. Precision and recall are of 1904.06991, density and coverage of "
            "2002.09797, five nearest neighbours. The Fréchet distance falls with more samples: it compares within "
            "this table alone. Errors of accuracies are the binomial's, with one success and one failure added; those "
            f"of recall are alike. Errors of the Fréchet distance are deviations over {settings.draws} draws with "
            "replacement within each digit. They are errors of the figures themselves; differences between curves have "
            "smaller ones, since all begin from the same noise."
            " `controls` in `quality.json` holds CFG in float32, from the same noise, and dynamic thresholding."
        )


def _with(value: float, error: float, factor: float) -> str:
    return f"{factor * value:.1f} ± {factor * error:.1f}"


def _finite(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
