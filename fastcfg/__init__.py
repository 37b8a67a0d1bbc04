"""fastcfg: the guidance of diffusion samplers, fused, exact and complete.

A rule is a frozen value; :func:`guide` applies it to the denoiser's predictions; :class:`GuidedDenoiser` is a model
and its guidance as one callable.
"""

from fastcfg_kernels.former_modules import keep_former_modules

from . import schedules
from .core.conditions import Condition
from .core.frames import guide_frames
from .core.guide import guide, split_batch
from .core.state import State
from .core.step import guide_step
from .core.warmup import warmup
from .denoiser import Gate, GuidedDenoiser, PassReport, Requests
from .denoiser.conventions import (
    check_double_guidance,
    flux_guidance_embedding,
    flux_guidance_value,
    lcm_embedding,
    lcm_weight,
    scale_from_lcm_weight,
)
from .denoiser.planner import plan, run_cost
from .methods.attention import attention_mask, degrade, normalized_attention_guidance
from .methods.classifier import (
    ClassifierGuidance,
    classifier_gradient,
    implied_classifier_gradient,
    noisy_accuracy,
    noisy_classifier_loss,
    train_noisy_classifier,
)
from .methods.dropout import ConditionDropout
from .methods.fresca import fresca
from .methods.langevin import langevin, sequence_score, temper
from .methods.logits import guide_logits
from .methods.mahiro import mahiro
from .methods.noise_rescaling import epsilon_scaling, temporal_score_rescaling
from .methods.thresholding import dynamic_threshold, static_threshold
from .methods.universal import universal_gradient, universal_step
from .prediction import Prediction, affine_map, convert, posterior_mean
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
from .rules.presets import Preset, all_presets, guard_extreme_scale, preset, sweet_spot_advice
from .samplers import Sampler
from .samplers.steps import cfg_pp_step, ddim_step
from .schedules import Schedule
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
    "ClassifierGuidance",
    "Condition",
    "ConditionDropout",
    "DualCFG",
    "Gate",
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
    "PassReport",
    "PerpNeg",
    "Perturbed",
    "Prediction",
    "Preset",
    "Requests",
    "Rescale",
    "ResidualCFG",
    "Rule",
    "Sampler",
    "Schedule",
    "SelfAttentionGuidance",
    "State",
    "__version__",
    "affine_map",
    "all_presets",
    "attention_mask",
    "cfg_pp_step",
    "check_double_guidance",
    "classifier_gradient",
    "convert",
    "ddim_step",
    "degrade",
    "dynamic_threshold",
    "epsilon_scaling",
    "flux_guidance_embedding",
    "flux_guidance_value",
    "fresca",
    "guard_extreme_scale",
    "guide",
    "guide_frames",
    "guide_logits",
    "guide_step",
    "implied_classifier_gradient",
    "langevin",
    "lcm_embedding",
    "lcm_weight",
    "mahiro",
    "noisy_accuracy",
    "noisy_classifier_loss",
    "normalized_attention_guidance",
    "plan",
    "posterior_mean",
    "preset",
    "rule",
    "run_cost",
    "scale_from_lcm_weight",
    "schedules",
    "sequence_score",
    "split_batch",
    "static_threshold",
    "sweet_spot_advice",
    "temper",
    "temporal_score_rescaling",
    "train_noisy_classifier",
    "universal_gradient",
    "universal_step",
    "warmup",
]

keep_former_modules(
    {
        **{f"fastcfg.{name}": f"fastcfg.core.{name}" for name in ("conditions", "frames", "state")},
        "fastcfg.guidance": "fastcfg.core.guide",
        "fastcfg.guided_step": "fastcfg.core.step",
        "fastcfg.presets": "fastcfg.rules.presets",
        "fastcfg.catalog": "fastcfg.cli.catalog",
        "fastcfg.steps": "fastcfg.samplers.steps",
        "fastcfg.planner": "fastcfg.denoiser.planner",
        "fastcfg.parameterization": "fastcfg.prediction",
        "fastcfg.geometry": "fastcfg.metrics.geometry",
        "fastcfg.steadiness": "fastcfg.metrics.steadiness",
        "fastcfg.distill.conventions": "fastcfg.denoiser.conventions",
        "fastcfg.distill.demo": "fastcfg.demo.distillation",
        **{
            f"fastcfg.{name}": f"fastcfg.methods.{name}"
            for name in (
                "attention",
                "classifier",
                "dropout",
                "history",
                "langevin",
                "logits",
                "noise_rescaling",
                "thresholding",
                "universal",
            )
        },
    }
)
