"""The launch plan is plain arithmetic on sizes."""

import pytest
from fastcfg_kernels import plan_launch
from fastcfg_kernels.backends.torch.tiles import TILE
from fastcfg_kernels.backends.triton.launch_plan import CHUNK_BYTES, MAX_TILES
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("count", "tensors", "itemsize", "reduces", "strategy"),
    [
        (4 * 64 * 64, 2, 2, True, "row"),  # SDXL at 512, bf16
        (4 * 64 * 64, 2, 4, True, "row"),
        (4 * 64 * 64, 3, 4, True, "two_launch"),  # three fp32 inputs: beyond the registers
        (4 * 64 * 64 + 1, 2, 2, True, "two_launch"),
        (4 * 64 * 64, 2, 2, False, "two_launch"),  # without sums: one elementwise launch
        (16 * 128 * 128, 2, 2, True, "two_launch"),
        (1, 1, 8, True, "row"),
    ],
)
def test_known_sizes(count: int, tensors: int, itemsize: int, reduces: bool, strategy: str) -> None:
    plan = plan_launch(count, tensors, itemsize, reduces=reduces)
    assert (plan.strategy, plan.tiles) == (strategy, -(-count // TILE))
    assert plan.tile == min(TILE, 1 << (count - 1).bit_length())


@pytest.mark.parametrize(
    ("count", "groups", "programs", "chunk"),
    [
        (65_536, 1, 132, 1),  # SDXL
        (65_536, 16, 132, 2),  # a batch shares the device: the programs get longer
        (2_096_640, 1, 132, 4),  # Wan 480p
        (4_838_400, 1, 132, 0),  # Wan 720p: beyond the registers of 132 multiprocessors
        (65_536, 64, 132, 0),
        (4_096, 1, 132, 0),  # one program has nobody to wait for
    ],
)
def test_cooperative_launches_fit_the_device(count: int, groups: int, programs: int, chunk: int) -> None:
    arguments = {"groups": groups, "cooperative": programs}
    if chunk == 0:
        assert plan_launch(count, 2, 2, **arguments).strategy != "cooperative"
        with pytest.raises(ValueError, match="strategy: 'cooperative' needs"):
            plan_launch(count, 2, 2, strategy="cooperative", **arguments)
        return
    plan = plan_launch(count, 2, 2, **arguments)
    assert (plan.strategy, plan.chunk) == ("cooperative", chunk)
    assert plan.programs(groups) <= programs
    assert plan_launch(count, 2, 2, groups=groups).strategy == "two_launch", "nothing says that the device can"


@given(st.integers(1, 2**40), st.integers(1, 8), st.sampled_from([2, 4, 8]), st.integers(1, 10_000))
def test_every_element_has_a_place_and_rows_fit(count: int, tensors: int, itemsize: int, groups: int) -> None:
    plan = plan_launch(count, tensors, itemsize, groups=groups)
    assert (plan.tiles - 1) * TILE < count <= plan.tiles * TILE
    assert plan.programs(groups) * plan.groups * plan.chunk >= groups * plan.tiles
    assert plan.num_warps in (1, 2, 4, 8)
    forced = plan_launch(count, tensors, itemsize, groups=groups, strategy="two_launch")
    assert (forced.strategy, forced.tile, forced.tiles) == ("two_launch", TILE, plan.tiles)
    held = plan.tiles * min(TILE, 1 << (count - 1).bit_length()) * tensors * itemsize
    fits = plan.tiles <= MAX_TILES and held <= CHUNK_BYTES
    if not fits:
        with pytest.raises(ValueError, match="strategy: 'row'"):
            plan_launch(count, tensors, itemsize, strategy="row")
    if plan.strategy == "row":
        assert fits and plan.chunk == plan.tiles and plan.groups * plan.tile * plan.tiles <= MAX_TILES * TILE
    else:
        assert plan.groups == 1


def test_small_groups_share_a_program() -> None:
    tokens = plan_launch(64, 2, 2, groups=4096)
    assert (tokens.strategy, tokens.tile, tokens.groups) == ("row", 64, TILE // 64)
    assert plan_launch(64, 2, 2).groups == 1
