"""The float64 oracles of perturbed guidance against the peers' installed code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ..oracles import classifier_free, perturbed, rescale
from ..peers import diffusers_guiders
from .agreement import U64, agree, draw, size, t

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
