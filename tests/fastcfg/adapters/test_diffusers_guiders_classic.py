"""Classic pipelines whose guidance is a guider component: both ``guided`` and ``fuse`` take them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from conformance.tiny_models import BATCH, TOKENS, WIDTH, drawn
from conformance.tiny_videos import hunyuan_video_15
from diffusers import guiders as stock
from torch import Tensor

import fastcfg.adapters.diffusers as fused
from fastcfg import APG, CFG, PerpNeg
from fastcfg.schedules import Interval

STEPS = 4


@cache
def pipe() -> Any:
    torch.manual_seed(0)
    made = hunyuan_video_15(stock.ClassifierFreeGuidance(5.0))
    made.transformer.eval().requires_grad_(False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(autouse=True)
def own_guider() -> Iterator[stock.ClassifierFreeGuidance]:
    guider = vars(pipe())["guider"] = stock.ClassifierFreeGuidance(5.0)
    yield guider
    assert pipe().guider is guider, "the pipeline has its own guider back"


def embeds(seed: int) -> Tensor:
    return drawn(BATCH, TOKENS, WIDTH, seed=seed)


def run() -> Tensor:
    given: dict[str, Any] = {}
    for prefix, seed in (("", 1), ("negative_", 2)):
        for suffix in ("", "_2"):
            given[f"{prefix}prompt_embeds{suffix}"] = embeds(seed + 10 * len(suffix))
            given[f"{prefix}prompt_embeds_mask{suffix}"] = torch.ones(BATCH, TOKENS, dtype=torch.long)
    size = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": STEPS}
    generator = torch.Generator().manual_seed(0)
    return pipe()(**given, **size, generator=generator, output_type="latent", return_dict=False)[0]  # type: ignore[no-any-return]


def test_fuse_has_the_bits_of_the_pipeline(own_guider: stock.ClassifierFreeGuidance) -> None:
    expected = run()
    with fused.fuse(pipe(), numerics="eager") as report:
        assert str(report) == "guider: ClassifierFreeGuidance -> FusedClassifierFreeGuidance"
        assert torch.equal(run(), expected)
    config = dict(pipe().config)
    assert config["guider"] == ("diffusers", "ClassifierFreeGuidance"), "the pipeline's config is its own"


def test_guided_has_the_bits_of_the_pipeline() -> None:
    expected = run()
    with fused.guided(pipe(), CFG(5.0), numerics="eager") as guidance:
        assert torch.equal(run(), expected)
        assert (guidance.step, guidance.num_steps) == (STEPS, STEPS)
    assert (guidance.passes_run, guidance.passes_saved) == (2 * STEPS, 0)
    with fused.guided(pipe(), CFG(Interval(5.0, 0.0, 0.5))) as guidance:
        assert not torch.equal(run(), expected)
    assert (guidance.passes_run, guidance.passes_saved) == (6, 2)


def test_guided_takes_other_rules_and_conditions() -> None:
    expected = run()
    negative = {"encoder_hidden_states": embeds(3), "encoder_hidden_states_2": embeds(4)}
    with fused.guided(pipe(), PerpNeg(5.0, (1.0,)), conditions={"negative": negative}) as guidance:
        assert not torch.equal(run(), expected)
    assert guidance.passes_run == 3 * STEPS
    with fused.guided(pipe(), APG(5.0, momentum=-0.5)) as guidance:
        first = run()
        assert torch.equal(run(), first), "a run begins with a state of its own"
    assert "average" in guidance.state
    for rule, conditions, message in (
        (CFG(5.0), {"negative": negative}, "conditions: negative"),
        ({"transformer": CFG(5.0)}, None, "rule: expected a fastcfg rule"),
    ):
        guided = fused.guided(pipe(), rule, conditions=conditions)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match=message), guided:
            pass


def test_a_pipeline_without_its_guider_says_so(own_guider: stock.ClassifierFreeGuidance) -> None:
    vars(pipe())["guider"] = None
    with pytest.raises(ValueError, match="it has none"), fused.guided(pipe(), CFG(5.0)):
        pass
    vars(pipe())["guider"] = own_guider
    with pytest.raises(ValueError, match="that of its guider"):
        fused.own_rule(pipe(), 5.0)
