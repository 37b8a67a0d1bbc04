"""fastcfg behind diffusers' own interfaces: guiders for its modular pipelines, rules in its classic ones.

Names are imported when they are used: what concerns classic pipelines needs no guiders, and so works beside an older
diffusers too (that of optimum's pipelines, say).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    import diffusers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"fastcfg.adapters.diffusers needs diffusers >= 0.42 ({error}); pip install 'fastcfg-diffusion[diffusers]'"
    ) from error

if TYPE_CHECKING:
    from .fuse import FuseReport, fuse, fuse_guider, load_guiders, save_guiders
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
    from .pipelines.by_guiders import GuiderRun
    from .pipelines.forms import PipelineForm
    from .pipelines.guidance import PipelineGuidance
    from .pipelines.guided import guided
    from .pipelines.table import coverage, own_rule
    from .weakened import weakened

_HOMES = {
    "fuse": ("FuseReport", "fuse", "fuse_guider", "load_guiders", "save_guiders"),
    "guiders.counterparts": (
        "FusedAdaptiveProjectedGuidance", "FusedAdaptiveProjectedMixGuidance", "FusedClassifierFreeGuidance",
        "FusedClassifierFreeZeroStarGuidance", "FusedFrequencyDecoupledGuidance", "FusedMagnitudeAwareGuidance",
        "FusedTangentialClassifierFreeGuidance",
    ),
    "guiders.perturbed": (
        "FusedAutoGuidance", "FusedLTX2Guidance", "FusedPerturbedAttentionGuidance", "FusedSkipLayerGuidance",
        "FusedSmoothedEnergyGuidance",
    ),
    "guiders.rules": (
        "DualGuidance", "DynamicThresholdingGuidance", "FrameGuidance", "InstructPix2PixGuidance",
        "MultiConditionGuidance", "PerpNegGuidance", "RuleGuidance", "ScheduledGuidance",
    ),
    "pipelines.by_guiders": ("GuiderRun",),
    "pipelines.forms": ("PipelineForm",),
    "pipelines.guidance": ("PipelineGuidance",),
    "pipelines.guided": ("guided",),
    "pipelines.table": ("coverage", "own_rule"),
    "weakened": ("weakened",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_GUIDERS = {"fuse", "pipelines.by_guiders", "weakened"}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home in _GUIDERS or home.startswith("guiders."):
        try:
            from diffusers.guiders import LTX2Guidance, MagnitudeAwareGuidance  # noqa: F401  The newest ones.
        except ImportError as error:
            raise ImportError(
                f"fastcfg.adapters.diffusers.{name} needs diffusers >= 0.42 ({error}); "
                "pip install 'fastcfg-diffusion[diffusers]'"
            ) from error
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


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
    "GuiderRun",
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
    "load_guiders",
    "own_rule",
    "save_guiders",
    "weakened",
]
