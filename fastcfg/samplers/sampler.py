"""A run of a solver over a table of noise levels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..prediction import Kind, Prediction
from ..validate import number
from .solvers import DDIM, Level, Solver
from .step import Step

__all__ = ["Sampler", "chain"]

Table = Sequence[float] | Tensor


def _numbers(name: str, values: Any, low: float | None = None, high: float | None = None) -> list[float]:
    """A table as finite numbers; a tensor of any device is read once."""
    numbers = values.tolist() if isinstance(values, Tensor) else list(values)
    return [number(f"{name}[{k}]", value, low, high) for k, value in enumerate(numbers)]


@dataclass(frozen=True)
class Sampler:
    """The steps of a run, in order: a frozen value that hashes, compares, and goes to JSON and back.

    ::

        sampler = Sampler.flow(sigmas)                          # or from_scheduler(pipe.scheduler)
        batch = sampler.steps[0].model_input(x, copies=2, dtype=torch.bfloat16)
        for step in sampler:
            predictions = model(batch, step.timestep)
            x = guide_step(rule, step, predictions, x=x, state=state, batch_out=batch)
    """

    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @staticmethod
    def from_levels(
        levels: Sequence[tuple[Level, Level]],
        *,
        kind: Kind,
        solver: Solver | None = None,
        input_scales: Sequence[float] | None = None,
        timesteps: Table | None = None,
    ) -> Sampler:
        """The steps of a solver, worked out in float64.

        Args:
            levels: for each step ``(alpha, sigma)`` of ``x = alpha * x0 + sigma * eps`` now and after it.
            kind: what the model predicts.
            solver: default DDIM without noise.
            input_scales: for each step the factor from x to the model's input, default 1. ``alpha`` and ``sigma``
                times it are the levels of the model's input.
            timesteps: what the model is told at each step.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        solver = DDIM() if solver is None else solver
        count = len(levels)
        scales = [1.0] * count if input_scales is None else _numbers("input_scales", input_scales, low=0.0)
        times = [None] * count if timesteps is None else _numbers("timesteps", timesteps)
        if not count or len(scales) != count or len(times) != count:
            raise ValueError(
                f"levels: expected as many as input_scales and timesteps, got {count}, {len(scales)}, {len(times)}"
            )
        steps = []
        for index, ((alpha, sigma), _) in enumerate(levels):
            scale = scales[index]
            level = Prediction(kind, alpha * scale, sigma * scale)
            of_x0, of_eps, of_previous, of_noise = solver.weights(levels, index)
            # Weights of the model's input, which is scale * x, and of the prediction.
            x0_x, x0_prediction = level.to("x0") if of_x0 or solver.keeps_x0 else (0.0, 0.0)
            eps_x, eps_prediction = level.to("eps") if of_eps else (0.0, 0.0)
            # eps of the model's input is that of x; x0 too.
            steps.append(
                Step(
                    prediction=of_x0 * x0_prediction + of_eps * eps_prediction,
                    x=scale * (of_x0 * x0_x + of_eps * eps_x),
                    x0_prediction=x0_prediction,
                    x0_x=scale * x0_x,
                    previous_x0=of_previous if solver.keeps_x0 else None,
                    noise=of_noise if solver.eta else None,
                    input_scale=scale,
                    next_input_scale=scales[index + 1] if index + 1 < count else 1.0,
                    level=level,
                    timestep=times[index],
                    index=index,
                    num_steps=count,
                )
            )
        return Sampler(tuple(steps))

    @staticmethod
    def edm(
        sigmas: Table,
        *,
        kind: Kind = "eps",
        solver: Solver | None = None,
        timesteps: Table | None = None,
        scale_input: bool = True,
    ) -> Sampler:
        """``x = x0 + sigma * eps``: Euler in sigma space (k-diffusion, diffusers' ``EulerDiscreteScheduler``).

        Args:
            sigmas: ``[n + 1]``, falling; the last may be 0.
            scale_input: the model takes ``x / sqrt(sigma^2 + 1)``; False where it (or its wrapper) takes x.
        """
        table = _numbers("sigmas", sigmas, low=0.0)
        levels = chain([(1.0, sigma) for sigma in table])
        scales = [(s * s + 1.0) ** -0.5 for s in table[:-1]] if scale_input else None
        return Sampler.from_levels(levels, kind=kind, solver=solver, input_scales=scales, timesteps=timesteps)

    @staticmethod
    def flow(
        sigmas: Table, *, kind: Kind = "flow", solver: Solver | None = None, timesteps: Table | None = None
    ) -> Sampler:
        """``x = (1 - sigma) * x0 + sigma * eps``: Euler of flow matching (Flux, SD3, Wan).

        Args:
            sigmas: ``[n + 1]`` in 0 ... 1, falling.
        """
        levels = chain([(1.0 - sigma, sigma) for sigma in _numbers("sigmas", sigmas, 0.0, 1.0)])
        return Sampler.from_levels(levels, kind=kind, solver=solver, timesteps=timesteps)

    @staticmethod
    def vp(
        alphas_cumprod: Table, *, kind: Kind = "eps", solver: Solver | None = None, timesteps: Table | None = None
    ) -> Sampler:
        """``x = sqrt(a) * x0 + sqrt(1 - a) * eps`` with ``a`` the product of the alphas: DDIM and DPM-Solver++.

        Args:
            alphas_cumprod: ``[n + 1]`` in 0 ... 1, rising; the last may be 1.
        """
        table = _numbers("alphas_cumprod", alphas_cumprod, 0.0, 1.0)
        levels = chain([(a**0.5, (1.0 - a) ** 0.5) for a in table])
        return Sampler.from_levels(levels, kind=kind, solver=solver, timesteps=timesteps)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"steps": [step.to_dict() for step in self.steps]}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Sampler:
        """The sampler that :meth:`to_dict` described.

        Raises:
            ValueError: for anything else.
        """
        if set(data) != {"steps"} or not isinstance(data["steps"], list | tuple):
            raise ValueError(f"sampler: expected an object with a list 'steps', got {sorted(data)}")
        return Sampler(tuple(Step.from_dict(step) for step in data["steps"]))

    @staticmethod
    def from_json(text: str) -> Sampler:
        """The sampler that :meth:`to_json` wrote."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"sampler: expected a JSON object, got {type(data).__name__}")
        return Sampler.from_dict(data)


def chain(levels: Sequence[Level]) -> list[tuple[Level, Level]]:
    """Each level with the one after it."""
    if len(levels) < 2:
        raise ValueError(f"sigmas, alphas_cumprod: expected at least two levels, got {len(levels)}")
    return list(pairwise(levels))
