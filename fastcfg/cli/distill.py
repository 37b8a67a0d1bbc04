"""``fastcfg distill``: distil a teacher, and measure the student beside it."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..demo.distill_report import Findings, draw, to_json, to_markdown
from ..distill.config import DistillConfig
from ..distill.evaluate import gaps, step_time
from ..distill.run import STUDENT, distill
from ..distill.student import Student
from ..distill.task import Task
from ..files import write_atomically
from ..rules import Rule

__all__ = ["Options", "command", "measure", "task_of"]

SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
JUDGED = (1.0, 2.0, 3.0, 5.0, 7.5)


@dataclass(frozen=True)
class Options:
    """Options of ``fastcfg distill`` besides the configuration.

    Attributes:
        output: folder of the student, the state, the log and the report.
        rule: the teacher's: its JSON, or its name for the defaults.
        task: ``module:function`` that takes the rule and returns a :class:`Task`; "" for the demo's model.
        resume: continue from the folder's state.
        save_every: steps between states.
        tensorboard: write its events too.
        samples: for the quality tables of the demo's model; 0 leaves the measuring out.
        device: as torch writes it.
    """

    output: Path
    rule: str = "CFG"
    task: str = ""
    resume: bool = True
    save_every: int = 100
    tensorboard: bool = False
    samples: int = 500
    device: str = "cpu"


def task_of(options: Options) -> Task:
    """The task that the options name.

    Raises:
        ValueError: naming the option.
    """
    rule = _rule(options.rule)
    if not options.task:
        from ..demo.distillation import demo_task

        return demo_task(rule, device=options.device)
    module, _, name = options.task.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"task: expected module:function, got {options.task!r} ({error})") from error
    if not callable(make):
        raise ValueError(f"task: expected module:function, got {options.task!r}, a {type(make).__name__}")
    task = make(rule)
    if not isinstance(task, Task):
        raise ValueError(f"task: {options.task} returned {type(task).__name__}, not a fastcfg.distill.Task")
    return task


def _rule(text: str) -> Rule:
    data = text if text.lstrip().startswith("{") else json.dumps({"type": text})
    try:
        return Rule.from_json(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rule: expected a rule's name or its JSON, got {text!r} ({error})") from error


def measure(
    task: Task,
    student: Student,
    title: str,
    *,
    size: int,
    samples: int,
    trajectories: int = 64,
    num_steps: int = 20,
    scales: tuple[float, ...] = SCALES,
    judged: tuple[float, ...] = JUDGED,
    progress: bool = True,
) -> Findings:
    """Gaps, the time of a step and, on the demo's model, quality tables.

    Args:
        size: bytes of the student's file.
        samples: for the quality tables; 0 leaves them out.
        trajectories: for the gaps; num_steps: of the sampler.
    """
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    batches = -(-samples // 100)
    with Progress(*columns, disable=not progress) as bar:
        job = bar.add_task("gaps", total=len(scales) + batches * len(judged))
        found = gaps(task, student, scales, count=trajectories, num_steps=num_steps, on_scale=lambda: bar.advance(job))
        quality: Any = []
        if samples:
            from ..demo.judge import Judge
            from ..demo.judged import judge_both

            bar.update(job, description="quality")
            quality = judge_both(
                task,
                student,
                Judge(samples),
                judged,
                count=samples,
                num_steps=num_steps,
                on_batch=lambda: bar.advance(job),
            )
        times = step_time(task, student, num_steps=num_steps)
    steps = int((student.card.training or {}).get("steps_done", 0))
    return Findings(title, found, quality, times, steps, size)


def command(config: DistillConfig, options: Options) -> Student:
    """Distils, measures and prints; writes ``report.md``, ``report.json`` and, on the demo's model, ``samples.png``.

    Raises:
        TrainingDiverged: the loss is not finite.
        ValueError, ImportError, OSError: naming what is wrong.
    """
    console = Console()
    task = task_of(options)
    student = distill(
        task,
        config,
        options.output,
        resume=options.resume,
        save_every=options.save_every,
        tensorboard=options.tensorboard,
    )
    file = options.output / STUDENT
    console.print(f"wrote {file}", highlight=False, soft_wrap=True)
    if not options.samples:
        return student
    title = f"{type(task.teacher.rule).__name__}, {config.mode}, {config.data}"
    on_demo = not options.task
    findings = measure(
        task, student, title, size=file.stat().st_size, samples=options.samples if on_demo else 0,
        num_steps=config.sampler_steps[0],
    )  # fmt: skip
    text = to_markdown(findings)
    console.print(Markdown(text))
    written = {"report.md": text.encode(), "report.json": (json.dumps(to_json(findings), indent=2) + "\n").encode()}
    if on_demo:
        written["samples.png"] = draw(task, [("student", student)], [("student", findings.gaps)], title)
    for name, content in written.items():
        write_atomically(options.output / name, content)
        console.print(f"wrote {options.output / name}", highlight=False, soft_wrap=True)
    return student


def device_of(name: str | None) -> str:
    """The device of an option; by default CUDA where there is one, of several that of this process."""
    return name or (f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
