"""What has to be so before torch and Triton are imported.

Without a GPU the kernels run in Triton's interpreter, which Triton chooses at its import. Threads that wait for work
do not spin, and torch takes one: workers of pytest-xdist share the cores.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("FASTCFG_BACKEND", None)

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fastcfg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastcfg")


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """accelerate keeps one precision for a process, which the tests of a worker share."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
