"""The fp64 oracles against the peers' installed code, and against exact toys, so that each checks the other.

Tolerances are derived: float64 peers get ``n·2⁻⁵³`` per sum of n terms plus a few roundings, times the
magnitude of what is added up; where a peer works in float32 inside, the same with 2⁻²⁴.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from .oracles import classifier, classifier_free, nonlinear, perturbed, projection, rescale
from .oracles.rounding import error_in_ideal_units, ideal, max_ulp, ulp
from .peers import diffusers_guiders, diffusers_schedulers, transformers_logits

U64, U32 = 2.0**-53, 2.0**-24
SHAPES = [(3, 7), (2, 5, 6), (2, 4, 8, 16), (1, 2, 3, 4, 5)]
SCALES = [-1.5, 0.0, 0.4, 3.0, 7.5, 20.0]


def draw(shape: tuple[int, ...], count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, *shape])
    common = rng.normal(size=shape)
    return [common + 0.5 * rng.normal(size=shape) + 0.1 for _ in range(count)]


def t(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def per_sample_size(x: np.ndarray) -> int:
    return x[0].size


def agree(peer: torch.Tensor, oracle: np.ndarray, *, magnitude: float, units: float = 8, unit: float = U64) -> None:
    assert tuple(peer.shape) == oracle.shape
    error = float(np.abs(peer.to(torch.float64).numpy() - oracle).max())
    assert error <= units * unit * magnitude, f"{error:.3e} > {units * unit * magnitude:.3e}"


def size(*arrays: np.ndarray) -> float:
    return max(float(np.abs(a).max()) for a in arrays)


class TestClassifierFree:
    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("base", ["uncond", "cond"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_cfg(self, shape: tuple[int, ...], base: str, scale: float) -> None:
        u, c = draw(shape, 2)
        peer = diffusers_guiders.classifier_free(uncond=t(u), cond=t(c), scale=scale, original=base == "cond")
        exact = classifier_free.cfg(uncond=u, cond=c, scale=scale, base=base)
        agree(peer, exact, magnitude=(2 + 2 * abs(scale)) * size(u, c))

    def test_a_scale_of_one_returns_cond_itself(self) -> None:
        u, c = draw((2, 9), 2)
        assert torch.equal(diffusers_guiders.classifier_free(uncond=t(u), cond=t(c), scale=1.0), t(c))
        assert np.array_equal(classifier_free.cfg(uncond=u, cond=c, scale=1.0), c)

    def test_per_sample_scales_are_rows_and_the_peer_refuses_them(self) -> None:
        u, c = draw((3, 4, 5), 2)
        scales = np.array([1.5, 4.0, -2.0])
        together = classifier_free.cfg(uncond=u, cond=c, scale=scales)
        for i, s in enumerate(scales):
            assert np.array_equal(
                together[i : i + 1], classifier_free.cfg(uncond=u[i : i + 1], cond=c[i : i + 1], scale=s)
            )
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            diffusers_guiders.classifier_free(uncond=t(u), cond=t(c), scale=t(scales))  # type: ignore[arg-type]

    @pytest.mark.parametrize("step", range(10))
    def test_windows(self, step: int) -> None:
        u, c, p = draw((2, 6), 3)
        window: dict[str, Any] = {"start": 0.25, "stop": 0.77}
        got = diffusers_guiders.classifier_free(uncond=t(u), cond=t(c), scale=3.0, step=step, num_steps=10, **window)
        scale = classifier_free.interval_schedule(step, 10, 3.0, **window)
        agree(got, classifier_free.cfg(uncond=u, cond=c, scale=scale), magnitude=8 * size(u, c))
        slg = diffusers_guiders.skip_layer(
            cond=t(c),
            perturbed=t(p),
            uncond=t(u),
            scale=3.0,
            perturbed_start=0.25,
            perturbed_stop=0.77,
            step=step,
            num_steps=10,
        )
        k = 2.8 if classifier_free.in_interval(step, 10, 0.25, 0.77, strict=True) else 0.0
        agree(
            slg,
            perturbed.perturbed_sum(cond=c, uncond=u, perturbed=p, scale=3.0, perturbed_scale=k),
            magnitude=14 * size(u, c, p),
        )

    def test_identities(self) -> None:
        u, c, n, i = draw((2, 3, 8), 4)
        cf = classifier_free
        close: dict[str, Any] = {"rtol": 0, "atol": 100 * U64 * size(u, c, n, i)}
        cfg = cf.cfg(uncond=u, cond=c, scale=4.0)
        np.testing.assert_allclose(cf.cfg(uncond=u, cond=c, scale=3.0, base="cond"), cfg, **close)
        np.testing.assert_allclose(cf.dual(uncond=u, cond=c, negative=n, scale=4, negative_scale=0), cfg, **close)
        np.testing.assert_allclose(
            cf.dual(uncond=u, cond=c, negative=n, scale=4, negative_scale=3),
            cf.negative_prompt(cond=c, negative=n, scale=4),
            **close,
        )
        np.testing.assert_allclose(cf.multi_condition(uncond=u, conds=[c], scales=[4.0]), cfg, **close)
        np.testing.assert_allclose(
            cf.multi_condition(uncond=u, conds=[c, n, i], scales=[4.0, -1.0, 2.0]),
            cf.multi_condition(uncond=u, conds=[i, c, n], scales=[2.0, 4.0, -1.0]),
            **close,
        )
        ip2p = cf.instruct_pix2pix
        np.testing.assert_allclose(ip2p(uncond=u, image=i, cond=c, scale=4, image_scale=4), cfg, **close)
        np.testing.assert_allclose(ip2p(uncond=u, image=i, cond=c, scale=1, image_scale=1), c, **close)
        np.testing.assert_allclose(
            cf.inner_guidance(cond=c, uncond=u, without_inner=n, scale=3.0, inner_scale=0.0), cfg, **close
        )
        np.testing.assert_allclose(cf.inner_guidance(cond=c, uncond=c, without_inner=c), c, **close)
        np.testing.assert_allclose(cf.history_vanilla(uncond=u, cond=c, scale=4.0), cfg, **close)
        np.testing.assert_allclose(cf.history_general(uncond=u, conds=[c], weights=[4.0]), cfg, **close)
        np.testing.assert_allclose(
            cf.history_between_levels(uncond=u, starts=[c], ends=[u], weights=[4.0]), cfg, **close
        )
        np.testing.assert_allclose(cf.history_fractional(uncond=u, cond=c, partial=c, weight=3.0), cfg, **close)
        np.testing.assert_array_equal(cf.history_fractional(uncond=u, cond=c, partial=u, weight=3.0), c)

    def test_per_frame_scales(self) -> None:
        u, c = draw((2, 3, 4, 5, 5), 2)
        cf = classifier_free
        scales = np.array([1.0, 2.0, 3.0, 4.0])
        frames_third = cf.per_frame_cfg(uncond=u, cond=c, scales=scales, frame_dim=2)
        for f, s in enumerate(scales):
            one = u[:, :, f] + s * (c[:, :, f] - u[:, :, f])
            np.testing.assert_array_equal(frames_third[:, :, f], one)
        swapped = cf.per_frame_cfg(uncond=u.swapaxes(1, 2), cond=c.swapaxes(1, 2), scales=scales, frame_dim=1)
        np.testing.assert_array_equal(swapped, frames_third.swapaxes(1, 2))
        both = cf.per_frame_cfg(uncond=u, cond=c, scales=np.stack([scales, 2 * scales]), frame_dim=2)
        np.testing.assert_array_equal(both[0], frames_third[0])
        assert cf.keyframe_scales(5, low=1.0, high=3.0).tolist() == [3, 1, 3, 1, 3]
        assert cf.keyframe_scales(9, low=1.0, high=3.0, interpolation="linear").tolist() == [
            3,
            2,
            1,
            2,
            3,
            2,
            1,
            2,
            3,
        ]
        assert cf.keyframe_scales(4, low=2.0, high=2.0, interpolation="linear").tolist() == [2] * 4
        assert cf.keyframe_scales(1, low=1.0, high=3.0, interpolation="linear").tolist() == [3]
        for kind in ("linear", "exponential"):
            decay = cf.temporal_decay_scales(7, start=8.0, end=2.0, kind=kind)
            assert decay[0] == 8 and decay[-1] == 2 and (np.diff(decay) < 0).all()
            assert cf.temporal_decay_scales(1, start=8.0, end=2.0, kind=kind).tolist() == [8]
        assert cf.temporal_decay_scales(3, start=8.0, end=2.0, kind="exponential")[1] == pytest.approx(4.0, rel=4 * U64)

    def test_schedules(self) -> None:
        cf = classifier_free
        for n in (1, 2, 3, 50, 51):
            assert cf.linear_schedule(0, n, 10.0, 2.0) == cf.cosine_schedule(0, n, 10.0, 2.0) == 10
            if n > 1:
                assert cf.linear_schedule(n - 1, n, 10.0, 2.0) == cf.cosine_schedule(n - 1, n, 10.0, 2.0) == 2
        assert cf.linear_schedule(25, 51, 10.0, 2.0) == 6
        assert cf.cosine_schedule(25, 51, 10.0, 2.0) == pytest.approx(6, rel=4 * U64)
        assert cf.linear_schedule_in_time(1, 1000, 2.0, 10.0) == pytest.approx(2.008, rel=4 * U64)
        assert [cf.step_schedule(k, 5, 9.0, 1.0) for k in range(5)] == [9, 9, 1, 1, 1]
        assert [cf.step_schedule_in_time(x, 9.0, 1.0, 500) for x in (501, 500, 499)] == [9, 1, 1]
        assert [cf.sigma_interval_schedule(s, 4.0, low=1, high=2) for s in (1, 1.5, 2, 2.5)] == [1, 4, 4, 1]
        assert cf.constant_schedule(3, 4, 5.5) == 5.5
        with pytest.raises(ValueError, match="step"):
            cf.linear_schedule(4, 4, 1.0, 2.0)

    def test_perp_neg(self) -> None:
        e, c, n, m = draw((3, 4, 6), 4)
        pn = classifier_free.perp_neg
        perp = classifier_free.perpendicular(n - e, c - e)
        across = np.sum(perp * (c - e), axis=(1, 2))
        bound = 32 * U64 * np.sqrt(np.sum((n - e) ** 2, axis=(1, 2)) * np.sum((c - e) ** 2, axis=(1, 2)))
        assert (np.abs(across) <= bound).all()
        both = pn(empty=e, cond=c, negative=[n, m], scale=5.0, negative_scale=[1.5, 0.5])
        expected = e + 5 * (c - e) - 1.5 * perp - 0.5 * classifier_free.perpendicular(m - e, c - e)
        np.testing.assert_allclose(both, expected, rtol=0, atol=64 * U64 * size(e, c, n, m))
        for i in range(3):
            row = slice(i, i + 1)
            alone = pn(empty=e[row], cond=c[row], negative=[n[row], m[row]], scale=5.0, negative_scale=[1.5, 0.5])
            np.testing.assert_array_equal(alone, both[row])
        along = pn(uncond=e, cond=c, negative=e + 3 * (c - e), scale=5.0)
        np.testing.assert_allclose(
            along, classifier_free.cfg(uncond=e, cond=c, scale=5.0), rtol=0, atol=64 * U64 * size(e, c, n)
        )
        np.testing.assert_array_equal(pn(empty=e, cond=e, negative=n, scale=5.0), e - (n - e))
        scaled = pn(empty=e, cond=c, negative=n, scale=5.0, scale_negative=True)
        np.testing.assert_allclose(scaled, e + 5 * ((c - e) - perp), rtol=0, atol=64 * U64 * 5 * size(e, c, n))


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


PERTURBED_PEERS = [
    diffusers_guiders.skip_layer,
    diffusers_guiders.perturbed_attention,
    diffusers_guiders.smoothed_energy,
]


class TestPerturbed:
    @pytest.mark.parametrize("original", [False, True])
    def test_autoguidance(self, original: bool) -> None:
        c, p = draw((2, 4, 5), 2)
        exact = perturbed.autoguidance(cond=c, perturbed=p, scale=3.0, base="cond" if original else "perturbed")
        agree(
            diffusers_guiders.auto(cond=t(c), perturbed=t(p), scale=3.0, original=original),
            exact,
            magnitude=8 * size(c, p),
        )

    @pytest.mark.parametrize("peer", PERTURBED_PEERS, ids=lambda f: f.__name__)
    @pytest.mark.parametrize("original", [False, True])
    def test_sums(self, peer: Callable[..., torch.Tensor], original: bool) -> None:
        u, c, p = draw((2, 4, 5), 3)
        window: dict[str, Any] = {"perturbed_start": 0.0, "perturbed_stop": 1.0}
        three = peer(
            cond=t(c),
            uncond=t(u),
            perturbed=t(p),
            scale=4.0,
            perturbed_scale=2.0,
            original=original,
            **window,
        )
        exact = perturbed.perturbed_sum(
            cond=c,
            uncond=u,
            perturbed=p,
            scale=4.0,
            perturbed_scale=2.0,
            base="cond" if original else "uncond",
        )
        agree(three, exact, magnitude=14 * size(u, c, p))
        off = 0.0 if original else 1.0
        alone = peer(cond=t(c), perturbed=t(p), scale=off, perturbed_scale=2.0, original=original, **window)
        exact = perturbed.perturbed_sum(
            cond=c, perturbed=p, perturbed_scale=2.0, base="cond" if original else "perturbed"
        )
        agree(alone, exact, magnitude=6 * size(c, p))

    def test_ltx2(self) -> None:
        u, c, p, m = draw((2, 4, 5), 4)
        scales: dict[str, Any] = {"scale": 3.0, "perturbed_scale": 1.0, "modality_scale": 2.5}
        peer = diffusers_guiders.ltx2(cond=t(c), uncond=t(u), perturbed=t(p), modality=t(m), **scales)
        exact = perturbed.ltx2(cond=c, uncond=u, perturbed=p, modality=m, **scales)
        agree(peer, exact, magnitude=12 * size(u, c, p, m))
        rescaled = diffusers_guiders.ltx2(cond=t(c), uncond=t(u), perturbed=t(p), modality=t(m), rescale=0.7, **scales)
        agree(rescaled, rescale.rescale_std(guided=exact, cond=c), magnitude=12 * size(u, c, p, m), units=48)
        np.testing.assert_array_equal(perturbed.ltx2(cond=c), c)

    def test_self_attention_guidance(self) -> None:
        u, c, p = draw((2, 4, 5), 3)
        y = classifier_free.cfg(uncond=u, cond=c, scale=3.0)
        np.testing.assert_array_equal(perturbed.self_attention_guidance(guided=y, uncond=u, perturbed=p, scale=0.0), y)
        got = perturbed.self_attention_guidance(guided=y, uncond=u, perturbed=p)
        np.testing.assert_allclose(got - y, 0.75 * (u - p), rtol=0, atol=16 * U64 * size(y))


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


class TestClassifier:
    def test_conversions_round_trip_and_commute_with_cfg(self) -> None:
        u, c, x = draw((2, 3, 4), 3)
        levels: dict[str, Any] = {"alpha": np.array([0.8, 0.3]), "sigma": np.array([0.6, 0.7])}
        bound: dict[str, Any] = {"rtol": 0, "atol": 2e3 * U64 * size(u, c, x)}
        for source in classifier.PARAMETERIZATIONS:
            for target in classifier.PARAMETERIZATIONS:
                way: dict[str, Any] = {"x": x, **levels, "source": source, "target": target}
                back: dict[str, Any] = {"x": x, **levels, "source": target, "target": source}
                there = classifier.convert(c, **way)
                np.testing.assert_allclose(classifier.convert(there, **back), c, **bound)
                guided = classifier_free.cfg(uncond=classifier.convert(u, **way), cond=there, scale=4.0)
                direct = classifier.convert(classifier_free.cfg(uncond=u, cond=c, scale=4.0), **way)
                np.testing.assert_allclose(guided, direct, **bound)

    def test_velocity(self) -> None:
        x0, eps = draw((2, 3, 4), 2)
        bar, _ = diffusers_schedulers.ddim_alphas_cumprod(step=5, num_steps=10)
        alpha, sigma = bar**0.5, (1 - bar) ** 0.5
        x = alpha * x0 + sigma * eps
        got = classifier.convert(eps, x=x, alpha=alpha, sigma=sigma, source="eps", target="v")
        peer = diffusers_schedulers.velocity(x0=t(x0), eps=t(eps), timestep=400)
        agree(peer, got, magnitude=2 * size(x0, eps))

    def test_the_three_forms_are_one(self) -> None:
        score, gradient, x = draw((2, 3, 4), 3)
        alpha_t, bar = 0.97, 0.4
        sigma = (1 - bar) ** 0.5
        guided = classifier.score_form(score=score, gradient=gradient, scale=2.0)
        eps = classifier.eps_form(eps=-sigma * score, gradient=gradient, sigma=sigma, scale=2.0)
        bound: dict[str, Any] = {"rtol": 0, "atol": 64 * U64 * size(score, gradient, x)}
        np.testing.assert_allclose(-eps / sigma, guided, **bound)
        from_eps = classifier.posterior_mean_from_eps(x=x, eps=eps, alphas_cumprod=bar, alpha_t=alpha_t)
        from_score = classifier.posterior_mean_from_score(x=x, score=guided, alpha_t=alpha_t)
        np.testing.assert_allclose(from_eps, from_score, **bound)
        # With the variance (1 − α)/√α the mean form is the same again; DDPM's β differs by that √α only.
        plain = classifier.posterior_mean_from_score(x=x, score=score, alpha_t=alpha_t)
        variance = (1 - alpha_t) / alpha_t**0.5
        shifted = classifier.mean_form(mean=plain, gradient=gradient, variance=variance, scale=2.0)
        np.testing.assert_allclose(shifted, from_score, **bound)


class TestExactToys:
    def test_gaussian_cfg(self) -> None:
        """CFG of N(0, 1) towards N(1, 1/4) with s = 3 is the score of N(1.2, 0.1)."""
        x = np.linspace(-4, 4, 81).reshape(1, -1)
        v0, v1, m, s = 1.0, 0.25, 1.0, 3.0
        guided = classifier_free.cfg(uncond=-x / v0, cond=-(x - m) / v1, scale=s)
        np.testing.assert_allclose(guided, -(x - 1.2) / 0.1, rtol=0, atol=8 * U64 * 100)

    def test_classifier_guidance_with_the_bayes_classifier_is_cfg(self) -> None:
        x = np.linspace(-3, 5, 65).reshape(1, -1)
        means, variances, prior = np.array([-1.0, 2.0]), np.array([0.5, 1.5]), np.array([0.3, 0.7])
        shape = (2, 1, 1)
        scores = -(x - means.reshape(shape)) / variances.reshape(shape)

        def log_joint(at: np.ndarray) -> np.ndarray:
            v = variances.reshape(shape)
            return np.log(prior).reshape(shape) - (at - means.reshape(shape)) ** 2 / (2 * v) - 0.5 * np.log(v)

        def log_posterior(at: np.ndarray) -> np.ndarray:
            joint = log_joint(at)
            return joint[1] - np.logaddexp(joint[0], joint[1])

        weights = np.exp(log_joint(x) - np.logaddexp(*log_joint(x)))
        uncond = (weights * scores).sum(axis=0)
        h = 1e-4
        gradient = (log_posterior(x + h) - log_posterior(x - h)) / (2 * h)
        guided = classifier.score_form(score=uncond, gradient=gradient, scale=3.0)
        cfg = classifier_free.cfg(uncond=uncond, cond=scores[1], scale=3.0)
        # Central differences: h²/6 of the third derivative, and the rounding of log p over h.
        np.testing.assert_allclose(guided, cfg, rtol=0, atol=3 * (10 * h**2 + 64 * U64 / h * 20))
        implied = classifier.implied_classifier_gradient(uncond=-0.6 * uncond, cond=-0.6 * scores[1], sigma=0.6)
        np.testing.assert_allclose(implied, scores[1] - uncond, rtol=0, atol=64 * U64 * 10)

    @staticmethod
    def _joint_and_sequential(p_u: np.ndarray, p_c: np.ndarray, gamma: float) -> float:
        joint = p_u ** (1 - gamma) * p_c**gamma
        joint = joint / joint.sum()
        first_u, first_c = p_u.sum(axis=1), p_c.sum(axis=1)
        first = nonlinear.guided_logits(uncond=np.log(first_u)[None], cond=np.log(first_c)[None], scale=gamma)[0]
        rest = nonlinear.guided_logits(
            uncond=np.log(p_u / first_u[:, None]), cond=np.log(p_c / first_c[:, None]), scale=gamma
        )
        first, rest = (np.exp(nonlinear.log_softmax(z)) for z in (first[None], rest))
        return 0.5 * float(np.abs(joint - first[0][:, None] * rest).sum())

    def test_joint_and_sequential_guidance_differ(self) -> None:
        rng = np.random.default_rng(0)
        p_u, p_c = rng.dirichlet(np.ones(12), 2).reshape(2, 3, 4)
        assert self._joint_and_sequential(p_u, p_c, 1.0) < 64 * U64
        assert self._joint_and_sequential(p_u, p_c, 3.0) > 0.01
        independent = [np.outer(p.sum(axis=1), p.sum(axis=0)) for p in (p_u, p_c)]
        assert self._joint_and_sequential(independent[0], independent[1], 3.0) < 64 * U64

    def test_logit_guidance_is_bayes_guidance(self) -> None:
        p_u, p_c = np.random.default_rng(1).dirichlet(np.ones(5), 2)
        likelihood = p_c / p_u
        bayes = p_u * likelihood**2.5
        logits = nonlinear.guided_logits(uncond=np.log(p_u)[None], cond=np.log(p_c)[None], scale=2.5)
        np.testing.assert_allclose(np.exp(nonlinear.log_softmax(logits))[0], bayes / bayes.sum(), rtol=0, atol=32 * U64)


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
