"""The rows of the demo's picture: each a rule, its labels and one image a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import fastcfg

from ..distill.student import Student
from .classifier import Classifier
from .data import COLOUR_NAMES, NUM_COLOURS, NUM_DIGITS, load_digits, paint
from .model import UNet
from .sample import Labels, draw_noise, labels, sample

NUM_SAMPLED_ROWS = 9


@dataclass(frozen=True)
class Row:
    """A row of the picture.

    Attributes:
        label: what the reader sees beside it.
        rule: as code, or "" for real images.
        images: ``[10, 3, 28, 28]`` on the CPU, one for each digit.
        note: what to look at.
    """

    label: str
    rule: str
    images: Tensor
    note: str = ""

    @property
    def overshoot(self) -> float:
        """Return how far the pixels lie outside [-1, 1] on average, as a fraction of the range's half."""
        return (self.images.abs() - 1).clamp(min=0).mean().item()


def make_rows(
    model: UNet,
    classifier: Classifier,
    *,
    seed: int,
    steps: int,
    device: torch.device,
    student: Student | None = None,
    on_step: Callable[[], None] | None = None,
) -> Iterator[Row]:
    """Yields real images first, then ``NUM_SAMPLED_ROWS`` rows that all start from the same noise.

    With a student of the model, one more: below the row of CFG that it imitates.
    """
    digit = torch.arange(NUM_DIGITS, device=device)
    colour = digit % NUM_COLOURS
    noise = draw_noise(NUM_DIGITS, seed, device)
    nothing = labels(like=noise)
    digit_only = labels(digit, like=noise)
    both = labels(digit, colour, like=noise)

    def row(label: str, rule: fastcfg.Rule, conditions: dict[str, Labels], note: str = "") -> Row:
        images = sample(model, rule, conditions, noise, steps=steps, on_step=on_step)
        return Row(label, repr(rule), images.cpu(), note)

    yield Row("real images", "", _one_real_image_each(colour.cpu()), "held out of all training")
    usual = {"uncond": nothing, "cond": both}
    yield row("no guidance", fastcfg.CFG(scale=1.0), usual, "CFG, s = 1")
    yield row("CFG", fastcfg.CFG(scale=2.0), usual, "s = 2")
    guided = row("CFG", fastcfg.CFG(scale=4.0), usual, "s = 4")
    yield guided
    if student is not None:
        yield _imitation(student, guided, 4.0, both, noise, steps, on_step)
    for label, rescale in (("CFG, too strong", 0.0), ("… with rescale", 0.5)):
        strong = row(label, fastcfg.CFG(scale=8.0, rescale=rescale), usual)
        rescaled = f", φ = {rescale:g}" if rescale else ""
        yield replace(strong, note=f"s = 8{rescaled}, overshoot {100 * strong.overshoot:.1f} %")
    apart = {"uncond": nothing, "cond_1": digit_only, "cond_2": labels(colour=colour, like=noise)}
    yield row("digit + colour", fastcfg.MultiCondition(scales=(4.0, 2.0)), apart, "multi-condition, s = 4 and 2")
    free = row("digit, any colour", fastcfg.CFG(scale=3.0), {"uncond": nothing, "cond": digit_only}, "CFG, s = 3")
    yield free
    seen = classifier.predict(free.images.to(device))[1]
    unwanted = {"uncond": nothing, "cond": digit_only, "negative": labels(colour=seen, like=noise)}
    perp_neg = fastcfg.PerpNeg(scale=3.0, negative_scales=(1.2,))
    yield row("… not that colour", perp_neg, unwanted, "perp-neg, s = 3, negative 1.2")
    dual = fastcfg.DualCFG(scale=3.0, negative_scale=0.75)
    yield row("… not that colour", dual, unwanted, "dual, s = 3, negative 0.75")


def _imitation(
    student: Student,
    teacher: Row,
    scale: float,
    condition: Labels,
    noise: Tensor,
    steps: int,
    on_step: Callable[[], None] | None,
) -> Row:
    student.scale = scale
    alone = fastcfg.CFG(scale=1.0)
    images = sample(student, alone, {name: condition for name in alone.conditions}, noise, steps=steps, on_step=on_step)
    images = images.cpu()
    away = (images - teacher.images).norm() / teacher.images.norm()
    note = f"s = {scale:g}, one pass a step, {100 * away:.0f} % from CFG"
    return Row("… its student", repr(student.rule), images, note)


def column_names() -> list[tuple[str, str]]:
    """Return what each column asks for: a digit, and its colour in the rows that have one."""
    return [(str(digit), COLOUR_NAMES[digit % NUM_COLOURS]) for digit in range(NUM_DIGITS)]


def _one_real_image_each(colour: Tensor) -> Tensor:
    real = load_digits(held_out=True)
    first = torch.stack([(real.digit == digit).nonzero()[0, 0] for digit in range(NUM_DIGITS)])
    return paint(real.grey[first], colour)
