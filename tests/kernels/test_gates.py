"""Every kernel compiles for every target, without a GPU, and is what it should be in machine code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fastcfg_kernels.backends.triton import gates
from fastcfg_kernels.backends.triton.aot import TARGETS, Compiled, Sizes, compile_ahead
from fastcfg_kernels.backends.triton.backend import interpreting

from .oldest_triton import oldest_triton

KERNELS = {"row_kernel", "cooperative_kernel", "tile_kernel", "apply_kernel"}
Rows = list[dict[str, Any]]


def run_gates(cache: Path, *arguments: str, triton: Path | None = None) -> Rows:
    # Triton chooses between its interpreter and its compiler when it is imported: this needs a process of its own.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    if triton is not None:
        environment["PYTHONPATH"] = str(triton)
    command = [sys.executable, "-m", "fastcfg_kernels.backends.triton.gates", "--json", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    cache = tmp_path_factory.mktemp("triton")
    others = [f"--target={name}" for name in TARGETS if name != "cuda:90"]
    return run_gates(cache, "--target=cuda:90") + run_gates(cache, "--brief", *others)


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_keeps_its_limits_on(target: str, rows: Rows) -> None:
    found = [row for row in rows if row["compiled"]["target"] == target]
    # Programs that wait for each other are NVIDIA's alone.
    expected = KERNELS if target.startswith("cuda") else KERNELS - {"cooperative_kernel"}
    assert {row["compiled"]["kernel"] for row in found} == expected
    assert all(row["compiled"]["binary"] > 0 for row in found)


def test_every_program_runs_in_one_launch_and_one_read(rows: Rows) -> None:
    found = [row for row in rows if row["compiled"]["target"] == "cuda:90" and row["sizes"]["aligned"]]
    if any(row["compiled"]["registers"] < 0 for row in found):
        pytest.skip("Triton's wheel has no CUDA binary tools here")
    for name, program in gates.programs().items():
        kernels = {row["compiled"]["kernel"]: row["compiled"] for row in found if row["program"] == name}
        assert set(kernels) >= ({"cooperative_kernel"} if program.reduces else {"apply_kernel"})
        assert all(one["loads"] == 1.0 and one["load_bits"] == 128 for one in kernels.values()), name


def test_the_limits_are_limits() -> None:
    good = Compiled("row_kernel", "cuda:90", "row", 128, 0, 1.0, 128, 128, 2, 3, 40, 16, 0, 700, 22.0, 9000)
    assert gates.broken(gates.Row("rescale", "bfloat16", Sizes(16_384), good)) == []
    for change, reason in (
        ({"spills": 2}, "2 spill"),
        ({"warps": 8, "registers": 255}, "8 warps on a multiprocessor, of 255 registers"),
        ({"per_element": 26.5}, "26.5 instructions an element"),
        ({"barriers": 9}, "9 barriers"),
        ({"shuffles": 65}, "65 shuffles"),
        ({"loads": 2.0}, "loaded 2.0 times"),
        ({"load_bits": 32}, "loads of 32 bits"),
        ({"store_bits": 16}, "stores of 16 bits"),
        ({"longest_sum": 4}, "sums of 4 at once"),
        ({"float64": 1}, "1 float64"),
        ({"binary": 0}, "no machine code"),
    ):
        bad = Compiled(**{**vars(good), **change})
        (found,) = gates.broken(gates.Row("rescale", "bfloat16", Sizes(16_384), bad))
        assert reason in found
        excused = {"float64", "warps", "per_element", "barriers", "shuffles"} & set(change)
        assert bool(gates.broken(gates.Row("rescale", "float64", Sizes(16_384), bad))) == (not excused)


def test_sums_have_one_order_whatever_the_layout(rows: Rows) -> None:
    """Two elements have one sum: dtype, alignment, warps and target set what is where, not what is added."""
    seen = {row["compiled"]["longest_sum"] for row in rows if gates.programs()[row["program"]].reduces}
    assert seen <= {0, 1, 2}, "what is one number already is a sum too"
    assert all(row["compiled"]["longest_sum"] == 2 for row in rows if row["compiled"]["kernel"] == "tile_kernel")


def test_the_oldest_triton_compiles_them_too(tmp_path: Path) -> None:
    rows = run_gates(tmp_path, "--brief", triton=oldest_triton())
    for target in TARGETS:
        found = {row["compiled"]["kernel"] for row in rows if row["compiled"]["target"] == target}
        assert found == (KERNELS if target.startswith("cuda") else KERNELS - {"cooperative_kernel"})


@pytest.mark.skipif(not interpreting(), reason="the compiler is there")
def test_the_interpreter_cannot_compile() -> None:
    with pytest.raises(RuntimeError, match="target: Triton's interpreter is on"):
        compile_ahead(gates.programs()["rescale"], torch.bfloat16, "cuda:90", Sizes(4096))


def test_a_fixed_order_costs_little_beside_plain_kernels(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).with_name("plain_kernels.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, counts in json.loads(done.stdout).items():
        plain, ours = counts["plain"], counts["ours"]
        assert ours["per_element"] <= 1.2 * plain["per_element"], name
        assert ours["barriers"] <= plain["barriers"], name
