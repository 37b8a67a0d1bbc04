"""fastcfg behind diffusers' own interfaces: guiders for its modular pipelines, with the same arguments as its own."""

from __future__ import annotations

try:
    import diffusers.guiders  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"fastcfg.adapters.diffusers needs diffusers >= 0.42 ({error}); pip install 'fastcfg[diffusers]'"
    ) from error

from .guiders import (
    FusedAdaptiveProjectedGuidance,
    FusedAdaptiveProjectedMixGuidance,
    FusedClassifierFreeGuidance,
    FusedClassifierFreeZeroStarGuidance,
    FusedFrequencyDecoupledGuidance,
    FusedMagnitudeAwareGuidance,
    FusedTangentialClassifierFreeGuidance,
)
from .guiders_perturbed import (
    FusedAutoGuidance,
    FusedLTX2Guidance,
    FusedPerturbedAttentionGuidance,
    FusedSkipLayerGuidance,
    FusedSmoothedEnergyGuidance,
)

__all__ = [
    "FusedAdaptiveProjectedGuidance",
    "FusedAdaptiveProjectedMixGuidance",
    "FusedAutoGuidance",
    "FusedClassifierFreeGuidance",
    "FusedClassifierFreeZeroStarGuidance",
    "FusedFrequencyDecoupledGuidance",
    "FusedLTX2Guidance",
    "FusedMagnitudeAwareGuidance",
    "FusedPerturbedAttentionGuidance",
    "FusedSkipLayerGuidance",
    "FusedSmoothedEnergyGuidance",
    "FusedTangentialClassifierFreeGuidance",
]
