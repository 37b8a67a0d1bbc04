"""Condition dropout: rates, null tokens, phases, and what it is for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastcfg.methods.dropout import INSTRUCT_PIX2PIX, ConditionDropout, replace_dropped

COUNT = 200_000


def near(mask: torch.Tensor, rate: float) -> bool:
    """Within four standard deviations of a binomial share."""
    return abs(mask.double().mean().item() - rate) <= 4 * math.sqrt(rate * (1 - rate) / COUNT) + 1e-12


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 1.0])
def test_empirical_rate(rate: float) -> None:
    mask = ConditionDropout({"cond": rate}).draw(COUNT, generator=torch.Generator().manual_seed(0))["cond"]
    assert near(mask, rate)


def test_instruct_pix2pix() -> None:
    masks = INSTRUCT_PIX2PIX.draw(COUNT, generator=torch.Generator().manual_seed(0))
    text, image = masks["text"], masks["image"]
    assert near(text & ~image, 0.05)
    assert near(image & ~text, 0.05)
    assert near(text & image, 0.05)
    assert INSTRUCT_PIX2PIX.rate("text") == pytest.approx(0.10)


def test_independent_draws() -> None:
    dropout = ConditionDropout({"a": 0.6, "b": 0.7}, joint=0.1, independent=True)
    masks = dropout.draw(COUNT, generator=torch.Generator().manual_seed(0))
    assert near(masks["a"], dropout.rate("a"))
    assert near(masks["b"], 0.1 + 0.9 * 0.7)
    assert near(masks["a"] & masks["b"], 0.1 + 0.9 * 0.42)


def test_phase_start() -> None:
    dropout = ConditionDropout({"cond": 1.0}, start=100)
    x = torch.ones(4, 3)
    state = torch.get_rng_state()
    assert torch.equal(dropout({"cond": x}, step=99)["cond"], x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(dropout({"cond": x}, step=100)["cond"], torch.zeros(4, 3))
    with pytest.raises(ValueError, match="step"):
        dropout({"cond": x})


def test_seeds_reproduce() -> None:
    dropout = ConditionDropout({"cond": 0.5})
    first, second = (dropout.draw(64, generator=torch.Generator().manual_seed(5))["cond"] for _ in range(2))
    assert torch.equal(first, second)


DROPPED = torch.tensor([True, False, True])


def test_null_tokens() -> None:
    x = torch.arange(12.0).view(3, 2, 2)
    assert torch.equal(replace_dropped(x, DROPPED), x * torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1))
    learned = torch.full((2, 2), 7.0, requires_grad=True)
    got = replace_dropped(x, DROPPED, learned)
    assert (got[DROPPED] == 7).all()
    assert torch.equal(got[1], x[1])
    got.sum().backward()
    assert torch.equal(learned.grad, torch.full((2, 2), 2.0))
    assert torch.equal(replace_dropped(x, DROPPED, learned.detach()[None]), got.detach())
    assert replace_dropped(x.bfloat16(), DROPPED, learned.detach()).dtype == torch.bfloat16
    labels = torch.tensor([3, 4, 5])
    assert replace_dropped(labels, DROPPED, 10).tolist() == [10, 4, 10]
    assert replace_dropped(["cat", "dog", "fox"], DROPPED) == ["", "dog", ""]
    assert replace_dropped(["cat", "dog", "fox"], DROPPED, "-") == ["-", "dog", "-"]


def test_conditions_of_one_batch_drop_together() -> None:
    dropout = ConditionDropout({"text": 0.0, "label": 0.0}, joint=1.0)
    got = dropout({"text": ["a", "b"], "label": torch.tensor([1, 2])}, {"label": 9})
    assert got == {"text": ["", ""], "label": got["label"]}
    assert got["label"].tolist() == [9, 9]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"alone": {}}, "alone"),
        ({"alone": {"a": 1.5}}, "alone"),
        ({"alone": (("a", 0.1), ("a", 0.1))}, "alone"),
        ({"alone": {"a": 0.6, "b": 0.5}}, "alone"),
        ({"alone": {"a": 0.1}, "joint": -0.1}, "joint"),
        ({"alone": {"a": 0.1}, "start": -1}, "start"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}"):
        ConditionDropout(**fields)


@pytest.mark.parametrize(
    ("conditions", "nulls", "name"),
    [
        ({"b": torch.ones(2, 3)}, None, "conditions"),
        ({"a": torch.tensor([1, 2])}, None, "nulls"),
        ({"a": torch.tensor([1, 2])}, {"a": 0.5}, "nulls"),
        ({"a": torch.ones(2, 3)}, {"a": torch.ones(4)}, "nulls"),
        ({"a": torch.ones(2, 3)}, {"c": 1}, "nulls"),
        ({"a": torch.ones(2, 3)}, {"a": "zeros"}, "nulls"),
        ({"a": ["x", "y"]}, {"a": 0}, "nulls"),
    ],
)
def test_calls_are_checked(conditions: dict[str, Any], nulls: dict[str, Any] | None, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}"):
        ConditionDropout({"a": 0.5})(conditions, nulls)


def test_values_hash_and_compare() -> None:
    assert ConditionDropout({"a": 0.1}) == ConditionDropout((("a", 0.1),))
    assert hash(ConditionDropout({"a": 0.1})) == hash(ConditionDropout((("a", 0.1),)))
    with pytest.raises(ValueError, match="name"):
        ConditionDropout({"a": 0.1}).rate("b")


def test_a_conditional_checkpoint_learns_the_unconditional_mean_in_a_later_phase() -> None:
    """Regression on a label with mean +1 or -1, plus null: before the phase null stays untrained, after it is 0."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(3, 1)
    optimizer = torch.optim.SGD(table.parameters(), 0.5)
    dropout = ConditionDropout({"label": 0.3}, start=60)
    before = table.weight[2].item()
    generator = torch.Generator().manual_seed(0)
    for step in range(160):
        labels = torch.randint(2, (256,), generator=generator)
        target = labels * 2.0 - 1.0
        given = dropout({"label": labels}, {"label": 2}, step=step, generator=generator)["label"]
        loss = ((table(given)[:, 0] - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 59:
            assert table.weight[2].item() == before
    weights = table.weight[:, 0].tolist()
    assert weights[0] == pytest.approx(-1, abs=0.02)
    assert weights[1] == pytest.approx(1, abs=0.02)
    # Batch noise: 77 null samples of variance 1, averaged over a few steps.
    assert abs(weights[2]) < 0.2
