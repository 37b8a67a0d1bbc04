"""Rules, modifiers and thresholds of the nodes against float64 oracles."""

from __future__ import annotations

import pytest
import torch
from conformance.oracles import projection as oracles

from fastcfg.adapters.comfyui.recipe import spaces, stages
from fastcfg.adapters.comfyui.space import kind_of

from . import protocol as fake
from .harness import SHAPES, SIGMAS, UNIT, apply, in_space, noise, one_call

NUMPY = {
    "FastcfgTCFG": (lambda u, c, s: oracles.tcfg(uncond=u, cond=c, scale=s), {}),
    "FastcfgCFGZeroStar": (lambda u, c, s: oracles.cfg_zero_star(uncond=u, cond=c, scale=s), {}),
    "FastcfgMaMBOG": (lambda u, c, s: oracles.mambo_g(uncond=u, cond=c, scale=s, alpha=2.0), {"alpha": 2.0}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampling", [fake.EPS, fake.CONST], ids=["eps", "flow"])
@pytest.mark.parametrize("space", ["x0", "noise", "v"])
@pytest.mark.parametrize("node", NUMPY)
def test_rules_work_in_their_space(node: str, space: str, sampling: type, shape: str) -> None:
    oracle, inputs = NUMPY[node]
    flow, sigma, cfg = sampling is fake.CONST, 0.6, 5.0
    x = noise(SHAPES[shape])
    got, x64, c, u = one_call(apply(node, fake.Patcher(sampling), space=space, **inputs), x, cfg, sigma)
    to, back = in_space(space, flow, float(torch.tensor(sigma)))
    exact = back(x64, torch.from_numpy(oracle(to(x64, u).numpy(), to(x64, c).numpy(), cfg)))
    # As in tests/conformance/test_comfyui.py: 24 roundings, and the sums' own.
    size = x64.abs() + (2 * cfg + 1) * torch.maximum(c.abs(), u.abs())
    bound = UNIT * (24 * size + (4 * (x[0].numel() / 16) ** 0.5 + 8) * size.max())
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_rescale_has_the_spread_of_cond_in_every_sample(shape: str) -> None:
    sigma = 2.0
    model = apply("FastcfgRescale", fake.Patcher(), multiplier=1.0)
    got, x, c, _u = one_call(model, noise(SHAPES[shape]), 6.0, sigma)
    v = in_space("v", False, sigma)[0]
    assert torch.allclose(v(x, got.double()).flatten(1).std(1), v(x, c).flatten(1).std(1), rtol=1e-5)


def test_modifiers_follow_rules_in_one_launch_or_in_two() -> None:
    x, sigma = noise((2, 4, 6, 8)), 2.0
    one = apply("FastcfgRescale", apply("FastcfgTCFG", fake.Patcher(), space="v"), space="v")
    two = apply("FastcfgRescale", apply("FastcfgTCFG", fake.Patcher(), space="noise"), space="v")
    for patched, launches in ((one, 1), (two, 2)):
        recipe = patched.model_options["sampler_cfg_function"].__self__.recipe
        kinds = tuple((space, kind_of(space, patched.model)) for space in spaces(recipe))
        assert len(stages(recipe, 6.0, None, None, kinds)) == launches
        got, x64, c, u = one_call(patched, x, 6.0, sigma)
        to, back = in_space("v" if launches == 1 else "noise", False, sigma)
        y = back(x64, torch.from_numpy(oracles.tcfg(uncond=to(x64, u).numpy(), cond=to(x64, c).numpy(), scale=6.0)))
        v, from_v = in_space("v", False, sigma)
        ratio = (v(x64, c).flatten(1).std(1) / v(x64, y).flatten(1).std(1)).view(-1, 1, 1, 1)
        exact = from_v(x64, v(x64, y) * (1 - 0.7 + 0.7 * ratio))
        assert torch.allclose(got.double(), exact, atol=2e-5)


def test_any_order_of_modifiers_runs() -> None:
    model = fake.Patcher()
    for node, inputs in (
        ("FastcfgAPG", {"momentum": -0.5}), ("FastcfgNormCap", {"over": "channel"}), ("FastcfgClamp", {}),
        ("FastcfgRescale", {}), ("FastcfgNormCap", {"space": "noise"}), ("FastcfgInterval", {"end_percent": 0.9}),
        ("FastcfgSchedule", {}), ("FastcfgDynamicThreshold", {"bound": 9.0}),
    ):  # fmt: skip
        model = apply(node, model, **inputs)
    assert fake.run(model, noise((2, 4, 6, 8)), 6.0, SIGMAS).isfinite().all()


@pytest.mark.parametrize("node", ["FastcfgAPG", "FastcfgFDG", "FastcfgTCFG", "FastcfgRescale", "FastcfgMaMBOG"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_does_not_depend_on_its_batch(node: str, shape: str) -> None:
    model, x = apply(node, fake.Patcher(fake.V_PREDICTION)), noise(SHAPES[shape])
    together = one_call(model, x, 5.0, 2.0)[0]
    for i in range(x.shape[0]):
        assert torch.equal(one_call(model, x[i : i + 1], 5.0, 2.0)[0], together[i : i + 1])
