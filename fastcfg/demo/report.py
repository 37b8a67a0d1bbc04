"""Results of the demo, as data, Markdown and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .checkpoint import versions
from .stock import Timing


@dataclass(frozen=True)
class Accuracy:
    """Accuracy by the independent classifier at one scale.

    Attributes:
        scale: of CFG.
        digit, colour: fraction of the samples whose digit and whose colour is the one asked for.
        samples: how many.
    """

    scale: float
    digit: float
    colour: float
    samples: int


@dataclass(frozen=True)
class DemoResult:
    """Results and files of the demo.

    Attributes:
        picture, table, data: the PNG, Markdown and JSON files.
        accuracy: of the samples, one entry a scale.
        timing: stock and fused guidance, one entry a rule.
        real_digit, real_colour: the classifier's accuracy on held-out real images.
        rows: label, note, rule and overshoot of each row of the picture.
        device: where it ran.
        seconds: how long it took.
    """

    picture: Path
    table: Path
    data: Path
    accuracy: tuple[Accuracy, ...]
    timing: tuple[Timing, ...]
    real_digit: float
    real_colour: float
    rows: tuple[dict[str, str | float], ...]
    device: str
    seconds: float


def to_markdown(result: DemoResult) -> str:
    """The tables of the result."""
    return f"""# fastcfg demo

On {result.device}, in {result.seconds:.0f} s. `samples.png` shows the images, `result.json` has every number.

The overshoot of a row is how far its pixels lie outside [-1, 1] on average, in percent of 1.

{_timing_table(result)}
{_accuracy_table(result)}"""


def _timing_table(result: DemoResult) -> str:
    first = result.timing[0]
    shape = "×".join(map(str, first.shape))
    text = f"""## Stock and fused guidance

The guidance alone in one sampling step, {shape} {first.dtype}: the median, both in one process and in turns. Stock
is `u + s·(c - u)` and `rescale_noise_cfg` of diffusers. The difference is the largest between the final images of both
loops, which span [-1, 1].

| guidance | stock, µs | fused, µs | stock / fused | largest difference |
|---|---:|---:|---:|---:|
"""
    for row in result.timing:
        ratio = row.stock_us / row.fused_us
        text += f"| {row.guidance} | {row.stock_us:.0f} | {row.fused_us:.0f} | {ratio:.2f} "
        text += f"| {row.largest_difference:.1e} |\n"
    return text


def _accuracy_table(result: DemoResult) -> str:
    text = f"""## Accuracy against scale

What a classifier trained on real images recognises, {result.accuracy[0].samples} samples a scale. On held-out real
images it finds {100 * result.real_digit:.1f} % of the digits and {100 * result.real_colour:.1f} % of the colours.

| CFG scale | digit, % | colour, % |
|---:|---:|---:|
"""
    for row in result.accuracy:
        text += f"| {row.scale:g} | {100 * row.digit:.1f} | {100 * row.colour:.1f} |\n"
    return text


def to_json(result: DemoResult, trained: dict[str, Any], *, seed: int, steps: int) -> dict[str, Any]:
    """The result as JSON-serialisable data, with what is needed to repeat it."""
    data = asdict(result)
    files = {key: data.pop(key).name for key in ("picture", "table", "data")}
    return {**data, "files": files, "seed": seed, "steps": steps, "versions": versions(), "denoiser": trained}
