"""fastcfg: the guidance of diffusion samplers, fused, exact and complete.

A rule is a frozen value; :func:`guide` applies it to the denoiser's predictions; :class:`GuidedDenoiser` is a model
and its guidance as one callable.
"""

from . import schedules
from .denoiser import GuidedDenoiser
from .guidance import guide, split_batch
from .rules import (
    CFG,
    Clamp,
    DualCFG,
    HistoryGuidance,
    InnerGuidance,
    InstructPix2Pix,
    Linear,
    MultiCondition,
    NegativePrompt,
    PerpNeg,
    Rescale,
    Rule,
    rule,
)
from .schedules import Schedule
from .version import __version__

__all__ = [
    "CFG",
    "Clamp",
    "DualCFG",
    "GuidedDenoiser",
    "HistoryGuidance",
    "InnerGuidance",
    "InstructPix2Pix",
    "Linear",
    "MultiCondition",
    "NegativePrompt",
    "PerpNeg",
    "Rescale",
    "Rule",
    "Schedule",
    "__version__",
    "guide",
    "rule",
    "schedules",
    "split_batch",
]
