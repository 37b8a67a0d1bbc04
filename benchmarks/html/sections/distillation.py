"""Students of a guided teacher: what they learned and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..charts import Line, draw, legend, lines, style
from ..content import Chart, Finding, Panel, Section
from ..numbers import between, decimal, milliseconds, percent, plural, times
from ..pictures import read_picture
from ..results import Result
from ..tables import numbers, tabulate, words

__all__ = ["build"]

Row = Mapping[str, Any]
JUDGED = {"accuracy": "Classifier accuracy", "recall": "Recall", "frechet_distance": "Fréchet distance"}


def build(results: list[Result]) -> Section:
    """What students learned, and what they cost."""
    section = Section(
        "distillation",
        "Distillation",
        "Students of the demo's model that take the guidance scale as an input and need one pass, beside their "
        "teachers. The error is the guided prediction's, relative to the teacher's, along the teacher's trajectories.",
    )
    for result in results:
        found: Mapping[str, Any] = result.data["findings"]
        section.blocks.append(_errors(found, result, section))
        judged = {name: each for name, each in found.items() if each["judged"]}
        if judged:
            section.blocks.append(_judged(judged, result, section))
        section.blocks.append(
            tabulate(
                f"A prediction's time, in batches ({result.where})",
                found.values(),
                words("student", lambda f: f["title"]),
                numbers("teacher's passes", lambda f: str(f["time"]["teacher_passes"])),
                numbers("teacher", lambda f: milliseconds(f["time"]["teacher"])),
                numbers("student", lambda f: milliseconds(f["time"]["student"])),
                numbers("adapter merged", lambda f: milliseconds(merged) if (merged := _merged(f)) else "–"),
                numbers("teacher ÷ student", lambda f: times(_speed(f))),
                numbers("size", lambda f: f"{decimal(f['size'] / 1e6)} MB"),
            )
        )
        speed = [_speed(f) for f in found.values()]
        text = f"A student's step is {between(speed, times)} as fast as its teacher's, an adapter merged"
        section.findings.append(Finding("gain", f"{text} ({plural(len(speed), 'student')}).", result.where))
        for path in sorted(result.path.parent.glob(f"{result.path.stem}*.png")):
            what = path.stem.removeprefix(result.path.stem).strip("-")
            title = "Samples of teacher and student" + f", {what}" * bool(what)
            alt = (
                f"{title}: rows of coloured digits by scale, the teacher's above its students', from the same noise; "
                "below, the error of the predictions by scale."
            )
            section.blocks.append(read_picture(path.parent, path.name, title, alt))
    return section


def _merged(findings: Row) -> float | None:
    """Milliseconds of a student whose adapter is merged, if it has one."""
    merged: float | None = findings["time"].get("merged")
    return merged


def _speed(findings: Row) -> float:
    return float(findings["time"]["teacher"] / (_merged(findings) or findings["time"]["student"]))


def _by_teacher(found: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Students by their teacher, with which their titles begin."""
    groups: dict[str, list[Row]] = {}
    for each in found.values():
        groups.setdefault(each["title"].partition(",")[0], []).append(each)
    return groups


def _judged_names(teacher: str, students: list[Row]) -> list[str]:
    return [f"teacher: {teacher}", *(f"student: {each['title']}" for each in students)]


def _errors(found: Mapping[str, Any], result: Result, section: Section) -> Chart:
    names = [each["title"] for each in found.values()]
    panels = []
    for teacher, students in _by_teacher(found).items():
        drawn = [
            Line([(gap["scale"], 100 * gap["student"]) for gap in each["gaps"]], style(names.index(each["title"])))
            for each in students
        ]
        drawn.append(Line([(gap["scale"], 100 * gap["unguided"]) for gap in students[0]["gaps"]], style(len(names))))
        paint = lines(drawn, title=f"Error against {teacher}", x="scale", y="%")
        drawing = draw(f"{result.path.stem}-errors-{len(panels)}", paint, height=260)
        panels.append(Panel(f"error against {teacher} by scale", drawing))
    first = next(iter(found.values()))
    last = first["gaps"][-1]
    ends = [each["gaps"][-1]["student"] for each in found.values()]
    text = f"A student is no copy: at scale {last['scale']:g} its predictions err by {between(ends, percent)} of the "
    section.findings.append(Finding("loss", f"{text}teacher's.", result.where))
    return Chart(
        "Error of a student's prediction",
        f"At scale {last['scale']:g} the student “{first['title']}” errs by {percent(last['student'])}; leaving "
        f"guidance away would err by {percent(last['unguided'])}.",
        panels,
        tabulate(
            f"Relative errors by scale ({result.where})",
            [(each, gap) for each in found.values() for gap in each["gaps"]],
            words("student", lambda p: p[0]["title"]),
            numbers("scale", lambda p: decimal(p[1]["scale"], 2)),
            numbers("student", lambda p: percent(p[1]["student"], 1)),
            numbers("no guidance", lambda p: percent(p[1]["unguided"], 1)),
            numbers("student's samples", lambda p: percent(p[1]["student_sample"], 1)),
            numbers("unguided samples", lambda p: percent(p[1]["unguided_sample"], 1)),
        ),
        legend(f"{result.path.stem}-errors", [(name, style(i)) for i, name in enumerate([*names, "no guidance"])]),
        where=result.where,
    )


def _judged(found: Mapping[str, Any], result: Result, section: Section) -> Chart:
    names = [name for teacher, students in _by_teacher(found).items() for name in _judged_names(teacher, students)]
    panels: list[Panel] = []
    for teacher, students in _by_teacher(found).items():
        for metric, what in JUDGED.items():
            sides = [(students[0], "teacher"), *((each, "student") for each in students)]
            drawn = [
                Line([(j["scale"], j[who][metric]) for j in each["judged"]], style(names.index(name)))
                for name, (each, who) in zip(_judged_names(teacher, students), sides, strict=True)
            ]
            title = f"{what}, {teacher}"
            paint = lines(drawn, title=title, x="scale", y="", share=metric != "frechet_distance")
            panels.append(Panel(f"{title}, by scale", draw(f"{result.path.stem}-judged-{len(panels)}", paint)))
    pairs = [(each, j) for each in found.values() for j in each["judged"]]
    gap, each, at = max(
        ((j["teacher"]["accuracy"] - j["student"]["accuracy"], each, j) for each, j in pairs),
        key=lambda found: found[0],
    )
    text = (
        f"A student's samples are at most {max(gap, 0) * 100:.1f} points less accurate than its teacher's "
        f"({each['title']}, scale {at['scale']:g})"
    )
    section.findings.append(Finding("gain" if gap <= 0.02 else "loss", f"{text}.", result.where))
    return Chart(
        "Samples of teacher and student, judged",
        f"{text}. {at['teacher']['samples']} samples a point.",
        panels,
        tabulate(
            f"Judged samples ({result.where})",
            [(e, j, who) for e, j in pairs for who in ("teacher", "student")],
            words("student", lambda p: p[0]["title"]),
            words("who", lambda p: p[2]),
            numbers("scale", lambda p: decimal(p[1]["scale"], 2)),
            numbers("accuracy", lambda p: percent(p[1][p[2]]["accuracy"], 1)),
            numbers("precision", lambda p: f"{p[1][p[2]]['precision']:.2f}"),
            numbers("recall", lambda p: f"{p[1][p[2]]['recall']:.2f}"),
            numbers("coverage", lambda p: f"{p[1][p[2]]['coverage']:.2f}"),
            numbers("Fréchet distance", lambda p: decimal(p[1][p[2]]["frechet_distance"])),
        ),
        legend(f"{result.path.stem}-judged", [(name, style(i)) for i, name in enumerate(names)]),
    )
