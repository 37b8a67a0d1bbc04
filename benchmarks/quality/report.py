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
from .geometry import Trace
from .grids import Grid
from .measure import Point, Settings
from .reading import TARGET, AtTarget, of_cfg, of_geometry, of_rescale, of_strongest, of_student

__all__ = ["Findings"]

STRONG = 7.5
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
    grids: Sequence[Grid]

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
            "grids": [{"title": grid.title, "file": grid.file, "alt": grid.alt} for grid in self.grids],
            "geometry": [asdict(one) for one in self.traces],
        }
        return json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The reading first, then the figures."""
        settings = self.settings
        strong = STRONG if STRONG in self.scales else self.scales[-1]
        parts = [
            "# Quality and diversity against the guidance scale",
            f"`python -m benchmarks.quality`: {settings.samples} samples of coloured digits for each rule and scale, "
            f"all from the same noise and labels, DDIM with {settings.steps} steps, on the demo's model"
            f"{' with its products in bfloat16' if settings.bf16 else ''}; {self.environment.label}. "
            f"{self.environment.origin}",
            "## What it says",
            "\n".join(f"- {one}" for one in self._reading(strong)),
            "![Accuracy, precision, recall, Fréchet distance, coverage and spread against the guidance scale, a line "
            "for each rule and schedule; the tables below hold every point](quality-curves.png)",
            "## At equal accuracy",
            self._equal(),
            "## Samples",
            "\n\n".join(f"![{grid.alt}]({grid.file})" for grid in self.grids),
            "## Geometry of guidance",
            f"{of_geometry(self.traces, strong)} {of_rescale(self.traces, strong)}",
            "All are of v, along CFG's own trajectories, the network in float32; means over the samples. In "
            "`quality.json` each has its deviation.",
            "![Length of the delta, its cosine with the unconditional prediction, its share along the conditional one, "
            "and length and standard deviation of the guided prediction over the conditional one, by step, a line for "
            "each scale](quality-geometry.png)",
            "## Every figure",
            self._tables(),
            "## How it was measured",
            self._method(),
        ]
        return "\n\n".join(parts) + "\n"

    def _reading(self, strong: float) -> list[str]:
        cfg, student = self.of("CFG"), self.of("student of CFG")
        found = [f"**CFG.** {of_cfg(cfg)}"]
        if self.compared:
            others = [row for row in self.compared if row.curve != "CFG"]
            clear = sorted((row for row in others if abs(row.difference) > 2 * row.error), key=lambda r: r.difference)

            def named(rows: Sequence[AtTarget]) -> str:
                text = (f"{row.curve} ({row.difference:+.1f} ± {row.error:.1f})" for row in rows)
                return ", ".join(text) or "none"

            found.append(
                f"**Rules, at the same {100 * TARGET:.0f} % of digits read as asked.** A Fréchet distance smaller "
                f"than CFG's by more than two standard errors: {named([row for row in clear if row.difference < 0])}; "
                f"larger: {named([row for row in clear if row.difference > 0])}; no clear difference: "
                f"{named([row for row in others if row not in clear])}."
            )
            missing = [c.name for c in CURVES if c.asked == "both" and c.name not in {r.curve for r in self.compared}]
            if missing:
                found.append(f"**Not that accurate at any scale up to {self.scales[-1]:g}:** {', '.join(missing)}.")
        guided = [point for point in self.points if point.reference == "all colours"]
        found.append(f"**Too much of it.** {of_strongest([p for p in guided if p.scale == self.scales[-1]])}")
        by_overshoot = sorted((p for p in guided if p.scale == strong), key=lambda p: p.overshoot)
        found.append(
            f"**Saturation at s = {strong:g}.** Pixels beyond the range, in percent of its half: "
            + ", ".join(f"{p.curve} {100 * p.overshoot:.1f}" for p in by_overshoot)
            + "."
        )
        found.append(f"**The student.** {of_student(cfg, student)}")
        plain, negative = (self.of(curve.name) for curve in CURVES if curve.asked == "digit")
        pairs = list(zip(plain, negative, strict=True))
        red = "; ".join(
            f"at s = {a.scale:g} {_of(a, b, 'avoided')} are red, accuracy is {_of(a, b, 'accuracy')}, recall "
            f"{_of(a, b, 'recall')}, the Fréchet distance {a.frechet_distance:.0f} and {b.frechet_distance:.0f}"
            for a, b in pairs
        )
        found.append(f"**A negative, red.** Digits without a colour asked for, with CFG and with perp-neg: {red}.")
        dynamic = self.dynamic
        found.append(
            f"**What fails here.** Dynamic thresholding at s = {dynamic.scale:g}: {100 * dynamic.accuracy:.0f} % "
            f"read as asked, Fréchet distance {dynamic.frechet_distance:.0f}. The ground of these images is -1, and "
            "dividing a clean sample by its quantile lifts it at every step; a plain clip leaves it there."
        )
        return found

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
        cfg = {point.scale: point for point in self.of("CFG")}
        control = "; ".join(
            f"at s = {p.scale:g} accuracy {100 * p.accuracy:.1f} and {100 * cfg[p.scale].accuracy:.1f} %, FD "
            f"{p.frechet_distance:.2f} and {cfg[p.scale].frechet_distance:.2f}"
            for p in self.exact
        )
        return (
            "\n".join(rows) + "\n\nAll figures are in the features of the demo's classifier, against "
            f"{settings.samples} real digits that neither it nor the denoiser has seen; the last two curves against "
            "digits of the colours other than red. Precision and recall are of 1904.06991, density and coverage of "
            "2002.09797, five nearest neighbours. The Fréchet distance falls with more samples: it compares within "
            "this table alone. Errors of accuracies are the binomial's, with one success and one failure added; those "
            f"of recall are alike. Errors of the Fréchet distance are deviations over {settings.draws} draws with "
            "replacement within each digit. They are errors of the figures themselves; differences between curves have "
            "smaller ones, since all begin from the same noise."
            + (f"\n\nCFG in float32 and in bfloat16, from the same noise: {control}." if control else "")
        )


def _of(one: Point, other: Point, name: str) -> str:
    return f"{100 * getattr(one, name):.0f} and {100 * getattr(other, name):.0f} %"


def _with(value: float, error: float, factor: float) -> str:
    return f"{factor * value:.1f} ± {factor * error:.1f}"


def _finite(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
