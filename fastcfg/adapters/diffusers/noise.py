"""Steps of a pipeline's run, and their noise levels by its scheduler.

A sample is ``alpha * x0 + sigma * eps`` as the model gets it, and what the scheduler's ``step`` gets is
``sign`` times a prediction of some kind. One description of that for each class of scheduler; a class that is not
described here is refused by name where a rule needs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ...prediction import Kind, Prediction

__all__ = ["Level", "SchedulerLevels", "noise_levels", "run_length"]

Family = Literal["preserving", "cosine", "ratio", "solver", "edm", "flow"]

_FAMILIES: dict[str, Family] = {
    name + "Scheduler": family
    for family, names in cast(
        "dict[Family, str]",
        {
            # alphas_cumprod at the timestep, or its continuous counterpart.
            "preserving": "DDIM DDIMParallel DDPM DDPMParallel LCM TCD PNDM CogVideoXDDIM CogVideoXDPM UnCLIP RePaint",
            "cosine": "DDPMWuerstchen",
            # Sigma is the ratio of noise to signal, and the sample of variance 1 + sigma^2 (the model's input of 1).
            "ratio": "EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete "
            "LMSDiscrete DPMSolverSDE",
            # As above with a sample of variance 1, or a flow's time.
            "solver": "DPMSolverMultistep DPMSolverMultistepInverse DPMSolverSinglestep DEISMultistep "
            "UniPCMultistep SASolver",
            # A ratio to sigma_data, with a preconditioned model.
            "edm": "EDMEuler EDMDPMSolverMultistep CosineDPMSolverMultistep",
            # Sigma is the time of a flow.
            "flow": "FlowMatchEulerDiscrete FlowMatchHeunDiscrete FlowMatchLCM FlowMapEulerDiscrete "
            "LTXEulerAncestralRF",
        },
    ).items()
    for name in names.split()
}

_SINGULAR = 2.0**-12
"""Signal, or noise, that stands for none: what diffusers' own sigmas have at zero terminal SNR."""


def _family(scheduler: Any) -> Family | None:
    names = (base.__name__ for base in type(scheduler).__mro__)
    return next((_FAMILIES[name] for name in names if name in _FAMILIES), None)


def run_length(pipe: Any, scheduler: Any) -> int:
    """Steps of the run: all of the scheduler's, or those left from where an img2img strength begins."""
    total = len(scheduler.timesteps)
    told = vars(pipe).get("_num_timesteps")
    if isinstance(told, int) and 0 < told <= total:
        return told
    return total - (getattr(scheduler, "begin_index", None) or 0)


@dataclass(frozen=True)
class Level:
    """The noise at a timestep: the model's input is ``alpha * x0 + sigma * eps``, in units of the data's own scale."""

    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """Noise to signal."""
        return self.sigma / max(self.alpha, _SINGULAR)

    def prediction(self, kind: Kind) -> Prediction:
        """A prediction at this level; of eps and x0, which have no inverse at the ends, by them as nearly."""
        if kind in ("eps", "x0"):
            return Prediction(kind, max(self.alpha, _SINGULAR), max(self.sigma, _SINGULAR))
        return Prediction(kind, self.alpha, self.sigma)


def _preserving(kept: Tensor) -> list[Level]:
    kept = kept.double()
    pairs = zip(kept.sqrt().tolist(), (1.0 - kept).clamp_min(0.0).sqrt().tolist(), strict=True)
    return [Level(alpha, sigma) for alpha, sigma in pairs]


def _by_ratio(ratio: float) -> Level:
    length = math.sqrt(1.0 + ratio * ratio)
    return Level(1.0 / length, ratio / length)


def noise_levels(scheduler: Any) -> list[Level] | None:
    """The noise at each of a scheduler's timesteps, on the host, or None for a class that is not described here.

    It waits for the device once.
    """
    family, config = _family(scheduler), scheduler.config
    if family is None or (config.get("invert_sigmas") and "LCM" in type(scheduler).__name__):
        return None  # FlowMatchLCM's step does not follow its own inversion.
    if family == "preserving":
        return _preserving(scheduler.alphas_cumprod.cpu()[scheduler.timesteps.cpu().long()])
    if family == "cosine":
        times = torch.as_tensor(scheduler.timesteps).cpu().double()
        return _preserving(scheduler._alpha_cumprod(times, torch.device("cpu")))
    sigmas = [float(sigma) for sigma in torch.as_tensor(_sigmas(scheduler)).tolist()]
    if family == "flow" and config.get("invert_sigmas"):
        return [Level(sigma, 1.0 - sigma) for sigma in sigmas]
    if family == "flow" or config.get("use_flow_sigmas"):
        return [Level(1.0 - sigma, sigma) for sigma in sigmas]
    data = config.get("sigma_data", 1.0) if family == "edm" else 1.0
    return [_by_ratio(sigma / data) for sigma in sigmas]


def _sigmas(scheduler: Any) -> Any:
    """Sigma at each of a scheduler's timesteps. KDPM2 evaluates every second one between two of its sigmas."""
    between = getattr(scheduler, "sigmas_interpol", None)
    if between is None:
        return scheduler.sigmas
    sigmas = scheduler.sigmas.clone()
    first = 0 if hasattr(scheduler, "sigmas_down") else 1  # The ancestral one's are a place earlier.
    sigmas[1::2] = between[first::2][: len(sigmas[1::2])]
    return sigmas


class SchedulerLevels:
    """The noise level of a scheduler's step.

    Args:
        scheduler: any of diffusers', its timesteps set.
        step, num_steps: where the run is, by the pipeline's own loop; the run's are the last of the timesteps.
        levels: :func:`noise_levels`, where the caller has them already.
        per_token: a step's own ``per_token_timesteps``.
    """

    def __init__(
        self,
        scheduler: Any,
        step: int,
        num_steps: int,
        levels: Sequence[Level] | None = None,
        per_token: Tensor | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.per_token = per_token
        self._levels = noise_levels(scheduler) if levels is None else levels
        index = getattr(scheduler, "step_index", None)
        self._index: int = len(scheduler.timesteps) - num_steps + step if index is None else index

    @property
    def flow(self) -> bool:
        """Return whether the scheduler is one of flow matching, whose sigma is the time from 0 to 1."""
        config = self.scheduler.config
        by_config = config.get("prediction_type") == "flow_prediction" or bool(config.get("use_flow_sigmas"))
        return _family(self.scheduler) == "flow" or by_config

    def sigma(self) -> float | None:
        """The noise level of the step, from noise to none: a flow's time or a ratio of noise to signal, or None."""
        if self._levels is None:
            return None
        level = self._levels[self._index]
        return level.sigma if self.flow else level.ratio

    @property
    def sign(self) -> int:
        """-1 where the scheduler's step takes the negated prediction, its time running against the noise."""
        family, config = _family(self.scheduler), self.scheduler.config
        if family == "edm":
            return 1 if config.get("prediction_type") == "v_prediction" else -1
        if self.per_token is not None:  # Each token goes down from its own level, by a positive length.
            return 1 if config.get("stochastic_sampling") else -1
        return -1 if family == "flow" and config.get("invert_sigmas") else 1

    def prediction(self) -> Prediction:
        """Return what the model predicts, at the level of :meth:`model_sample`.

        :attr:`sign` times it is what is handed over.

        Raises:
            ValueError: for a scheduler that is not described here, or whose model is none of eps, v, x0 and flow.
        """
        family, asked = _family(self.scheduler), self.scheduler.config.get("prediction_type", "epsilon")
        kind: Kind | None
        if family == "flow":
            kind = "flow"
        elif family == "edm":
            kind = "v"
        else:
            kinds: dict[str, Kind] = {
                "epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"
            }  # fmt: skip
            kind = kinds.get(asked)
        if kind is None or self._levels is None:
            name = type(self.scheduler).__name__
            raise ValueError(f"rule: it works in a domain, and what the model of {name} predicts ({asked}) is unknown")
        if self.per_token is not None:
            time = self.per_token.double() / self.scheduler.config.num_train_timesteps
            time = time[:, 0] if time.shape[1] == 1 else time  # [B]: the same for all tokens.
            return Prediction(kind, 1.0 - time, time)
        return self._levels[self._index].prediction(kind)

    def model_sample(self, sample: Tensor, timestep: Any) -> Tensor:
        """The noisy sample as the model gets it: of unit variance, or ``(1 - sigma) x0 + sigma noise``."""
        scale = None if self.flow else getattr(self.scheduler, "scale_model_input", None)
        return sample if scale is None else cast(Tensor, scale(sample, timestep))
