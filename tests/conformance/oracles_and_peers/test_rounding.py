"""The ideal rounding and the units that errors are told in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ..oracles.rounding import error_in_ideal_units, ideal, max_ulp, ulp
from .agreement import t


class TestRounding:
    @pytest.mark.parametrize(("dtype", "numpy_dtype"), [(torch.float16, np.float16), (torch.float32, np.float32)])
    def test_ideal_equals_numpy(self, dtype: torch.dtype, numpy_dtype: type) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=4000) * 10.0 ** rng.uniform(-9, 5, size=4000)
        x = np.concatenate([x, [0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 65519.9, 65520.0, 2.0**-25, 3e38, 4e38]])
        with np.errstate(over="ignore"):
            expected = torch.from_numpy(x.astype(numpy_dtype))
        got = ideal(x, dtype)
        assert got.dtype == dtype
        assert torch.equal(got.nan_to_num(0.5), expected.nan_to_num(0.5))
        assert torch.equal(torch.signbit(got), torch.signbit(expected))

    def test_ideal_rounds_once(self) -> None:
        just_above_a_tie = np.array([1 + 2.0**-8 + 2.0**-30])
        assert ideal(just_above_a_tie, torch.bfloat16).item() == 1 + 2.0**-7
        assert ideal(np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8]), torch.bfloat16).tolist() == [
            1.0,
            1 + 2 * 2.0**-7,
        ]
        assert ideal(np.array([2.0**-134, 1.5 * 2.0**-134]), torch.bfloat16).tolist() == [0.0, 2.0**-133]

    def test_error_units(self) -> None:
        x = np.random.default_rng(0).normal(size=5000)
        for dtype in (torch.float16, torch.bfloat16):
            assert error_in_ideal_units(ideal(x, dtype), x) == 1
        # Uniform over binades, the mean square spacing lies between a quarter and all of the RMS value's.
        assert 0.3 < error_in_ideal_units(ideal(x, torch.float32), x) < 1
        assert error_in_ideal_units(t(x), x) == 0
        assert error_in_ideal_units(torch.zeros(3), np.zeros(3)) == 0
        assert error_in_ideal_units(torch.ones(3), np.zeros(3)) == math.inf
        assert error_in_ideal_units(torch.tensor([1.0, torch.nan]), np.ones(2)) == math.inf
        overflow = np.array([1e6, -1e6, 0.3])
        assert error_in_ideal_units(torch.tensor([math.inf, -math.inf, 0.3]).half(), overflow) == 1
        assert error_in_ideal_units(torch.tensor([65504.0, -math.inf, 0.3]).half(), overflow) == math.inf

    def test_max_ulp(self) -> None:
        x = np.random.default_rng(0).normal(size=5000)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            rounded = ideal(x, dtype)
            assert 0.49 < max_ulp(rounded, x) <= 0.5
            moved = torch.nextafter(rounded, torch.full_like(rounded, math.inf)) if dtype == torch.float32 else None
            if moved is not None:
                assert 0.99 < max_ulp(moved, x) <= 1.5
        assert max_ulp(torch.tensor([math.inf]), np.array([math.inf])) == 0
        assert max_ulp(torch.tensor([1.0]), np.array([math.inf])) == math.inf
        assert ulp(np.array([1.0, 0.99, 0.0]), torch.float16).tolist() == [2.0**-10, 2.0**-11, 2.0**-24]
