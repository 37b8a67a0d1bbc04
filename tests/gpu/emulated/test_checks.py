"""What the software GPU has to find, in small kernels that are wrong in one way each, and what it must not find."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from gpu.emulated.devices import device_with
from gpu.softgpu import Deadlock, Fault, UnknownForm
from gpu.softgpu.count import Counts
from gpu.softgpu.estimate import LATENCY, Machine, estimate, longest_chain
from gpu.softgpu.parse import Kernel
from gpu.softgpu.schedules import SCHEDULES

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


@triton.jit
def _double(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)


@triton.jit
def _total(x, y, BLOCK: tl.constexpr):
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, BLOCK)), axis=0))


@triton.jit
def _hand_over(x, flag, y, SEND: tl.constexpr, TAKE: tl.constexpr, SCOPE: tl.constexpr):
    """Program 0 writes a number and raises a flag; the others wait for it and read the number."""
    if tl.program_id(0) == 0:
        tl.store(x, 7.0)
        tl.debug_barrier()
        tl.atomic_xchg(flag, 1, sem=SEND, scope=SCOPE)
    else:
        while tl.atomic_add(flag, 0, sem=TAKE, scope=SCOPE) == 0:
            pass
        tl.debug_barrier()
        tl.store(y + tl.program_id(0), tl.load(x))


@triton.jit
def _same_place(y):
    tl.store(y, tl.program_id(0).to(tl.float32))


@triton.jit
def _wait_for_ever(flag, y):
    while tl.atomic_add(flag, 0, sem="acquire") == 0:
        pass
    tl.store(y, 1.0)


def test_a_right_kernel_is_right() -> None:
    x = torch.randn(1_000)
    y = torch.empty(1_000)
    _double[(4,)](x, y, 1_000, 256)
    assert torch.equal(y, x * 2)
    total = torch.empty(1)
    _total[(1,)](x, total, 512)
    assert (total - x[:512].sum()).abs() < 1e-4


def test_beyond_a_tensor() -> None:
    with pytest.raises(Fault, match=r"a load: 4 bytes past the end of x, out of bounds"):
        _double[(4,)](torch.randn(1_000), torch.empty(2_000), 1_001, 256)
    with pytest.raises(Fault, match=r"a store: \d+ bytes past the end of y, out of bounds"):
        _double[(4,)](torch.randn(1_000), torch.empty(990), 1_000, 256)


def test_between_the_elements_of_a_strided_tensor() -> None:
    """The process has memory there, another tensor's perhaps; the argument has not."""
    wide = torch.randn(64, 2)
    with pytest.raises(Fault, match="4 bytes that are not all elements of x, within its strides"):
        _double[(1,)](wide[:, 0], torch.empty(64), 64, 64)


def test_an_address_that_is_not_aligned() -> None:
    """A kernel compiled for 16 bytes, given a pointer at 4: what a cache that forgets the alignment does."""
    x, y = torch.randn(1_028), torch.empty(1_024)
    _double[(1,)](x[:1_024], y, 1_024, 1_024)
    with device_with() as device:
        compiled = device.launches[-1].kernel.text
        assert "ld.global.v4" in compiled
        with device_with(rewrite=lambda text: compiled), pytest.raises(Fault, match="no multiple of 16"):
            _double[(1,)](x[1:1_025], y, 1_024, 1_024)


def test_memory_that_nobody_has_written() -> None:
    with pytest.raises(Fault, match="global memory is read before anything was written there"):
        _double[(1,)](torch.empty(64), torch.empty(64), 64, 64)
    x = torch.full((64,), torch.nan)
    with device_with(unset_is_nan=False):
        _double[(1,)](x, y := torch.empty(64), 64, 64)
        assert y.isnan().all()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda text: text.replace("bar.sync", "// bar.sync", 1), "shared memory"),
        (lambda text: re.sub(r"(?m)^.*\bst\.shared.*$", "", text), "read before anything was written there"),
    ],
    ids=["no barrier", "no store"],
)
def test_shared_memory(change: Callable[[str], str], found: str) -> None:
    x, total = torch.randn(512), torch.empty(1)
    with device_with(rewrite=change), pytest.raises(Fault, match=found):
        _total[(1,)](x, total, 512)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_release_and_acquire_hand_over_what_was_written(schedule: str) -> None:
    x, flag, y = torch.zeros(1), torch.zeros(1, dtype=torch.int32), torch.zeros(4)
    with device_with(schedule=schedule):
        _hand_over[(4,)](x, flag, y, "release", "acquire", "gpu")
    assert y.tolist() == [0.0, 7.0, 7.0, 7.0]


@pytest.mark.parametrize(
    "orders", [("relaxed", "acquire", "gpu"), ("release", "relaxed", "gpu"), ("release", "acquire", "cta")]
)
def test_without_an_order_between_blocks_it_is_a_race(orders: tuple[Any, ...]) -> None:
    x, flag, y = torch.zeros(1), torch.zeros(1, dtype=torch.int32), torch.zeros(4)
    with pytest.raises(Fault, match="global memory is read while another thread writes it"):
        _hand_over[(4,)](x, flag, y, *orders)


def test_two_blocks_that_write_one_place() -> None:
    with pytest.raises(Fault, match="global memory is written while another thread may write it"):
        _same_place[(3,)](torch.zeros(1))


def test_a_wait_for_nothing() -> None:
    flag, y = torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    with device_with(patience=500), pytest.raises(Deadlock, match="2 blocks wait"):
        _wait_for_ever[(2,)](flag, y)


def test_an_instruction_that_is_not_known() -> None:
    """No guess: another rounding, or flushing to zero, is another instruction."""
    change = lambda text: re.sub(r"\bmul\.f32|\badd\.f32", "mul.ftz.f32", text)  # noqa: E731
    with device_with(rewrite=change), pytest.raises(UnknownForm, match=r"_double, line \d+: mul\.ftz\.f32"):
        _double[(1,)](torch.randn(64), torch.empty(64), 64, 64)


def test_counts() -> None:
    x, y = torch.randn(1_024), torch.empty(1_024)
    with device_with(count=True) as device:
        _double[(1,)](x, y, 1_024, 1_024)
        counts = device.launches[-1].counts
        # 1,024 float32 are 128 sectors of 32 bytes, whatever the width of the accesses.
        assert counts.sectors == {"load": 128, "store": 128} == counts.least
        assert counts.requests["load"] == 8, "32 lanes of 16 bytes each"
        strided = torch.randn(1_024, 8)[:, 0]
        assert counts.instructions()["float32"] == 32
        _strided[(1,)](strided, y, 8, 1_024)
        counts = device.launches[-1].counts
        assert counts.sectors["load"] == 1_024 and counts.least["load"] == 128


def test_bank_conflicts() -> None:
    """32 banks of 4 bytes: a column of a 32 x 32 array is in one of them, and with a row of 33 in all."""
    kernel, lanes = Kernel("", [], 32, ""), np.arange(32)
    for step, expected in ((1, 1), (32, 32), (33, 1), (2, 2), (0, 1)):
        counts = Counts(kernel, memory=True)
        counts.shared(lanes * step * 4, lanes, 4, 1)
        assert (counts.wavefronts, counts.least_wavefronts) == (expected, 1), step
    counts = Counts(kernel, memory=True)
    counts.shared(lanes * 16, lanes, 16, 1)
    assert (counts.wavefronts, counts.least_wavefronts) == (4, 4), "16 bytes a lane take four turns"


def test_an_estimate_is_the_largest_of_three_limits() -> None:
    x, y, total = torch.randn(1_024), torch.empty(1_024), torch.empty(1)
    machine = Machine(multiprocessors=2, issue=4, clock=1e9, bandwidth=1e12)
    with device_with(count=True) as device:
        _double[(4,)](x, y, 1_024, 256)
        launch = device.launches[-1]
        found = estimate(launch, machine)
        assert found.traffic == 256 * 32 / 1e12
        # Four blocks on two multiprocessors: the busier has half of all instructions, two blocks one after the other.
        assert found.instructions == pytest.approx(sum(launch.counts.instructions().values()) / 2 / 4 / 1e9)
        chain = longest_chain(launch.kernel, launch.counts.trace)
        assert found.seconds == found.chain == 2 * chain / 1e9
        # A load and the store of its double; no instruction needs the store.
        assert LATENCY["load"] + LATENCY["float32"] + LATENCY["store"] < chain < 2 * LATENCY["load"]
        _total[(1,)](x, total, 512)
        launch = device.launches[-1]
        counts = launch.counts.instructions()
        warps = launch.kernel.threads // 32
        tree = counts["shuffle"] // warps * LATENCY["shuffle"] + counts["barrier"] // warps * LATENCY["barrier"]
        assert longest_chain(launch.kernel, launch.counts.trace) > LATENCY["load"] + tree


@triton.jit
def _strided(x, y, step, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i * step))
