"""The float64 oracles of rescale against the peers' installed code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ..oracles import classifier_free, rescale
from ..peers import diffusers_guiders
from .agreement import SHAPES, U64, agree, draw, per_sample_size, size, t


class TestRescale:
    @pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_std(self, shape: tuple[int, ...], phi: float) -> None:
        u, c = draw(shape, 2)
        y = classifier_free.cfg(uncond=u, cond=c, scale=6.0)
        exact = rescale.rescale_std(guided=y, cond=c, phi=phi)
        # Two standard deviations, each a sum of n squares: half of n roundings in the root.
        units = 16 + per_sample_size(c)
        agree(diffusers_guiders.rescale_noise_cfg(t(y), t(c), phi), exact, magnitude=size(y), units=units)
        if phi > 0:
            peer = diffusers_guiders.classifier_free(uncond=t(u), cond=t(c), scale=6.0, rescale=phi)
            agree(peer, exact, magnitude=14 * size(u, c), units=units)
        biased = rescale.rescale_std(guided=y, cond=c, phi=phi, std_kind="biased")
        np.testing.assert_allclose(biased, exact, rtol=0, atol=16 * U64 * size(y))

    def test_zero_std_is_finite_here_and_nan_in_the_peer(self) -> None:
        y = np.full((2, 3, 4), 1.25)
        _, c = draw((2, 3, 4), 2)
        np.testing.assert_array_equal(rescale.rescale_std(guided=y, cond=c, phi=0.7), 0.7 * y + (1 - 0.7) * y)
        assert not torch.isfinite(diffusers_guiders.rescale_noise_cfg(t(y), t(y), 0.7)).any()
        one = np.full((2, 1), 3.0)
        assert np.isfinite(rescale.rescale_std(guided=one, cond=one)).all()

    def test_full_rescale_restores_cond(self) -> None:
        u, c = draw((2, 3, 5), 2)
        y = classifier_free.cfg(uncond=u, cond=c, scale=9.0)
        over = (1, 2)
        got = rescale.rescale_std(guided=y, cond=c, phi=1.0)
        np.testing.assert_allclose(got.std(axis=over, ddof=1), c.std(axis=over, ddof=1), rtol=64 * U64)
        got = rescale.rescale_l2(guided=y, cond=c, phi=1.0)
        np.testing.assert_allclose(np.sqrt((got**2).sum(over)), np.sqrt((c**2).sum(over)), rtol=64 * U64)
        zero_mean = [x - x.mean(axis=over, keepdims=True) for x in (y, c)]
        np.testing.assert_allclose(
            rescale.rescale_l2(guided=zero_mean[0], cond=zero_mean[1]),
            rescale.rescale_std(guided=zero_mean[0], cond=zero_mean[1]),
            rtol=0,
            atol=64 * U64 * size(y),
        )
        np.testing.assert_array_equal(rescale.rescale_l2(guided=np.zeros_like(y), cond=c), np.zeros_like(y))

    def test_clamp(self) -> None:
        u, c = draw((2, 3, 50), 2)
        y = classifier_free.cfg(uncond=u, cond=c, scale=12.0)
        got = rescale.clamp_std(guided=y, cond=c, k=2.0)
        bound = 2 * c.reshape(2, -1).std(axis=1, ddof=1)
        for i in range(2):
            inside = np.abs(y[i]) <= bound[i]
            assert inside.any() and not inside.all()
            np.testing.assert_array_equal(got[i][inside], y[i][inside])
            np.testing.assert_allclose(np.abs(got[i][~inside]), bound[i], rtol=200 * U64)

    def test_norm_caps(self) -> None:
        u, c = draw((2, 4, 6, 5), 2)
        y = classifier_free.cfg(uncond=u, cond=c, scale=4.0)

        def length(x: np.ndarray, over: tuple[int, ...]) -> np.ndarray:
            return np.sqrt((x**2).sum(axis=over))

        for dims, over in ((None, (1, 2, 3)), (-1, (3,)), (1, (1,))):
            full = rescale.norm_cap(guided=y, cond=c, mode="full", dims=dims)
            np.testing.assert_allclose(length(full, over), length(c, over), rtol=64 * U64)
            capped = rescale.norm_cap(guided=y, cond=c, cap=0.5, dims=dims)
            expected = np.minimum(length(y, over), 0.5 * length(c, over))
            np.testing.assert_allclose(length(capped, over), expected, rtol=64 * U64)
            clamped = rescale.norm_cap(guided=y, cond=c, mode="clamp", low=0.6, dims=dims)
            factor = np.clip(length(c, over) / length(y, over), 0.6, 1.0)
            np.testing.assert_allclose(length(clamped, over), factor * length(y, over), rtol=64 * U64)
            zero = rescale.norm_cap(guided=np.zeros_like(y), cond=c, mode="full", dims=dims)
            np.testing.assert_array_equal(zero, np.zeros_like(y))
