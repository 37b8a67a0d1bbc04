"""Where a pipeline's run is: the step, and what its scheduler says of the noise level there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ...prediction import Kind, Prediction

__all__ = ["SchedulerLevels", "run_length", "scheduler_sigmas"]


def run_length(pipe: Any, scheduler: Any) -> int:
    """Steps of the run: all of the scheduler's, or those left from where an img2img strength begins."""
    total = len(scheduler.timesteps)
    told = vars(pipe).get("_num_timesteps")
    if isinstance(told, int) and 0 < told <= total:
        return told
    return total - (getattr(scheduler, "begin_index", None) or 0)


def scheduler_sigmas(scheduler: Any) -> list[float] | None:
    """Sigma at each of a scheduler's timesteps, on the host: the ratio of noise to signal, or the time of a flow model.

    None where it has neither ``sigmas`` nor ``alphas_cumprod``. It waits for the device once.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        return [float(sigma) for sigma in torch.as_tensor(sigmas).tolist()]
    kept = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(kept, Tensor):
        return None
    at = kept.cpu()[scheduler.timesteps.cpu().long()].double()
    return [float(sigma) for sigma in ((1.0 - at) / at).sqrt().tolist()]


class SchedulerLevels:
    """The noise level of a scheduler's step.

    Args:
        scheduler: any of diffusers', its timesteps set.
        step, num_steps: where the run is, by the pipeline's own loop; the run's are the last of the timesteps.
        sigmas: :func:`scheduler_sigmas`, where the caller has them already.
    """

    def __init__(self, scheduler: Any, step: int, num_steps: int, sigmas: Sequence[float] | None = None) -> None:
        self.scheduler = scheduler
        self._sigmas = sigmas
        index = getattr(scheduler, "step_index", None)
        self._index: int = len(scheduler.timesteps) - num_steps + step if index is None else index

    @property
    def flow(self) -> bool:
        """Whether the scheduler is one of flow matching, whose sigma is the time from 0 to 1."""
        config = self.scheduler.config
        by_name = self.scheduler.__class__.__name__.startswith("FlowMatch")
        return by_name or config.get("prediction_type") == "flow_prediction" or bool(config.get("use_flow_sigmas"))

    def sigma(self) -> float | None:
        """Sigma of the step, or None where the scheduler has none."""
        if self._sigmas is None:
            self._sigmas = scheduler_sigmas(self.scheduler)
        return None if self._sigmas is None else self._sigmas[self._index]

    def prediction(self) -> Prediction:
        """What the model predicts, at the level of :meth:`model_sample`.

        Raises:
            ValueError: for a scheduler whose model is none of eps, v, x0 and flow.
        """
        sigma, config = self.sigma(), self.scheduler.config
        if self.flow and sigma is not None:
            return Prediction("flow", 1.0 - sigma, sigma)
        kinds: dict[str, Kind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
        kind = kinds.get(config.get("prediction_type", "epsilon"))
        # A scheduler without alphas_cumprod has a preconditioning of its own (EDM, consistency).
        if kind is None or sigma is None or not hasattr(self.scheduler, "alphas_cumprod"):
            name, asked = self.scheduler.__class__.__name__, config.get("prediction_type")
            raise ValueError(f"rule: it works in a domain, and what the model of {name} predicts ({asked}) is unknown")
        length = math.sqrt(1.0 + sigma * sigma)
        return Prediction(kind, 1.0 / length, sigma / length)

    def model_sample(self, sample: Tensor, timestep: Any) -> Tensor:
        """The noisy sample as the model gets it: of unit variance, or ``(1 - sigma) x0 + sigma noise``."""
        scale = None if self.flow else getattr(self.scheduler, "scale_model_input", None)
        return sample if scale is None else cast(Tensor, scale(sample, timestep))
