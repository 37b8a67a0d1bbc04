"""fastcfg behind diffusers' own interfaces: guiders for its modular pipelines, rules in its classic ones."""

from __future__ import annotations

try:
    from diffusers.guiders import LTX2Guidance, MagnitudeAwareGuidance  # noqa: F401  The newest ones.
except ImportError as error:
    raise ImportError(
        f"fastcfg.adapters.diffusers needs diffusers >= 0.42 ({error}); pip install 'fastcfg-diffusion[diffusers]'"
    ) from error

from .fuse import FuseReport, fuse, fuse_guider
from .guiders.counterparts import (
    FusedAdaptiveProjectedGuidance,
    FusedAdaptiveProjectedMixGuidance,
    FusedClassifierFreeGuidance,
    FusedClassifierFreeZeroStarGuidance,
    FusedFrequencyDecoupledGuidance,
    FusedMagnitudeAwareGuidance,
    FusedTangentialClassifierFreeGuidance,
)
from .guiders.perturbed import (
    FusedAutoGuidance,
    FusedLTX2Guidance,
    FusedPerturbedAttentionGuidance,
    FusedSkipLayerGuidance,
    FusedSmoothedEnergyGuidance,
)
from .guiders.rules import (
    DualGuidance,
    DynamicThresholdingGuidance,
    FrameGuidance,
    InstructPix2PixGuidance,
    MultiConditionGuidance,
    PerpNegGuidance,
    RuleGuidance,
    ScheduledGuidance,
)
from .pipelines.forms import PipelineForm
from .pipelines.guidance import PipelineGuidance
from .pipelines.guided import guided
from .pipelines.table import coverage, own_rule

__all__ = [
    "DualGuidance",
    "DynamicThresholdingGuidance",
    "FrameGuidance",
    "FuseReport",
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
    "InstructPix2PixGuidance",
    "MultiConditionGuidance",
    "PerpNegGuidance",
    "PipelineForm",
    "PipelineGuidance",
    "RuleGuidance",
    "ScheduledGuidance",
    "coverage",
    "fuse",
    "fuse_guider",
    "guided",
    "own_rule",
]
