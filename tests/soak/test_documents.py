"""Damaged and hostile rule documents: a rule, or a ValueError that says where; nothing else, and soon."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

from hypothesis import given, note
from hypothesis import strategies as st
from soak.examples import examples
from soak.rules import RULES, draw_rule

from fastcfg import CFG, Rule, guide, schedules
from fastcfg.rules import registry
from fastcfg.rules.names import RESERVED

randoms = st.randoms(use_true_random=False)
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2.5, -7.0, 1e308, 10**400, float("nan"), float("inf"), "", "cond", "x", "y", "d_cond",
    "auto", "std", [], {}, [1.0], [[1.0]], [["cond", 1.0]], {"type": "CFG"}, {"schedule": "Ramp", "start": 0, "end": 1},
)  # fmt: skip
FIELDS = (
    "type",
    "rule",
    "scale",
    "scales",
    "phi",
    "norm",
    "reference",
    "weights",
    "dims",
    "module",
    "content",
    "schedule",
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a document with each of its keys."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        pairs += [(value, key) for key in value]
    elif isinstance(value, list):
        pairs += [(value, key) for key in range(len(value))]
    for container, key in list(pairs):
        pairs += places(container[key])
    return pairs


def damaged(rng: Random, data: Any) -> Any:
    """A document with a few of its values, names or levels changed."""
    for _ in range(rng.randint(1, 3)):
        known = places(data)
        if not known:
            return data
        container, key = rng.choice(known)
        kind = rng.randrange(5)
        if kind == 0:
            container[key] = deepcopy(rng.choice(SCALARS))
        elif kind == 1 and isinstance(container, dict):
            container[rng.choice(FIELDS)] = deepcopy(rng.choice((*SCALARS, rng.choice(sorted(registry)))))
        elif kind == 2 and isinstance(container, dict):
            del container[key]
        elif kind == 3:
            container[key] = [deepcopy(container[key]) for _ in range(rng.randint(2, 80))]
        else:
            for _ in range(rng.randint(1, 30)):
                container[key] = {"type": "Rescale", "rule": container[key]}
    return data


@given(randoms)
@examples(300)
def test_a_document_is_a_rule_or_an_error_that_says_where(rng: Random) -> None:
    data = damaged(rng, json.loads(draw_rule(rng).to_json()))
    text = json.dumps(data)
    if rng.random() < 0.1:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice('{}[]",:0e ') + text[at + rng.randrange(2) :]
    note(text[:2000])
    try:
        rule = Rule.from_json(text)
    except ValueError as error:
        assert str(error).startswith("rule"), error
        return
    assert Rule.from_json(rule.to_json()) == rule
    assert not RESERVED.intersection(rule.conditions)


@given(randoms)
@examples(200)
def test_a_value_at_the_call_is_one_or_an_error_that_names_it(rng: Random) -> None:
    import torch

    rule = rng.choice([r for r in RULES if not (r.prepares or r.lowered.extras or r.lowered.updates or r.scheduled)])
    if not rule.lowered.params or rule.lowered.dims is not None or rule.lowered.domain is not None:
        rule = CFG(3.0, rescale=0.5)
    name = rng.choice(sorted(rule.lowered.params))
    value: Any = rng.choice((
        *SCALARS, torch.tensor(2), torch.ones(2), torch.ones(3), torch.ones(2, 1, 1), torch.ones(2, 2), "2", b"2", 1j,
        [1.0, 2.0], [1.0, None], (0.5, 0.25), schedules.Ramp(0.0, 1.0), object(),
    ))  # fmt: skip
    note(f"{rule!r} {name}={value!r}")
    tensors: dict[str, Any] = {n: torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(k))
                               for k, n in enumerate(rule.conditions)}  # fmt: skip
    try:
        result = guide(rule, params={name: value}, backend=rng.choice((None, "torch")), **tensors)
    except (TypeError, ValueError) as error:
        assert name in str(error), error
        return
    assert result.shape == (2, 2, 5)
