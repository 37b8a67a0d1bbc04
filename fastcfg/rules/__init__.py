"""Guidance rules. Each module holds one family; a rule's formula stands above its class."""

from .base import Parameter, Rule, registry
from .cached import GatedCFG, ResidualCFG
from .classifier_free import CFG, NegativePrompt
from .custom import rule
from .domain import InDomain
from .fdg import FDG
from .history import HistoryGuidance
from .inner import InnerGuidance
from .linear import Linear
from .modifiers import Clamp, NormCap, Rescale
from .multi_condition import DualCFG, InstructPix2Pix, MultiCondition
from .perp_neg import PerpNeg
from .perturbed import LTX2, Autoguidance, Perturbed, SelfAttentionGuidance
from .projection import APG, TCFG, APGMix, CFGZeroStar, MaMBOG

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
    "HistoryGuidance",
    "InDomain",
    "InnerGuidance",
    "InstructPix2Pix",
    "Linear",
    "MaMBOG",
    "MultiCondition",
    "NegativePrompt",
    "NormCap",
    "Parameter",
    "PerpNeg",
    "Perturbed",
    "Rescale",
    "ResidualCFG",
    "Rule",
    "SelfAttentionGuidance",
    "registry",
    "rule",
]
