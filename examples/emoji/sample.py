"""Pictures of your own prompts: ``python -m examples.emoji.sample "panda with a crown" --negative sunglasses``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import fastcfg
from fastcfg.files import write_atomically

from .canvas import Canvas
from .sampling import draw_noise, sample
from .weights import load_weights
from .words import VOCABULARY


def rule_for(scale: float, rescale: float, negative: str, negative_scale: float) -> fastcfg.Rule:
    """Return the rule that the options ask for: CFG, or perp-neg where there is a negative prompt."""
    rule: fastcfg.Rule = fastcfg.PerpNeg(scale, (negative_scale,)) if negative else fastcfg.CFG(scale)
    return fastcfg.Rescale(rule, rescale) if rescale else rule


def main() -> None:
    """Sample each prompt several times and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="+", help=f"words: {' '.join(VOCABULARY[2:])}")
    parser.add_argument("--negative", default="", help="what must not be there")
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--negative-scale", type=float, default=9.0)
    parser.add_argument("--rescale", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=8, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/emoji.png"))
    arguments = parser.parse_args()
    model = load_weights()
    canvas = Canvas(arguments.count)
    rule = rule_for(arguments.scale, arguments.rescale, arguments.negative, arguments.negative_scale)
    noise = draw_noise(arguments.count, arguments.seed)
    for prompt in arguments.prompts:
        texts = {"cond": [prompt], **({"negative": [arguments.negative]} if arguments.negative else {})}
        try:
            made = sample(model, rule, texts, noise, steps=arguments.steps)
        except ValueError as error:
            sys.exit(f"error: {error}")
        canvas.row(made.pictures, prompt, f"not: {arguments.negative}" if arguments.negative else "")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, canvas.png())
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
