"""Triton's binder, which every first launch on a GPU passes through, takes our kernels' arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .oldest_triton import OLDEST, oldest_triton


def bind(triton: Path | None, tmp_path: Path) -> dict[str, dict[str, list[str]]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    paths = [str(triton)] if triton else []
    environment["PYTHONPATH"] = os.pathsep.join([*paths, environment.get("PYTHONPATH", "")])
    script = Path(__file__).with_name("bind_arguments.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert triton is None or answer["triton"] == OLDEST
    return answer["bound"]


@pytest.mark.parametrize("version", ["installed", "oldest"])
def test_the_binder_takes_the_arguments_of_every_kernel(version: str, tmp_path: Path) -> None:
    found = bind(oldest_triton() if version == "oldest" else None, tmp_path)
    kernels = {name for launches in found.values() for name in launches}
    assert kernels == {"row_kernel", "tile_kernel", "apply_kernel", "cooperative_kernel"}
    for launches in found.values():
        for name, kinds in launches.items():
            assert any("*fp32" in kind for kind in kinds), name
            assert any("fp32" in kind and "*" not in kind for kind in kinds), name
