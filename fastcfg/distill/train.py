"""Stage-1 distillation of guidance: seeded, resumable, on any number of devices."""

from __future__ import annotations

import contextlib
import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import load_tensors, save_tensors
from ..methods.training import TrainingDiverged, ema_decay
from .card import Card
from .config import DistillConfig, Loss
from .families import copy_network
from .lora import LoraConfig
from .optimizer import MuonAdamW, matrices
from .rollout import Batch, Examples, conditional_at_one, mixed, on_data, trajectories
from .student import ScaledNetwork, Student
from .student_file import attach
from .task import Task, draw_scales, fingerprint

__all__ = ["Distiller", "generator_of", "relative_loss"]


def relative_loss(prediction: Tensor, target: Tensor, loss: Loss = "squared") -> Tensor:
    """Mean over the samples of ``|prediction - target|^2 / |target|^2``, or of its root, float32.

    The power of a guided prediction grows with the square of its scale: without the division the largest scales would
    be all of the loss. Of the quotient, they still are most, for they are the hardest; its root weighs every sample by
    the size of its own error, so that the small scales, where the student begins next to exact, stay so.

    Args:
        loss: ``"squared"``, or ``"root"``: ``sqrt(q + 1e-4) - 0.01`` of the quotient q, which has a gradient at 0.
    """
    dims = tuple(range(1, target.dim()))
    error = (prediction.float() - target.float()).square().mean(dims)
    quotient = error / target.float().square().mean(dims).clamp_min(1e-12)
    return ((quotient + 1e-4).sqrt() - 1e-2 if loss == "root" else quotient).mean()


def generator_of(*key: Any) -> torch.Generator:
    """A generator of its own for each thing that is drawn, so that a resumed run needs no generator's state."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


class Distiller:
    """The state of a distillation. A step depends on that state, the task and the step's number alone.

    Args:
        task: what is distilled. Its network is not touched; the student is a copy.
        config: how.
        accelerator: of ``accelerate``; by default one on the teacher's device, with the configuration's precision.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: the configuration does not fit the task.
    """

    def __init__(self, task: Task, config: DistillConfig, accelerator: Any = None) -> None:
        self.task, self.config = task, config
        self.device = next(task.network.parameters()).device
        self.accelerator = accelerator or _accelerator(self.device, config.precision)
        theirs = torch.device(self.accelerator.device)
        if self.device.type != theirs.type or (theirs.type != "cpu" and self.device.index != theirs.index):
            raise ValueError(f"task: the teacher is on {self.device}, this process's device is {theirs}")
        if config.data == "data" and (task.data is None or task.stateful):
            on_data(task, 1, torch.ones(1), 1, torch.Generator())  # Raises what is wrong.
        family, network = task.family, copy_network(task.network)
        self.teacher = fingerprint(task.network)
        self.adapter: LoraConfig | None = None
        if config.mode == "lora":
            # Where scale 1 is guided too, by a negative prompt say, the adapter has to be there as well.
            follows = config.lora.full_at is not None and conditional_at_one(task)
            self.adapter = config.lora if follows else replace(config.lora, full_at=None)
        self.lora = attach(network, family, config.convention, self.adapter, config.seed)
        prefix = family.scale_module(network) + "."
        for name, parameter in network.named_parameters():
            own = self.lora is not None and ".lora_" in name
            parameter.requires_grad_(config.mode == "full" or name.startswith(prefix) or own)
        self.network, self.family = network, family
        layer = family.feature_layer(network)
        resolved = config.convention.resolved(config.low, config.high).to(layer.weight)
        with torch.no_grad():
            layer.weight.mul_(resolved)
        layer.weight.register_hook(lambda gradient: gradient * resolved)  # type: ignore[no-untyped-call]
        self.trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self.average = {name: value.detach().clone() for name, value in self.trained.items()}
        self.optimizer = MuonAdamW(self._groups(prefix), weight_decay=config.weight_decay)
        # The prepared network is a wrapper where there are several devices; in evaluation mode, for the teacher has
        # no dropout either.
        self.prepared, self._optimizer = self.accelerator.prepare(network, self.optimizer)
        self.prepared.eval()
        self.scaled = ScaledNetwork(self.prepared, family, config.convention, self.lora)
        self.steps_done = 0
        self.smooth_loss = math.nan
        self._rounds: dict[int, Examples] = {}

    def _groups(self, prefix: str) -> list[dict[str, Any]]:
        """The optimiser's: the scale input, the other matrices, and what is left."""
        muon = matrices(self.network) if self.config.optimizer == "muon" else set()
        groups: dict[str, list[nn.Parameter]] = {"scale": [], "matrix": [], "other": []}
        for name, parameter in self.trained.items():
            groups["scale" if name.startswith(prefix) else "matrix" if name in muon else "other"].append(parameter)
        rates = {"scale": self.config.scale_rate}
        return [
            {"params": own, "rate": rates.get(kind, 1.0), "matrix": kind == "matrix"}
            for kind, own in groups.items()
            if own
        ]

    def _scales(self, count: int, generator: torch.Generator) -> Tensor:
        config = self.config
        return draw_scales(
            count, config.low, config.high, generator, log=config.draw == "log", exact_one=config.exact_one
        )

    def _examples(self, number: int) -> Batch:
        """The examples of a forward pass, counted from the start of the run."""
        config, task, rank = self.config, self.task, self.accelerator.process_index
        if config.data == "data":
            generator = generator_of(config.seed, "data", number, rank)
            scale = self._scales(config.batch, generator)
            found = on_data(task, config.batch, scale, config.sampler_steps[0], generator)
            return found.batch(torch.arange(config.batch, device=self.device))
        # Rounds of all lengths last for the same number of batches, so that a batch's number tells its round.
        batches = max(1, config.trajectories * min(config.sampler_steps) * config.reuse // config.batch)
        turn = number // batches
        for old in [key for key in self._rounds if not turn <= key < turn + config.window]:
            del self._rounds[old]
        for key in range(turn, turn + config.window):
            if key not in self._rounds:
                self._rounds[key] = self._round(key)
        generator = generator_of(config.seed, "batch", number, rank)
        held = [self._rounds[key] for key in range(turn, turn + config.window)]
        return mixed(held, config.batch, generator)

    def _round(self, number: int) -> Examples:
        config = self.config
        generator = generator_of(config.seed, "trajectories", number, self.accelerator.process_index)
        length = config.sampler_steps[int(torch.randint(len(config.sampler_steps), (1,), generator=generator))]
        return trajectories(
            self.task, config.trajectories, self._scales(config.trajectories, generator), length, generator
        )

    def loss(self, number: int) -> Tensor:
        """The loss of a forward pass, counted from the start of the run."""
        x, target, t, scale, condition = self._examples(number)
        dtype = {"no": x.dtype, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        with self.accelerator.autocast():
            prediction = self.scaled(x, t, scale, computed_in=dtype, **condition)
        return relative_loss(prediction, target, self.config.loss)

    def step(self) -> float:
        """One optimiser step; returns its loss, the mean of all devices.

        Raises:
            TrainingDiverged: the loss or the gradient is not finite; the weights are then as before the step.
        """
        config, step = self.config, self.steps_done
        total = torch.zeros((), device=self.device)
        for micro in range(config.accumulate):
            last = micro == config.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared):
                loss = self.loss(step * config.accumulate + micro) / config.accumulate
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), config.clip)
        value = float(self.accelerator.reduce(total, reduction="mean"))
        # Loss scaling in float16 meets infinite gradients by design, and skips their step.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        if not math.isfinite(value) or not (scaled or math.isfinite(float(norm))):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingDiverged(f"step {step}: loss {value}, gradient norm {float(norm)}")
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * config.learning_rate_at(step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        decay = ema_decay(step, config.ema)
        with torch.no_grad():
            for name, average in self.average.items():
                average.lerp_(self.trained[name], 1 - decay)
        self.smooth_loss = value if step == 0 else 0.98 * self.smooth_loss + 0.02 * value
        self.steps_done += 1
        return value

    def card(self) -> Card:
        """Return what the student will say of itself."""
        config, rule = self.config, self.task.teacher.rule
        return Card(
            family=self.family.name,
            network=self.family.config(self.network),
            mode=config.mode,
            convention=config.convention,
            rule=rule.to_dict(),
            low=config.low,
            high=config.high,
            condition=self.task.condition,
            teacher=self.teacher,
            lora=self.adapter,
            training={**config.to_dict(), "steps_done": self.steps_done, "loss": round(self.smooth_loss, 8)},
        )

    def student(self, scale: float | None = None) -> Student:
        """The student with the moving average of the weights, apart from the one in training."""
        network = copy_network(self.task.network)
        lora = attach(network, self.family, self.config.convention, self.card().lora, self.config.seed)
        own: dict[str, nn.Parameter] = dict(network.named_parameters())
        with torch.no_grad():
            for name, average in self.average.items():
                own[name].copy_(average)
        network.eval().requires_grad_(False)
        return Student(network, self.card(), scale, lora=lora)

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs."""
        tensors: dict[str, Tensor] = {f"trained.{name}": value for name, value in self.trained.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.trained.items():
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[parameter].items()}
        scaler = getattr(self.accelerator, "scaler", None)
        state = {
            "step": self.steps_done,
            "smooth_loss": self.smooth_loss,
            "scaler": None if scaler is None else scaler.state_dict(),
            "processes": self.accelerator.num_processes,
        }
        save_tensors(path, tensors, {"state": state, **self._identity()})

    def _identity(self) -> dict[str, Any]:
        rule = self.task.teacher.rule
        return {"training": self.config.to_dict(), "teacher": self.teacher, "rule": rule.to_dict()}

    def restore(self, path: Path) -> None:
        """Continues from what :meth:`save` wrote.

        Raises:
            ValueError: the file is no such state, or one of another configuration, teacher or rule.
        """
        tensors, metadata = load_tensors(path)
        if "state" not in metadata:
            raise ValueError(f"{path} holds no state to resume from")
        mine, other = self._identity(), metadata
        different = [key for key in ("teacher", "rule") if mine[key] != other.get(key)]
        theirs = other.get("training", {})
        different += sorted(key for key, value in mine["training"].items() if value != theirs.get(key))
        if self.accelerator.num_processes != metadata["state"]["processes"]:
            different.append("number of processes")
        if different:
            raise ValueError(
                f"{path} is of another distillation; different: {', '.join(different)}. "
                "Give the same to resume, or begin anew without resuming"
            )
        by_kind: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, name = key.split(".", 1)
            by_kind.setdefault(kind, {})[name] = tensor
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(by_kind["trained"][name])
                self.average[name].copy_(by_kind["average"][name])
                # A count of steps stays where the optimiser keeps it.
                self.optimizer.state[parameter] = {
                    key: by_kind[key][name] if key == "step" else by_kind[key][name].to(parameter)
                    for key in by_kind.keys() - {"trained", "average"}
                    if name in by_kind[key]
                }
        self.steps_done = metadata["state"]["step"]
        self.smooth_loss = metadata["state"]["smooth_loss"]
        if metadata["state"]["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(metadata["state"]["scaler"])


def _accelerator(device: torch.device, precision: str) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError(
            f"distillation needs accelerate ({error}): pip install 'fastcfg-diffusion[distill]'"
        ) from error
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
