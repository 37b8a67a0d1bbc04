"""Rules are values: they compare, hash, serialise, resolve their schedules, and simplify to equals."""

import json
import pickle

import pytest
import torch
from conformance.cases import draw, exact
from conformance.oracles import classifier_free
from hypothesis import given
from hypothesis import strategies as st

import fastcfg
from fastcfg import (
    CFG,
    Clamp,
    DualCFG,
    InstructPix2Pix,
    Linear,
    MultiCondition,
    NegativePrompt,
    PerpNeg,
    Rescale,
    Rule,
    schedules,
)

numbers = st.floats(-20, 20, allow_nan=False).map(lambda x: round(x, 3))
shares = st.floats(0, 1).map(lambda x: round(x, 3))
curves = st.one_of(
    st.builds(schedules.Constant, numbers),
    st.builds(schedules.Ramp, numbers, numbers),
    st.builds(schedules.Cosine, numbers, numbers),
    st.builds(schedules.Step, numbers, numbers, shares),
    st.builds(lambda v, a, b: schedules.Interval(v, a / 8, b / 8), numbers, st.integers(0, 3), st.integers(4, 8)),
)
share_curves = st.builds(schedules.Ramp, shares, shares)
scales = st.one_of(numbers, numbers, curves)
plain_rules = st.one_of(
    st.builds(CFG, scales, st.one_of(shares, share_curves), base=st.sampled_from(["uncond", "cond"])),
    st.builds(NegativePrompt, scales),
    st.builds(DualCFG, scales, scales),
    st.builds(MultiCondition, st.lists(scales, min_size=1, max_size=4).map(tuple)),
    st.builds(InstructPix2Pix, scales, scales),
    st.builds(PerpNeg, scales, st.lists(scales, min_size=1, max_size=3).map(tuple), st.booleans()),
    st.builds(
        lambda w: Linear(tuple((f"p{i}", x) for i, x in enumerate(w))), st.lists(numbers, min_size=1, max_size=4)
    ),
)
rules = st.one_of(
    plain_rules,
    st.builds(Rescale, plain_rules, st.one_of(shares, share_curves), st.sampled_from(["std", "l2"])),
    st.builds(Clamp, plain_rules, st.floats(0.5, 8).map(lambda x: round(x, 3))),
)  # fmt: skip


@given(rules)
def test_json_hash_and_pickle(rule: Rule) -> None:
    back = Rule.from_json(rule.to_json())
    assert back == rule and hash(back) == hash(rule) and type(back) is type(rule)
    assert back.program is rule.program
    assert Rule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert {rule: 1}[back] == 1


@given(rules, st.integers(1, 30), st.data())
def test_at_resolves_every_schedule(rule: Rule, num_steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, num_steps - 1))
    resolved = rule.at(step, num_steps)
    assert not resolved.scheduled and resolved.at(step, num_steps) is resolved
    assert resolved.conditions == rule.conditions
    assert (resolved is rule) == (not rule.scheduled)
    values = {**rule.lowered.params}
    for name, value in resolved.lowered.params.items():
        if name in values:
            given_value = values[name]
            expected = given_value.at(step, num_steps) if isinstance(given_value, schedules.Schedule) else given_value
            assert value == expected


def test_rules_differ_by_any_field() -> None:
    assert CFG(7.5) == CFG(7.5) == CFG() and CFG(7) == CFG(7.0)
    different = [CFG(7.5), CFG(7.0), CFG(7.5, 0.1), CFG(7.5, base="cond"), NegativePrompt(7.5), MultiCondition((7.5,))]
    assert len(set(different)) == len(different)
    with pytest.raises(AttributeError):
        CFG().scale = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "CGF", "scale": 1.0}, "type: expected one of .*, got 'CGF'"),
        ({"scale": 1.0}, "type: expected one of .*, got None"),
        ({"type": "CFG", "skale": 1.0}, "rule: CFG has no field skale"),
        ({"type": "CFG", "scale": {"schedule": "Parabola"}}, "schedule: expected one of .*, got 'Parabola'"),
        ({"type": "CFG", "scale": {"schedule": "Ramp", "begin": 1.0}}, "schedule: Ramp"),
        ({"type": "CFG", "scale": "7"}, "scale: expected a number or a schedule, got str"),
        ({"type": "Rescale", "rule": {"type": "?"}}, "type: expected one of"),
    ],
)
def test_json_errors(data: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Rule.from_dict(data)
    with pytest.raises(ValueError, match="rule: expected a JSON object, got list"):
        Rule.from_json("[1]")


ZERO = [
    (CFG(0.0), ("uncond",)),
    (CFG(1.0), ("cond",)),
    (CFG(0.0, base="cond"), ("cond",)),
    (CFG(-1.0, base="cond"), ("uncond",)),
    (CFG(1.0, rescale=0.7), ("cond",)),
    (CFG(0.0, rescale=0.7), ("uncond", "cond")),
    (CFG(3.0, rescale=0.0), ("uncond", "cond")),
    (NegativePrompt(1.0), ("cond",)),
    (DualCFG(7.5, 0.0), ("uncond", "cond")),
    (DualCFG(7.5, 6.5), ("cond", "negative")),
    (DualCFG(1.0, 0.0), ("cond",)),
    (DualCFG(0.0, 0.0), ("uncond",)),
    (InstructPix2Pix(3.0, 3.0), ("uncond", "cond")),
    (InstructPix2Pix(1.0, 1.0), ("cond",)),
    (InstructPix2Pix(7.5, 1.0), ("image", "cond")),
    (InstructPix2Pix(0.0, 0.0), ("uncond",)),
    (MultiCondition((3.0, 0.0, 2.0)), ("uncond", "cond_1", "cond_3")),
    (MultiCondition((0.5, 0.5)), ("cond_1", "cond_2")),
    (MultiCondition((0.0, 0.0)), ("uncond",)),
    (PerpNeg(7.5, (0.0,)), ("uncond", "cond")),
    (PerpNeg(1.0, (0.0, 0.0)), ("cond",)),
    (PerpNeg(0.0, (1.0,), True), ("uncond",)),
    (Rescale(CFG(3.0), phi=0.0), ("uncond", "cond")),
    (Rescale(CFG(1.0), phi=0.7), ("cond",)),
    (Rescale(DualCFG(7.5, 0.0), phi=0.7), ("uncond", "cond")),
    (Clamp(CFG(1.0), k=1.0), ("cond",)),
    (Clamp(DualCFG(7.5, 6.5), k=1.0), ("cond", "negative")),
    (Linear((("a", 0.0), ("b", 2.0))), ("a", "b")),
]


@pytest.mark.parametrize(("rule", "conditions"), ZERO, ids=lambda v: repr(v)[:60])
def test_simplified_rules_are_equal_and_take_less(rule: Rule, conditions: tuple[str, ...]) -> None:
    simple = rule.simplify()
    assert set(simple.conditions) == set(conditions)
    predictions = draw(rule.conditions, (2, 3, 40), torch.float64)
    expected = fastcfg.guide(rule, **predictions)
    got = fastcfg.guide(simple, **{name: predictions[name] for name in simple.conditions})
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@given(rules)
def test_simplify_keeps_the_result(rule: Rule) -> None:
    rule = rule.at(0, 1)
    simple = rule.simplify()
    assert set(simple.conditions) <= set(rule.conditions)
    predictions = draw(rule.conditions, (1, 30), torch.float64)
    expected = fastcfg.guide(rule, **predictions)
    got = fastcfg.guide(simple, **{name: predictions[name] for name in simple.conditions})
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_identities_of_the_sources() -> None:
    u, c, n, i = draw("ucni", (2, 50), torch.float64).values()
    cfg = fastcfg.guide(CFG(4.0), uncond=u, cond=c)

    def same(rule: Rule, expected: torch.Tensor = cfg, **predictions: torch.Tensor) -> None:
        torch.testing.assert_close(fastcfg.guide(rule, **predictions), expected, rtol=1e-12, atol=1e-12)

    same(CFG(3.0, base="cond"), uncond=u, cond=c)  # w = s - 1
    same(MultiCondition((4.0,)), uncond=u, cond=c)
    same(DualCFG(4.0, 0.0), uncond=u, cond=c, negative=n)
    same(InstructPix2Pix(4.0, 4.0), uncond=u, cond=c, image=i)
    same(NegativePrompt(4.0), negative=u, cond=c)
    same(PerpNeg(4.0, (1.5,)), uncond=u, cond=c, negative=u + 0.3 * (c - u))  # a negative along cond
    same(DualCFG(4.0, 3.0), fastcfg.guide(NegativePrompt(4.0), negative=n, cond=c), uncond=u, cond=c, negative=n)
    same(
        MultiCondition((4.0, 2.0)),
        fastcfg.guide(MultiCondition((2.0, 4.0)), uncond=u, cond_1=n, cond_2=c),
        uncond=u, cond_1=c, cond_2=n,
    )  # fmt: skip
    y = fastcfg.guide(Rescale(CFG(4.0), 1.0), uncond=u, cond=c)
    torch.testing.assert_close(y.std(1), c.std(1))
    y = fastcfg.guide(Rescale(CFG(4.0), 1.0, "l2"), uncond=u, cond=c)
    torch.testing.assert_close(y.norm(dim=1), c.norm(dim=1))
    torch.testing.assert_close(y / y.norm(dim=1, keepdim=True), cfg / cfg.norm(dim=1, keepdim=True))


def test_nested_rescales_keep_a_parameter_each() -> None:
    rule = Rescale(Rescale(CFG(4.0, rescale=0.2), 0.3), 0.4)
    assert sorted(rule.lowered.params) == ["outer_phi", "phi", "rescale", "scale"]


@pytest.mark.parametrize("step", [0, 3, 9])
def test_a_schedule_acts_in_a_rule(step: int) -> None:
    predictions = draw(("uncond", "cond"), (2, 30), torch.float64)
    got = fastcfg.guide(CFG(schedules.Ramp(7.5, 1.0)).at(step, 10), **predictions)
    scale = classifier_free.linear_schedule(step, 10, 7.5, 1.0)
    expected = torch.from_numpy(classifier_free.cfg(**exact(predictions), scale=scale))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
