"""Guidance rules. Each module holds one family; a rule's formula stands above its class."""

from .base import Parameter, Rule, registry
from .classifier_free import CFG, NegativePrompt
from .custom import rule
from .history import HistoryGuidance
from .inner import InnerGuidance
from .linear import Linear
from .modifiers import Clamp, Rescale
from .multi_condition import DualCFG, InstructPix2Pix, MultiCondition
from .perp_neg import PerpNeg

__all__ = [
    "CFG",
    "Clamp",
    "DualCFG",
    "HistoryGuidance",
    "InnerGuidance",
    "InstructPix2Pix",
    "Linear",
    "MultiCondition",
    "NegativePrompt",
    "Parameter",
    "PerpNeg",
    "Rescale",
    "Rule",
    "registry",
    "rule",
]
