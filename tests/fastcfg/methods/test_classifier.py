"""The interface of classifier and universal guidance: arguments, graphs, training on noise."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from fastcfg import Linear, guide
from fastcfg.methods.classifier import (
    ClassifierGuidance,
    classifier_gradient,
    implied_classifier_gradient,
    noisy_accuracy,
    noisy_classifier_loss,
    train_noisy_classifier,
)
from fastcfg.methods.universal import universal_gradient, universal_step
from fastcfg.schedules import Ramp as LinearSchedule

X, G = torch.randn(3, 4), torch.randn(3, 4)
NET = torch.nn.Linear(4, 5)


def test_the_rule_is_a_value() -> None:
    rule = ClassifierGuidance(2.0, sigma=0.5)
    assert rule == ClassifierGuidance(2, sigma=0.5)
    assert hash(rule) == hash(ClassifierGuidance(2, sigma=0.5))
    assert rule.conditions == ("uncond", "gradient")
    assert ClassifierGuidance(0.0).simplify() == Linear((("uncond", 1.0),))
    scheduled = ClassifierGuidance(LinearSchedule(4.0, 0.0), "score")
    assert scheduled.at(0, 5).scale == 4.0
    assert scheduled.at(4, 5).simplify() == Linear((("uncond", 1.0),))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"form": "noise"}, "form"),
        ({"base": "negative"}, "base"),
        ({"scale": float("nan")}, "scale"),
        ({"form": "score", "sigma": 0.5}, "sigma"),
        ({"variance": 0.5}, "variance"),
    ],
)
def test_rule_errors_name_the_field(fields: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}"):
        ClassifierGuidance(**fields)


def test_a_missing_level_is_named() -> None:
    with pytest.raises(TypeError, match="sigma"):
        guide(ClassifierGuidance(2.0), uncond=X, gradient=G)
    with pytest.raises(TypeError, match="variance"):
        guide(ClassifierGuidance(2.0, "mean"), uncond=X, gradient=G)


def test_samples_are_independent() -> None:
    labels = torch.tensor([0, 4, 2])
    together = classifier_gradient(NET, X, labels)
    for i in range(3):
        torch.testing.assert_close(classifier_gradient(NET, X[i : i + 1], labels[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_works_where_gradients_are_off(mode: Any) -> None:
    expected = classifier_gradient(NET, X, 1)
    with mode():
        got = classifier_gradient(NET, X * 1, 1)
        assert torch.equal(got, expected)
        assert not got.requires_grad
    assert NET.weight.grad is None


def test_noise_level_and_arguments_reach_the_classifier() -> None:
    seen: dict[str, Any] = {}

    def classifier(x: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen.update(kwargs, t=t)
        return NET(x)

    classifier_gradient(classifier, X, 0, torch.tensor([7, 8, 9]), mask="m")
    assert seen["mask"] == "m"
    assert seen["t"].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (torch.zeros(3), "labels"),
        (torch.zeros(2, dtype=torch.long), "labels"),
        (torch.tensor([0, 1, 5]), "labels"),
        (5, "labels"),
        (True, "labels"),
        ("cat", "labels"),
    ],
)
def test_label_errors(labels: Any, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        classifier_gradient(NET, X, labels)


def test_logits_of_a_wrong_shape_are_named() -> None:
    with pytest.raises(ValueError, match="classifier"):
        classifier_gradient(lambda x: NET(x).sum(), X, 0)


def test_half_types() -> None:
    half = torch.nn.Linear(4, 5).bfloat16()
    assert classifier_gradient(half, X.bfloat16(), 1).dtype == torch.bfloat16


def test_implied_gradient_needs_its_levels() -> None:
    with pytest.raises(ValueError, match="sigma"):
        implied_classifier_gradient(uncond=X, cond=G)
    with pytest.raises(ValueError, match="alpha"):
        implied_classifier_gradient(uncond=X, cond=G, kind="v", sigma=0.5)
    torch.testing.assert_close(implied_classifier_gradient(uncond=X, cond=G, kind="score"), G - X)


def test_the_graph_is_freed() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def denoise(z: torch.Tensor) -> torch.Tensor:
        inner = (z * 3).tanh()
        held.append(weakref.ref(inner))
        return inner * 0.5

    def log_prob(x0: torch.Tensor) -> torch.Tensor:
        return -(x0**2).sum(1)

    got = universal_gradient(X, denoise, log_prob)
    levels = {"alpha": 0.6, "sigma": 0.8, "next_alpha": 0.8, "next_sigma": 0.6}
    after, guided = universal_step(X, denoise, log_prob, recurrences=3, **levels)
    gc.collect()
    assert len(held) == 4
    assert all(ref() is None for ref in held)
    assert not (got.requires_grad or after.requires_grad or guided.requires_grad)


def test_universal_errors_name_the_argument() -> None:
    levels = {"alpha": 0.6, "sigma": 0.8, "next_alpha": 0.8, "next_sigma": 0.6}
    with pytest.raises(ValueError, match="log_prob"):
        universal_gradient(X, lambda z: z, lambda x0: x0.sum())
    with pytest.raises(ValueError, match="recurrences"):
        universal_step(X, lambda z: z, lambda x0: x0.sum(1), recurrences=0, **levels)
    with pytest.raises(ValueError, match="predict"):
        universal_step(X, lambda z: z[:1], lambda x0: x0.sum(1), **levels)


class _NoisyClassifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, t[:, None] / 50.0], dim=1))


def test_training_on_noise() -> None:
    """Two classes at distance 4: certain without noise, a guess where only noise is left."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    labels = torch.randint(2, (2000,), generator=generator)
    x0 = torch.randn(2000, 2, generator=generator) * 0.3 + (labels[:, None] * 4.0 - 2.0)
    alphas = torch.linspace(1.0, 0.0, 51)[1:]
    model = _NoisyClassifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batches = [(x0[i::20], labels[i::20]) for i in range(20)] * 5
    losses = train_noisy_classifier(model, batches, alphas, optimizer, generator=generator)
    assert losses.shape == (100,)
    assert losses[-20:].mean() < 0.6 * losses[0]
    accuracy = noisy_accuracy(model, x0, labels, alphas, (0, 25, 49), generator=generator).tolist()
    assert accuracy[0] > 0.99
    assert accuracy[0] >= accuracy[1] > accuracy[2] + 0.1
    assert abs(accuracy[2] - 0.5) < 0.06
    fixed = [
        noisy_classifier_loss(model, x0, labels, alphas, t=torch.full((2000,), t), generator=generator).item()
        for t in (0, 49)
    ]
    assert fixed[0] < 0.1 < 0.6 < fixed[1]
    with pytest.raises(ValueError, match="alphas_cumprod"):
        noisy_classifier_loss(model, x0, labels, 0.5)
