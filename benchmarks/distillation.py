"""``python -m benchmarks.distillation``: students of the demo's model beside their teachers.

Trains each student (a run that was stopped goes on), measures it, and writes ``results/distillation.{json,md}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from fastcfg import APG, CFG, InDomain, PerpNeg, Rule
from fastcfg.cli.distill import SCALES, measure
from fastcfg.demo.distill_report import Findings, from_json, to_json, to_markdown
from fastcfg.demo.distillation import demo_task
from fastcfg.distill import (
    DistillConfig,
    Distiller,
    Gap,
    LoraConfig,
    Student,
    Task,
    distill,
    fingerprint,
    gaps,
    load_student,
)
from fastcfg.distill.run import STATE, STUDENT
from fastcfg.files import write_atomically

from .report import Environment

RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False)

TRAJECTORIES = 32
JUDGED = (1.0, 2.0, 5.0, 7.5)
BASE = DistillConfig(learning_rate=2e-3, precision="bf16")
APG_IN_X0 = InDomain(APG(6.5, eta=0.0, norm_threshold=5.0, momentum=-0.5, base="cond"))


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


LORA = replace(BASE, mode="lora", learning_rate=5e-3)
HALF = replace(BASE, steps=BASE.steps // 2)
VARIANTS: Mapping[str, Variant] = {
    "full": Variant("CFG, all weights, trajectories", CFG(7.5), BASE, judged=True),
    "lora": Variant("CFG, LoRA 16, trajectories", CFG(7.5), LORA, judged=True),
    "lora-64": Variant("CFG, LoRA 64, trajectories", CFG(7.5), replace(LORA, lora=LoraConfig(64)), judged=True),
    "lora-fixed": Variant(
        "CFG, LoRA 16 of one strength, trajectories", CFG(7.5), replace(LORA, lora=LoraConfig(16, full_at=None))
    ),
    "perp-neg": Variant("Perp-neg, all weights, trajectories", PerpNeg(7.5, (1.5,)), HALF, judged=True),
    "apg": Variant("APG, LoRA 16, trajectories", APG_IN_X0, replace(LORA, steps=LORA.steps // 2)),
    "data": Variant("CFG, all weights, data", CFG(7.5), replace(BASE, data="data")),
    "embedding": Variant(
        "CFG, scale input alone, trajectories", CFG(7.5), replace(BASE, mode="embedding", learning_rate=5e-3)
    ),
    "full-long": Variant(
        "CFG, all weights, trajectories, three times the steps", CFG(7.5), replace(BASE, steps=3 * BASE.steps)
    ),
}
OTHER_TEACHERS = {"perp-neg": "perp-neg", "apg": "APG"}
"""Variants whose teacher is not plain CFG, by the name that the tables use."""


def train(name: str, steps: int | None, folder: Path) -> tuple[Task, Student]:
    """The student of a variant, from its file where it is done."""
    variant = VARIANTS[name]
    task = demo_task(variant.rule)
    config = replace(variant.config, steps=steps or variant.config.steps)
    where = folder / name
    if not (where / STUDENT).exists():
        return task, distill(task, config, where, resume=True)
    Distiller(task, config).restore(where / STATE)  # Refuses one of another configuration.
    teacher = None if config.mode == "full" else demo_task(variant.rule).network
    return task, load_student(where / STUDENT, teacher)


def findings_of(name: str, task: Task, student: Student, samples: int, folder: Path) -> Findings:
    """Return what a variant's student is measured to be, from its file where that was done."""
    variant, where = VARIANTS[name], folder / name
    file = where / "findings.json"
    made_from = fingerprint(student.network)
    if file.exists():
        kept = json.loads(file.read_text())
        if (kept["student"], kept["samples"]) == (made_from, samples):
            return replace(from_json(kept["findings"]), title=variant.title)
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


def table(found: Mapping[str, Findings]) -> str:
    """Prediction errors of all variants by scale, in percent."""
    first = next(iter(found.values()))
    text = "| student | steps | " + " | ".join(f"s = {gap.scale:g}" for gap in first.gaps) + " |\n"
    text += "|---|---:" + "|---:" * len(first.gaps) + "|\n"
    rows = [("no guidance", "", [gap.unguided for gap in first.gaps])]
    rows += [(one.title, f"{one.steps:,}", [gap.student for gap in one.gaps]) for one in found.values()]
    for title, steps, errors in rows:
        text += f"| {title} | {steps} | " + " | ".join(f"{100 * error:.1f}" for error in errors) + " |\n"
    return text


def to_text(found: Mapping[str, Findings], others: Mapping[str, Sequence[Gap]], environment: Environment) -> str:
    """The results as Markdown.

    Args:
        others: the gap of plain CFG's student from the teachers of other variants.
    """
    alone = {name: findings for name, findings in found.items() if name not in OTHER_TEACHERS}
    text = f"""# Guidance distillation on the demo's model

`python -m benchmarks.distillation` on {environment.hardware}, threads: {environment.threads},
torch {environment.versions["torch"]}. Every step has {BASE.batch} examples, on scales 1 to 10. Times of
teacher and student are taken in turns; an adapter costs its own products until it is merged.

"""
    if alone:
        text += f"""## Students of CFG

Relative error of the guided prediction along the teacher's trajectories of 20 DDIM steps, in percent:

{table(alone)}
"""
    text += "\n".join(to_markdown(findings) for findings in found.values())
    if others:
        text += """
## More than plain CFG

Relative error against other teachers, in percent: of the student that was distilled from each, of the student of plain
CFG, and of no guidance:

| teacher | s | its student | CFG's student | no guidance |
|---|---:|---:|---:|---:|
"""
    for name, gaps_of_cfg in others.items():
        for mine, theirs in zip(found[name].gaps, gaps_of_cfg, strict=True):
            cells = (mine.student, theirs.student, mine.unguided)
            values = " | ".join(f"{100 * cell:.1f}" for cell in cells)
            text += f"| {OTHER_TEACHERS[name]} | {mine.scale:g} | {values} |\n"
    return text


@app.command()
def main(
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: each variant's own.")] = None,
    samples: Annotated[int, typer.Option(min=20, help="Samples for the quality tables.")] = 200,
    variant: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    folder: Annotated[Path, typer.Option(help="Students and states.")] = Path("outputs/distillation"),
    output: Annotated[Path, typer.Option(help="Folder for the JSON and Markdown.")] = RESULTS,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = None,
) -> None:
    """Distil the demo's model in several ways and measure the students."""
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
    others: dict[str, list[Gap]] = {}
    if "full" in students:
        # What the student of plain CFG has not learned of other teachers.
        for name in [name for name in OTHER_TEACHERS if name in students]:
            others[name] = gaps(students[name][0], students["full"][1], SCALES, count=TRAJECTORIES)
    environment = Environment.of("cpu")
    data: dict[str, Any] = {
        "kind": "distillation",
        "environment": asdict(environment),
        "steps": {name: one.steps for name, one in found.items()},
        "findings": {name: to_json(one) for name, one in found.items()},
        "cfg_student_on": {name: [asdict(gap) for gap in found_gaps] for name, found_gaps in others.items()},
    }
    written = {".json": json.dumps(data, indent=2) + "\n", ".md": to_text(found, others, environment)}
    for ending, content in written.items():
        path = output / f"distillation{ending}"
        write_atomically(path, content)
        console.print(f"wrote {path}", highlight=False)


if __name__ == "__main__":
    app()
