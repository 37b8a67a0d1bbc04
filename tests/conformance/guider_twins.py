"""The guiders of diffusers and their fused counterparts, by the same config, with the oracle of what both compute."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import guiders as stock
from diffusers.guiders.guider_utils import BaseGuidance
from torch import Tensor

import fastcfg.adapters.diffusers as fused
from fastcfg import APG

from .cases import BY_NAME, Case, rescaled
from .field_cases import BY_FIELD_NAME, apg
from .peers.diffusers_guiders import has_kornia

__all__ = ["TWINS", "Twin", "at_step", "config_of", "forward"]

# A guider says with each instance that it is experimental, to a logger.
logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)

_TWO = {"uncond": "pred_uncond", "cond": "pred_cond"}
_LTX2 = _TWO | {"perturbed": "pred_cond_stg", "modality": "pred_cond_modality"}


@dataclass(frozen=True)
class Twin:
    """A guider's class name in diffusers, a config, and the oracle's case.

    Attributes:
        names: for each prediction of the case, the guiders' name for it.
        single: whether diffusers computes it in float32 whatever the predictions' dtype.
        shape: of the predictions, where diffusers can't take every shape.
    """

    name: str
    config: Mapping[str, Any]
    case: Case
    names: Mapping[str, str] = field(default_factory=lambda: _TWO)
    single: bool = False
    shape: tuple[int, ...] = (2, 4, 16, 32)

    def __str__(self) -> str:
        given = "-".join(f"{k}={v}" for k, v in self.config.items() if "config" not in k)
        return f"{self.name}-{given}"

    @property
    def ours(self) -> type[fused.FusedClassifierFreeGuidance]:
        return getattr(fused, f"Fused{self.name}")  # type: ignore[no-any-return]

    @property
    def theirs(self) -> type[BaseGuidance]:
        return getattr(stock, self.name)  # type: ignore[no-any-return]

    def pair(self, **more: Any) -> tuple[BaseGuidance, fused.FusedClassifierFreeGuidance]:
        return self.theirs(**self.config, **more), self.ours(**self.config, **more)


def at_step(guider: BaseGuidance, step: int, steps: int = 10) -> BaseGuidance:
    """The guider where its inputs have been prepared at a step."""
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(500))
    guider.prepare_inputs({"x": (None,) * 4})
    return guider


def forward(guider: BaseGuidance, twin: Twin, predictions: Mapping[str, Tensor]) -> Any:
    """What the guider makes of a case's predictions."""
    return guider.forward(**{twin.names[name]: tensor for name, tensor in predictions.items()})


def config_of(guider: BaseGuidance) -> dict[str, Any]:
    """The config without diffusers' own keys, nor what diffusers has not."""
    return {k: v for k, v in guider.config.items() if not k.startswith("_") and k != "numerics"}


def _weak(name: str, prefix: str, layers: str, weak: str, base: str = "uncond", **config: Any) -> Twin:
    scale, other = (7.5, 2.8) if base == "uncond" else (6.5, 3.0)
    given = {
        "guidance_scale": scale, f"{prefix}_scale": other, f"{prefix}_start": 0.0, f"{prefix}_stop": 1.0, layers: [0],
        "use_original_formulation": base == "cond", **config,
    }  # fmt: skip
    case = BY_FIELD_NAME["Perturbed" if base == "uncond" else "Perturbed_cond"]
    return Twin(name, given, case, _TWO | {"perturbed": weak})


_AUTO = {"auto_guidance_layers": [0], "dropout": 1.0}
_AUTO_NAMES = {"perturbed": "pred_uncond", "cond": "pred_cond"}
_APG = "AdaptiveProjectedGuidance"
_RESCALED = {"guidance_rescale": 0.7}
_ORIGINAL = {"use_original_formulation": True}
_CFG_RESCALED = BY_NAME["CFG(rescale)"]

TWINS: tuple[Twin, ...] = (
    Twin("ClassifierFreeGuidance", {"guidance_scale": 7.5}, BY_NAME["CFG"]),
    Twin("ClassifierFreeGuidance", {"guidance_scale": 7.5, **_RESCALED}, _CFG_RESCALED),
    Twin("ClassifierFreeGuidance", {"guidance_scale": 2.5, **_ORIGINAL}, BY_NAME["CFG_cond"]),
    Twin(_APG, {"guidance_scale": 7.5, "eta": 0.25}, apg("eta", APG(7.5, eta=0.25, norm_threshold=15.0))),
    Twin(
        _APG, {"guidance_scale": 6.5, "eta": 0.0, "adaptive_projected_guidance_rescale": 0.0, **_ORIGINAL},
        apg("cond", APG(6.5, eta=0.0, norm_threshold=0.0, base="cond")),
    ),
    Twin(
        _APG, {"guidance_scale": 7.5, "eta": 0.0, **_RESCALED},
        rescaled(apg("rescaled", APG(7.5, eta=0.0, norm_threshold=15.0)), "std", 0.7),
    ),
    Twin("AdaptiveProjectedMixGuidance", {"guidance_scale": 7.5}, BY_NAME["CFG"]),
    Twin(
        "ClassifierFreeZeroStarGuidance", {"guidance_scale": 7.5, "zero_init_steps": 0},
        BY_FIELD_NAME["CFGZeroStar"], single=True,
    ),
    Twin(
        "ClassifierFreeZeroStarGuidance", {"guidance_scale": 6.5, "zero_init_steps": 0, **_ORIGINAL},
        BY_FIELD_NAME["CFGZeroStar_cond"], single=True,
    ),
    Twin(
        "ClassifierFreeZeroStarGuidance", {"guidance_scale": 7.5, "zero_init_steps": 0, **_RESCALED},
        rescaled(BY_FIELD_NAME["CFGZeroStar"], "std", 0.7), single=True,
    ),
    Twin("TangentialClassifierFreeGuidance", {"guidance_scale": 7.5}, BY_FIELD_NAME["TCFG"], single=True),
    Twin(
        "TangentialClassifierFreeGuidance", {"guidance_scale": 6.5, **_ORIGINAL},
        BY_FIELD_NAME["TCFG_cond"], single=True,
    ),
    Twin("MagnitudeAwareGuidance", {"guidance_scale": 7.5}, BY_FIELD_NAME["MaMBOG"], shape=(2, 16, 64)),
    Twin(
        "MagnitudeAwareGuidance", {"guidance_scale": 6.5, "alpha": 0.7, **_ORIGINAL},
        BY_FIELD_NAME["MaMBOG_cond"], shape=(2, 16, 64),
    ),
    Twin("AutoGuidance", {"guidance_scale": 2.5, **_AUTO}, BY_FIELD_NAME["Autoguidance"], _AUTO_NAMES),
    Twin(
        "AutoGuidance", {"guidance_scale": 1.5, **_AUTO, **_ORIGINAL}, BY_FIELD_NAME["Autoguidance_cond"], _AUTO_NAMES
    ),
    Twin(
        "AutoGuidance", {"guidance_scale": 2.5, **_AUTO, **_RESCALED},
        rescaled(BY_FIELD_NAME["Autoguidance"], "std", 0.7), _AUTO_NAMES,
    ),
    _weak("SkipLayerGuidance", "skip_layer_guidance", "skip_layer_guidance_layers", "pred_cond_skip"),
    _weak("SkipLayerGuidance", "skip_layer_guidance", "skip_layer_guidance_layers", "pred_cond_skip", base="cond"),
    _weak("PerturbedAttentionGuidance", "perturbed_guidance", "perturbed_guidance_layers", "pred_cond_skip"),
    _weak("SmoothedEnergyGuidance", "seg_guidance", "seg_guidance_layers", "pred_cond_seg"),
    Twin(
        "LTX2Guidance", {"guidance_scale": 3.0, "stg_scale": 1.5, "modality_scale": 2.5}, BY_FIELD_NAME["LTX2"], _LTX2
    ),
    Twin(
        "LTX2Guidance", {"guidance_scale": 3.0, "stg_scale": 1.5, "modality_scale": 2.5, **_RESCALED},
        rescaled(BY_FIELD_NAME["LTX2"], "std", 0.7), _LTX2,
    ),
)  # fmt: skip

FDG_CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    {"guidance_scales": [8.0, 3.0, 2.0], "parallel_weights": [0.5, 1.0, 0.25]},
    {"guidance_rescale": 0.6, "use_original_formulation": True},
    {"guidance_rescale": [0.3, 0.8], "guidance_rescale_space": "freq"},
)
"""Configs of FrequencyDecoupledGuidance, whose rule has a test file of its own."""

KORNIA = has_kornia()
