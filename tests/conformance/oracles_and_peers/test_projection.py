"""The float64 oracles of projections against the peers' installed code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ..oracles import classifier_free, projection, rescale
from ..peers import diffusers_guiders
from .agreement import SHAPES, U32, U64, agree, draw, per_sample_size, size, t


class TestProjection:
    @pytest.mark.parametrize("base", ["uncond", "cond"])
    @pytest.mark.parametrize(("eta", "threshold", "momentum"), [(1.0, 0.0, None), (0.0, 2.0, -0.5), (0.3, 15.0, 0.75)])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_apg(self, shape: tuple[int, ...], eta: float, threshold: float, momentum: float | None, base: str) -> None:
        pairs = [tuple(draw(shape, 2, seed)) for seed in range(4)]
        peer = diffusers_guiders.adaptive_projected(
            pairs=[(t(u), t(c)) for u, c in pairs],
            scale=6.0,
            momentum=momentum,
            norm_threshold=threshold,
            eta=eta,
            original=base == "cond",
        )
        average = None
        for (u, c), got in zip(pairs, peer, strict=True):
            exact, buffer = projection.apg(
                uncond=u,
                cond=c,
                scale=6.0,
                eta=eta,
                norm_threshold=threshold,
                base=base,
                momentum=momentum or 0.0,
                average=average,
            )
            average = buffer if momentum is not None else None
            units = 32 + 2 * per_sample_size(c)
            agree(got, exact, magnitude=size(u, c) + 6 * size(buffer), units=units)

    @pytest.mark.parametrize("dims", [1, -1, (1, 2), (-1, -2)])
    def test_apg_dims(self, dims: int | tuple[int, ...]) -> None:
        u, c = draw((2, 4, 6, 8), 2)
        (peer,) = diffusers_guiders.adaptive_projected(
            pairs=[(t(u), t(c))], scale=5.0, norm_threshold=1.0, norm_dim=dims, eta=0.25
        )
        exact, _ = projection.apg(uncond=u, cond=c, scale=5.0, norm_threshold=1.0, dims=dims, eta=0.25)
        agree(peer, exact, magnitude=12 * size(u, c), units=80)

    def test_apg_is_cfg_without_its_options_and_finite_when_degenerate(self) -> None:
        u, c = draw((2, 3, 4), 2)
        got, buffer = projection.apg(uncond=u, cond=c, scale=5.0)
        cfg = classifier_free.cfg(uncond=u, cond=c, scale=5.0)
        np.testing.assert_allclose(got, cfg, rtol=0, atol=64 * U64 * size(u, c))
        np.testing.assert_array_equal(buffer, c - u)
        same, _ = projection.apg(uncond=c, cond=c, scale=5.0, norm_threshold=1.0, eta=0.0)
        np.testing.assert_array_equal(same, c)
        zero, _ = projection.apg(uncond=u, cond=np.zeros_like(u), scale=5.0, eta=0.0)
        np.testing.assert_allclose(zero, -4 * u, rtol=8 * U64)

    @pytest.mark.parametrize("base", ["uncond", "cond"])
    def test_apg_mix(self, base: str) -> None:
        pairs = [tuple(draw((2, 5, 6), 2, seed)) for seed in range(5)]
        peer = diffusers_guiders.adaptive_projected_mix(
            pairs=[(t(u), t(c)) for u, c in pairs], start_step=2, norm_threshold=3.0, original=base == "cond"
        )
        average = None
        for step, ((u, c), got) in enumerate(zip(pairs, peer, strict=True)):
            exact, average = projection.apg_mix(
                uncond=u, cond=c, step=step, start_step=2, norm_threshold=3.0, average=average, base=base
            )
            agree(got, exact, magnitude=20 * size(u, c), units=100)

    @pytest.mark.parametrize("base", ["uncond", "cond"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_cfg_zero_star(self, shape: tuple[int, ...], base: str) -> None:
        u, c = draw(shape, 2)
        exact = projection.cfg_zero_star(uncond=u, cond=c, scale=5.0, base=base)
        # The peer sums in float32, so that alpha carries n of its roundings.
        for dtype in (torch.float64, torch.float32):
            peer = diffusers_guiders.classifier_free_zero_star(
                uncond=t(u).to(dtype), cond=t(c).to(dtype), scale=5.0, original=base == "cond"
            )
            agree(peer, exact, magnitude=12 * size(u, c), units=16 + per_sample_size(c), unit=U32)

    def test_cfg_zero_star_zero_init(self) -> None:
        u, c = draw((2, 5), 2)
        options: dict[str, Any] = {"scale": 5.0, "step": 1, "zero_init_steps": 2}
        exact = projection.cfg_zero_star(uncond=u, cond=c, **options)
        assert not exact.any()
        peer = diffusers_guiders.classifier_free_zero_star(uncond=t(u), cond=t(c), num_steps=9, **options)
        assert torch.equal(peer, t(exact))
        with_rescale = diffusers_guiders.classifier_free_zero_star(
            uncond=t(u), cond=t(c), num_steps=9, rescale=0.5, **options
        )
        assert torch.isnan(with_rescale).all()
        assert np.isfinite(rescale.rescale_std(guided=exact, cond=c, phi=0.5)).all()
        u_zero = projection.cfg_zero_star(uncond=np.zeros_like(u), cond=c, scale=5.0, eps=0.0)
        np.testing.assert_array_equal(u_zero, 5 * c)

    @pytest.mark.parametrize("base", ["uncond", "cond"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_tcfg(self, shape: tuple[int, ...], base: str) -> None:
        u, c = draw(shape, 2)
        by_svd = projection.tcfg(uncond=u, cond=c, scale=5.0, base=base)
        closed = projection.tcfg(uncond=u, cond=c, scale=5.0, base=base, method="closed_form")
        values = np.stack(
            [np.linalg.svd(np.stack([a.ravel(), b.ravel()]), compute_uv=False) for a, b in zip(c, u, strict=True)]
        )
        # A singular vector moves by the perturbation over the gap of the singular values.
        sensitivity = float((values[:, 0] / (values[:, 0] - values[:, 1])).max())
        length = float(np.sqrt((u**2).reshape(len(u), -1).sum(1)).max())
        magnitude = 12 * length * sensitivity
        assert np.abs(closed - by_svd).max() <= (16 + per_sample_size(c)) * U64 * magnitude
        peer = diffusers_guiders.tangential(uncond=t(u), cond=t(c), scale=5.0, original=base == "cond")
        agree(peer, by_svd, magnitude=magnitude, units=16 + per_sample_size(c), unit=U32)

    def test_tcfg_when_no_direction_is_singled_out(self) -> None:
        u, c = np.array([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), np.array([[0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
        np.testing.assert_array_equal(projection.tcfg_uncond_closed_form(uncond=u, cond=c), u / 2)

    @pytest.mark.parametrize("base", ["uncond", "cond"])
    def test_mambo_g(self, base: str) -> None:
        u, c = draw((3, 5, 6), 2)
        exact = projection.mambo_g(uncond=u, cond=c, scale=10.0, alpha=0.7, base=base)
        peer = diffusers_guiders.magnitude_aware(uncond=t(u), cond=t(c), scale=10.0, alpha=0.7, original=base == "cond")
        agree(peer, exact, magnitude=20 * size(u, c), units=48)
        np.testing.assert_array_equal(projection.mambo_g(uncond=0 * u, cond=c, scale=10.0), c)

    def test_mambo_g_peer_raises_on_latents(self) -> None:
        u, c = draw((1, 2, 4, 4), 2)
        assert np.isfinite(projection.mambo_g(uncond=u, cond=c, scale=10.0)).all()
        with pytest.raises((RuntimeError, ValueError)):
            diffusers_guiders.magnitude_aware(uncond=t(u), cond=t(c), scale=10.0)

    @pytest.mark.parametrize("size_hw", [(16, 32), (24, 16), (20, 28)])
    def test_laplacian_pyramid_rebuilds_the_image(self, size_hw: tuple[int, int]) -> None:
        u, c = draw((2, 3, *size_hw), 2)
        pyramid = projection.laplacian_pyramid(c, 3)
        assert [p.shape[-1] for p in pyramid] == [size_hw[1], size_hw[1] // 2, size_hw[1] // 4]
        np.testing.assert_allclose(projection.from_pyramid(pyramid), c, rtol=0, atol=64 * U64 * size(c))
        equal = projection.fdg(uncond=u, cond=c, scales=[4.0, 4.0, 4.0])
        cfg = classifier_free.cfg(uncond=u, cond=c, scale=4.0)
        np.testing.assert_allclose(equal, cfg, rtol=0, atol=256 * U64 * size(u, c))

    @pytest.mark.skipif(not diffusers_guiders.has_kornia(), reason="diffusers' FDG needs kornia")
    @pytest.mark.parametrize("base", ["uncond", "cond"])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"scales": [8.0, 3.0, 2.0]},
            {"parallel_weights": [0.5, 0.25]},
            {"rescale": 0.6},
            {"rescale": [0.3, 0.8], "rescale_space": "freq"},
        ],
        ids=str,
    )
    def test_fdg(self, options: dict[str, Any], base: str) -> None:
        for shape in ((2, 3, 16, 32), (1, 4, 32, 24)):
            u, c = draw(shape, 2)
            exact = projection.fdg(uncond=u, cond=c, base=base, **options)
            peer = diffusers_guiders.frequency_decoupled(uncond=t(u), cond=t(c), original=base == "cond", **options)
            agree(peer, exact, magnitude=24 * size(u, c), units=32 + per_sample_size(c))

    @pytest.mark.skipif(not diffusers_guiders.has_kornia(), reason="diffusers' FDG needs kornia")
    def test_fdg_peer_returns_the_padded_size(self) -> None:
        u, c = draw((1, 2, 20, 28), 2)
        peer = diffusers_guiders.frequency_decoupled(uncond=t(u), cond=t(c))
        exact = projection.fdg(uncond=u, cond=c)
        assert peer.shape == (1, 2, 32, 32) and exact.shape == c.shape
        agree(peer[..., :20, :28], exact, magnitude=24 * size(u, c), units=64)

    @pytest.mark.skipif(not diffusers_guiders.has_kornia(), reason="diffusers' FDG needs kornia")
    def test_fdg_peer_raises_for_a_level_outside_its_window(self) -> None:
        u, c = draw((1, 2, 16, 16), 2)
        with pytest.raises(UnboundLocalError):
            diffusers_guiders.frequency_decoupled(
                uncond=t(u), cond=t(c), start=[0.5, 0.0], stop=[1.0, 1.0], step=0, num_steps=4
            )
        exact = projection.fdg(uncond=u, cond=c, scales=(10.0, 5.0), active=[False, True])
        one = projection.fdg(uncond=u, cond=c, scales=(1.0, 5.0))
        np.testing.assert_allclose(exact, one, rtol=0, atol=64 * U64 * size(u, c) * 5)
