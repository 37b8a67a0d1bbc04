"""A demo on real images: a small diffusion model guided in several ways, judged by an independent classifier."""

from .report import DemoResult
from .run import run_demo, train_demo

__all__ = ["DemoResult", "run_demo", "train_demo"]
