"""The denoising path as an animation: what the sampler holds, and the clean picture that each step predicts.

Run it from a clone's root: ``python -m examples.emoji.animate docs/images/denoising.webp``.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import fastcfg
from fastcfg.files import write_atomically

from .canvas import Canvas
from .demo import PROMPTS
from .sampling import clean_path, draw_noise
from .weights import load_weights


def animate(*, steps: int = 25, scale: float = 4.0, columns: int = 6, seed: int = 0, quality: int = 60) -> bytes:
    """Return a looping WebP file, a frame a step, that holds on the last."""
    noise = draw_noise(columns, seed)
    texts = PROMPTS[:columns]
    noisy, clean = clean_path(load_weights(), fastcfg.CFG(scale), {"cond": texts}, noise, steps=steps)
    frames = []
    for step in range(steps):
        canvas = Canvas(columns, left=150)
        canvas.row(noisy[step], "noisy", f"step {step + 1} of {steps}", captions=texts)
        canvas.row(clean[step], "predicted\nclean", f"s = {scale:g}")
        frames.append(canvas.image())
    buffer = io.BytesIO()
    durations = [140] * (steps - 1) + [2500]
    frames[0].save(
        buffer, "webp", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=quality, method=6
    )
    return buffer.getvalue()


def main() -> None:
    """Write the animation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    content = animate(steps=arguments.steps)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, content)
    print(f"wrote {arguments.output}, {len(content) // 1024} KB")


if __name__ == "__main__":
    main()
