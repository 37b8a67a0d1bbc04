"""The fused guidance op: Gram sums → weights → combine, on tensors and formulas alone.

Nothing here knows about diffusion; :mod:`fastcfg` holds the rules.
"""

import torch

from .versions import check_torch

check_torch(torch.__version__)

# ruff: noqa: E402 -- What follows reads names that an older torch lacks.
from . import math
from .backends.cpu.entry import ShortWay, short_way
from .backends.registry import Backend, choose_backend
from .backends.triton.launch_plan import LaunchPlan, plan_launch
from .call import Call, Target, make_call
from .checks import check_param
from .former_modules import keep_former_modules
from .formula.capture import by_value, captured_numbers, content_digest
from .formula.generated import formula_from_source, function_from_source
from .formula.program import Program, Stage, compile_program
from .formula.stats import STATS
from .guide import guide, guide_checked, guide_outputs
from .lerp import lerp_weight
from .shadow import shadow

__all__ = [
    "STATS",
    "Backend",
    "Call",
    "LaunchPlan",
    "Program",
    "ShortWay",
    "Stage",
    "Target",
    "by_value",
    "captured_numbers",
    "check_param",
    "choose_backend",
    "compile_program",
    "content_digest",
    "formula_from_source",
    "function_from_source",
    "guide",
    "guide_checked",
    "guide_outputs",
    "lerp_weight",
    "make_call",
    "math",
    "plan_launch",
    "shadow",
    "short_way",
]

keep_former_modules(
    {
        "fastcfg_kernels.program": "fastcfg_kernels.formula.program",
        "fastcfg_kernels.gpu": "fastcfg_kernels.backends.triton",
    }
)
