"""A model and its guidance as one callable."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastcfg
from fastcfg import CFG, DualCFG, GuidedDenoiser, PerpNeg, schedules

X = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))


class Model:
    """``x * mean(text) + t``: each sample by itself; keeps what it was called with."""

    def __init__(self, wrap: Any = lambda y: y) -> None:
        self.calls: list[dict[str, Any]] = []
        self.wrap = wrap

    def __call__(self, x: torch.Tensor, t: Any, text: torch.Tensor, **other: Any) -> Any:
        self.calls.append({"x": x, "t": t, "text": text, **other})
        when = t.view(-1, 1, 1, 1) if isinstance(t, torch.Tensor) and t.dim() else t
        return self.wrap(x * text.mean((1, 2)).view(-1, 1, 1, 1) + when)


def text(seed: int, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(seed))


def conditions(*names: str, **same: Any) -> dict[str, dict[str, Any]]:
    return {name: {"text": text(i), **same} for i, name in enumerate(names)}


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.tensor([0.1, 0.2, 0.3])], ids=["number", "0-dim", "[B]"])
@pytest.mark.parametrize("rule", [CFG(4.0), CFG(4.0, rescale=0.5), DualCFG(4.0, 1.0), PerpNeg()], ids=repr)
def test_batched_equals_sequential(rule: fastcfg.Rule, t: Any) -> None:
    given = conditions(*rule.conditions, pooled=None, flag=True)
    models = Model(), Model()
    batched = GuidedDenoiser(models[0], rule)(X, t, conditions=given)
    sequential = GuidedDenoiser(models[1], rule, mode="sequential")(X, t, conditions=given)
    assert torch.equal(batched, sequential)
    passes = len(rule.conditions)
    assert len(models[0].calls) == 1 and len(models[1].calls) == passes
    call = models[0].calls[0]
    assert torch.equal(call["x"], torch.cat([X] * passes))
    assert torch.equal(call["text"], torch.cat([given[name]["text"] for name in rule.conditions]))
    assert call["flag"] is True and call["pooled"] is None
    if isinstance(t, torch.Tensor) and t.dim():
        assert torch.equal(call["t"], t.repeat(passes))
    else:
        assert call["t"] is t
    for call, name in zip(models[1].calls, rule.conditions, strict=True):
        assert call["x"] is X and call["t"] is t and call["text"] is given[name]["text"]
    expected = fastcfg.guide(rule, **{name: Model()(X, t, given[name]["text"]) for name in rule.conditions})
    torch.testing.assert_close(batched, expected)


@pytest.mark.parametrize(
    "wrap", [lambda y: y, lambda y: (y, "more"), lambda y: SimpleNamespace(sample=y)], ids=["tensor", "tuple", "sample"]
)
def test_what_a_model_may_return(wrap: Any) -> None:
    given = conditions("uncond", "cond")
    expected = GuidedDenoiser(Model(), CFG(4.0))(X, 0.5, conditions=given)
    for mode in ("batched", "sequential"):
        assert torch.equal(GuidedDenoiser(Model(wrap), CFG(4.0), mode=mode)(X, 0.5, conditions=given), expected)


def test_passes_are_counted_and_saved() -> None:
    rule = CFG(schedules.Interval(5.0, 0.25, 0.75))
    model = Model()
    denoiser = GuidedDenoiser(model, rule)
    given = conditions("uncond", "cond")
    for step in range(8):
        got = denoiser(X, 0.5, conditions=given, step=step, num_steps=8)
        if not 2 <= step < 6:
            assert torch.equal(got, Model()(X, 0.5, given["cond"]["text"]))
    assert (denoiser.passes_run, denoiser.passes_saved) == (12, 4)
    assert [len(call["x"]) // 3 for call in model.calls] == [1, 1, 2, 2, 2, 2, 1, 1]
    denoiser.reset()
    assert (denoiser.passes_run, denoiser.passes_saved) == (0, 0)


def test_overrides_keep_all_passes() -> None:
    denoiser = GuidedDenoiser(Model(), CFG(1.0))
    given = conditions("uncond", "cond")
    got = denoiser(X, 0.5, conditions=given, params={"scale": torch.tensor([1.0, 4.0, 7.0])})
    assert denoiser.passes_run == 2
    torch.testing.assert_close(got[1:2], GuidedDenoiser(Model(), CFG(4.0))(X, 0.5, conditions=given)[1:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditions": conditions("uncond")}, r"missing \['cond'\]"),
        ({"conditions": conditions("uncond", "cond", "image")}, r"unknown \['image'\]"),
        ({"conditions": {"uncond": {"text": text(0)}, "cond": {"text": text(1)[:, :4]}}}, "'text' has the shapes"),
        ({"conditions": {"uncond": {"text": text(0)}, "cond": {"text": text(1), "mask": None}}}, "different arguments"),
        ({"conditions": {"uncond": {"text": text(0), "k": 1}, "cond": {"text": text(1), "k": 2}}}, "'k' differs"),
        ({"conditions": conditions("uncond", "cond"), "step": 1}, "step, num_steps: give both or neither"),
        ({"conditions": conditions("uncond", "cond"), "step": 5, "num_steps": 5}, "step: expected an integer"),
    ],
)
def test_errors_name_the_argument(arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GuidedDenoiser(Model(), CFG(4.0))(X, 0.5, **arguments)


def test_construction_and_model_errors() -> None:
    given = conditions("uncond", "cond")
    with pytest.raises(TypeError, match="model: expected a callable"):
        GuidedDenoiser(3, CFG())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rule: expected a fastcfg rule"):
        GuidedDenoiser(Model(), 7.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode: expected 'batched', 'sequential', 'auto' or an executor, got 'split'"):
        GuidedDenoiser(Model(), CFG(), mode="split")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step: the rule has schedules"):
        GuidedDenoiser(Model(), CFG(schedules.Ramp(1, 2)))(X, 0.5, conditions=given)
    with pytest.raises(TypeError, match=r"model: expected a tensor, .* got str"):
        GuidedDenoiser(lambda x, t, text: "noise", CFG())(X, 0.5, conditions=given)
    with pytest.raises(ValueError, match="model: expected 6 predictions for 2 passes of 3, got 3"):
        GuidedDenoiser(lambda x, t, text: x[:3], CFG())(X, 0.5, conditions=given)
