"""A distillation from beginning to end: its loop, its files, and what is kept when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..methods.training import TrainingDiverged
from .config import DistillConfig
from .logs import Log
from .student import Student
from .student_file import save_student
from .task import Task
from .train import Distiller

__all__ = ["STATE", "STUDENT", "distill"]

STATE, STUDENT, LOG = "state.safetensors", "student.safetensors", "log.jsonl"


def distill(
    task: Task,
    config: DistillConfig,
    folder: Path,
    *,
    resume: bool = False,
    save_every: int = 200,
    progress: bool = True,
    tensorboard: bool = False,
    accelerator: Any = None,
) -> Student:
    """Distils a task's teacher, and writes the student.

    Writes into ``folder``: ``state.safetensors`` (the resumable state), ``log.jsonl`` (step, loss, learning rate),
    and at the end ``student.safetensors`` (see :func:`load_student`).

    Args:
        resume: continue from the folder's state where it exists; otherwise begin anew.
        save_every: steps between saved states.
        progress: show a bar.
        tensorboard: also write TensorBoard events, into ``folder/tensorboard``.
        accelerator: of accelerate, where it is not to be the default one.

    Returns:
        The student, with the moving average of the weights.

    Raises:
        TrainingDiverged: the loss is not finite; names the last good state.
        ValueError: the state belongs to another distillation, or the configuration does not fit the task.

    Source: Meng et al., 2210.03142, stage 1.
    """
    distiller = Distiller(task, config, accelerator)
    state, main = folder / STATE, distiller.accelerator.is_main_process
    if resume and state.exists():
        distiller.restore(state)
    with Log(
        folder / LOG, config.steps, begin=distiller.steps_done, bar=progress and main, write=main, board=tensorboard
    ) as log:
        while distiller.steps_done < config.steps:
            try:
                loss = distiller.step()
            except TrainingDiverged as error:
                kept = f"the last good state is in {state}" if state.exists() else "no state was saved yet"
                raise TrainingDiverged(f"distillation diverged at {error}; {kept}; try a lower learning rate") from None
            done = distiller.steps_done
            log.step(done, loss, distiller.smooth_loss, config.learning_rate_at(done - 1))
            if main and (done % save_every == 0 or done == config.steps):
                distiller.save(state)
    student = distiller.student()
    if main:
        save_student(folder / STUDENT, student)
    distiller.accelerator.wait_for_everyone()
    return student
