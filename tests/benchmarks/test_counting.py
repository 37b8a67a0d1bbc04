"""What a call launches and moves, for each kind of contestant."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import peers
from benchmarks.cases import RULES, Case, contestants, draw
from benchmarks.counting import gpu_launches, work

CASE = Case(RULES[1], (1, 4, 16, 16), "fp32")
BYTES = 4 * 16 * 16 * 4


def own(launches: int) -> int:
    return 1000 * launches


def test_operations_and_bytes_of_torch() -> None:
    a, b = torch.ones(4, 16, 16), torch.ones(4, 16, 16)

    def call() -> torch.Tensor:
        return (a + b).view(-1).mul_(b.flatten()).sum()

    found = work(call, a.numel(), "cpu", own)
    # Three tensors, then three, then the one that is summed; views are free, and the sum is small.
    assert (found.launches, found.moved) == (3, 7 * BYTES)


def test_bytes_of_the_eager_transcription() -> None:
    case = Case(RULES[0], CASE.shape, "fp32")
    found = work(contestants(case, strategies=False)["eager"](draw(case, "cpu")), 1024, "cpu", own)
    assert (found.launches, found.moved) == (3, 8 * BYTES), "c - u, times s, plus u"


def test_lerp_is_one_kernel_and_the_least_bytes() -> None:
    case = Case(RULES[0], CASE.shape, "fp32")
    found = work(contestants(case, strategies=False)["fastcfg"](draw(case, "cpu")), 1024, "cpu", own)
    assert (found.launches, found.moved) == (1, case.least)


def test_our_own_kernels_are_told_by_torch_seeing_nothing() -> None:
    found = work(contestants(CASE, strategies=False)["fastcfg"](draw(CASE, "cpu")), 1024, "cpu", own)
    assert (found.launches, found.moved) == (1, 1000)


@torch.no_grad()
def test_compiled_kernels_and_bytes_are_inductors() -> None:
    # Twice, since the second is found in Inductor's caches.
    for _ in range(2):
        found = work(peers.compiled(CASE.contest.formula)(draw(CASE, "cpu")), 1024, "cpu", own)
        assert found.launches == 2 and found.moved is not None
        assert 5 * BYTES <= found.moved <= 5 * BYTES + 64, "two reads, the second reads and the write, and some scalars"


def test_gpu_launches_counts_what_the_gpu_did() -> None:
    log: list[str] = []
    on_gpu, on_host = SimpleNamespace(device_type=DeviceType.CUDA), SimpleNamespace(device_type=DeviceType.CPU)

    class Profile:
        def __init__(self, activities: list[object]) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> Profile:
            log.append("profiling")
            return self

        def __exit__(self, *error: object) -> None:
            log.append("done")

        def events(self) -> list[SimpleNamespace]:
            return [on_gpu, on_host, on_gpu]

    def call() -> torch.Tensor:
        log.append("call")
        return torch.ones(1)

    assert gpu_launches(call, SimpleNamespace(profile=Profile), lambda: log.append("wait")) == 2
    assert log == ["wait", "profiling", "call", "wait", "done"], "kernels of before and after would count"


def test_what_a_call_raises_comes_out() -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        work(broken, 1, "cpu", own)
