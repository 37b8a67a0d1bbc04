"""k-diffusion from a checkout: ``KDIFFUSION_PATH`` names it.

It is read file by file, for its package imports what trains and measures models.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .stubs import stand_ins

__all__ = ["WHY", "external", "sampling"]

_ROOT = os.environ.get("KDIFFUSION_PATH")
WHY = None if _ROOT else "KDIFFUSION_PATH names no checkout of k-diffusion"


@cache
def _package() -> str:
    """Their package's name here, under which its modules are imported one by one."""
    folder = Path(str(_ROOT)) / "k_diffusion"
    if not (folder / "sampling.py").is_file():
        raise FileNotFoundError(f"KDIFFUSION_PATH: expected a checkout of k-diffusion, got {_ROOT}")
    package = ModuleType("k_diffusion_checkout")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    with stand_ins(["torchvision", "torchdiffeq", "torchsde", "scipy", "safetensors", "PIL", "tqdm"]):
        import_module(f"{package.__name__}.external")
    return package.__name__


def sampling() -> Any:
    """``k_diffusion.sampling``."""
    return sys.modules[f"{_package()}.sampling"]


def external() -> Any:
    """``k_diffusion.external``."""
    return sys.modules[f"{_package()}.external"]
