"""Training with prompt dropout: seeded, bounded by steps, resumable.

Run it from a clone's root: ``python -m examples.emoji.train PACKAGE OUTPUT``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastcfg.files import load_tensors, save_tensors
from fastcfg.methods.training import TrainingDiverged, ema_decay

from .layers import Layers, load_layers
from .model import TextUNet
from .scenes import Scene, draw, drop_words, random_scene, words_for
from .weights import alphas, save_weights
from .words import encode


@dataclass(frozen=True)
class TrainConfig:
    """What the weights depend on besides the pictures. ``steps`` alone may change on resuming, before the decay.

    Attributes:
        steps, batch: optimiser steps and pictures a step.
        learning_rate: of AdamW, after ``warmup`` steps and until the last ``decay`` of all steps, a half cosine to 0.
        ema: decay of the weights' moving average, which is what is kept.
        nameless, nameless_from: probability of a caption without its subject, from this step on, when subjects are
            known; it makes "sunglasses" alone mean something.
        snr_cap: the loss of x0 is weighed by the signal-to-noise ratio, at most by this (min-SNR, arXiv 2303.09556).
    """

    steps: int = 4200
    batch: int = 32
    learning_rate: float = 1.5e-3
    warmup: int = 100
    decay: float = 0.4
    ema: float = 0.998
    nameless: float = 0.1
    nameless_from: int = 2400
    snr_cap: float = 5.0
    clip: float = 1.0
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * (1.0 if left >= 1 else 0.5 - 0.5 * math.cos(math.pi * left))


def scenes_at(config: TrainConfig, layers: Layers, step: int) -> tuple[list[Scene], random.Random]:
    """Return the scenes of a step, which follow from the seed and the step alone, and the generator after them."""
    rng = random.Random(config.seed * 1_000_003 + step)
    return [random_scene(layers, rng) for _ in range(config.batch)], rng


class Trainer:
    """The state of a run. A step depends on that state and on its own number alone."""

    def __init__(self, config: TrainConfig, layers: Layers) -> None:
        self.config, self.layers = config, layers
        torch.manual_seed(config.seed)
        self.model = TextUNet()
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, betas=(0.9, 0.99), fused=True)
        self.steps_done = 0

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return pictures, prompts, noise and times of a step."""
        config = self.config
        scenes, rng = scenes_at(config, self.layers, step)
        kinds = [self.layers.subjects[scene.subject].kind for scene in scenes]
        nameless = config.nameless if step >= config.nameless_from else 0.0
        captions = [
            drop_words(words_for(scene, self.layers), kind, rng, nameless=nameless)
            for scene, kind in zip(scenes, kinds, strict=True)
        ]
        pictures = draw(scenes, self.layers)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        noise = torch.randn(pictures.shape, generator=generator)
        # One time in each of as many equal parts as there are pictures: less noise in the gradient.
        t = (torch.arange(config.batch) + torch.rand(config.batch, generator=generator)) / config.batch * 1000
        return pictures, encode(captions), noise, t.long().clamp(max=999)

    def step(self) -> float:
        """Take one optimiser step and return its loss.

        Raises:
            TrainingDiverged: the loss or the gradient is not finite; the weights are then as before the step.
        """
        config, step = self.config, self.steps_done
        pictures, prompts, noise, t = self.batch(step)
        squared = alphas()[t][:, None, None, None]
        alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
        v = self.model(alpha * pictures + sigma * noise, t, prompt=prompts)
        error = (v - (alpha * noise - sigma * pictures)).square().mean((1, 2, 3))
        snr = (squared / (1 - squared)).flatten()
        loss = (error * snr.clamp(max=config.snr_cap) / (snr + 1)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise TrainingDiverged(f"step {step}: loss {loss.item()}, gradient norm {norm.item()}")
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        self.optimizer.step()
        with torch.no_grad():
            decay = ema_decay(step, config.ema)
            for average, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.lerp_(weight, 1 - decay)
        self.steps_done += 1
        value: float = error.detach().mean().item()
        return value

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        save_tensors(path, tensors, {"step": self.steps_done, "training": asdict(self.config)})

    def restore(self, path: Path) -> None:
        """Continue from what ``save`` wrote."""
        tensors, metadata = load_tensors(path)
        by_kind: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, name = key.split(".", 1)
            by_kind.setdefault(kind, {})[name] = tensor
        self.model.load_state_dict(by_kind["model"])
        self.average.load_state_dict(by_kind["average"])
        self.steps_done = metadata["step"]
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.steps_done)),
                "exp_avg": by_kind["exp_avg"][name],
                "exp_avg_sq": by_kind["exp_avg_sq"][name],
            }


def main() -> None:
    """Train, or continue, and write ``training.safetensors`` (the state) and the shipped form of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="the unpacked npm package emoji-datasource-google")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--save-every", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Waiting threads cost more than a second core brings at this size.
    arguments.output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(TrainConfig(steps=arguments.steps), load_layers(arguments.package))
    state = arguments.output / "training.safetensors"
    if state.exists():
        trainer.restore(state)
    mean = math.nan
    while trainer.steps_done < arguments.steps:
        loss = trainer.step()
        mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
        if trainer.steps_done % 20 == 0:
            print(json.dumps({"step": trainer.steps_done, "loss": round(mean, 4)}), flush=True)
        if trainer.steps_done % arguments.save_every == 0 or trainer.steps_done == arguments.steps:
            trainer.save(state)
            save_weights(arguments.output, trainer.average, {"training": asdict(trainer.config)})


if __name__ == "__main__":
    main()
