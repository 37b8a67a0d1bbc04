"""fastcfg: the guidance of diffusion samplers, fused, exact and complete.

A rule is a frozen value; :func:`guide` applies it to the denoiser's predictions; :class:`GuidedDenoiser` is a model
and its guidance as one callable.
"""

from . import schedules
from .denoiser import GuidedDenoiser
from .guidance import guide, split_batch
from .parameterization import Prediction
from .rules import (
    APG,
    CFG,
    FDG,
    LTX2,
    TCFG,
    APGMix,
    Autoguidance,
    CFGZeroStar,
    Clamp,
    DualCFG,
    GatedCFG,
    HistoryGuidance,
    InDomain,
    InnerGuidance,
    InstructPix2Pix,
    Linear,
    MaMBOG,
    MultiCondition,
    NegativePrompt,
    NormCap,
    PerpNeg,
    Perturbed,
    Rescale,
    ResidualCFG,
    Rule,
    SelfAttentionGuidance,
    rule,
)
from .schedules import Schedule
from .state import State
from .version import __version__

__all__ = [
    "APG",
    "CFG",
    "FDG",
    "LTX2",
    "TCFG",
    "APGMix",
    "Autoguidance",
    "CFGZeroStar",
    "Clamp",
    "DualCFG",
    "GatedCFG",
    "GuidedDenoiser",
    "HistoryGuidance",
    "InDomain",
    "InnerGuidance",
    "InstructPix2Pix",
    "Linear",
    "MaMBOG",
    "MultiCondition",
    "NegativePrompt",
    "NormCap",
    "PerpNeg",
    "Perturbed",
    "Prediction",
    "Rescale",
    "ResidualCFG",
    "Rule",
    "Schedule",
    "SelfAttentionGuidance",
    "State",
    "__version__",
    "guide",
    "rule",
    "schedules",
    "split_batch",
]
