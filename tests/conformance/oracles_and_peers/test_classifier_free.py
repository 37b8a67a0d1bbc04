"""The float64 oracles of classifier-free guidance against the peers' installed code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ..oracles import classifier_free, perturbed
from ..peers import diffusers_guiders
from .agreement import SCALES, SHAPES, U64, agree, draw, size, t


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
