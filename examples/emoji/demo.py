"""The demo's picture: what guidance does to one small text-to-image model, in pictures.

Run it from a clone's root: ``python -m examples.emoji.demo``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import fastcfg
from fastcfg import APG, CFG, DualCFG, GatedCFG, PerpNeg, schedules
from fastcfg.files import write_atomically

from .canvas import Canvas
from .sampling import Sampled, draw_noise, sample
from .weights import load_weights
from .words import held_out_pairs, words_of

PROMPTS = (
    "red heart",
    "panda with a crown",
    "frog with sunglasses",
    "a blue dog",
    "a green cat",
    "a purple mushroom",
    "fox with a crown",
    "laughing face with glasses",
    "purple umbrella on yellow",
)
DRESSED = ("cat", "dog", "panda", "tiger", "woman")
OPEN = {"heart": "orange", "star": "yellow", "apple": "red", "circle": "red"}
STEPS = 30


@dataclass(frozen=True)
class Row:
    """A row of the picture: what it says beside it, the rule, and the prompts of each prediction."""

    label: str
    rule: fastcfg.Rule
    cond: tuple[str, ...]
    negative: tuple[str, ...] = ()
    note: str = ""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """Rows under a heading; they start from the same noise."""

    title: str
    note: str
    rows: tuple[Row, ...]


def sections() -> tuple[Section, ...]:
    """Return what the picture shows."""
    dressed = tuple(f"{name} with crown and sunglasses" for name in DRESSED)
    shades = tuple(f"{name} with sunglasses" for name in DRESSED)
    asked, unwanted = (*dressed, *OPEN), (*["sunglasses"] * len(DRESSED), *OPEN.values())
    subjects = (*shades, *(f"{colour} {name}" for name, colour in OPEN.items()))
    return (
        Section(
            "Guidance makes a model follow its prompt",
            "★: a pair of words that no training picture shows together.",
            (
                Row("no guidance", CFG(1.0), PROMPTS, note="s = 1", captions=PROMPTS),
                Row("guidance", CFG(2.5), PROMPTS, note="s = 2.5"),
                Row("stronger", CFG(5.0), PROMPTS, note="s = 5"),
            ),
        ),
        Section(
            "Negative prompts take things away",
            "Perp-neg leaves what the prompt asks for; a plain negative that names the subject takes that away too.",
            (
                Row("the prompt", CFG(4.0), asked, captions=asked),
                Row(
                    "perp-neg",
                    PerpNeg(4.0, (9.0,)),
                    asked,
                    unwanted,
                    captions=tuple(f"not: {text}" for text in unwanted),
                ),
                Row(
                    "perp-neg",
                    PerpNeg(4.0, (9.0,)),
                    asked,
                    subjects,
                    captions=tuple(f"not: {text}" for text in subjects),
                ),
                Row("plain negative", DualCFG(4.0, 9.0), asked, subjects, note="the same prompts"),
            ),
        ),
        Section(
            "Too strong a scale saturates",
            "Overshoot: how far pixels lie outside the range of a picture, on average. Rescale and APG lower it.",
            (
                Row("too strong", CFG(12.0), PROMPTS, note="s = 12"),
                Row("… with rescale", CFG(12.0, rescale=0.7), PROMPTS, note="φ = 0.7"),
                Row("… with APG", APG(12.0, eta=0.0, norm_threshold=20.0), PROMPTS, note="η = 0"),
            ),
        ),
        Section(
            "The same pictures in fewer passes of the model",
            "",
            (
                Row("every step", CFG(4.0), PROMPTS),
                Row("every third step", GatedCFG(4.0, every=3), PROMPTS, note="delta kept"),
                Row("first 60 % of steps", CFG(schedules.Interval(4.0, 0.0, 0.6)), PROMPTS, note="interval"),
            ),
        ),
    )


def make_picture(*, steps: int = STEPS, seed: int = 0, progress: bool = True) -> tuple[bytes, list[dict[str, object]]]:
    """Return the picture as a PNG file, and each row's figures.

    Args:
        steps: of the sampler.
        seed: of the starting noise.
        progress: show a bar.
    """
    model = load_weights()
    noise = draw_noise(len(PROMPTS), seed)
    parts = sections()
    canvas = Canvas(columns=len(PROMPTS))
    figures: list[dict[str, object]] = []
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("", total=steps * sum(len(part.rows) for part in parts))
        for part in parts:
            bar.update(task, description=part.title[:40])
            canvas.title(part.title, part.note)
            for row in part.rows:
                prompts = {"cond": row.cond, **({"negative": row.negative} if row.negative else {})}
                made = sample(model, row.rule, prompts, noise, steps=steps, on_step=lambda: bar.advance(task))
                marked = [_is_held_out(caption) for caption in row.captions]
                note = _note(part, row, made)
                canvas.row(made.pictures, row.label, note, captions=row.captions, marked=marked)
                figures.append(
                    {
                        "section": part.title,
                        "row": row.label,
                        "rule": repr(row.rule),
                        "passes": made.passes,
                        "saved": made.saved,
                        "overshoot_percent": round(made.overshoot, 2),
                    }
                )
    return canvas.png(), figures


def _is_held_out(caption: str) -> bool:
    return not caption.startswith("not: ") and bool(held_out_pairs(words_of(caption)))


def _note(part: Section, row: Row, made: Sampled) -> str:
    if "passes" in part.title:
        return f"{row.note + ', ' if row.note else ''}{made.passes} passes"
    if "saturates" in part.title:
        return f"{row.note}, {made.overshoot:.1f} % overshoot"
    return row.note


def main() -> None:
    """Make the picture and write it with its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.perf_counter()
    picture, figures = make_picture(steps=arguments.steps, seed=arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output / "demo.png", picture)
    seconds = round(time.perf_counter() - started, 1)
    result = {"seconds": seconds, "threads": torch.get_num_threads(), "steps": arguments.steps, "rows": figures}
    write_atomically(arguments.output / "demo.json", json.dumps(result, indent=2) + "\n")
    print(f"wrote {arguments.output / 'demo.png'} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
