"""Evaluation against values worked out by hand, and the command from end to end on a tiny model."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import pytest
import torch
from typer.testing import CliRunner

from fastcfg import APG, CFG, PerpNeg
from fastcfg.cli import distill as command
from fastcfg.cli.app import app
from fastcfg.demo import distillation as demo_module
from fastcfg.demo.judge import Judge
from fastcfg.demo.judged import judge_both
from fastcfg.distill import DistillConfig, Distiller, Task, gap, step_time, student_sample, teacher_sample
from fastcfg.distill.evaluate import draw_start

Make = Callable[..., Task]
CONFIG = DistillConfig(batch=4, trajectories=2, sampler_steps=(2,), window=1)


def test_an_untrained_student_has_the_gap_of_no_guidance(tiny_task: Make) -> None:
    task = tiny_task()
    student = Distiller(task, CONFIG).student()
    found = gap(task, student, 4.0, count=3, num_steps=3)
    assert found.student == found.unguided > 0 and found.student_sample == found.unguided_sample > 0
    assert len(found.by_step) == 3
    # At scale 1 the teacher is unguided too; it runs its passes in one batch, which rounds otherwise.
    none = gap(task, student, 1.0, count=3, num_steps=3)
    assert max(none.student, none.unguided, none.student_sample) < 1e-5


def test_gaps_by_hand(tiny_task: Make) -> None:
    task = tiny_task()
    student = Distiller(task, CONFIG).student()
    found = gap(task, student, 4.0, count=3, num_steps=1, seed=6)
    noise, conditions = draw_start(task, 3, 6)
    t = torch.tensor([task.times(1)[0]] * 3)
    cond, uncond = (task.network(noise, t, **conditions[name]).double() for name in ("cond", "uncond"))
    guided = uncond + 4 * (cond - uncond)
    assert found.student == pytest.approx(((cond - guided).norm() / guided.norm()).item(), rel=1e-5)
    ends = [f(noise, conditions) for f in (
        lambda n, c: student_sample(task, student, n, c, 4.0, 1), lambda n, c: teacher_sample(task, n, c, 4.0, 1)
    )]  # fmt: skip
    assert found.student_sample == pytest.approx(((ends[0] - ends[1]).norm() / ends[1].norm()).item(), rel=1e-5)


def test_passes_are_counted(tiny_task: Make) -> None:
    task = tiny_task(PerpNeg(4.0, (1.0,)))
    time = step_time(task, Distiller(task, CONFIG).student(), count=2, rounds=2)
    assert time.teacher_passes == 3 and time.batch == 2 and min(time.teacher, time.student) > 0
    assert time.merged is None and time.ratio == time.teacher / time.student


def test_an_adapter_is_timed_merged_too_and_stays_apart(tiny_task: Make) -> None:
    task = tiny_task()
    student = Distiller(task, replace(CONFIG, mode="lora")).student()
    time = step_time(task, student, count=2, rounds=2)
    assert time.merged is not None and time.ratio == time.teacher / time.merged
    assert student.lora is not None and (student.card.low, student.card.high) == (1.0, 10.0)


def test_a_teacher_that_remembers_is_timed(tiny_task: Make) -> None:
    task = tiny_task(APG(4.0, momentum=-0.5, base="cond"))
    assert step_time(task, Distiller(task, CONFIG).student(), count=2, rounds=1).teacher_passes == 2


def test_judging(tiny_task: Make) -> None:
    task = tiny_task()
    judge = Judge(50)
    assert len(judge.reference.features) == 50 and judge.reference.labels is not None
    assert judge.reference.labels.bincount().tolist() == [5] * 10
    (row,) = judge_both(task, Distiller(task, CONFIG).student(), judge, (1.0,), count=20, num_steps=2)
    # Both are the conditional pass: the same images but for roundings.
    assert row.teacher.accuracy == row.student.accuracy and row.teacher.samples == 20
    assert row.teacher.frechet_distance == pytest.approx(row.student.frechet_distance, rel=1e-3)


def test_the_command(tiny_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "demo_task", lambda rule, device: tiny_task(rule))
    monkeypatch.setattr(command, "step_time", partial(step_time, count=2, rounds=1))
    rule = json.dumps(CFG(3.0, rescale=0.5).to_dict())
    few = ["--steps", "2", "--batch", "4", "--trajectories", "2", "--sampler-steps", "2", "--samples", "20"]
    arguments = ["distill", "-o", str(tmp_path), "--rule", rule, "--mode", "lora", "--rank", "2", *few]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        *("student.safetensors", "state.safetensors", "log.jsonl", "report.md", "report.json", "samples.png")
    }
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["scale"] for row in report["gaps"]] == [1, 2, 3, 5, 7.5, 10] and report["steps"] == 2
    assert "| 7.5 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    # A run that is done has nothing left to do; another configuration is refused.
    assert CliRunner().invoke(app, [*arguments, "--samples", "0"]).exit_code == 0
    other = CliRunner().invoke(app, [*arguments, "--seed", "1"])
    assert other.exit_code == 1 and "different: seed" in " ".join(other.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "half"], "mode: expected one of"),
        (["--data", "web"], "data: expected one of"),
        (["--rule", '{"type": "CGF"}'], "rule: expected a rule's name or its JSON"),
        (["--rule", "{"], "rule: expected a rule's name or its JSON"),
        (["--rule", "InstructPix2Pix"], "rule: the demo's model has no predictions"),
        (["--task", "nowhere:task"], "task: expected module:function"),
        (["--task", "fastcfg.demo.distillation:AVOIDED_COLOUR"], "task: expected module:function"),
        (["--low", "5", "--high", "2"], "high: expected a number at least 5"),
        (["--form", "sd"], "form: expected one of"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_options_end_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["distill", "-o", str(tmp_path / "new"), "--steps", "1", *arguments])
    assert result.exit_code == 1 and message in " ".join(result.output.split()), result.output
    assert "Traceback" not in result.output and not (tmp_path / "new").exists()


def test_help() -> None:
    result = CliRunner().invoke(app, ["distill", "--help"], env={"COLUMNS": "120"}, terminal_width=120)
    text = click.unstyle(result.output)
    assert result.exit_code == 0 and "--rule" in text and "one pass" in text


def test_the_demos_perp_neg_avoids_red(tiny_task: Make) -> None:
    conditions = tiny_task(PerpNeg(4.0, (1.0,))).conditions(3, torch.Generator().manual_seed(0))
    assert list(conditions) == ["uncond", "cond", "negative"]
    assert conditions["negative"]["colour"].tolist() == [demo_module.AVOIDED_COLOUR] * 3
    assert conditions["cond"]["colour"].equal(conditions["uncond"]["colour"])
    assert replace(tiny_task(), data=None).data is None


def test_the_student_that_is_shipped() -> None:
    """It belongs to the denoiser that is shipped, and is nearer to its guidance than no guidance is."""
    student, task = demo_module.demo_student(scale=5.0), demo_module.demo_task(CFG(5.0))
    assert student.card.mode == "lora" and (student.card.low, student.card.high) == (1.0, 10.0)
    found = gap(task, student, 5.0, count=8, num_steps=10)
    assert found.student < 0.55 * found.unguided and found.student_sample < 0.5 * found.unguided_sample
