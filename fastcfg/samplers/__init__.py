"""Solver steps as weights: tables of noise levels in, and for each step the numbers that the guidance's pass takes.

A step of Euler, DDIM or DPM-Solver++ is a weighted sum of the guided prediction, x, the clean sample of the step before
and noise. :func:`fastcfg.guide_step` adds it to the pass that guides.
"""

from .sampler import Sampler
from .schedulers import from_scheduler
from .solvers import DDIM, DPMSolver2M, Solver
from .step import Step

__all__ = ["DDIM", "DPMSolver2M", "Sampler", "Solver", "Step", "from_scheduler"]
