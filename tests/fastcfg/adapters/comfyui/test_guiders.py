"""The guiders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg import PerpNeg, guide

from . import protocol as fake
from .harness import EMPTY, SHAPES, apply, noise

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


@pytest.mark.parametrize("node", GUIDERS)
def test_modifiers_of_guiders_measure_by_the_positive(node: str) -> None:
    inputs, _, order = GUIDERS[node]
    model, x = fake.Patcher(), noise((2, 4, 6, 8))
    modified = apply("FastcfgNormCap", model, mode="full", cap=0.5)
    got = guided_once(apply(node, modified, cfg=5.0, **inputs), x)
    norms = (got.flatten(1).norm(dim=1), 0.5 * fake.predict(x, 1.0).flatten(1).norm(dim=1))
    assert torch.allclose(*norms, rtol=1e-5)
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
