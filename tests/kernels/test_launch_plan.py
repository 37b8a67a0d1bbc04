"""The launch plan is plain arithmetic on sizes."""

import pytest
from fastcfg_kernels import plan_launch
from fastcfg_kernels.launch_plan import ROW_BYTES, ROW_TILES
from fastcfg_kernels.tiles import TILE
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("count", "predictions", "itemsize", "reduces", "strategy"),
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
def test_known_sizes(count: int, predictions: int, itemsize: int, reduces: bool, strategy: str) -> None:
    plan = plan_launch(count, predictions, itemsize, reduces=reduces)
    assert (plan.strategy, plan.tile, plan.tiles) == (strategy, TILE, -(-count // TILE))


@given(st.integers(1, 2**40), st.integers(1, 8), st.sampled_from([2, 4, 8]))
def test_every_element_has_a_tile_and_rows_fit(count: int, predictions: int, itemsize: int) -> None:
    plan = plan_launch(count, predictions, itemsize)
    assert (plan.tiles - 1) * plan.tile < count <= plan.tiles * plan.tile
    forced = plan_launch(count, predictions, itemsize, strategy="two_launch")
    # Sums must not depend on the strategy.
    assert (forced.tile, forced.tiles, forced.num_warps) == (plan.tile, plan.tiles, plan.num_warps)
    fits = plan.tiles <= ROW_TILES and plan.tiles * TILE * predictions * itemsize <= ROW_BYTES
    assert (plan.strategy == "row") == fits
    if not fits:
        with pytest.raises(ValueError, match="strategy: 'row'"):
            plan_launch(count, predictions, itemsize, strategy="row")
