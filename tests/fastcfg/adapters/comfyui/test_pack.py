"""The pack as ComfyUI sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastcfg import APG, CFG, PerpNeg
from fastcfg.adapters import comfyui as pack

from . import protocol as fake
from .harness import EMPTY, apply, noise, one_call


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


def test_bad_input_names_the_argument() -> None:
    for node, inputs in (
        ("FastcfgTCFG", {"space": "latent"}), ("FastcfgRescale", {"space": "eps"}), ("FastcfgAPG", {"base": "both"}),
        ("FastcfgSchedule", {"curve": "step"}), ("FastcfgCFGZeroStar", {"variant": "diffusers"}),
        ("FastcfgPerturbedAttention", {"block": "attn"}),
    ):  # fmt: skip
        (name,) = inputs
        with pytest.raises(ValueError, match=f"{name}: expected one of"):
            apply(node, fake.Patcher(), **inputs)
    with pytest.raises(ValueError, match="rule: expected JSON"):
        apply("FastcfgRule", fake.Patcher(), rule="CFG(7.5)")
    with pytest.raises(ValueError, match="zero_init_steps"):
        apply("FastcfgCFGZeroStar", fake.Patcher(), variant="comfyui", zero_init_steps=1)
