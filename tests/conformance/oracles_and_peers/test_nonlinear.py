"""The float64 oracles of nonlinear guidance against the peers' installed code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ..oracles import classifier_free, nonlinear
from ..peers import diffusers_schedulers, transformers_logits
from .agreement import U32, U64, agree, draw, size, t


class TestNonlinear:
    @pytest.mark.parametrize("cap", [1.0, 1.5, 100.0])
    def test_dynamic_threshold(self, cap: float) -> None:
        (x,) = draw((3, 2, 8, 8), 1)
        x[0] *= 0.2
        x[2] *= 4
        exact = nonlinear.dynamic_threshold(x, quantile=0.9, cap=cap)
        agree(diffusers_schedulers.dynamic_threshold(t(x), quantile=0.9, cap=cap), exact, magnitude=size(x))
        assert np.abs(exact).max() <= 1
        np.testing.assert_array_equal(exact[0], x[0])
        if cap == 1:
            np.testing.assert_array_equal(exact, nonlinear.static_threshold(x))

    def test_mahiro_is_per_sample(self) -> None:
        u, c = draw((3, 4, 6, 6), 2)
        both = nonlinear.mahiro(uncond=u, cond=c, scale=5.0)
        np.testing.assert_array_equal(both[1:2], nonlinear.mahiro(uncond=u[1:2], cond=c[1:2], scale=5.0))
        for sample in range(3):
            a, b = (t(x[sample : sample + 1]) for x in (u, c))
            y, leap = a + 5 * (b - a), 5 * b
            roots = [torch.sqrt(z.abs()) * z.sign() for z in (5 * a, (leap + y) / 2)]
            w = 2 * (torch.nn.functional.cosine_similarity(*roots).mean() + 1)
            agree((w * y + (4 - w) * leap) / 4, both[sample : sample + 1], magnitude=12 * size(u, c), units=64)

    def test_nag(self) -> None:
        z, n = draw((2, 6, 8), 2)
        full = nonlinear.nag(positive=z, negative=n, scale=20.0, tau=1.5, alpha=1.0)
        lengths, limit = np.abs(full).sum(-1), 1.5 * np.abs(z).sum(-1)
        guided = np.abs(20 * z - 19 * n).sum(-1)
        np.testing.assert_allclose(lengths, np.minimum(guided, limit), rtol=64 * U64)
        np.testing.assert_allclose(
            nonlinear.nag(positive=z, negative=n, scale=1.0, tau=1.5), z, rtol=0, atol=8 * U64 * size(z)
        )
        np.testing.assert_array_equal(nonlinear.nag(positive=z, negative=n, alpha=0.0), z)
        assert np.isfinite(nonlinear.nag(positive=0 * z, negative=0 * n)).all()

    def test_noise_rescaling(self) -> None:
        x, d = draw((2, 3, 4), 2)
        bound: dict[str, Any] = {"rtol": 0, "atol": 64 * U64 * size(x, d)}
        np.testing.assert_allclose(nonlinear.epsilon_scaling(x=x, denoised=d, factor=1.0), d, **bound)
        got = nonlinear.epsilon_scaling(x=x, denoised=d, factor=1.25)
        np.testing.assert_allclose((x - got) * 1.25, x - d, **bound)
        tsr = nonlinear.temporal_score_rescaling
        np.testing.assert_allclose(tsr(x=x, denoised=d, alpha=0.8, sigma=0.6, k=1.0), d, **bound)
        alpha, sigma, k = 0.8, 0.6, 0.9
        snr = (alpha / sigma) ** 2
        r = (snr * 4 + 1) / (snr * 4 / k + 1)
        eps = (x - alpha * d) / sigma
        np.testing.assert_allclose(
            tsr(x=x, denoised=d, alpha=alpha, sigma=sigma, k=k, spread=2.0),
            (x - r * sigma * eps) / alpha,
            **bound,
        )

    def test_fresca(self) -> None:
        u, c = draw((2, 3, 16, 12), 2)
        cfg = classifier_free.cfg(uncond=u, cond=c, scale=8.0)
        bound: dict[str, Any] = {"rtol": 0, "atol": 512 * U64 * size(u, c)}
        np.testing.assert_allclose(
            nonlinear.fresca(uncond=u, cond=c, scale=4.0, low=2.0, high=2.0, cutoff=3), cfg, **bound
        )
        d = np.fft.fftshift(np.fft.fft2(c - u), axes=(-2, -1))
        mask = np.full((16, 12), 1.5)
        mask[8 - 3 : 8 + 3, 6 - 3 : 6 + 3] = 0.5
        filtered = np.fft.ifft2(np.fft.ifftshift(d * mask, axes=(-2, -1))).real
        got = nonlinear.fresca(uncond=u, cond=c, scale=4.0, low=0.5, high=1.5, cutoff=3)
        np.testing.assert_allclose(got, u + 4 * filtered, **bound)

    @pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 4.0])
    def test_guided_logits(self, scale: float) -> None:
        u, c = draw((3, 40), 2)
        exact = nonlinear.guided_logits(uncond=u, cond=c, scale=scale)
        peer = transformers_logits.unbatched_cfg(uncond=t(u), cond=t(c), scale=scale)
        agree(peer, exact, magnitude=(2 + 2 * scale) * size(exact, u, c), units=60)
        shifted = nonlinear.guided_logits(uncond=u + 3.0, cond=c - 7.0, scale=scale)
        np.testing.assert_allclose(shifted, exact, rtol=0, atol=64 * U64 * 12 * (1 + scale))

    def test_guided_logits_keep_minus_infinity(self) -> None:
        u, c = draw((1, 6), 2)
        u[0, 1] = c[0, 1] = c[0, 2] = u[0, 3] = -np.inf
        exact = nonlinear.guided_logits(uncond=u, cond=c, scale=3.0)
        assert np.isneginf(exact[0, 1:4]).all() and np.isfinite(exact[0, [0, 4, 5]]).all()
        peer = transformers_logits.unbatched_cfg(uncond=t(u), cond=t(c), scale=3.0)[0]
        # The peer's values: −inf − −inf is NaN, and so is +inf − inf where only the unconditional side is
        # masked.
        assert torch.isnan(peer[1]) and torch.isneginf(peer[2]) and torch.isnan(peer[3])
        assert np.isneginf(nonlinear.guided_logits(uncond=u, cond=c, scale=1.0)[0, 1:3]).all()
        assert np.isfinite(nonlinear.guided_logits(uncond=u, cond=c, scale=1.0)[0, 3])
        assert np.isfinite(nonlinear.guided_logits(uncond=u, cond=c, scale=0.0)[0, 2])

    def test_cfg_pp_is_ddim_without_guidance(self) -> None:
        x, u, c = draw((2, 3, 4), 3)
        now, after = diffusers_schedulers.ddim_alphas_cumprod(step=3, num_steps=10)
        levels: dict[str, Any] = {
            "alpha": now**0.5,
            "sigma": (1 - now) ** 0.5,
            "next_alpha": after**0.5,
            "next_sigma": (1 - after) ** 0.5,
        }
        got, _ = nonlinear.cfg_pp_step(x=x, uncond=u, cond=u, scale=0.4, **levels)
        peer = diffusers_schedulers.ddim_step(prediction=t(u), x=t(x), step=3, num_steps=10)
        # The scheduler keeps its levels in float32.
        agree(peer, got, magnitude=(size(x) + size(u)) / now**0.5, unit=U32)
        step, x0 = nonlinear.cfg_pp_step(x=x, uncond=u, cond=c, scale=0.4, **levels)
        np.testing.assert_array_equal(step, levels["next_alpha"] * x0 + levels["next_sigma"] * u)
        eps = classifier_free.cfg(uncond=u, cond=c, scale=0.4)
        np.testing.assert_array_equal(x0, (x - levels["sigma"] * eps) / levels["alpha"])

    def test_cached_unconditional_passes(self) -> None:
        u, c = draw((2, 3, 4), 2)
        cfg = classifier_free.cfg(uncond=u, cond=c, scale=3.0)
        bound: dict[str, Any] = {"rtol": 0, "atol": 32 * U64 * size(u, c)}
        np.testing.assert_allclose(nonlinear.residual_cfg(cond=c, stock=2 * u, scale=3.0, delta=0.5), cfg, **bound)
        np.testing.assert_allclose(nonlinear.gated_guidance(cond=c, cached_delta=c - u, scale=3.0), cfg, **bound)
