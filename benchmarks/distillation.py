"""``python -m benchmarks.distillation``: students of the demo's model beside their teachers.

Trains each student (a run that was stopped goes on), measures it, and writes ``results/distillation.{json,md,png}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from fastcfg import CFG, PerpNeg, Rule
from fastcfg.distill import DistillConfig, Distiller, Gap, Student, Task, distill, fingerprint, gaps, load_student
from fastcfg.distill.command import SCALES, measure
from fastcfg.distill.demo import demo_task
from fastcfg.distill.report import Findings, draw, from_json, to_json, to_markdown
from fastcfg.distill.run import STATE, STUDENT
from fastcfg.files import write_atomically

from .report import Environment

RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False)

TRAJECTORIES = 32
JUDGED = (1.0, 2.0, 5.0, 7.5)
BASE = DistillConfig(
    steps=900,
    batch=32,
    trajectories=64,
    window=8,
    reuse=2,
    learning_rate=1e-3,
    warmup=40,
    sampler_steps=(20,),
    precision="bf16",
)


@dataclass(frozen=True)
class Variant:
    """A student to train.

    Attributes:
        title: what the tables call it.
        rule: the teacher's.
        config: of the distillation.
        judged: whether its samples are judged too.
    """

    title: str
    rule: Rule
    config: DistillConfig
    judged: bool = False


VARIANTS: Mapping[str, Variant] = {
    "full": Variant("CFG, all weights, trajectories", CFG(7.5), BASE, judged=True),
    "lora": Variant("CFG, LoRA 16, trajectories", CFG(7.5), replace(BASE, mode="lora", learning_rate=2e-3)),
    "data": Variant("CFG, all weights, data", CFG(7.5), replace(BASE, data="data")),
    "perp-neg": Variant("Perp-neg, all weights, trajectories", PerpNeg(7.5, (1.5,)), BASE, judged=True),
}


def train(name: str, steps: int, folder: Path) -> tuple[Task, Student]:
    """The student of a variant, from its file where it is done."""
    variant = VARIANTS[name]
    task = demo_task(variant.rule)
    config = replace(variant.config, steps=steps)
    where = folder / name
    if not (where / STUDENT).exists():
        return task, distill(task, config, where, resume=True)
    Distiller(task, config).restore(where / STATE)  # Refuses one of another configuration.
    teacher = None if config.mode == "full" else demo_task(variant.rule).network
    return task, load_student(where / STUDENT, teacher)


def findings_of(name: str, task: Task, student: Student, samples: int, folder: Path) -> Findings:
    """What a variant's student is measured to be, from its file where that was done."""
    variant, where = VARIANTS[name], folder / name
    file = where / "findings.json"
    made_from = fingerprint(student.network)
    if file.exists():
        kept = json.loads(file.read_text())
        if (kept["student"], kept["samples"]) == (made_from, samples):
            return from_json(kept["findings"])
    size = (where / STUDENT).stat().st_size
    count = samples if variant.judged else 0
    found = measure(
        task,
        student,
        variant.title,
        size=size,
        samples=count,
        trajectories=TRAJECTORIES,
        scales=SCALES,
        judged=JUDGED,
    )
    kept = {"student": made_from, "samples": samples, "findings": to_json(found)}
    write_atomically(file, json.dumps(kept) + "\n")
    return found


def cfg_students_gap(perp_neg: Task, student: Student) -> list[Gap]:
    """The gap of a student of plain CFG from the perp-neg teacher: what that student has not learned."""
    return gaps(perp_neg, student, SCALES, count=TRAJECTORIES)


def table(found: Mapping[str, Findings]) -> str:
    """Prediction errors of all variants by scale, in percent."""
    text = "| s | no guidance | " + " | ".join(VARIANTS[name].title for name in found) + " |\n"
    text += "|---:" * (2 + len(found)) + "|\n"
    first = next(iter(found.values()))
    for index, row in enumerate(first.gaps):
        cells = [row.unguided, *(findings.gaps[index].student for findings in found.values())]
        text += f"| {row.scale:g} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |\n"
    return text


def to_text(found: Mapping[str, Findings], other: list[Gap], environment: Environment, steps: int) -> str:
    """The results as Markdown."""
    alone = {name: findings for name, findings in found.items() if name != "perp-neg"}
    text = f"""# Guidance distillation on the demo's model

`python -m benchmarks.distillation --steps {steps}` on {environment.hardware}, threads: {environment.threads},
torch {environment.versions["torch"]}. Every student is trained for {steps} steps of {BASE.batch} examples on scales
1 to 10. Pictures: `distillation.png`, `distillation-perp-neg.png`. Times of teacher and student are taken in turns; an
adapter costs its own products until it is merged.

"""
    if alone:
        text += f"""## With the same number of steps

Relative error of the guided prediction along the teacher's trajectories of 20 DDIM steps, in percent:

{table(alone)}
"""
    text += "\n".join(to_markdown(findings) for findings in found.values())
    if other:
        own = found["perp-neg"].gaps
        text += """
## More than plain CFG

Relative error against the perp-neg teacher, in percent: of the student that was distilled from it, and of the student
of plain CFG, which has never met the negative:

| s | perp-neg's student | CFG's student |
|---:|---:|---:|
"""
        for mine, theirs in zip(own, other, strict=True):
            text += f"| {mine.scale:g} | {100 * mine.student:.1f} | {100 * theirs.student:.1f} |\n"
    return text


@app.command()
def main(
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each student.")] = BASE.steps,
    samples: Annotated[int, typer.Option(min=20, help="Samples for the quality tables.")] = 200,
    variant: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    folder: Annotated[Path, typer.Option(help="Students and states.")] = Path("outputs/distillation"),
    output: Annotated[Path, typer.Option(help="Folder for the JSON, Markdown and PNG.")] = RESULTS,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
) -> None:
    """Distil the demo's model in several ways, with the same number of steps, and measure the students."""
    if unknown := [name for name in variant or () if name not in VARIANTS]:
        raise typer.BadParameter(f"expected one of {list(VARIANTS)}, got {unknown[0]!r}", param_hint="--variant")
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    found: dict[str, Findings] = {}
    students: dict[str, tuple[Task, Student]] = {}
    for name in variant or VARIANTS:
        console.print(f"[bold]{VARIANTS[name].title}[/]", highlight=False)
        task, student = students[name] = train(name, steps, folder)
        found[name] = findings_of(name, task, student, samples, folder)
    other: list[Gap] = []
    if "perp-neg" in students and "full" in students:
        other = cfg_students_gap(students["perp-neg"][0], students["full"][1])
    environment = Environment.of("cpu")
    data: dict[str, Any] = {
        "kind": "distillation",
        "environment": asdict(environment),
        "steps": steps,
        "findings": {name: to_json(one) for name, one in found.items()},
        "cfg_student_on_perp_neg": [asdict(one) for one in other],
    }
    shown = [(VARIANTS[name].title, pair[1]) for name, pair in students.items() if name in ("full", "lora")]
    curves = [(VARIANTS[name].title, one.gaps) for name, one in found.items() if name != "perp-neg"]
    written: dict[str, bytes] = {
        ".json": (json.dumps(data, indent=2) + "\n").encode(),
        ".md": to_text(found, other, environment, steps).encode(),
    }
    if shown:
        written[".png"] = draw(
            students["full" if "full" in students else "lora"][0], shown, curves, "One pass beside two"
        )
    if "perp-neg" in students:
        task, student = students["perp-neg"]
        title = "Perp-neg: digits of any colour but red"
        gap_curve = [("student", found["perp-neg"].gaps)]
        written["-perp-neg.png"] = draw(task, [("student", student)], gap_curve, title, scales=(2.0, 4.0, 8.0))
    for ending, content in written.items():
        path = output / f"distillation{ending}"
        write_atomically(path, content)
        console.print(f"wrote {path}", highlight=False)


if __name__ == "__main__":
    app()
