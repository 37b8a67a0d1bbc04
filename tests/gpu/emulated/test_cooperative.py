"""Programs that wait for each other: under every schedule, launch after launch on the same counters."""

import numpy as np
import pytest
import torch
from fastcfg_kernels.backends.triton.gates import programs
from gpu.emulated.devices import argument, device_with, draw, guided
from gpu.softgpu import Deadlock, Fault
from gpu.softgpu.schedules import SCHEDULES

PROGRAM = programs()["rescale"]
GIVEN, _ = draw(PROGRAM, (2, 5 * 4_096 - 7))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_gives_the_same_bits_launch_after_launch(schedule: str) -> None:
    expected = guided(PROGRAM, GIVEN, [], "two_launch")[0]
    with device_with(schedule=schedule) as device:
        tops = []
        for _ in range(3):
            assert torch.equal(guided(PROGRAM, GIVEN, [], "cooperative")[0], expected)
            counters = argument(device.launches[-1], "arrivals", np.uint32)[:2]
            assert not (counters & 0x7FFFFFFF).any(), "the lower bits are zero again"
            tops.append(int(counters[0]) >> 31)
        assert tops[0] == tops[2] != tops[1], "the top bit flips with each launch"


def test_warps_that_take_turns_give_the_same_bits() -> None:
    expected = guided(PROGRAM, GIVEN, [], "two_launch")[0]
    with device_with(warps=True):
        for strategy in ("two_launch", "cooperative"):
            assert torch.equal(guided(PROGRAM, GIVEN, [], strategy)[0], expected)


def test_lower_bits_that_are_not_zero_break_the_barrier() -> None:
    """Why the counters are zero at first: some programs would go on early, and the last one wait for ever."""
    guided(PROGRAM, GIVEN, [], "cooperative")
    with device_with(patience=2_000) as device:
        buffer = next(b for b in device.launches[-1].memory.buffers if b.name == "arrivals")
        index = buffer.index()
        kept = buffer.storage[index].copy()
        try:
            buffer.storage[index] = (kept.view(np.uint32) + np.uint32(5)).view(np.uint8)
            with pytest.raises(Fault):
                guided(PROGRAM, GIVEN, [], "cooperative")
        finally:
            buffer.storage[index] = kept


def test_a_device_that_holds_too_few_blocks_refuses_or_hangs() -> None:
    guided(PROGRAM, GIVEN, [], "cooperative")
    with device_with(resident=132) as device:
        launch = device.launches[-1]
        text, memory = launch.kernel.text, launch.memory
        bits = list(launch.parameters.values())
        again = type(launch)(text, launch.grid, bits, memory, shared=launch.shared, resident=3, patience=2_000)
        with pytest.raises(Deadlock, match="blocks wait"):
            again.run()
        with pytest.raises(Fault, match="a cooperative launch of 10 blocks on a device that holds 3"):
            type(launch)(text, launch.grid, bits, memory, shared=launch.shared, resident=3, cooperative=True)
