"""The nodes of guidance that is no rule, beside the functions they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg import CFG, dynamic_threshold, epsilon_scaling, fresca, guide, mahiro, temporal_score_rescaling

from . import protocol as fake
from .harness import FLOW, SHAPES, apply, noise, one_call


def plain(x: Tensor, cfg: float = 5.0) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (cond, uncond) and their guidance."""
    c, u = fake.predict(x, 1.0), fake.predict(x, -0.5)
    return c, u, guide(CFG(cfg), uncond=u, cond=c)


@pytest.mark.parametrize("shape", SHAPES)
def test_they_are_the_functions(shape: str) -> None:
    x = noise(SHAPES[shape])
    c, u, y = plain(x)
    expected: dict[str, tuple[dict[str, Any], Tensor]] = {
        "FastcfgDynamicThreshold": (
            {"quantile": 0.9, "bound": 2.0}, dynamic_threshold(y / 2.0, quantile=0.9) * 2.0
        ),
        "FastcfgEpsilonScaling": ({"factor": 1.1}, epsilon_scaling(x, y, factor=1.1)),
        "FastcfgTemporalScoreRescaling": (
            {"k": 0.8, "spread": 2.0}, temporal_score_rescaling(x, y, alpha=1.0, sigma=2.0, k=0.8, spread=2.0)
        ),
        "FastcfgMahiro": ({}, mahiro(uncond=u, cond=c, scale=5.0)),
        "FastcfgFreSca": (
            {"low": 0.7, "high": 1.4, "cutoff": 2}, fresca(uncond=u, cond=c, scale=5.0, low=0.7, high=1.4, cutoff=2)
        ),
    }  # fmt: skip
    for node, (inputs, exact) in expected.items():
        got = one_call(apply(node, fake.Patcher(), **inputs), x, 5.0, 2.0)[0]
        assert torch.allclose(got, exact, rtol=1e-5, atol=1e-4), node


def test_dynamic_threshold_comes_after_any_guidance() -> None:
    model = apply("FastcfgDynamicThreshold", apply("FastcfgTCFG", fake.Patcher()), quantile=0.9, bound=2.0)
    assert one_call(model, noise((2, 4, 6, 8)), 5.0, 2.0)[0].abs().max() <= 2.0
    with pytest.raises(ValueError, match="cap"):
        apply("FastcfgDynamicThreshold", fake.Patcher(), cap=0.5)


def test_temporal_score_rescaling_of_a_flow_from_pure_noise() -> None:
    model = apply("FastcfgTemporalScoreRescaling", fake.Patcher(fake.CONST), k=0.8)
    assert fake.run(model, noise((2, 4, 6, 8)), 5.0, FLOW).isfinite().all()


def test_without_a_negative_there_is_nothing_to_change() -> None:
    x = noise((2, 4, 6, 8))
    for node in ("FastcfgMahiro", "FastcfgFreSca"):
        got = one_call(apply(node, fake.Patcher()), x, 1.0, 2.0)[0]
        assert torch.allclose(got, fake.predict(x, 1.0), atol=1e-5), node


def test_mahiro_of_a_sample_does_not_depend_on_its_batch() -> None:
    x = noise((3, 4, 6, 8))
    model = apply("FastcfgMahiro", fake.Patcher())
    together = one_call(model, x, 5.0, 2.0)[0]
    for i in range(3):
        assert torch.allclose(one_call(model, x[i : i + 1], 5.0, 2.0)[0], together[i : i + 1], atol=1e-6)
