"""What the samples are worth: how many words of a prompt they show, and how near they are to training pictures.

Run it from a clone's root: ``python -m examples.emoji.measure PACKAGE OUTPUT``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import fastcfg
from fastcfg.files import write_atomically

from .canvas import Canvas
from .judge import Judge, answers, train_judge
from .layers import Layers, load_layers
from .layers import subjects as every_subject
from .sampling import draw_noise, sample
from .scenes import draw, random_scene, words_for
from .train import TrainConfig, scenes_at
from .weights import load_weights, trained_with
from .words import COLOURS, HELD_OUT, words_of

SCALES = (1.0, 2.0, 4.0, 8.0)


def held_out_prompts() -> list[str]:
    """Return a prompt for each held-out pair, in the order of captions: colour, subject, what is worn."""
    subjects = {subject.words[-1] for subject in every_subject()}
    prompts = []
    for pair in sorted(map(sorted, HELD_OUT)):
        colours = [word for word in pair if word in COLOURS]
        prompts.append(" ".join(colours + sorted(set(pair) - set(colours), key=lambda word: word not in subjects)))
    return prompts


def seen_prompts(layers: Layers, count: int, seed: int = 7) -> list[str]:
    """Return captions of two attributes at most, as training draws them."""
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        words = words_for(random_scene(layers, rng), layers)
        if len(answers(words)) == 2 and "background" not in answers(words):
            found.append(" ".join(words))
    return found


def share_right(judge: Judge, pictures: Tensor, prompts: Sequence[str]) -> float:
    """Return the share of pictures that show every word of their prompt."""
    right = judge.right(pictures, [answers(words_of(prompt)) for prompt in prompts])
    return sum(right) / len(right)


def training_pictures(layers: Layers, config: TrainConfig) -> Iterator[Tensor]:
    """Yield every picture of a run, batch by batch: they follow from its seed."""
    for step in range(config.steps):
        yield draw(scenes_at(config, layers, step)[0], layers)


def nearest(pictures: Tensor, layers: Layers, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Return the root mean square distance to the nearest training picture, ``[B]``, and that picture."""
    queries = pictures.clamp(-1, 1).flatten(1)
    best = torch.full((len(queries),), torch.inf)
    found = torch.zeros_like(pictures)
    for batch in training_pictures(layers, config):
        distance = torch.cdist(queries, batch.flatten(1), compute_mode="use_mm_for_euclid_dist")
        low, index = distance.min(1)
        nearer = low < best
        best[nearer] = low[nearer]
        found[nearer] = batch[index[nearer]]
    # Again without the matrix product's cancellation.
    exact = (queries - found.flatten(1)).square().mean(1).sqrt()
    return exact, found


def main() -> None:
    """Measure, and write ``measured.json`` and ``nearest.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="the unpacked npm package emoji-datasource-google")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    layers, model = load_layers(arguments.package), load_weights()
    judge = train_judge(layers)
    held_out = held_out_prompts() * arguments.seeds
    seen = seen_prompts(layers, len(held_out))
    noise = draw_noise(len(held_out), seed=3)
    rng = random.Random(10**9)  # No step of a run has this seed.
    fresh = [random_scene(layers, rng, held_out=True) for _ in range(500)]
    captions = [" ".join(words_for(scene, layers)) for scene in fresh]
    result: dict[str, object] = {"real": share_right(judge, draw(fresh, layers), captions), "prompts": len(held_out)}
    rows = []
    kept: dict[float, Tensor] = {}
    for scale in SCALES:
        seen_made, held_out_made = (
            sample(model, fastcfg.CFG(scale), {"cond": prompts}, noise).pictures for prompts in (seen, held_out)
        )
        shares = {
            "seen": share_right(judge, seen_made, seen),
            "held_out": share_right(judge, held_out_made, held_out),
        }
        rows.append({"scale": scale, **shares})
        kept[scale] = torch.cat([seen_made, held_out_made])
        print(json.dumps(rows[-1]), flush=True)
    result["scales"] = rows

    config, guided = TrainConfig(**trained_with()), kept[4.0]
    unseen = draw([random_scene(layers, rng) for _ in range(len(seen))], layers)
    distance, found = nearest(torch.cat([guided, unseen]), layers, config)
    parts = distance.chunk(3)
    result["training_pictures"] = config.steps * config.batch
    result["nearest"] = {
        name: {"median": part.median().item(), "least": part.min().item()}
        for name, part in zip(("seen", "held_out", "new_draws"), parts, strict=True)
    }
    shown = len(held_out) // arguments.seeds
    canvas = Canvas(columns=shown // 2, scale=2)
    for start in (0, shown // 2):
        rows_of = slice(len(seen) + start, len(seen) + start + shown // 2)
        canvas.row(guided[rows_of], "held-out prompt", captions=held_out[start : start + shown // 2])
        canvas.row(found[rows_of], "nearest in training")
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output / "nearest.png", canvas.png())
    write_atomically(arguments.output / "measured.json", json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
