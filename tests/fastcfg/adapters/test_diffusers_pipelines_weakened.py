"""Perturbed passes in classic pipelines that have none of their own: layers weakened by one mechanism."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance.tiny_pipelines import CASES, STEPS, made
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from torch import Tensor

from fastcfg import CFG, LTX2, Condition, Perturbed
from fastcfg.adapters.diffusers import guided, weakened

KINDS = ("skip", "attention", "scores", "feed_forward", "blur", "shuffle")


def run(rule: Any, conditions: Any, name: str = "wan") -> Tensor:
    with guided(made(name), rule, conditions=conditions) as guidance:
        result = CASES[name].run(3.0)
    assert guidance.passes_run == STEPS * len(rule.conditions)
    return result


@pytest.mark.parametrize("name", ["wan", "sd3", "pixart", "flux"])
def test_skipped_layers_are_a_pass_of_the_model_without_them(name: str) -> None:
    transformer = made(name).transformer
    stack = "blocks" if name == "wan" else "transformer_blocks"
    blocks = getattr(transformer, stack)
    before = "forward" in vars(blocks[0])  # Another test's cache may have left its own.
    condition = weakened(transformer, [0])
    got = run(Perturbed(5.0, 2.0), {"perturbed": condition}, name)
    assert ("forward" in vars(blocks[0])) == before

    class Skipped(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)) | kwargs
            if name == "flux":
                return given["encoder_hidden_states"], given["hidden_states"]
            if name == "sd3":
                return given["encoder_hidden_states"], given["hidden_states"]
            return given["hidden_states"]

    def without() -> Any:
        class Context:
            def __enter__(self) -> None:
                self.own, blocks[0] = blocks[0], Skipped()

            def __exit__(self, *_: object) -> None:
                blocks[0] = self.own

        return Context()

    expected = run(Perturbed(5.0, 2.0), {"perturbed": Condition({}, context=without)}, name)
    assert torch.equal(got, expected) and not torch.equal(got, run(CFG(5.0), None, name))


def test_perturbed_scores_are_diffusers_own() -> None:
    attention = made("wan").transformer.blocks[1].attn1

    def mode() -> Any:
        class Context:
            def __enter__(self) -> None:
                strong = attention.forward

                def forward(*args: Any, **kwargs: Any) -> Any:
                    with AttentionScoreSkipFunctionMode():
                        return strong(*args, **kwargs)

                attention.forward = forward

            def __exit__(self, *_: object) -> None:
                del attention.forward

        return Context()

    theirs = run(Perturbed(5.0, 2.0), {"perturbed": Condition({}, context=mode)})
    ours = run(Perturbed(5.0, 2.0), {"perturbed": weakened(made("wan").transformer, [1], "scores")})
    assert torch.equal(ours, theirs)


def test_every_kind_is_a_pass_of_its_own_and_several_go_together() -> None:
    transformer = made("wan").transformer
    before = ["forward" in vars(module) for module in transformer.modules()]  # Another test's cache may have left some.
    seen = [run(CFG(5.0), None)]
    for kind in KINDS:
        condition = weakened(transformer, [0], kind, sigma=2.0)
        got = run(Perturbed(5.0, 2.0), {"perturbed": condition})
        assert got.isfinite().all() and not any(torch.equal(got, other) for other in seen), kind
        assert torch.equal(got, run(Perturbed(5.0, 2.0), {"perturbed": condition}))
        seen.append(got)
    both = {"perturbed": weakened(transformer, [0]), "modality": weakened(transformer, [1], "scores")}
    got = run(LTX2(5.0, 2.0, 3.0), both)
    assert got.isfinite().all() and not any(torch.equal(got, other) for other in seen)
    assert ["forward" in vars(module) for module in transformer.modules()] == before


def test_what_the_model_does_not_have_is_named() -> None:
    transformer, unet = made("wan").transformer, made("sd").unet
    for model, arguments, message in (
        (transformer, {"layers": [9]}, r"indices: .*0 \.\.\. 1"),
        (transformer, {"layers": [0], "fqn": "layers"}, "fqn: .*'layers'"),
        (unet, {"layers": [0]}, "fqn: 'auto' finds no stack"),
        (transformer, {"layers": [0], "kind": "drop"}, "kind"),
    ):
        with pytest.raises(ValueError, match=message):
            weakened(model, **arguments)  # type: ignore[arg-type]
    unet_pass = weakened(unet, [0], "scores", fqn="mid_block.attentions")
    got = run(Perturbed(5.0, 2.0), {"perturbed": unet_pass}, "sd")
    assert not torch.equal(got, run(CFG(5.0), None, "sd"))
