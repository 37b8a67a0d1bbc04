"""Every kernel compiles for every target, without a GPU, and is what it should be in machine code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fastcfg_kernels.aot import TARGETS, compile_ahead
from fastcfg_kernels.triton_backend import interpreting

from fastcfg import CFG

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    # Triton chooses between its interpreter and its compiler when it is imported: this needs a process of its own.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("compile_everything.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_for(target: str, rows: list[Row]) -> None:
    kernels = {(r["rule"], r["kernel"]) for r in rows if r["target"] == target and r["binary"] > 0}
    everything = {"row_kernel", "tile_kernel", "apply_kernel"}
    assert kernels == {("cfg", "apply_kernel")} | {
        (rule, kernel) for rule in ("rescale", "perp_neg", "clamp") for kernel in everything
    }


def _nvidia(rows: list[Row]) -> list[Row]:
    found = [r for r in rows if r["target"] == "cuda:90"]
    if any(r["spills"] < 0 for r in found):
        pytest.skip("Triton's wheel has no CUDA binary tools here")
    return found


def test_a_row_stays_in_registers_up_to_the_limits_of_the_plan(rows: list[Row]) -> None:
    found = [r for r in _nvidia(rows) if r["kernel"] == "row_kernel"]
    assert {r["count"] for r in found} == {4096, 8192, 16384}
    assert {(r["rule"], r["dtype"], r["count"]): r["spills"] for r in found if r["spills"]} == {}
    assert all(r["registers"] <= 128 for r in found), "16 warps leave 128 registers a thread"


def test_aligned_kernels_read_and_write_vectors(rows: list[Row]) -> None:
    for row in _nvidia(rows):
        aligned = not (row["kernel"] != "row_kernel" and row["rule"] == "rescale" and row["dtype"] == "bfloat16")
        if aligned:
            assert row["vector_loads"] > 0, row
    both = [r for r in _nvidia(rows) if (r["rule"], r["dtype"], r["kernel"]) == ("rescale", "bfloat16", "apply_kernel")]
    assert [bool(r["vector_loads"]) for r in both] == [True, False], "aligned, then not aligned"


@pytest.mark.skipif(not interpreting(), reason="the compiler is there")
def test_the_interpreter_cannot_compile() -> None:
    with pytest.raises(RuntimeError, match="target: Triton's interpreter is on"):
        compile_ahead(CFG(rescale=0.5).program, torch.bfloat16, "cuda:90")
