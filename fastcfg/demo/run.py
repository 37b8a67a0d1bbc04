"""``fastcfg demo``: guide a real diffusion model, and write pictures and numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import fastcfg

from ..distill.student import Student
from ..files import write_atomically
from .checkpoint import CLASSIFIER, DENOISER, SHIPPED, STUDENT, load_denoiser, save_denoiser
from .classifier import Classifier, accuracy_on, load_classifier, save_classifier, train_classifier
from .data import NUM_COLOURS, NUM_DIGITS, load_digits
from .diffusion import TRAIN_STEPS
from .model import UNet
from .picture import draw
from .report import Accuracy, DemoResult, to_json, to_markdown
from .rows import NUM_SAMPLED_ROWS, column_names, make_rows
from .sample import draw_noise, labels, sample
from .stock import Timing, compare
from .train import TrainConfig, train

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
COMPARED = ((3.0, 0.0), (7.5, 0.7))  # (scale, rescale)


def run_demo(
    output: Path,
    *,
    device: str | None = None,
    seed: int = 0,
    steps: int = 20,
    progress: bool = True,
    samples_per_digit: int = 20,
    scales: Sequence[float] = SCALES,
    checkpoints: Path = SHIPPED,
) -> DemoResult:
    """Samples with several rules and scales, compares with stock guidance, and writes the results.

    Writes ``samples.png``, ``table.md`` and ``result.json`` into ``output``, each whole or not at all.

    Args:
        output: folder, made if missing.
        device: as torch writes it; by default CUDA where there is one.
        seed: of the starting noise.
        steps: of the sampler, 1-1000.
        progress: shows a bar.
        samples_per_digit: samples of each digit and scale for the classifier.
        scales: CFG scales that the classifier judges.
        checkpoints: folder with ``denoiser.safetensors`` and ``classifier.safetensors``.

    Raises:
        ValueError: an argument is out of range, or the device is not available.
        FileNotFoundError: a checkpoint is missing.
        ImportError: ``mlxtend`` is not installed.
    """
    started = time.perf_counter()
    where = _device(device)
    if not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"steps must be 1-{TRAIN_STEPS}, got {steps}")
    if samples_per_digit < 1:
        raise ValueError(f"samples_per_digit must be at least 1, got {samples_per_digit}")
    if not scales:
        raise ValueError("scales must not be empty")
    model, trained = load_denoiser(checkpoints / DENOISER.name, where)
    classifier, _ = load_classifier(checkpoints / CLASSIFIER.name, where)
    output.mkdir(parents=True, exist_ok=True)

    # In units of one small sampling step; the steps of the larger batches are weighted by their cost.
    student = shipped_student(checkpoints, where)
    sampled = NUM_SAMPLED_ROWS + (student is not None)
    small, large = sampled * steps, samples_per_digit * steps
    columns = (TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("grid", total=small + large * (len(scales) + 2 * len(COMPARED)))
        rows = list(
            make_rows(
                model,
                classifier,
                seed=seed,
                steps=steps,
                device=where,
                student=student,
                on_step=lambda: bar.advance(task),
            )
        )
        accuracy = []
        for scale in scales:
            bar.update(task, description=f"accuracy at s = {scale:g}")
            accuracy.append(
                measure_accuracy(
                    model,
                    classifier,
                    scale,
                    samples_per_digit=samples_per_digit,
                    seed=seed + 1,
                    steps=steps,
                    on_step=lambda: bar.advance(task, samples_per_digit),
                )
            )
        bar.update(task, description="stock and fused")
        timing = _compare_all(
            model,
            samples_per_digit,
            seed=seed + 2,
            steps=steps,
            on_step=lambda: bar.advance(task, 2 * samples_per_digit),
        )
        real_digit, real_colour = accuracy_on(classifier, load_digits(held_out=True))

    title = f"fastcfg demo: {steps} DDIM steps, the same noise in every row"
    picture = draw(rows, column_names(), [(entry.scale, entry.digit) for entry in accuracy], title)
    result = DemoResult(
        picture=output / "samples.png",
        table=output / "table.md",
        data=output / "result.json",
        accuracy=tuple(accuracy),
        timing=tuple(timing),
        real_digit=real_digit,
        real_colour=real_colour,
        rows=tuple(
            {"label": row.label, "note": row.note, "rule": row.rule, "overshoot": row.overshoot} for row in rows
        ),
        device=_describe(where),
        seconds=round(time.perf_counter() - started, 1),
    )
    write_atomically(result.picture, picture)
    write_atomically(result.table, to_markdown(result))
    write_atomically(result.data, json.dumps(to_json(result, trained, seed=seed, steps=steps), indent=2) + "\n")
    return result


def shipped_student(checkpoints: Path, device: torch.device) -> Student | None:
    """The student of the folder's denoiser; None where there is none or peft, which adapters need, is missing."""
    file = checkpoints / STUDENT.name
    if not file.exists() or find_spec("peft") is None:
        return None
    from ..distill.student_file import load_student

    return load_student(file, load_denoiser(checkpoints / DENOISER.name, device)[0])


def measure_accuracy(
    model: UNet,
    classifier: Classifier,
    scale: float,
    *,
    samples_per_digit: int,
    seed: int,
    steps: int,
    on_step: Callable[[], None] | None = None,
) -> Accuracy:
    """Samples every digit in every colour with CFG at one scale and lets the classifier judge."""
    device = next(model.parameters()).device
    count = NUM_DIGITS * samples_per_digit
    digit = torch.arange(count, device=device) % NUM_DIGITS
    colour = torch.arange(count, device=device) // NUM_DIGITS % NUM_COLOURS
    noise = draw_noise(count, seed, device)
    conditions = {"uncond": labels(like=noise), "cond": labels(digit, colour, like=noise)}
    images = sample(model, fastcfg.CFG(scale=scale), conditions, noise, steps=steps, on_step=on_step)
    seen_digit, seen_colour = classifier.predict(images)
    return Accuracy(
        scale, (seen_digit == digit).float().mean().item(), (seen_colour == colour).float().mean().item(), count
    )


def _compare_all(
    model: UNet, samples_per_digit: int, *, seed: int, steps: int, on_step: Callable[[], None]
) -> list[Timing]:
    device = next(model.parameters()).device
    count = NUM_DIGITS * samples_per_digit // 2 or 1
    noise = draw_noise(count, seed, device)
    digit = torch.arange(count, device=device) % NUM_DIGITS
    uncond, cond = labels(like=noise), labels(digit, digit % NUM_COLOURS, like=noise)
    return [
        compare(model, uncond, cond, noise, scale=scale, rescale=rescale, steps=steps, on_step=on_step)
        for scale, rescale in COMPARED
    ]


def train_demo(
    output: Path,
    *,
    resume: bool = False,
    steps: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Path:
    """Repeats the training of the shipped checkpoints: the classifier, then the denoiser.

    Writes ``classifier.safetensors``, ``training.safetensors`` (the resumable state) and ``denoiser.safetensors`` into
    ``output``, which can then be given to ``run_demo(checkpoints=...)``.

    Args:
        output: folder, made if missing.
        resume: continue a run that was stopped.
        steps: optimiser steps of the denoiser; ``TrainConfig``'s by default.
        seed: of everything random.
        device: as torch writes it; by default CUDA where there is one.
        progress: shows bars.

    Returns:
        The denoiser's file.

    Raises:
        TrainingDiverged: the loss is not finite.
        ValueError: an argument is out of range, or the state in ``output`` is of another configuration.
    """
    where = _device(device)
    config = TrainConfig(seed=seed) if steps is None else TrainConfig(seed=seed, steps=steps)
    digits = load_digits(held_out=False)
    classifier_file, denoiser_file = output / CLASSIFIER.name, output / DENOISER.name
    if not (resume and classifier_file.exists()):
        classifier = train_classifier(digits, seed=seed, progress=progress)
        digit, colour = accuracy_on(classifier, load_digits(held_out=True))
        save_classifier(classifier_file, classifier, {"held_out": {"digit": digit, "colour": colour}, "seed": seed})
    trainer = train(config, digits, output / "training.safetensors", resume=resume, device=where, progress=progress)
    save_denoiser(denoiser_file, trainer.average, trainer.metadata())
    return denoiser_file


def command(
    output: Path,
    *,
    train: bool = False,
    resume: bool = True,
    train_steps: int | None = None,
    steps: int = 20,
    seed: int = 0,
    device: str | None = None,
) -> DemoResult:
    """``fastcfg demo``: trains first if asked, runs the demo and prints its tables.

    ``seed`` is that of the samples; the training keeps its own, so that the shipped weights can be repeated.
    """
    console = Console()
    checkpoints = SHIPPED
    if train:
        checkpoints = output / "checkpoints"
        train_demo(checkpoints, resume=resume, steps=train_steps, device=device)
    result = run_demo(output, device=device, seed=seed, steps=steps, checkpoints=checkpoints)
    console.print(Markdown(to_markdown(result)))
    for file in (result.picture, result.table, result.data):
        console.print(f"wrote {file}", highlight=False, soft_wrap=True)
    return result


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be 'cpu' or 'cuda' or 'cuda:N', got {name!r}") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {name!r} is not available; torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
