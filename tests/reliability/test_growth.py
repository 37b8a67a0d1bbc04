"""Growth is told from noise."""

import numpy as np
import pytest

from benchmarks.reliability.growth import trend

CALLS = [float(c) for c in range(1000, 41_000, 1000)]


def series(slope: float, noise: float, seed: int) -> list[float]:
    """Resident memory of 300 MB that grows by ``slope`` bytes a call, in pages, beside normal noise."""
    drawn = np.random.default_rng(seed).normal(scale=noise, size=len(CALLS))
    return [4096.0 * round((3e8 + slope * c + d) / 4096) for c, d in zip(CALLS, drawn, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_found_and_noise_is_none(seed: int) -> None:
    assert trend(CALLS, series(64.0, 50_000.0, seed)).grows(28.0)
    assert not trend(CALLS, series(0.0, 50_000.0, seed)).grows(28.0)
    assert not trend(CALLS, series(0.0, 5_000_000.0, seed)).grows(28.0)


def test_a_line_is_measured() -> None:
    found = trend(CALLS, [7.0 + 0.25 * c for c in CALLS])
    assert found.slope == pytest.approx(0.25) and found.error == pytest.approx(0.0, abs=1e-12)
    assert found.grows(0.2) and not found.grows(0.3)


def test_a_few_outliers_move_nothing() -> None:
    values = series(0.0, 10_000.0, 0)
    for at in (30, 33, 36, 39):
        values[at] += 5e8
    assert not trend(CALLS, values).grows(28.0)


def test_the_error_is_that_of_the_scatter() -> None:
    slopes = [trend(CALLS, series(64.0, 200_000.0, seed)) for seed in range(200)]
    spread = float(np.std([t.slope for t in slopes]))
    # The standard deviation of 200 draws is known to 5 %, the noise of 40 residuals by their median to 20 %.
    assert spread == pytest.approx(float(np.median([t.error for t in slopes])), rel=0.3)
