"""One step of a solver, as weights of what it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..prediction import Prediction
from ..validate import Weight, check_tensor, number

__all__ = ["Step", "stage_key"]

_WEIGHTS = ("prediction", "x", "x0_prediction", "x0_x", "previous_x0", "noise", "input_scale", "next_input_scale")


@dataclass(frozen=True)
class Step:
    """One step of a solver: ``next x = prediction * p + x * x + previous_x0 * x0 of the step before + noise * noise``.

    Each weight is a finite number, or a tensor ``[]`` or ``[B]`` (a batch whose samples are at steps of their own, a
    captured graph); steps of numbers hash and compare. :class:`fastcfg.samplers.Sampler` makes them.

    Args:
        prediction, x: weights of the guided prediction and of x.
        x0_prediction, x0_x: weights of the two in the clean sample that the prediction stands for.
        previous_x0: weight of the clean sample of the step before; None for a solver that keeps none.
        noise: weight of standard normal noise; None for a solver that takes none.
        input_scale: the model's input at this step is ``input_scale * x``; next_input_scale: at the step after.
        level: what the model predicts, at the noise level of its own input.
        timestep: what the model is told.
        index, num_steps: where the step is, which resolves a rule's schedules.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    prediction: Weight
    x: Weight
    x0_prediction: Weight
    x0_x: Weight
    previous_x0: Weight | None = None
    noise: Weight | None = None
    input_scale: Weight = 1.0
    next_input_scale: Weight = 1.0
    level: Prediction | None = None
    timestep: float | None = None
    index: int | None = None
    num_steps: int | None = None

    def __post_init__(self) -> None:
        for name in _WEIGHTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor):
                object.__setattr__(self, name, number(name, value))

    @property
    def keeps_x0(self) -> bool:
        """Return whether the next step reads this one's clean sample."""
        return self.previous_x0 is not None

    def first_order(self) -> Step:
        """Return the step without the clean sample of the step before: where a run begins at it.

        A multistep solver adds a multiple of the change of the clean sample; with none before, it has not changed.
        """
        if self.previous_x0 is None:
            return self
        return dataclasses.replace(
            self,
            prediction=self.prediction + self.previous_x0 * self.x0_prediction,
            x=self.x + self.previous_x0 * self.x0_x,
            previous_x0=0.0 * self.previous_x0,
        )

    @property
    def sigma(self) -> float | None:
        """The noise level in x, on which schedules may run; None where it differs between samples."""
        if self.level is None or isinstance(self.level.sigma, Tensor) or isinstance(self.input_scale, Tensor):
            return None
        return self.level.sigma / self.input_scale

    def values(self, model_input: bool) -> list[Weight]:
        """The parameters of the step's stage, in its order."""
        values: list[Weight | None] = [self.prediction, self.x, self.previous_x0, self.noise]
        if self.keeps_x0:
            values += [self.x0_prediction, self.x0_x]
        if model_input:
            values.append(self.next_input_scale)
        return [value for value in values if value is not None]

    def model_input(self, x: Tensor, copies: int = 1, dtype: torch.dtype | None = None) -> Tensor:
        """``input_scale * x`` for each of ``copies`` passes, ``[copies * B, ...]``; what the first step begins with.

        Args:
            x: ``[B, ...]``; dtype: of the result, default x's.
        """
        check_tensor("x", x)
        scale = self.input_scale
        if isinstance(scale, Tensor) and scale.dim():
            scale = scale.view(-1, *[1] * (x.dim() - 1))
        return (x * scale).to(dtype or x.dtype).repeat(copies, *[1] * (x.dim() - 1))

    @staticmethod
    def stack(
        steps: Sequence[Step], *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Step:
        """Steps of one solver as one whose weights are ``[B]`` tensors: sample ``b`` is at ``steps[b]``.

        A single step makes weights ``[1]``, which serve any batch: a captured graph or a compiled function takes the
        numbers of another step by copying them there.

        Raises:
            ValueError: for steps of different solvers or kinds of prediction.
        """
        if not steps:
            raise ValueError("steps: expected at least one")
        first = steps[0]
        kinds = {(s.previous_x0 is None, s.noise is None, None if s.level is None else s.level.kind) for s in steps}
        if len(kinds) > 1:
            raise ValueError("steps: expected steps of one solver and one kind of prediction")

        def column(values: Sequence[Any]) -> Tensor:
            return torch.tensor([float(v) for v in values], dtype=dtype, device=device)

        weights: dict[str, Any] = {
            n: column([getattr(s, n) for s in steps]) for n in _WEIGHTS if getattr(first, n) is not None
        }
        level = first.level
        if level is not None:
            levels = [s.level for s in steps if s.level is not None]
            level = Prediction(level.kind, column([v.alpha for v in levels]), column([v.sigma for v in levels]))
        return Step(**weights, level=level)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; for a step of numbers."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Step:
        """The step that :meth:`to_dict` described.

        Raises:
            ValueError: for an unknown field.
        """
        known = {field.name for field in dataclasses.fields(Step)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"step: no field {', '.join(unknown)}; it has {sorted(known)}")
        level = data.get("level")
        return Step(**{**data, "level": None if level is None else Prediction(**level)})


def stage_key(step: Step, model_input: bool) -> int:
    """Return the number of a step in :data:`~fastcfg.rules.step_stages.STAGES`.

    Args:
        model_input: whether the next model input is among its outputs.
    """
    return (step.previous_x0 is not None) + 2 * (step.noise is not None) + 4 * model_input
