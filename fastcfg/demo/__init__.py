"""A demo on real images: a small diffusion model guided in several ways, judged by an independent classifier."""

from .run import DemoResult, run_demo, train_demo

__all__ = ["DemoResult", "run_demo", "train_demo"]
