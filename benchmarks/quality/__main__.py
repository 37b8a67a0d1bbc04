"""``python -m benchmarks.quality``: writes quality.json and quality.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastcfg.demo.checkpoint import load_denoiser
from fastcfg.demo.distillation import demo_student
from fastcfg.distill import Student, load_student
from fastcfg.files import write_atomically

from ..environment import Environment
from .curves import CURVES, DYNAMIC, NEGATIVE_SCALES, SCALES, points
from .equal_accuracy import compare_at_target
from .geometry import trace
from .measure import Measurement, Settings
from .report import Findings
from .sampling import Start, in_precision

RESULTS = Path(__file__).parents[1] / "results"
QUICK = (1.0, 2.0, 5.0, 7.5)
CONTROLS = (3.0, 7.5)
DYNAMIC_SCALE = 2.0
app = typer.Typer(add_completion=False)


def find(
    settings: Settings,
    scales: tuple[float, ...],
    traced: int,
    student: Student,
    console: Console,
    folder: Path | None = None,
) -> Findings:
    """Measures everything.

    Args:
        traced: samples of the geometry; student: beside the teacher; folder: see :class:`Measurement`.
    """
    network, _ = load_denoiser()
    measured = Measurement(settings, network, student, folder)
    todo = points(scales, NEGATIVE_SCALES)
    controls = [scale for scale in CONTROLS if scale in scales and settings.bf16]
    batches = -(-settings.samples // settings.batch)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        job = bar.add_task("", total=batches * (len(todo) + len(controls) + 1) + len(scales))
        for curve, scale in todo:
            bar.update(job, description=f"{curve.name}, s = {scale:g}")
            measured.measure(curve, scale, on_batch=lambda: bar.advance(job))
        found = list(measured.points.values())
        bar.update(job, description="controls")
        exact = [measured.measure(CURVES[0], s, bf16=False, on_batch=lambda: bar.advance(job)) for s in controls]
        dynamic = measured.measure(DYNAMIC, DYNAMIC_SCALE, on_batch=lambda: bar.advance(job))
        bar.update(job, description="geometry")
        traces = []
        for scale in scales:
            traces += trace(in_precision(network, False), scale, Start.draw(traced, settings.seed), settings.steps)
            bar.advance(job)
    return Findings(
        environment=Environment.of("cpu", "prdc", "torchmetrics"),
        student=student.card,
        settings=settings,
        scales=scales,
        points=found,
        exact=exact,
        dynamic=dynamic,
        compared=compare_at_target(measured, scales),
        traces=traces,
    )


@app.command()
def main(
    samples: Annotated[int, typer.Option(min=20, max=1000, help="Samples of each curve and scale.")] = 240,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Steps of DDIM.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 120,
    seed: Annotated[int, typer.Option(help="Of noise, labels and draws.")] = 0,
    precision: Annotated[str, typer.Option(help="Of the network's products: bf16 or fp32.")] = "bf16",
    quick: Annotated[bool, typer.Option("--quick", help="40 samples at 4 scales: about a minute.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
    keep: Annotated[
        Path | None, typer.Option(help="Keep samples here, and take those that an earlier run of the same code left.")
    ] = None,
    student: Annotated[
        Path | None, typer.Option(help="A distilled student's file; default: the one that comes with the package.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Sample the demo's model with every rule, schedule and scale, and judge the samples: ten minutes on one core."""
    if precision not in ("bf16", "fp32"):
        raise typer.BadParameter(f"expected bf16 or fp32, got {precision!r}", param_hint="--precision")
    torch.set_num_threads(threads)
    scales: tuple[float, ...] = SCALES
    traced = 60
    if quick:
        samples, scales, traced = 40, QUICK, 10
        if output == RESULTS:
            output = Path("outputs/quality")
    try:
        distilled = load_student(student, load_denoiser()[0]) if student else demo_student()
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--student") from None
    settings = Settings(samples, steps, min(batch, samples), seed, draws=10 if quick else 50, bf16=precision == "bf16")
    console = Console(stderr=True)
    found = find(settings, scales, traced, distilled, console, keep)
    files = {"quality.json": found.to_json(), "quality.md": found.to_markdown()}
    output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(output / name, content)
        console.print(f"wrote {output / name}", highlight=False)


if __name__ == "__main__":
    app()
