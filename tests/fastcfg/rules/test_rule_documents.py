"""Rules as JSON: read by the definition that wrote them, or refused with the place in the document."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import fastcfg
from fastcfg import CFG, Linear, MultiCondition, Rescale, Rule, guide, schedules
from fastcfg.rules import registry

U, C = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(k: float) -> Any:
    @fastcfg.rule("uncond", "cond")
    def of_a_factory(dot_d_d: Any, count: Any, scale: Any = 2.0) -> Any:
        """u + scale k |d|^2/n d."""
        return 1.0, scale * k * dot_d_d / count

    return of_a_factory


def test_rules_of_one_factory_are_read_each_as_itself() -> None:
    low, high = made(1.0), made(3.0)
    assert made(1.0) is low
    for definition, k in ((low, 1.0), (high, 3.0)):
        rule = definition(scale=0.5)
        again = Rule.from_json(rule.to_json())
        assert again == rule and hash(again) == hash(rule) and type(again) is definition
        exact = U + 0.5 * k * (C - U).square().mean((1, 2, 3), keepdim=True) * (C - U)
        for backend in ("cpp", "torch", "triton"):
            torch.testing.assert_close(guide(again, uncond=U, cond=C, backend=backend), exact)
    assert low() != high() and low().to_dict()["captured"] == {"k": 1.0}
    other = {**low().to_dict(), "captured": {"k": 2.0}}
    with pytest.raises(ValueError, match=r"rule: of_a_factory was written by another definition .*run the definition"):
        Rule.from_dict(other)


def test_a_name_that_is_defined_again_keeps_both() -> None:
    def define(sign: int) -> Any:
        if sign > 0:

            def in_a_notebook(scale: Any = 2.0) -> Any:
                return 1.0, scale
        else:

            def in_a_notebook(scale: Any = 2.0) -> Any:
                return 1.0, -scale

        return fastcfg.rule("uncond", "cond")(in_a_notebook)

    first, second = define(1), define(-1)
    assert first is not second and registry["in_a_notebook"] is second
    for rule in (first(3.0), second(3.0)):
        assert Rule.from_json(rule.to_json()) == rule
    by_hand = Rule.from_dict({"type": "in_a_notebook", "scale": 3.0})
    assert by_hand == second(3.0)
    with pytest.raises(ValueError, match="written by another definition"):
        Rule.from_dict({**first().to_dict(), "content": "0" * 16})


def test_other_classes_take_no_name_of_another_module() -> None:
    with pytest.raises(
        ValueError, match=r"rule: 'CFG' is the name of a rule of 'fastcfg\.rules\.classifier_free' already"
    ):
        type("CFG", (Rule,), {"__module__": "mine"})
    with pytest.raises(ValueError, match=r"schedule: 'Ramp' is the name of a schedule of 'fastcfg\.schedules' already"):
        type("Ramp", (schedules.Schedule,), {"__module__": "mine"})


def test_a_rule_of_a_module_that_was_not_imported_says_which() -> None:
    text = json.dumps({"type": "Rescale", "rule": {**made(1.0)().to_dict(), "type": "unheard_of"}})
    with pytest.raises(
        ValueError, match=r"rule\.rule\.type: 'unheard_of' .* module '.*test_rule_documents', .*imported"
    ):
        Rule.from_json(text)
    with pytest.raises(ValueError, match=r"rule\.scale: schedule: 'Mine' is one of the module 'my.schedules'"):
        Rule.from_dict({"type": "CFG", "scale": {"schedule": "Mine", "module": "my.schedules"}})


def _nested(depth: int) -> str:
    return '{"type": "Rescale", "rule": ' * depth + '{"type": "CFG"}' + "}" * depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "rule: expected JSON"),
        ("[]", "rule: expected a JSON object, got list"),
        ('{"type": "CFG", "type": "CFG"}', "'type' stands twice in one object"),
        ('{"type": ["CFG"]}', r"rule\.type: expected one of"),
        (
            '{"type": "Rescale", "rule": {"type": "CFG", "scale": "7"}}',
            r"rule\.rule: scale: expected a number or a sch",
        ),
        ('{"type": "CFG", "scale": 1' + "0" * 400 + "}", "rule: scale: expected a finite number, got one beyond"),
        ('{"type": "CFG", "scale": NaN}', "rule: scale: expected a finite number, got nan"),
        ('{"type": "CFG", "scale": true}', "rule: scale: expected a number or a schedule, got bool"),
        ('{"type": "CFG", "scale": {"schedule": "OnAxis", "curve": 3}}', r"rule\.scale: schedule: OnAxis: .*curve"),
        ('{"type": "CFG", "scale": {"schedule": {}}}', r"rule\.scale: schedule: expected one of"),
        ('{"type": "CFG", "scale": {"schedule": "Ramp", "start": 1, "to": 2}}', r"rule\.scale: schedule: Ramp: .*'to'"),
        ('{"type": "InDomain", "rule": null}', "rule: rule: expected a rule, got NoneType"),
        ('{"type": "Linear", "weights": 5}', "rule: weights: expected pairs"),
        ('{"type": "Linear", "weights": [["a"]]}', "rule: weights: expected pairs"),
        ('{"type": "Rescale", "rule": {"type": "CFG"}, "reference": 3}', "rule: reference: expected distinct names"),
        ('{"type": "MultiCondition", "scales": {"a": 1}}', r"rule\.scales\.type: expected one of"),
        ('{"type": "CFG", "fields": 1}', "rule: CFG has no field fields"),
        (_nested(5000), "rule: expected at most 24 levels"),
        (_nested(30), r"rule(\.rule){24,}: expected at most 24 levels"),
        ('{"type": "MultiCondition", "scales": [' + "1," * 400 + "1]}", "at most 64 inputs and 24 formulas, got 402"),
        ('{"type": "CFG", "scale": {"schedule": "Values", "values": [' + "1," * 30000 + "1]}}", "at most 20000 values"),
        (" " * 2_000_000, "rule: expected at most 1000000 characters"),
    ],
)
def test_what_is_no_rule_is_refused_at_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule.from_json(text)


RESERVED = ["x", "mask", "state", "out", "batch", "y", "d", "d_cond", "before_cond", "class", "two words", "scale_map"]


@pytest.mark.parametrize("name", RESERVED)
def test_no_prediction_has_a_name_that_means_something_else(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected distinct names|is no name for a prediction"):
        Linear((("uncond", 1.0), (name, 2.0)))
    with pytest.raises(ValueError, match=r"expected distinct names|is no name for a prediction"):
        Rescale(CFG(5.0), reference=name)
    with pytest.raises(ValueError, match=r"expected distinct names|is no name for a prediction"):
        fastcfg.rule("uncond", name)(lambda scale=1.0: (1.0, scale))


def test_every_argument_of_the_calls_is_reserved() -> None:
    import inspect

    from fastcfg.rules.names import RESERVED as names

    for call in (fastcfg.guide, fastcfg.guide_step, fastcfg.guide_frames):
        own = {n for n, p in inspect.signature(call).parameters.items() if p.kind is not p.VAR_KEYWORD}
        assert own <= names, own - names


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert CFG(np.float32(2.5)) == CFG(2.5) and CFG(np.int64(2)) == CFG(2.0)
    assert schedules.Ramp(np.float32(1.0), np.float16(2.0)) == schedules.Ramp(1.0, 2.0)
    scaled = guide(CFG(1.0), params={"scale": np.float32(2.5)}, uncond=U, cond=C)
    assert torch.equal(scaled, guide(CFG(1.0), params={"scale": 2.5}, uncond=U, cond=C))
    for value in (10**400, float("nan")):
        with pytest.raises(ValueError, match="scale: expected a finite number"):
            CFG(value)
        with pytest.raises(ValueError, match="start: expected a finite number"):
            schedules.Ramp(value, 1.0)


def test_rules_are_made_and_resolved_inside_a_trace() -> None:
    scheduled = CFG(schedules.Ramp(3.0, 9.0), rescale=0.5)

    def run(u: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        for step in range(2):
            c = guide(scheduled.at(step, 2), uncond=u, cond=c)
        c = guide(Rescale(CFG(3.0), 0.25, norm="l2"), uncond=u, cond=c)
        return guide(MultiCondition((1.0, 2.0)), uncond=u, cond_1=c, cond_2=u)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(U, C), run(U, C))
