"""vllm-omni's ``CFGParallelMixin``: ``VLLM_OMNI_PATH`` names a checkout or the unpacked wheel."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .stubs import stand_ins

__all__ = ["MODULE", "WHY", "load"]

_ROOT = os.environ.get("VLLM_OMNI_PATH")
WHY = None if _ROOT else "VLLM_OMNI_PATH names no vllm-omni"
MODULE = "vllm_omni.diffusion.distributed.cfg_parallel"


def load() -> Any:
    """Their module of the mixin, on one rank, without the rest of the package."""
    path = Path(str(_ROOT)) / Path(*MODULE.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"VLLM_OMNI_PATH: expected {path}")
    module = importlib.util.module_from_spec(spec)
    with stand_ins(["vllm", "vllm_omni"]):
        spec.loader.exec_module(module)
    module._get_cfg_world_size_or_one = lambda: 1  # type: ignore[attr-defined]
    return module


def installed(module: ModuleType) -> dict[str, ModuleType]:
    """What ``sys.modules`` needs for ``import vllm_omni…`` to find the module."""
    parts = MODULE.split(".")
    packages = {".".join(parts[:i]): ModuleType(".".join(parts[:i])) for i in range(1, len(parts))}
    assert "vllm_omni" not in sys.modules
    return {**packages, MODULE: module}
