"""Values near the ends of float32: sums of their squares are beyond it, results are not."""

from typing import Any

import numpy as np
import pytest
import torch

from fastcfg import APG, CFG, CFGZeroStar, NormCap, Rescale, Rule, guide

BASE = torch.randn(2, 3, 4, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXTREMES = [1e-38, 1e-30, 1e-24, 1e-20, 1e-17, 1e-12, 1.0, 1e12, 1e17, 1e18, 1e19, 1e25, 1e30, 1e36]
RULES: list[Rule] = [
    CFG(3.0, rescale=0.7),
    Rescale(CFG(3.0), 0.7, norm="l2"),
    NormCap(CFG(3.0), 0.9),
    CFGZeroStar(3.0, 0, eps=0.0),
    APG(3.0, eta=0.25, norm_threshold=0.0),
]


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("scale", EXTREMES)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_rules_that_measure_do_so_at_every_size(rule: Rule, scale: float, backend: str) -> None:
    u, c = (BASE * scale).float()
    got = guide(rule, uncond=u, cond=c, backend=backend)
    exact = guide(rule, uncond=u.double(), cond=c.double(), backend="torch")
    # A few roundings of the weights and of each term; below the normal numbers, of their spacing.
    terms = 3 * (u.double().abs() + c.double().abs())
    bound = 2.5 * (8 * 2.0**-24 * terms + 4 * 2.0**-149) + 2.0**-24 * 64 * exact.abs()
    assert ((got.double() - exact).abs() <= bound).all(), ((got.double() - exact).abs() / bound).max()


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_a_sample_among_extreme_ones_keeps_its_bits(backend: str) -> None:
    rule = CFG(3.0, rescale=0.7)
    usual = guide(rule, uncond=BASE[0].float(), cond=BASE[1].float(), backend=backend)
    for k in range(3):
        u, c = BASE.float().clone()
        for tensor in (u, c):
            tensor[(k + 1) % 3] *= 1e25
            tensor[(k + 2) % 3] *= 1e-25
        assert torch.equal(guide(rule, uncond=u, cond=c, backend=backend)[k], usual[k])


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-20, 1.0, 1e20, 3e38])
def test_constants_have_no_spread(value: float, backend: str) -> None:
    constant = torch.full((2, 4, 40, 40), value)
    got: Any = guide(Rescale(CFG(1.0), 1.0), uncond=constant, cond=constant, backend=backend)
    assert torch.equal(got, constant) and np.isfinite(got.numpy()).all()


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_a_projection_on_what_is_next_to_nothing_stays_finite(backend: str) -> None:
    tiny = (BASE[1] * 1e-42).float()
    got = guide(APG(3.0), uncond=BASE[0].float(), cond=tiny, backend=backend)
    assert got.isfinite().all()


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_masked_extremes(backend: str) -> None:
    u, c = (BASE * 1e25).float()
    mask = torch.rand(3, 1, 40, 40, generator=torch.Generator().manual_seed(1)) > 0.4
    rule = CFG(3.0, rescale=0.7)
    got = guide(rule, uncond=u, cond=c, mask=mask, backend=backend).double()
    exact = guide(rule, uncond=u.double(), cond=c.double(), mask=mask, backend="torch")
    assert ((got - exact).abs() <= 2.0**-19 * exact.abs().max()).all()
