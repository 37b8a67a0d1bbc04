"""The launch plan is plain arithmetic on sizes."""

import pytest
from fastcfg_kernels import plan_launch
from fastcfg_kernels.backends.triton.launch_plan import LARGEST_TILE, OF_A_WARP, TILE_BYTES, VECTOR
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("count", "tensors", "itemsize", "reduces", "strategy", "tile"),
    [
        (4 * 64 * 64, 2, 2, True, "row", 16_384),  # SDXL at 512, bf16
        (4 * 64 * 64, 2, 4, True, "row", 16_384),
        (4 * 64 * 64, 3, 4, True, "two_launch", 4_096),  # three fp32 inputs: beyond the registers
        (4 * 64 * 64 + 1, 2, 2, True, "two_launch", 4_096),
        (4 * 64 * 64, 2, 2, False, "two_launch", 4_096),  # without sums: one elementwise launch
        (16 * 128 * 128, 2, 2, True, "two_launch", 4_096),
        (2_096_640, 2, 2, True, "two_launch", 16_384),
        (1, 1, 8, True, "row", 1),
    ],
)
def test_known_sizes(count: int, tensors: int, itemsize: int, reduces: bool, strategy: str, tile: int) -> None:
    plan = plan_launch(count, tensors, itemsize, reduces=reduces)
    assert (plan.strategy, plan.tile, plan.tiles) == (strategy, tile, -(-count // tile))


@pytest.mark.parametrize(
    ("count", "groups", "programs", "tile"),
    [
        (65_536, 1, 132, 4_096),  # SDXL
        (65_536, 32, 132, 4_096),  # a batch shares the device, four programs to a multiprocessor
        (2_096_640, 1, 132, 16_384),  # Wan 480p
        (4_838_400, 1, 132, 0),  # Wan 720p: beyond the registers of 132 multiprocessors
        (65_536, 64, 132, 0),
    ],
)
def test_cooperative_launches_fit_the_device(count: int, groups: int, programs: int, tile: int) -> None:
    arguments = {"groups": groups, "cooperative": programs}
    if tile == 0:
        assert plan_launch(count, 2, 2, **arguments).strategy != "cooperative"
        with pytest.raises(ValueError, match="strategy: 'cooperative' needs"):
            plan_launch(count, 2, 2, strategy="cooperative", **arguments)
        return
    plan = plan_launch(count, 2, 2, **arguments)
    assert (plan.strategy, plan.tile) == ("cooperative", tile)
    assert plan.programs(groups) * plan.num_warps <= programs * 16
    assert plan_launch(count, 2, 2, groups=groups).strategy == "two_launch", "nothing says that the device can"


@given(st.integers(1, 2**40), st.integers(1, 8), st.sampled_from([2, 4, 8]), st.integers(1, 10_000))
def test_every_element_has_a_place_and_rows_fit(count: int, tensors: int, itemsize: int, groups: int) -> None:
    plan = plan_launch(count, tensors, itemsize, groups=groups)
    assert (plan.tiles - 1) * plan.tile < count <= plan.tiles * plan.tile
    assert plan.programs(groups) * plan.groups >= groups * plan.tiles
    assert plan.num_warps in (1, 2, 4, 8, 16)
    # Sums follow from the tile: neither a strategy nor the batch may change it.
    for other in (1, groups + 1):
        forced = plan_launch(count, tensors, itemsize, groups=other, strategy="two_launch")
        assert (forced.strategy, forced.tile, forced.tiles) == ("two_launch", plan.tile, plan.tiles)
    if plan.tiles > 1:
        with pytest.raises(ValueError, match="strategy: 'row'"):
            plan_launch(count, tensors, itemsize, strategy="row")
        assert plan.groups == 1 and plan.tile <= LARGEST_TILE
    else:
        assert plan.strategy == "row" and plan.groups * plan.tile <= max(plan.tile, OF_A_WARP)
        assert plan.tile <= 1024 or plan.tile * tensors * itemsize <= TILE_BYTES


def test_one_program_waits_for_nobody_unless_asked_to() -> None:
    assert plan_launch(4_096, 2, 2, cooperative=132).strategy == "row"
    assert plan_launch(4_096, 2, 2, cooperative=132, strategy="cooperative").programs(3) == 3
    with pytest.raises(ValueError, match="strategy: 'cooperative' needs sums"):
        plan_launch(4_096, 2, 2, cooperative=132, strategy="cooperative", reduces=False)


@given(st.integers(1, 2**24), st.integers(1, 8), st.sampled_from([2, 4, 8]))
def test_a_tile_is_dealt_out_to_lanes(count: int, tensors: int, itemsize: int) -> None:
    plan = plan_launch(count, tensors, itemsize)
    vector = min(plan.tile, VECTOR)
    lanes = plan.tile // (plan.repeats * vector)
    assert lanes * plan.repeats * vector == plan.tile and lanes <= 512
    assert plan.repeats == 1 or lanes >= 32
    assert plan.num_warps == max(lanes // 32, 1), "a thread for each lane"


def test_small_groups_share_a_program() -> None:
    tokens = plan_launch(64, 2, 2, groups=4096)
    assert tokens.num_warps == 1
    assert (tokens.strategy, tokens.tile, tokens.groups) == ("row", 64, OF_A_WARP // 64)
    assert plan_launch(64, 2, 2).groups == 1
