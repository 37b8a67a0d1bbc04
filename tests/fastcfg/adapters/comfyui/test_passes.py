"""Which passes a step runs, and the perturbed ones."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg import PerpNeg, guide

from . import protocol as fake
from .harness import EMPTY, SHAPES, SIGMAS, apply, noise, one_call


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
