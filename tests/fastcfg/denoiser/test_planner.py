"""The planner's count is the number of times the model runs, and fewer passes give the same result."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcfg import (
    CFG,
    FDG,
    Clamp,
    DualCFG,
    GuidedDenoiser,
    HistoryGuidance,
    InDomain,
    InnerGuidance,
    InstructPix2Pix,
    Linear,
    MultiCondition,
    NegativePrompt,
    PerpNeg,
    Rescale,
    Rule,
    guide,
    schedules,
)
from fastcfg.denoiser.planner import plan, run_cost, same_condition

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 4)


@dataclass
class Model:
    """``x * y + t``, counting the samples that it sees."""

    samples: int = 0
    calls: list[int] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, t: float, y: torch.Tensor) -> torch.Tensor:
        self.samples += x.shape[0]
        self.calls.append(x.shape[0])
        return torch.sin(x * y.view(-1, 1, 1)) + t


def labels(*names: str) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"y": torch.full((2,), 1.0 + i, dtype=torch.float64)} for i, name in enumerate(names)}


def check(rule: Rule, conditions: dict, expected: int, step: int = 0, num_steps: int = 4, **kwargs: float) -> None:
    planned = plan(rule, conditions, step, num_steps, **kwargs)
    assert planned.count == expected and planned.saved == len(rule.conditions) - expected
    full = {name: Model()(X, 0.5, **conditions[name]) for name in rule.conditions}
    exact = guide(rule.at(step, num_steps, **kwargs), backend="torch", **full)
    for mode in ("batched", "sequential"):
        model = Model()
        denoiser = GuidedDenoiser(model, rule, mode=mode, backend="torch")
        result = denoiser(X, 0.5, conditions=conditions, step=step, num_steps=num_steps, **kwargs)
        assert model.samples == 2 * expected
        assert len(model.calls) == (1 if mode == "batched" else expected)
        assert (denoiser.passes_run, denoiser.passes_saved) == (planned.count, planned.saved)
        torch.testing.assert_close(result, exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (CFG(7.5), 2),
        (CFG(1.0), 1),
        (CFG(0.0), 1),
        (CFG(0.0, base="cond"), 1),
        (CFG(1.0, rescale=0.7), 1),
        (NegativePrompt(1.0), 1),
        (DualCFG(7.5, 1.0), 3),
        (DualCFG(7.5, 0.0), 2),
        (DualCFG(7.5, 6.5), 2),
        (MultiCondition((5.0, 0.0, 2.0)), 3),
        (MultiCondition((0.5, 0.5)), 2),
        (InstructPix2Pix(1.0, 1.0), 1),
        (InstructPix2Pix(4.0, 4.0), 2),
        (PerpNeg(5.0, (0.0,)), 2),
        (PerpNeg(5.0, (1.0,)), 3),
        (InnerGuidance(5.0, 0.0), 2),
        (InnerGuidance(5.0, 3.0), 3),
        (HistoryGuidance(1.0), 1),
        (HistoryGuidance((1.0, 2.0, 0.0), kind="temporal"), 3),
        (HistoryGuidance(1.0, kind="fractional"), 1),
        (HistoryGuidance(4.0, kind="fractional"), 3),
        (HistoryGuidance((2.0, 0.0), kind="between"), 3),
        (Rescale(CFG(4.0), 0.7), 2),
        (Clamp(CFG(1.0), 2.0), 1),
    ],
    ids=repr,
)
def test_zero_weights_drop(rule: Rule, expected: int) -> None:
    check(rule, labels(*rule.conditions), expected)


@pytest.mark.parametrize(
    ("rule", "same", "expected"),
    [
        (DualCFG(7.5, 1.0), ("uncond", "negative"), 2),
        (DualCFG(7.5, 1.0), ("cond", "negative"), 2),
        (DualCFG(3.0, 2.0), ("cond", "negative"), 1),
        (CFG(3.0), ("uncond", "cond"), 1),
        (MultiCondition((2.0, 3.0)), ("cond_1", "cond_2"), 2),
        (InstructPix2Pix(7.5, 1.5), ("uncond", "image"), 2),
        (HistoryGuidance(4.0, kind="fractional"), ("cond", "partial"), 2),
        (HistoryGuidance(4.0, kind="fractional"), ("uncond", "partial"), 1),
        (HistoryGuidance((2.0, 0.5), kind="between"), ("end_1", "start_2"), 4),
        (HistoryGuidance((2.0, 2.0), kind="between"), ("end_1", "start_2"), 3),
        (InnerGuidance(5.0, 3.0), ("uncond", "without_inner"), 2),
        (PerpNeg(5.0, (1.0,)), ("uncond", "negative"), 2),
        (CFG(3.0, rescale=0.5), ("uncond", "cond"), 1),
        (Rescale(DualCFG(7.5, 1.0), 0.5), ("uncond", "negative"), 2),
    ],
    ids=repr,
)
def test_the_same_condition_is_one_pass(rule: Rule, same: tuple[str, str], expected: int) -> None:
    conditions = labels(*rule.conditions)
    conditions[same[1]] = conditions[same[0]]
    check(rule, conditions, expected)
    conditions[same[1]] = {"y": conditions[same[0]]["y"][:]}  # A view of the same memory.
    check(rule, conditions, expected)


def test_equal_copies_are_not_looked_into() -> None:
    conditions = labels("uncond", "cond")
    conditions["cond"] = {"y": conditions["uncond"]["y"].clone()}
    assert plan(CFG(3.0), conditions).count == 2


def test_same_condition() -> None:
    y = torch.arange(6.0)
    assert same_condition({"y": y, "n": [1, {"z": y}]}, {"y": y[:], "n": [1, {"z": y}]})
    assert same_condition(None, None) and same_condition("a", "a") and same_condition((), ())
    for other in (y[1:], y[:3], y.view(2, 3), y.clone(), y.view(torch.int32), y.numpy(), None, 1.0):
        assert not same_condition(y, other) and not same_condition(other, y)
    assert not same_condition({"y": y}, {"z": y}) and not same_condition([y], [y, y]) and not same_condition(1, 1.0)
    assert not same_condition(y.numpy(), y.numpy().copy())
    assert not same_condition(torch.empty(0), torch.empty(0))
    assert not same_condition(torch.empty(3, device="meta"), torch.empty(3, device="meta"))


@pytest.mark.parametrize("window", ["half_open", "strict"])
def test_an_interval_runs_exactly_the_passes_it_needs(window: str) -> None:
    rule = CFG(schedules.Interval(5.0, 0.2, 0.7, window=window))
    conditions = labels("uncond", "cond")
    model, steps = Model(), 10
    denoiser = GuidedDenoiser(model, rule)
    for step in range(steps):
        denoiser(X, 0.5, conditions=conditions, step=step, num_steps=steps)
    guided = 5 if window == "half_open" else 4
    cost = run_cost(rule, steps, flops_per_pass=3.0)
    assert model.samples == 2 * (steps + guided) == 2 * cost.nfe
    assert cost.flops == 3.0 * cost.nfe and cost.ratio == 1 + guided / steps
    assert denoiser.passes_saved == steps - guided


def test_an_interval_of_noise_levels_runs_exactly_the_passes_it_needs() -> None:
    rule = CFG(schedules.SigmaInterval(5.0, 0.5, 2.0))
    sigmas = [4.0, 2.0, 1.0, 0.5, 0.25]
    model = Model()
    denoiser = GuidedDenoiser(model, rule)
    for step, sigma in enumerate(sigmas):
        denoiser(X, 0.5, conditions=labels("uncond", "cond"), step=step, num_steps=5, sigma=sigma)
    assert run_cost(rule, 5, sigmas=sigmas).passes == (1, 2, 2, 1, 1)
    assert model.samples == 2 * 7


def test_cost_of_several_conditions() -> None:
    for n in (1, 2, 5):
        assert run_cost(MultiCondition((2.0,) * n), 20).ratio == n + 1
    cost = run_cost(CFG(7.5), 50)
    assert (cost.nfe, cost.ratio, cost.flops) == (100, 2.0, None)


@given(
    scales=st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.5, 0.5]), min_size=2, max_size=4),
    groups=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_any_sharing_gives_the_same_sum(scales: list[float], groups: list[int]) -> None:
    rule = MultiCondition(tuple(scales))
    distinct = labels(*"abcd")
    conditions = {name: distinct["abcd"[g]] for name, g in zip(rule.conditions, groups, strict=False)}
    planned = plan(rule, conditions)
    assert planned.count <= len({id(c) for c in conditions.values()})
    check(rule, conditions, planned.count)


def test_overridden_parameters_keep_the_formula_and_share_passes() -> None:
    conditions = labels("uncond", "cond", "negative")
    conditions["negative"] = conditions["uncond"]
    model = Model()
    denoiser = GuidedDenoiser(model, DualCFG(1.0, 0.0))
    scale = torch.tensor([3.0, 4.0], dtype=torch.float64)
    result = denoiser(X, 0.5, conditions=conditions, params={"scale": scale})
    assert model.samples == 4
    u, c = (Model()(X, 0.5, **conditions[n]) for n in ("uncond", "cond"))
    torch.testing.assert_close(result, u + scale.view(2, 1, 1) * (c - u), rtol=0, atol=1e-14)


def test_a_rule_of_two_passes_of_one_condition_returns_that_pass() -> None:
    conditions = labels("uncond", "cond")
    conditions["uncond"] = conditions["cond"]
    planned = plan(CFG(7.5), conditions)
    assert planned.unguided and planned.rule == Linear({"uncond": 1.0})


def test_rules_of_other_forms_share_passes() -> None:
    images = {n: {"y": v["y"]} for n, v in labels("uncond", "cond").items()}
    images["cond"] = images["uncond"]
    for rule in (FDG((8.0, 3.0)), FDG((8.0, 3.0), rescale=0.5), InDomain(CFG(3.0, rescale=0.5), "x0")):
        planned = plan(rule, images)
        assert planned.passes == ("uncond",) and planned.rule == rule.simplify() and not planned.unguided
        assert planned.sources == (("uncond", "uncond"), ("cond", "uncond"))
    result = GuidedDenoiser(Model(), FDG((8.0, 3.0)))(torch.ones(2, 1, 8, 8), 0.5, conditions=images)
    expected = Model()(torch.ones(2, 1, 8, 8), 0.5, **images["cond"])
    torch.testing.assert_close(result, expected)


def test_errors_name_the_argument() -> None:
    scheduled = CFG(schedules.Ramp(1.0, 5.0))
    with pytest.raises(ValueError, match="step: the rule has schedules"):
        plan(scheduled)
    with pytest.raises(ValueError, match="step, num_steps: give both"):
        plan(scheduled, step=1)
    with pytest.raises(ValueError, match=r"conditions: CFG takes .* missing \['cond'\], unknown \['con'\]"):
        plan(CFG(2.0), {"uncond": {}, "con": {}})
    with pytest.raises(TypeError, match="rule: expected a fastcfg rule, got int"):
        plan(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_steps: expected a positive integer, got 0"):
        run_cost(CFG(2.0), 0)
    with pytest.raises(ValueError, match="sigmas: expected a noise level for each of 4 steps, got 2"):
        run_cost(CFG(2.0), 4, sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="flops_per_pass: expected a number above zero, got -1"):
        run_cost(CFG(2.0), 4, flops_per_pass=-1)
    with pytest.raises(ValueError, match="sigma: SigmaInterval runs on the noise level"):
        plan(CFG(schedules.SigmaInterval(5.0, 0.5, 2.0)), step=0, num_steps=4)
