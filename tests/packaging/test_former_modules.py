"""Modules that moved are found by their former paths, with a warning."""

import subprocess
import sys

import pytest

FORMER = {
    "fastcfg.history": "fastcfg.methods.history",
    "fastcfg.guidance": "fastcfg.core.guide",
    "fastcfg.parameterization": "fastcfg.prediction",
    "fastcfg.distill.conventions": "fastcfg.denoiser.conventions",
    "fastcfg_kernels.program": "fastcfg_kernels.formula.program",
    "fastcfg_kernels.gpu.launch_plan": "fastcfg_kernels.backends.triton.launch_plan",
}


@pytest.mark.parametrize("former", FORMER)
def test_the_former_path_is_the_same_module(former: str) -> None:
    new = FORMER[former]
    code = f"""
import importlib, warnings
import fastcfg
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    found = importlib.import_module({former!r})
assert found is importlib.import_module({new!r}) and found.__name__ == {new!r}, found
assert any(str(w.message) == "{former} is now {new}" for w in seen), [str(w.message) for w in seen]
assert callable(fastcfg.guide) and callable(fastcfg.warmup)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
