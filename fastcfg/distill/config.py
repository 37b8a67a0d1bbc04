"""Everything that a distillation depends on besides its task."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ..methods.training import warmup_cosine
from ..validate import check_choice, number
from .card import Mode
from .embedding import Convention
from .lora import LoraConfig

__all__ = ["DistillConfig"]

Data = Literal["trajectories", "data"]
Precision = Literal["no", "bf16", "fp16"]
Draw = Literal["uniform", "log"]
Loss = Literal["root", "squared"]
Optimizer = Literal["muon", "adamw"]


@dataclass(frozen=True)
class DistillConfig:
    """Settings of :func:`distill`.

    Args:
        steps: optimiser steps.
        batch: examples of a forward pass, on each device.
        accumulate: forward passes of an optimiser step.
        mode: what is trained: ``"full"`` all weights, ``"lora"`` an adapter and the scale input, ``"embedding"`` the
            scale input alone.
        data: ``"trajectories"``, the teacher's own, or ``"data"``.
        low, high: range of the guidance scale ``s``.
        draw: uniform in it, or in its logarithm.
        exact_one: share of the examples at exactly 1.
        sampler_steps: numbers of steps that trajectories have, one drawn for each round.
        trajectories: of a round, on each device.
        window: rounds whose states are held and drawn from at once; each new one replaces the oldest. With few
            trajectories at a time the student follows each round and forgets the ones before.
        reuse: how often a state is drawn on average while it is held.
        loss: a sample's error over its target's power, ``"squared"`` or its ``"root"``; see :func:`relative_loss`.
        optimizer: ``"muon"`` for the matrices of linear layers and convolutions (:class:`MuonAdamW`), or ``"adamw"``
            for all. The scale input, biases and norms are always AdamW's.
        learning_rate: peak of the warm-up and cosine decay. None: 2e-3 for all weights, 5e-3 for less than all.
        scale_rate: learning rate of the scale input over that of the other weights.
        warmup: steps of linear warm-up.
        weight_decay, clip: of the optimiser, and the largest gradient norm.
        ema: limit of the decay of the weights' moving average, which is what is kept.
        precision: autocast of the student's passes: ``"no"``, ``"bf16"`` or ``"fp16"`` (with loss scaling).
        seed: of everything random.
        convention: how the student takes its scale.
        lora: the adapter's size and place, for ``mode="lora"``.

    Raises:
        ValueError: naming the argument.
    """

    steps: int = 2000
    batch: int = 32
    accumulate: int = 1
    mode: Mode = "full"
    data: Data = "trajectories"
    low: float = 1.0
    high: float = 10.0
    draw: Draw = "uniform"
    exact_one: float = 0.1
    sampler_steps: tuple[int, ...] = (20,)
    trajectories: int = 64
    window: int = 8
    reuse: int = 4
    loss: Loss = "root"
    optimizer: Optimizer = "muon"
    learning_rate: float | None = None
    scale_rate: float = 1.0
    warmup: int = 50
    weight_decay: float = 0.0
    clip: float = 10.0
    ema: float = 0.99
    precision: Precision = "no"
    seed: int = 0
    convention: Convention = field(default_factory=Convention)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "trajectories", "window", "reuse"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        check_choice("mode", self.mode, get_args(Mode))
        check_choice("data", self.data, get_args(Data))
        check_choice("loss", self.loss, get_args(Loss))
        check_choice("optimizer", self.optimizer, get_args(Optimizer))
        check_choice("draw", self.draw, get_args(Draw))
        check_choice("precision", self.precision, get_args(Precision))
        number("low", self.low, 0.0)
        number("high", self.high, self.low)
        if self.draw == "log" and self.low <= 0:
            raise ValueError(f"low: expected a number above 0 for a logarithmic draw, got {self.low}")
        number("exact_one", self.exact_one, 0.0, 1.0)
        number("ema", self.ema, 0.0, 1.0)
        for name in ("scale_rate", "warmup", "weight_decay", "clip"):
            number(name, getattr(self, name), 0.0)
        if self.learning_rate is not None:
            number("learning_rate", self.learning_rate, 0.0)
        object.__setattr__(self, "sampler_steps", tuple(self.sampler_steps))
        if not self.sampler_steps or min(self.sampler_steps) < 1:
            raise ValueError(f"sampler_steps: expected one or more positive integers, got {self.sampler_steps}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step counted from 0."""
        peak = self.learning_rate
        if peak is None:
            peak = 2e-3 if self.mode == "full" else 5e-3
        return warmup_cosine(step, self.steps, self.warmup, peak)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable data."""
        data = asdict(self)
        data["sampler_steps"] = list(self.sampler_steps)
        data["lora"]["targets"] = list(self.lora.targets)
        return data
