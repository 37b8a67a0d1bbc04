"""The nodes on ComfyUI's hook protocol, against float64 oracles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from conformance.oracles import projection as oracles
from conformance.oracles.classifier_free import cfg as cfg_oracle
from torch import Tensor

from fastcfg import APG, CFG, PerpNeg, dynamic_threshold, guide
from fastcfg.adapters import comfyui as pack

from . import protocol as fake

UNIT = 2.0**-24
SIGMAS = torch.tensor([8.0, 5.0, 2.0, 0.5, 0.0])
FLOW = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
SHAPES = {"image": (3, 4, 6, 8), "video": (2, 4, 3, 6, 8)}
EMPTY = fake.conditioning(0.2)


@pytest.fixture(autouse=True)
def comfy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake.install_fake(monkeypatch)
    yield


def defaults(node: str) -> dict[str, Any]:
    """A node's widgets as they stand."""
    required = pack.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]
    return {name: options["default"] for name, (_, options) in required.items() if "default" in options}


def apply(node: str, model: Any, **inputs: Any) -> Any:
    """The output of a node with some widgets changed."""
    return pack.NODE_CLASS_MAPPINGS[node]().execute(model=model, **{**defaults(node), **inputs})[0]


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def one_call(model: Any, x: Tensor, cfg: float, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The guided sample of a run's only call; and, in float64, x and the predictions (cond, uncond)."""
    seen: list[Tensor] = []

    def solver(denoise: Callable[..., Tensor], start: Tensor, sigmas: Tensor) -> Tensor:
        seen.append(denoise(start, sigmas[:1].expand(start.shape[0])))
        return start

    fake.run(model, x, cfg, torch.tensor([sigma, 0.0]), solver=solver)
    return seen[0], x.double(), fake.predict(x, 1.0).double(), fake.predict(x, -0.5).double()


def in_space(space: str, flow: bool, sigma: float) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """To a prediction of a space and back, in float64."""
    alpha = 1 - sigma if flow else 1.0
    if space == "x0":
        return lambda x, p: p, lambda x, q: q
    if space == "noise" or flow:  # For a flow x - x0 is along the velocity.
        return lambda x, p: (x - p) / sigma, lambda x, q: x - sigma * q
    # v of a variance-preserving process, whose latent is x / root.
    root = (1 + sigma**2) ** 0.5
    return lambda x, p: (x / root - root * p) / sigma, lambda x, q: (x / root - sigma * q) / root


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
    for y in (v(x, got.double()),):
        assert torch.allclose(y.flatten(1).std(1), v(x, c).flatten(1).std(1), rtol=1e-5)


def test_modifiers_follow_rules_in_one_launch_or_in_two() -> None:
    x, sigma = noise((2, 4, 6, 8)), 2.0
    one = apply("FastcfgRescale", apply("FastcfgTCFG", fake.Patcher(), space="v"), space="v")
    two = apply("FastcfgRescale", apply("FastcfgTCFG", fake.Patcher(), space="noise"), space="v")
    for patched, launches in ((one, 1), (two, 2)):
        recipe = patched.model_options["sampler_cfg_function"].__self__.recipe
        from fastcfg.adapters.comfyui.recipe import spaces, stages
        from fastcfg.adapters.comfyui.space import kind_of

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


# --- Momentum and steps ------------------------------------------------------------------------------------------


def apg(x: Tensor, sigmas: Tensor, cfg: float) -> Tensor:
    """The run with momentum in float64."""
    x, average = x.double(), 0.0
    for sigma, after in zip(sigmas[:-1].double(), sigmas[1:].double(), strict=True):
        c, u = (fake.predict(x, value).numpy() for value in (1.0, -0.5))
        average = (c - u) - 0.6 * average
        y = torch.from_numpy(c + cfg * average)
        x = x + (x - y) / sigma * (after - sigma)
    return x


def test_momentum_lasts_a_run_and_no_longer() -> None:
    model = apply("FastcfgAPG", fake.Patcher(), eta=1.0, norm_threshold=0.0, momentum=-0.6)
    x = noise((2, 4, 6, 8)) * 0.1
    expected = apg(x, SIGMAS, 0.7)
    for patched in (model, model, model.clone()):
        got = fake.run(patched, x, 0.7, SIGMAS)
        assert torch.allclose(got.double(), expected, atol=1e-4)
    assert not torch.allclose(apg(x, SIGMAS[:2], 0.7), expected, atol=1e-2)


def test_momentum_of_interleaved_runs_and_clones_is_their_own() -> None:
    model = apply("FastcfgAPG", fake.Patcher(), momentum=-0.6)
    starts = [noise((1, 4, 6, 8), seed) for seed in (0, 1)]
    alone = [fake.run(model, x, 5.0, SIGMAS) for x in starts]
    turns: list[Any] = []

    def recorded(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        turns.append((denoise, x))
        return x

    # Both runs begin, then step in turn.
    guiders = []
    for patched, x in zip((model, model.clone()), starts, strict=True):
        guider = fake.Guider(patched)
        guider.set_conds(fake.conditioning(1.0), fake.conditioning(-0.5))
        guider.set_cfg(5.0)
        guider.sample(x, SIGMAS, recorded)
        guiders.append(guider)
    latents = [x for _, x in turns]
    for sigma, after in itertools.pairwise(SIGMAS):
        for i, (denoise, _) in enumerate(turns):
            slope = (latents[i] - denoise(latents[i], sigma.expand(1))) / sigma
            latents[i] = latents[i] + slope * (after - sigma)
    for got, expected in zip(latents, alone, strict=True):
        assert torch.equal(got, expected)


def test_momentum_without_wrappers_begins_anew_when_the_noise_rises() -> None:
    """As in a ComfyUI without them, and for samplers that restart."""
    model = apply("FastcfgAPG", fake.Patcher(), momentum=-0.6)
    model.wrappers = {}
    x = noise((1, 4, 6, 8))
    expected = fake.run(model, x, 5.0, SIGMAS)

    def twice(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        fake.euler(denoise, x, sigmas)
        return fake.euler(denoise, x, sigmas)

    assert torch.equal(fake.run(model, x, 5.0, SIGMAS, solver=twice), expected)


@pytest.mark.parametrize("copies", ["shallow", "nested"])
def test_momentum_survives_options_that_are_copied_at_each_step(copies: str) -> None:
    model = apply("FastcfgAPG", fake.Patcher(), momentum=-0.6)
    x = noise((1, 4, 6, 8))
    expected = fake.run(model, x, 5.0, SIGMAS)

    class Copying(fake.Guider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
            options = dict(model_options) if copies == "shallow" else fake._nested(model_options)
            return super().predict_noise(x, timestep, options)

    guider = Copying(model)
    guider.set_conds(fake.conditioning(1.0), fake.conditioning(-0.5))
    guider.set_cfg(5.0)
    assert torch.equal(guider.sample(x, SIGMAS), expected)


def test_schedule_takes_the_place_of_cfg() -> None:
    model = apply("FastcfgSchedule", fake.Patcher(), curve="linear", start=1.0, end=4.0)
    x = noise((1, 4, 6, 8)) * 0.1
    expected = x
    for i, (sigma, after) in enumerate(itertools.pairwise(SIGMAS)):
        y = torch.lerp(fake.predict(expected, -0.5), fake.predict(expected, 1.0), 1.0 + i)
        expected = expected + (expected - y) / sigma * (after - sigma)
    for cfg in (1.0, 9.0):
        assert torch.allclose(fake.run(model, x, cfg, SIGMAS), expected, atol=1e-4)
    assert [len(call) for call in model.model.calls] == 2 * [1, 2, 2, 2], "one pass where the scale is 1"


def test_schedule_of_a_second_order_sampler_counts_steps_and_not_calls() -> None:
    model = apply("FastcfgSchedule", fake.Patcher(), curve="linear", start=2.0, end=5.0)
    seen: list[Tensor] = []

    def middle(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        for sigma in (8.0, 6.3, 5.0, 3.0, 2.0, 0.5):
            seen.append(denoise(x, torch.full((1,), sigma)))
        return x

    x = noise((1, 4, 6, 8))
    fake.run(model, x, 7.0, SIGMAS, solver=middle)
    for got, scale in zip(seen, (2.0, 2.0, 3.0, 3.0, 4.0, 5.0), strict=True):
        exact = cfg_oracle(uncond=fake.predict(x, -0.5).numpy(), cond=fake.predict(x, 1.0).numpy(), scale=scale)
        assert np.allclose(got.numpy(), exact, atol=1e-4)


def test_zero_init_stands_still() -> None:
    model = apply("FastcfgCFGZeroStar", fake.Patcher(fake.CONST), zero_init_steps=2)
    seen: list[tuple[Tensor, Tensor]] = []

    def solver(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        for sigma in sigmas[:-1]:
            seen.append((x, denoise(x, sigma.expand(x.shape[0]))))
        return x

    fake.run(model, noise((2, 4, 6, 8)), 5.0, FLOW, solver=solver)
    for i, (x, y) in enumerate(seen):
        assert torch.allclose(x, y, atol=1e-5) == (i < 2), "a velocity of zero is the latent itself"


def test_a_schedule_needs_the_samplers_noise_levels() -> None:
    model = apply("FastcfgSchedule", fake.Patcher())
    args = {"input": noise((1, 4, 6, 8)), "sigma": torch.ones(1), "model": model.model, "model_options": {}}
    with pytest.raises(RuntimeError, match="sample_sigmas"):
        model.model_options["sampler_calc_cond_batch_function"]({**args, "conds": [[{}], [{}]]})


# --- Passes ------------------------------------------------------------------------------------------------------


def test_interval_runs_one_pass_outside() -> None:
    model = apply("FastcfgInterval", fake.Patcher(), start_percent=0.4, end_percent=0.9)
    x = noise((1, 4, 6, 8))
    fake.run(model, x, 5.0, SIGMAS)
    assert [len(call) for call in model.model.calls] == [1, 2, 2, 1]
    outside = one_call(model, x, 5.0, 8.0)
    assert torch.allclose(outside[0].double(), outside[2], atol=1e-5)
    with pytest.raises(ValueError, match="start_percent, end_percent"):
        apply("FastcfgInterval", fake.Patcher(), start_percent=0.5, end_percent=0.5)


@pytest.mark.parametrize("node", ["FastcfgCFG", "FastcfgTCFG", "FastcfgRescale", "FastcfgMaMBOG"])
def test_cfg_of_one_is_cond_in_one_pass(node: str) -> None:
    model = apply(node, fake.Patcher())
    got, _, cond, _ = one_call(model, noise((1, 4, 6, 8)), 1.0, 2.0)
    assert torch.allclose(got.double(), cond, atol=1e-5)
    assert [len(call) for call in model.model.calls] == [1]


def test_perp_neg_is_by_sample_in_one_batch_and_encodes_once() -> None:
    model = apply("FastcfgPerpNeg", fake.Patcher(), empty_conditioning=EMPTY, neg_scale=0.7)
    x = noise((3, 4, 6, 8))
    got, _, cond, negative = one_call(model, x, 5.0, 2.0)
    empty = fake.predict(x, 0.2).double()
    rule = PerpNeg(5.0, (0.7,), scale_negative=True)
    exact = guide(rule, uncond=empty, cond=cond, negative=negative)
    assert torch.allclose(got.double(), exact, atol=1e-4)
    assert model.model.calls == [[1.0, -0.5, 0.2]]
    before = model.model.encoded
    fake.run(model, x, 5.0, SIGMAS)
    assert model.model.encoded - before == 3, "cond, uncond and empty"


def test_perp_neg_with_another_hook_in_charge_of_the_batch() -> None:
    """The last node's ``sampler_calc_cond_batch_function`` wins; ours, when last, keeps the one before."""
    ran: list[int] = []

    def theirs(args: dict[str, Any]) -> list[Tensor]:
        ran.append(len(args["conds"]))
        return import_module("comfy.samplers").calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )  # type: ignore[no-any-return]

    x = noise((2, 4, 6, 8))
    plain = apply("FastcfgPerpNeg", fake.Patcher(), empty_conditioning=EMPTY)
    expected = one_call(plain, x, 5.0, 2.0)[0]
    before, after = fake.Patcher(), plain.clone()
    before.set_model_sampler_calc_cond_batch_function(theirs)
    after.set_model_sampler_calc_cond_batch_function(theirs)
    assert torch.equal(one_call(apply("FastcfgPerpNeg", before, empty_conditioning=EMPTY), x, 5.0, 2.0)[0], expected)
    assert ran == [3]
    assert torch.equal(one_call(after, x, 5.0, 2.0)[0], expected)
    assert ran == [3, 2]


def test_a_step_without_uncond_shows_other_hooks_no_difference() -> None:
    """Zeros, as ComfyUI gives for a pass that was not run, would be taken for a prediction."""
    seen: list[Tensor] = []

    def hook(args: dict[str, Any]) -> Tensor:
        seen.append(args["cond_denoised"] - args["uncond_denoised"])
        return args["denoised"]  # type: ignore[no-any-return]

    model = apply("FastcfgInterval", fake.Patcher(), start_percent=0.4)
    model.set_model_sampler_post_cfg_function(hook)
    one_call(model, noise((1, 4, 6, 8)), 5.0, 8.0)
    assert not seen[0].any()


def test_other_hooks_see_and_change_what_the_rule_gets() -> None:
    model = apply("FastcfgCFG", fake.Patcher())
    model.set_model_sampler_pre_cfg_function(lambda args: [args["conds_out"][0] + 1.0, args["conds_out"][1]])
    got, _, cond, uncond = one_call(model, noise((1, 4, 6, 8)), 5.0, 2.0)
    assert torch.allclose(got.double(), uncond + 5.0 * (cond + 1.0 - uncond), atol=1e-4)


# --- Guiders -----------------------------------------------------------------------------------------------------

POSITIVE, NEGATIVE, OTHER = fake.conditioning(1.0), fake.conditioning(-0.5), fake.conditioning(0.6)
GUIDERS: dict[str, tuple[dict[str, Any], Callable[..., Tensor], list[float]]] = {
    "FastcfgPerpNegGuider": (
        {"positive": POSITIVE, "negative": NEGATIVE, "empty_conditioning": EMPTY, "neg_scale": 0.7},
        lambda p, cfg: guide(PerpNeg(cfg, (0.7,), True), uncond=p(0.2), cond=p(1.0), negative=p(-0.5)),
        [1.0, -0.5, 0.2],
    ),
    "FastcfgDualCFGGuider": (
        {"positive": POSITIVE, "negative": NEGATIVE, "empty_conditioning": EMPTY, "neg_scale": 0.7},
        lambda p, cfg: p(0.2) + cfg * (p(1.0) - p(0.2)) - 0.7 * (p(-0.5) - p(0.2)),
        [1.0, -0.5, 0.2],
    ),
    "FastcfgTwoStageGuider": (
        {"positive": POSITIVE, "middle": OTHER, "negative": NEGATIVE, "middle_cfg": 1.5},
        lambda p, cfg: p(-0.5) + 1.5 * (p(0.6) - p(-0.5)) + cfg * (p(1.0) - p(0.6)),
        [1.0, -0.5, 0.6],
    ),
    "FastcfgMultiConditionGuider": (
        {"positive": POSITIVE, "positive_2": OTHER, "negative": NEGATIVE, "cfg_2": 2.0},
        lambda p, cfg: p(-0.5) + cfg * (p(1.0) - p(-0.5)) + 2.0 * (p(0.6) - p(-0.5)),
        [1.0, -0.5, 0.6],
    ),
}


def guided_once(guider: Any, x: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def solver(denoise: Callable[..., Tensor], start: Tensor, sigmas: Tensor) -> Tensor:
        seen.append(denoise(start, sigmas[:1].expand(start.shape[0])))
        return start

    guider.sample(x, torch.tensor([2.0, 0.0]), solver)
    return seen[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("node", GUIDERS)
def test_guiders_run_their_conditions_in_one_batch(node: str, shape: str) -> None:
    inputs, exact, order = GUIDERS[node]
    model, x = fake.Patcher(), noise(SHAPES[shape])
    got = guided_once(apply(node, model, cfg=5.0, **inputs), x)
    assert torch.allclose(got.double(), exact(lambda value: fake.predict(x, value).double(), 5.0), atol=1e-4)
    assert model.model.calls == [order]


def test_guiders_leave_out_passes_of_weight_zero() -> None:
    inputs = GUIDERS["FastcfgDualCFGGuider"][0]
    for neg_scale, order in ((0.0, [1.0, 0.2]), (4.0, [1.0, -0.5])):
        model = fake.Patcher()
        guided_once(
            apply("FastcfgDualCFGGuider", model, **{**inputs, "cfg": 5.0, "neg_scale": neg_scale}), noise((1, 4, 6, 8))
        )
        assert model.model.calls == [order]


def test_guiders_take_modifiers_intervals_and_hooks() -> None:
    inputs, exact, _ = GUIDERS["FastcfgTwoStageGuider"]
    x = noise((2, 4, 6, 8))
    seen: list[dict[str, Any]] = []

    def hook(args: dict[str, Any]) -> Tensor:
        seen.append(args)
        return args["denoised"] + 1.0  # type: ignore[no-any-return]

    model = apply("FastcfgNormCap", apply("FastcfgInterval", fake.Patcher(), start_percent=0.5), cap=0.9)
    model.set_model_sampler_post_cfg_function(hook)
    guider = apply("FastcfgTwoStageGuider", model, cfg=5.0, **inputs)
    got = guided_once(guider, x).double() - 1.0
    y, c = exact(lambda value: fake.predict(x, value).double(), 5.0), fake.predict(x, 1.0).double()
    norms = (y.flatten(1).norm(dim=1), 0.9 * c.flatten(1).norm(dim=1))
    factor = torch.minimum(torch.ones(2), norms[1] / norms[0]).view(-1, 1, 1, 1)
    assert torch.allclose(got, y * factor, atol=1e-4)
    keys = {"denoised", "cond", "uncond", "cond_scale", "model", "uncond_denoised", "cond_denoised", "sigma"}
    assert keys | {"model_options", "input"} <= seen[0].keys()
    guided_once(guider, x)
    outside = guider.model_patcher.model.calls
    guider.sample(x, torch.tensor([8.0, 2.0, 0.0]))
    assert [len(call) for call in outside[-2:]] == [1, 3]


def test_autoguidance_runs_the_weak_model_on_the_positive() -> None:
    model, weak = fake.Patcher(), fake.Patcher()
    weak.model.model_sampling = fake.EPS()
    guider = apply(
        "FastcfgAutoguidanceGuider",
        model,
        weak_model=weak,
        positive=POSITIVE,
        negative=NEGATIVE,
        cfg=1.0,
        weak_scale=3.0,
    )
    got = guided_once(guider, noise((1, 4, 6, 8)))
    assert (model.model.calls, weak.model.calls) == ([[1.0]], [[1.0]])
    assert torch.allclose(got, fake.predict(noise((1, 4, 6, 8)), 1.0), atol=1e-5), "the same network twice"
    assert guider.model_patcher.additional == {"fastcfg_weak": [weak]}
    with pytest.raises(ValueError, match="weak_model"):
        apply("FastcfgAutoguidanceGuider", model, weak_model=model.clone(), positive=POSITIVE, negative=NEGATIVE)


# --- Perturbed passes and thresholds -----------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [0.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES)
def test_perturbed_attention_adds_to_any_guidance(shape: str, rescale: float) -> None:
    model = apply("FastcfgTCFG", fake.Patcher(), space="x0")
    x = noise(SHAPES[shape])
    before = one_call(model, x, 5.0, 2.0)[0].double()
    patched = apply("FastcfgPerturbedAttention", model, scale=2.0, rescale=rescale)
    got, _, cond, _ = one_call(patched, x, 5.0, 2.0)
    y = before + 2.0 * (cond - fake.predict(x, 1.0 - 0.25).double())
    ratio = (cond.flatten(1).std(1) / y.flatten(1).std(1)).view(-1, *[1] * (x.dim() - 1))
    assert torch.allclose(got.double(), y * (1 - rescale + rescale * ratio), atol=1e-4)
    assert "patches_replace" not in patched.model_options["transformer_options"], "the pass alone is perturbed"


def test_skip_layers_in_its_window() -> None:
    model = apply(
        "FastcfgSkipLayers", fake.Patcher(), double_layers="1, 2", single_layers="4", start_percent=0.4, end_percent=0.9
    )
    x = noise((2, 4, 6, 8))
    fake.run(model, x, 5.0, SIGMAS)
    assert [len(call) for call in model.model.calls] == [2, 2, 1, 2, 1, 2]
    none = apply("FastcfgSkipLayers", fake.Patcher(), double_layers="", single_layers="")
    assert torch.equal(one_call(none, x, 5.0, 5.0)[0], one_call(fake.Patcher(), x, 5.0, 5.0)[0])


def test_dynamic_threshold_is_the_last_word() -> None:
    model = apply("FastcfgDynamicThreshold", fake.Patcher(), quantile=0.9, bound=2.0)
    x = noise((2, 4, 6, 8))
    got = one_call(model, x, 5.0, 2.0)[0]
    assert torch.equal(got, dynamic_threshold(one_call(fake.Patcher(), x, 5.0, 2.0)[0] / 2.0, quantile=0.9) * 2.0)
    assert got.abs().max() <= 2.0
    with pytest.raises(ValueError, match="cap"):
        apply("FastcfgDynamicThreshold", fake.Patcher(), cap=0.5)


# --- The pack ----------------------------------------------------------------------------------------------------


def test_any_rule_as_json() -> None:
    x = noise((2, 4, 6, 8))
    for rule, same in ((CFG(2.0), "FastcfgCFG"), (APG(1.0, 1.0, 5.0, base="cond"), "FastcfgAPG")):
        got = one_call(apply("FastcfgRule", fake.Patcher(), rule=rule.to_json()), x, 5.0, 2.0)[0]
        assert torch.equal(got, one_call(apply(same, fake.Patcher()), x, 5.0, 2.0)[0]), "its scale is cfg"
    with pytest.raises(ValueError, match="negative"):
        apply("FastcfgRule", fake.Patcher(), rule=PerpNeg().to_json())


@pytest.mark.parametrize("node", pack.NODES, ids=lambda node: node.name)
def test_every_node_is_described(node: Any) -> None:
    first = pack.NODE_CLASS_MAPPINGS[node.name]
    assert first.RETURN_TYPES in (("MODEL",), ("GUIDER",))
    assert first.CATEGORY.startswith("fastcfg/")
    assert pack.NODE_DISPLAY_NAME_MAPPINGS[node.name].endswith("(fastcfg)")
    assert callable(getattr(first(), first.FUNCTION))
    for name, (kind, options) in first.INPUT_TYPES()["required"].items():
        assert options["tooltip"], name
        if isinstance(kind, list):
            assert options["default"] in kind
        elif kind in ("FLOAT", "INT"):
            assert options["min"] <= options["default"] <= options["max"], name


def test_a_node_leaves_the_model_it_was_given() -> None:
    model = fake.Patcher()
    apply("FastcfgPerpNeg", model, empty_conditioning=EMPTY)
    apply("FastcfgPerturbedAttention", model)
    assert model.model_options == {"transformer_options": {}} and model.wrappers == {}


@pytest.mark.parametrize("node", ["FastcfgAPG", "FastcfgFDG", "FastcfgTCFG", "FastcfgRescale", "FastcfgMaMBOG"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_does_not_depend_on_its_batch(node: str, shape: str) -> None:
    model, x = apply(node, fake.Patcher(fake.V_PREDICTION)), noise(SHAPES[shape])
    together = one_call(model, x, 5.0, 2.0)[0]
    for i in range(x.shape[0]):
        assert torch.equal(one_call(model, x[i : i + 1], 5.0, 2.0)[0], together[i : i + 1])
