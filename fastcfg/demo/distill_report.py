"""Report of a distillation on the demo's model, as tables and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..distill.evaluate import Gap, StepTime, draw_start, student_sample, teacher_sample
from ..distill.student import Student
from ..distill.task import Task
from ..metrics import Quality
from .judged import Judged
from .picture import mosaic

__all__ = ["Findings", "draw", "from_json", "to_json", "to_markdown"]

PICTURED = (1.0, 2.0, 4.0, 8.0)
COLUMNS = 10


@dataclass(frozen=True)
class Findings:
    """A student beside its teacher.

    Attributes:
        title: what was distilled, and how.
        gaps: errors against the teacher's predictions and samples, by scale.
        judged: quality of both, by scale.
        time: of a step of both.
        steps: optimiser steps; size: bytes of the student's file.
    """

    title: str
    gaps: Sequence[Gap]
    judged: Sequence[Judged]
    time: StepTime
    steps: int
    size: int


def to_json(findings: Findings) -> dict[str, Any]:
    """JSON-serialisable data."""
    return asdict(findings)


def from_json(data: Mapping[str, Any]) -> Findings:
    """Return what :func:`to_json` described."""

    def judged(row: Mapping[str, Any]) -> Judged:
        return Judged(**{**row, "teacher": Quality(**row["teacher"]), "student": Quality(**row["student"])})

    return Findings(
        **{
            **data,
            "gaps": tuple(Gap(**{**row, "by_step": tuple(row["by_step"])}) for row in data["gaps"]),
            "judged": tuple(judged(row) for row in data["judged"]),
            "time": StepTime(**data["time"]),
        }
    )


def to_markdown(findings: Findings) -> str:
    """The tables."""
    time = findings.time
    student = f"{time.student:.0f} ms for the student (one)"
    if time.merged is not None:
        student = f"{time.merged:.0f} ms for the student (one) with its adapter merged, {time.student:.0f} ms without"
    text = f"""## {findings.title}

{findings.steps} optimiser steps; the student's file has {findings.size / 1e3:.0f} kB. A step of {time.batch} samples:
{time.teacher:.0f} ms for the teacher ({time.teacher_passes} passes), {student},
{time.ratio:.2f} times less.

Relative error against the teacher's guided predictions along its trajectories, and against its samples from the same
noise, in percent; of the student, and of the teacher's network without guidance:

| s | prediction: student | unguided | sample: student | unguided |
|---:|---:|---:|---:|---:|
"""
    for gap in findings.gaps:
        values = (gap.student, gap.unguided, gap.student_sample, gap.unguided_sample)
        text += f"| {gap.scale:g} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |\n"
    if not findings.judged:
        return text
    count = findings.judged[0].teacher.samples
    text += f"""
Quality of {count} samples of each, teacher / student: accuracy, precision and recall in percent; Fréchet distance (FD)
on the classifier's features; spread within a class, relative to that of real digits; samples in red in percent:

| s | accuracy | precision | recall | coverage | FD | spread | red |
|---:|---:|---:|---:|---:|---:|---:|---:|
"""
    for row in findings.judged:
        one, other = row.teacher, row.student
        shares = [
            f"{100 * getattr(one, name):.1f} / {100 * getattr(other, name):.1f}"
            for name in ("accuracy", "precision", "recall", "coverage")
        ]
        shares += [
            f"{one.frechet_distance:.2f} / {other.frechet_distance:.2f}",
            f"{one.spread:.2f} / {other.spread:.2f}",
        ]
        shares.append(f"{100 * row.teacher_avoided:.1f} / {100 * row.student_avoided:.1f}")
        text += f"| {row.scale:g} | " + " | ".join(shares) + " |\n"
    return text


def draw(
    task: Task,
    students: Sequence[tuple[str, Student]],
    gaps: Sequence[tuple[str, Sequence[Gap]]],
    title: str,
    *,
    num_steps: int = 20,
    seed: int = 3,
    scales: Sequence[float] = PICTURED,
) -> bytes:
    """Samples of teacher and students side by side, from the same noise, and their gaps against the scale.

    Returns:
        A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    noise, conditions = draw_start(task, COLUMNS, seed)
    rows: list[tuple[str, Tensor]] = []
    for scale in scales:
        rows.append((f"teacher, s = {scale:g}", teacher_sample(task, noise, conditions, scale, num_steps)))
        for name, student in students:
            sample = student_sample(task, student, noise, conditions, scale, num_steps)
            rows.append((f"{name}, s = {scale:g}", sample))
    cell, left, top, curve = 0.55, 2.4, 0.5, 2.6
    legend = 0.2 * -(-(len(gaps) + 1) // 2) + 0.1
    width, height = left + cell * COLUMNS + 0.25, top + cell * len(rows) + 0.75 + curve + 0.55 + legend
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_axes(
        (left / width, 1 - (top + cell * len(rows)) / height, cell * COLUMNS / width, cell * len(rows) / height)
    )
    grid.imshow(
        mosaic([images.cpu() for _, images in rows]).numpy(),
        interpolation="nearest",
        aspect="auto",
        extent=(0, COLUMNS, len(rows), 0),
    )
    grid.set_axis_off()
    for index, (label, _) in enumerate(rows):
        weight = "bold" if label.startswith("teacher") else "normal"
        grid.text(-0.15, index + 0.5, label, ha="right", va="center", fontsize=9, weight=weight)
    figure.text(0.02, 1 - 0.25 / height, title, ha="left", va="center", fontsize=11, weight="bold")
    axes = figure.add_axes((0.7 / width, (0.55 + legend) / height, (width - 1.0) / width, curve / height))
    axes.plot(
        [gap.scale for gap in gaps[0][1]],
        [100 * gap.unguided for gap in gaps[0][1]],
        "o--",
        color="#999999",
        label="no guidance",
    )
    for name, found in gaps:
        axes.plot([gap.scale for gap in found], [100 * gap.student for gap in found], "o-", label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("guidance scale s", fontsize=9)
    axes.set_ylabel("%", fontsize=9)
    axes.set_title("relative error of the guided prediction, along the teacher's trajectories", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncol=2, bbox_to_anchor=(0, -0.5 / curve))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
