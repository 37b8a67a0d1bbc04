"""Guidance distillation: a guided teacher becomes a student that takes the scale as an input and needs one pass.

A :class:`Task` is a :class:`fastcfg.GuidedDenoiser` and what it is given to denoise; :func:`distill` trains a student
on it; :func:`load_student` reads the student's file as a denoiser for any sampler. Training needs accelerate, adapters
peft, files safetensors: ``pip install 'fastcfg-diffusion[distill]'``.

Source: Meng et al., 2210.03142.
"""

from ..denoiser.conventions import (
    check_double_guidance,
    flux_guidance_embedding,
    flux_guidance_value,
    lcm_embedding,
    lcm_weight,
    scale_from_lcm_weight,
)
from .card import Card
from .config import DistillConfig
from .embedding import Convention, FluxScaleEmbedding, LCMScaleEmbedding
from .evaluate import Gap, StepTime, gap, gaps, step_time, student_sample, teacher_sample
from .families import Family, Network, family_of, register_family
from .lora import LoraConfig
from .run import distill
from .student import ScaledNetwork, Student
from .student_file import load_student, save_student
from .task import Task, fingerprint
from .train import Distiller

__all__ = [
    "Card",
    "Convention",
    "DistillConfig",
    "Distiller",
    "Family",
    "FluxScaleEmbedding",
    "Gap",
    "LCMScaleEmbedding",
    "LoraConfig",
    "Network",
    "ScaledNetwork",
    "StepTime",
    "Student",
    "Task",
    "check_double_guidance",
    "distill",
    "family_of",
    "fingerprint",
    "flux_guidance_embedding",
    "flux_guidance_value",
    "gap",
    "gaps",
    "lcm_embedding",
    "lcm_weight",
    "load_student",
    "register_family",
    "save_student",
    "scale_from_lcm_weight",
    "step_time",
    "student_sample",
    "teacher_sample",
]
