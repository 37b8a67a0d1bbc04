"""What has to be so before torch and Triton are imported.

Without a GPU the kernels run in Triton's interpreter, which Triton chooses at its import; with FASTCFG_SOFTWARE_GPU,
a compute capability such as 90, they are compiled and run on the software GPU of tests/gpu. Threads that wait for work
do not spin, and torch takes one: workers of pytest-xdist share the cores.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("FASTCFG_BACKEND", None)

if os.environ.get("FASTCFG_SOFTWARE_GPU"):
    os.environ.pop("TRITON_INTERPRET", None)
elif not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fastcfg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastcfg")
if arch := os.environ.get("FASTCFG_SOFTWARE_GPU"):
    from gpu import harness

    harness.install(int(arch))


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """accelerate keeps one precision for a process, which the tests of a worker share."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


MARKS = {
    "export": ("export",),
    "gpu": ("triton", "slow"),
    "fastcfg/adapters/test_diffusers": ("diffusers",),
    "conformance/oracles_and_peers": ("diffusers",),
    "conformance/test_peers_and_ours.py": ("diffusers",),
    "conformance/test_comfyui": ("hosts",),
    "kernels/test_gates.py": ("triton", "slow"),
    "kernels/test_binder.py": ("triton",),
    "packaging": ("slow",),
    "fastcfg/distill": ("slow",),
    "fastcfg/parallel": ("slow",),
    "benchmarks": ("slow",),
    "examples": ("slow",),
    "docs": ("slow",),
}
"""Marks of the tests whose path begins so."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(root).as_posix()
        for start, names in MARKS.items():
            if path.startswith(start):
                for name in names:
                    item.add_marker(name)
