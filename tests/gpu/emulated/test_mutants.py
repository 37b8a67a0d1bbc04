"""A kernel with one fault put in is caught: it raises, or gives other bits.

The programs are ones in which each fault counts: of a vector that only its square is needed of, swapped operands change
nothing.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from fastcfg_kernels.backends.triton.gates import programs
from gpu.emulated.devices import device_with, draw, guided, whole
from gpu.softgpu import Fault, mutants

COUNTS = {"row": 4_096 - 7, "cooperative": 5 * 4_096 - 7}


def survivors(
    name: str, strategy: str, kind: Callable[[str], Iterator[tuple[str, str]]], most: int = 10
) -> tuple[int, list[str]]:
    """How many mutants there are of a strategy's kernel, ``most`` of them spread over it, and which nothing shows."""
    program = programs()[name]
    given, _ = draw(program, (1, COUNTS[strategy]))
    expected = guided(program, given, [], strategy)[0]
    through = []
    # One program waits long for the other, so that it goes round the loop of the barrier.
    with device_with(patience=3_000, schedule="first starved") as device:
        every = list(kind(device.launches[-1].kernel.text))
        tried = every[:: -(-len(every) // most)]
        for what, mutant in tried:
            device.rewrite = lambda _, mutant=mutant: mutant
            try:
                if torch.equal(guided(program, given, [], strategy)[0], expected):
                    through.append(what)
            except Fault:
                pass
            finally:
                device.rewrite = None
    return len(tried), through


@pytest.fixture(autouse=True)
def fresh_counters() -> Iterator[None]:
    """A mutant may leave the counters of the barrier in any state."""
    yield
    with device_with() as device:
        for launch in device.launches:
            for buffer in launch.memory.buffers:
                if buffer.name == "arrivals":
                    buffer.storage[buffer.index()] = 0


@pytest.mark.parametrize("most", [8, whole(500)])
@pytest.mark.parametrize("strategy", COUNTS)
def test_every_barrier_is_missed(strategy: str, most: int) -> None:
    count, through = survivors("rescale", strategy, mutants.dropped_barriers, most)
    assert count > 0 and through == []


def test_an_order_that_is_missing_is_a_race() -> None:
    count, through = survivors("rescale", "cooperative", mutants.relaxed_orders)
    assert count >= 2 and through == []


def test_swapped_operands_give_other_bits() -> None:
    count, through = survivors("perpendicular", "row", mutants.swapped_operands, most=8)
    assert count > 5 and through == []


@pytest.mark.parametrize("strategy", COUNTS)
def test_a_mask_that_is_one_too_wide_reads_beyond_the_tensor(strategy: str) -> None:
    count, through = survivors("rescale", strategy, mutants.wider_masks)
    assert count > 0 and through == []


def test_lanes_that_are_left_out_change_a_sum() -> None:
    count, through = survivors("perpendicular", "row", mutants.fewer_lanes, most=8)
    assert count > 5 and through == []
