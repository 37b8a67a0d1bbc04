"""Runs the tests of the folder ``emulated`` in processes of their own.

Triton chooses between its interpreter and its compiler when it is imported: the other tests have the interpreter.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(path.name for path in Path(__file__).with_name("emulated").glob("test_*.py"))


@pytest.mark.parametrize("name", FILES)
def test_on_the_software_gpu(name: str) -> None:
    environment = {**os.environ, "FASTCFG_SOFTWARE_GPU": "90"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not whole"]
    command.append(f"tests/gpu/emulated/{name}")
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
