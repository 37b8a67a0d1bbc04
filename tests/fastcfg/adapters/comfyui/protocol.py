"""ComfyUI's hook protocol, as far as the nodes use it: a model patcher, the sampling function, a guider's run.

The network is a function of the latent and of one number in each condition, so that predictions are known.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

__all__ = ["CONST", "EPS", "V_PREDICTION", "Guider", "Patcher", "conditioning", "install_fake", "predict", "run"]


class EPS:
    """Sampling of ``x = x0 + sigma * noise``."""

    def percent_to_sigma(self, percent: float) -> float:
        return 10.0 * (1.0 - percent)


class V_PREDICTION(EPS):
    """The same, for networks that predict v."""


class CONST(EPS):
    """Sampling of ``x = (1 - sigma) * x0 + sigma * noise``."""

    def percent_to_sigma(self, percent: float) -> float:
        return 1.0 - percent


class Model:
    """ComfyUI's ``BaseModel``."""

    def __init__(self, sampling: type = EPS) -> None:
        self.model_sampling = sampling()
        self.calls: list[list[float]] = []
        self.encoded = 0

    def extra_conds(self, **params: Any) -> dict[str, Any]:
        self.encoded += 1
        return {"c": params["cross_attn"]}


def predict(x: Tensor, value: float) -> Tensor:
    """The clean sample under a condition: elementwise."""
    return 0.3 * x + value * torch.cos(3.0 * x + value)


class Patcher:
    """ComfyUI's ``ModelPatcher``."""

    def __init__(self, sampling: type = EPS) -> None:
        self.model = Model(sampling)
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.additional: dict[str, list[Any]] = {}

    def clone(self) -> Patcher:
        other = copy.copy(self)
        other.model_options = _nested(self.model_options)
        other.wrappers = {kind: {k: list(v) for k, v in by.items()} for kind, by in self.wrappers.items()}
        return other

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def set_model_sampler_cfg_function(self, function: Any, disable_cfg1_optimization: bool = False) -> None:
        assert len(inspect.signature(function).parameters) == 1
        self.model_options["sampler_cfg_function"] = function
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.model_options["sampler_post_cfg_function"] = [
            *self.model_options.get("sampler_post_cfg_function", []), function
        ]  # fmt: skip

    def set_model_sampler_pre_cfg_function(self, function: Any) -> None:
        self.model_options["sampler_pre_cfg_function"] = [
            *self.model_options.get("sampler_pre_cfg_function", []), function
        ]  # fmt: skip

    def set_model_sampler_calc_cond_batch_function(self, function: Any) -> None:
        self.model_options["sampler_calc_cond_batch_function"] = function

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def set_additional_models(self, key: str, models: list[Any]) -> None:
        self.additional = {**self.additional, key: models}

    def pre_run(self) -> None:
        """Nothing to load."""


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _nested(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
        for key, value in options.items()
    }


def conditioning(value: float) -> list[Any]:
    """A CONDITIONING of one number."""
    return [[value, {}]]


def _convert_cond(cond: list[Any]) -> list[Any]:
    return [{**options, "cross_attn": value, "model_conds": {}} for value, options in cond]


def _encode(extra_conds: Any, conds: list[Any], noise: Tensor, device: Any, kind: str, **_: Any) -> list[Any]:
    return [{**cond, "model_conds": extra_conds(**{"prompt_type": kind, **cond})} for cond in conds]


def _calc_cond_batch(model: Model, conds: list[Any], x: Tensor, sigma: Tensor, options: dict[str, Any]) -> list[Tensor]:
    patches = options.get("transformer_options", {}).get("patches_replace", {})
    change = 0.0 if not patches else 0.25 * sum(len(by) for by in patches.values())
    model.calls.append([cond[0]["model_conds"]["c"] for cond in conds if cond is not None])
    return [torch.zeros_like(x) if cond is None else predict(x, cond[0]["model_conds"]["c"] - change) for cond in conds]


def _replace(options: dict[str, Any], patch: Any, name: str, block: str, number: int) -> dict[str, Any]:
    transformer = dict(options["transformer_options"])
    patches = dict(transformer.get("patches_replace", {}))
    patches[name] = {**patches.get(name, {}), (block, number): patch}
    return {**options, "transformer_options": {**transformer, "patches_replace": patches}}


def _sampling_function(
    model: Model, x: Tensor, sigma: Tensor, uncond: Any, cond: Any, scale: float, options: dict[str, Any]
) -> Tensor:
    if abs(scale - 1.0) < 1e-9 and not options.get("disable_cfg1_optimization", False):
        uncond = None
    conds = [cond, uncond]
    shared = {"input": x, "sigma": sigma, "model": model, "model_options": options}
    calc = options.get("sampler_calc_cond_batch_function")
    out = calc({"conds": conds, **shared}) if calc else _calc_cond_batch(model, conds, x, sigma, options)
    shared |= {"timestep": sigma, "cond_scale": scale}
    for hook in options.get("sampler_pre_cfg_function", []):
        out = hook({**shared, "conds": conds, "conds_out": out})
    c, u = out
    denoised = {"cond_denoised": c, "uncond_denoised": u}
    if "sampler_cfg_function" in options:
        inputs = {"cond": x - c, "uncond": x - u, "input_cond": cond, "input_uncond": uncond}
        result = x - options["sampler_cfg_function"]({**shared, **denoised, **inputs})
    else:
        result = u + (c - u) * scale
    for hook in options.get("sampler_post_cfg_function", []):
        result = hook({**shared, **denoised, "cond": cond, "uncond": uncond, "denoised": result})
    return result


class Guider:
    """ComfyUI's ``CFGGuider``."""

    def __init__(self, patcher: Patcher) -> None:
        self.model_patcher = patcher
        self.model_options = patcher.model_options
        self.original_conds: dict[str, Any] = {}
        self.cfg = 1.0

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.inner_set_conds({"positive": positive, "negative": negative})

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        self.original_conds |= {name: _convert_cond(cond) for name, cond in conds.items()}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        conds = self.conds
        options = model_options or {}
        return _sampling_function(
            self.inner_model, x, timestep, conds.get("negative"), conds["positive"], self.cfg, options
        )

    def inner_sample(self, noise: Tensor, sigmas: Tensor, solver: Callable[..., Tensor]) -> Tensor:
        options = _nested(self.model_options)
        options["transformer_options"]["sample_sigmas"] = sigmas
        extra_args = {"model_options": options}

        def sample(guider: Guider, levels: Tensor, extra: dict[str, Any]) -> Tensor:
            return solver(lambda x, s: guider.predict_noise(x, s, extra["model_options"]), noise, levels)

        run: Callable[..., Tensor] = sample
        for wrapper in [w for by in self.model_patcher.wrappers.get("sampler_sample", {}).values() for w in by]:
            inner = run
            run = lambda *args, w=wrapper, inner=inner: w(inner, *args)  # noqa: E731
        return run(self, sigmas, extra_args)

    def sample(self, noise: Tensor, sigmas: Tensor, solver: Callable[..., Tensor] | None = None) -> Tensor:
        model = self.inner_model = self.model_patcher.model
        self.conds = {
            name: _encode(model.extra_conds, cond, noise, noise.device, name)
            for name, cond in self.original_conds.items()
        }
        return self.inner_sample(noise, sigmas, solver or euler)


def euler(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler's method."""
    for sigma, after in itertools.pairwise(sigmas):
        slope = (x - denoise(x, sigma.expand(x.shape[0]))) / sigma
        x = x + slope * (after - sigma)
    return x


def run(patcher: Patcher, noise: Tensor, cfg: float, sigmas: Tensor, **options: Any) -> Tensor:
    """A run of a MODEL under the conditions 1 and -0.5."""
    guider = Guider(patcher)
    guider.set_conds(conditioning(1.0), conditioning(-0.5))
    guider.set_cfg(cfg)
    return guider.sample(noise, sigmas, **options)


def install_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import comfy.…`` find this protocol."""
    modules = {
        "comfy": {},
        "comfy.samplers": {
            "CFGGuider": Guider, "calc_cond_batch": _calc_cond_batch, "encode_model_conds": _encode
        },
        "comfy.sampler_helpers": {"convert_cond": _convert_cond},
        "comfy.model_patcher": {"set_model_options_patch_replace": _replace},
    }  # fmt: skip
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
