"""A diffusers scheduler's steps, read from its configuration and tables. Nothing of diffusers is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..prediction import Kind
from .sampler import Sampler, chain
from .solvers import DDIM, DPMSolver2M, Level

__all__ = ["from_scheduler"]

_KINDS: dict[str, Kind] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "original_sample": "x0",
    "flow_prediction": "flow",
}


def from_scheduler(scheduler: Any, *, eta: float = 0.0) -> Sampler:
    """The steps of a diffusers scheduler whose timesteps are set.

    ``FlowMatchEulerDiscreteScheduler``, ``EulerDiscreteScheduler``, ``EulerAncestralDiscreteScheduler``,
    ``DDIMScheduler`` and ``DPMSolverMultistepScheduler`` (``dpmsolver++`` and ``sde-dpmsolver++`` of order 1 and 2).
    Karras, exponential and beta sigmas, spacings and shifts are in the tables already.

    Args:
        scheduler: after ``set_timesteps``.
        eta: of ``DDIMScheduler.step``.

    Raises:
        TypeError: for another scheduler.
        ValueError: naming an option that isn't a weighted sum (thresholding, clipping) or isn't supported, or where the
            timesteps are not set.
    """
    for cls in type(scheduler).__mro__:
        if (read := _READERS.get(cls.__name__)) is not None:
            break
    else:
        raise TypeError(f"scheduler: expected one of {sorted(_READERS)}, got {type(scheduler).__name__}")
    if getattr(scheduler, "num_inference_steps", None) is None:
        raise ValueError("scheduler: its timesteps are not set; call scheduler.set_timesteps(n) first")
    if eta and read is not _ddim:
        raise ValueError(f"eta: {type(scheduler).__name__} takes none, got {eta}")
    return read(scheduler, eta)


def _refuse(scheduler: Any, **options: Any) -> None:
    """Raise where an option has another value than the one that is supported."""
    for name, supported in options.items():
        given = scheduler.config.get(name, supported)
        allowed = supported if isinstance(supported, tuple) else (supported,)
        if given not in allowed:
            raise ValueError(
                f"scheduler: {type(scheduler).__name__} with {name}={given!r} is not supported; expected "
                f"{' or '.join(map(repr, allowed))}"
            )


def _kind(scheduler: Any) -> Kind:
    given = scheduler.config.get("prediction_type", "epsilon")
    if given not in _KINDS:
        raise ValueError(f"scheduler: expected a prediction_type of {sorted(_KINDS)}, got {given!r}")
    return _KINDS[given]


def _flow(scheduler: Any, _: float) -> Sampler:
    _refuse(scheduler, stochastic_sampling=False, invert_sigmas=False)
    return Sampler.flow(scheduler.sigmas, timesteps=scheduler.timesteps)


def _euler(scheduler: Any, _: float) -> Sampler:
    return Sampler.edm(scheduler.sigmas, kind=_kind(scheduler), timesteps=scheduler.timesteps)


def _ancestral(scheduler: Any, _: float) -> Sampler:
    return Sampler.edm(scheduler.sigmas, kind=_kind(scheduler), solver=DDIM(1.0), timesteps=scheduler.timesteps)


def _ddim(scheduler: Any, eta: float) -> Sampler:
    _refuse(scheduler, thresholding=False, clip_sample=False)
    products = scheduler.alphas_cumprod.tolist()
    end = float(scheduler.final_alpha_cumprod)
    timesteps = [int(t) for t in scheduler.timesteps]
    # The step goes back by a fixed number of timesteps, which with some spacings is not the next of the table.
    back = scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
    pairs = [(products[t], products[t - back] if t >= back else end) for t in timesteps]
    levels = [(_vp(now), _vp(after)) for now, after in pairs]
    return Sampler.from_levels(levels, kind=_kind(scheduler), solver=DDIM(eta), timesteps=timesteps)


def _vp(product: float) -> Level:
    return product**0.5, (1.0 - product) ** 0.5


def _dpm(scheduler: Any, _: float) -> Sampler:
    config = scheduler.config
    algorithms = ("dpmsolver++", "sde-dpmsolver++")
    _refuse(scheduler, thresholding=False, algorithm_type=algorithms, solver_order=(1, 2), variance_type=None)
    eta = float(config["algorithm_type"] == "sde-dpmsolver++")
    solver: DDIM | DPMSolver2M = DDIM(eta)
    if config["solver_order"] == 2:
        if eta:
            _refuse(scheduler, solver_type="midpoint")
        last = config["euler_at_final"], config["final_sigmas_type"] == "zero"
        solver = DPMSolver2M(eta, config["solver_type"], config["lower_order_final"], any(last))
    sigmas = scheduler.sigmas.tolist()
    flow = bool(config.get("use_flow_sigmas", False))
    kind = _kind(scheduler)
    if (kind == "flow") != flow:
        raise ValueError(f"scheduler: prediction_type {config['prediction_type']!r} with use_flow_sigmas={flow}")
    table = [(1.0 - s, s) if flow else ((s * s + 1.0) ** -0.5, s * (s * s + 1.0) ** -0.5) for s in sigmas]
    return Sampler.from_levels(chain(table), kind=kind, solver=solver, timesteps=scheduler.timesteps)


_READERS: dict[str, Callable[[Any, float], Sampler]] = {
    "FlowMatchEulerDiscreteScheduler": _flow,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _ancestral,
    "DDIMScheduler": _ddim,
    "DPMSolverMultistepScheduler": _dpm,
}
