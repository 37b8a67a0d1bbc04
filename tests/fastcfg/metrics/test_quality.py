"""Quality metrics against closed forms and against scipy."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from fastcfg.metrics import Reference, frechet_distance, quality, spread_within_classes


def gaussian(count: int, seed: int, size: int = 6) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_is_the_formula() -> None:
    real, fake = gaussian(300, 0), gaussian(250, 1) * torch.linspace(0.5, 2, 6) + 0.3
    (m1, c1), (m2, c2) = ((x.mean(0).numpy(), np.cov(x.numpy().T)) for x in (real, fake))
    root = scipy.linalg.sqrtm(c1 @ c2).real
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    # Square roots of the eigenvalues of a product of covariances: float64 with a condition number of about 100.
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)


def test_a_shift_adds_its_square() -> None:
    real = gaussian(200, 0)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real + 0.5) == pytest.approx(6 * 0.25, rel=1e-9)


def test_real_against_real_is_near_one_and_swapping_swaps() -> None:
    a, b = gaussian(400, 0), gaussian(400, 1)
    same = quality(Reference(a), b)
    assert min(same.precision, same.recall, same.coverage) > 0.9
    narrow = quality(Reference(a), 0.3 * b)
    wide = quality(Reference(0.3 * b), a)
    assert narrow.precision == 1.0 and narrow.recall < 0.5
    assert (wide.recall, wide.precision) == (narrow.precision, narrow.recall)


def test_accuracy_and_spread() -> None:
    features, labels = gaussian(60, 0), torch.arange(60) % 3
    features += 10 * labels[:, None]
    reference = Reference(features, labels)
    found = quality(reference, features, asked=labels, seen=torch.where(torch.arange(60) < 15, labels + 1, labels))
    assert found.accuracy == 0.75 and found.spread == pytest.approx(1) and found.samples == 60
    centres = torch.stack([features[labels == k].mean(0) for k in range(3)])[labels]
    assert quality(reference, centres + (features - centres) / 2, asked=labels).spread == pytest.approx(0.5)
    blind = quality(reference, features)
    assert math.isnan(blind.accuracy) and math.isnan(blind.spread)


def test_spread_within_classes_by_hand() -> None:
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0]])
    # The first class has squares 1 and 1, the second none: sqrt(2 / 3).
    assert spread_within_classes(features, torch.tensor([0, 0, 1])) == pytest.approx(math.sqrt(2 / 3))


@pytest.mark.parametrize(
    ("features", "keywords", "name"),
    [
        (torch.zeros(10), {}, "features"),
        (torch.zeros(10, 5), {}, "features"),
        (torch.zeros(5, 6), {}, "features"),
        (torch.full((10, 6), torch.inf), {}, "features"),
        (torch.zeros(10, 6), {"nearest": 0}, "nearest"),
        (torch.zeros(10, 6), {"asked": torch.zeros(9)}, "asked"),
        (torch.zeros(10, 6), {"seen": torch.zeros(9)}, "seen"),
    ],
)
def test_bad_input_is_named(features: torch.Tensor, keywords: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}:"):
        quality(Reference(gaussian(20, 0)), features, **keywords)  # type: ignore[arg-type]


def test_judging_is_silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    quality(Reference(features), features)
    assert capfd.readouterr() == ("", "") and not [str(w.message) for w in recwarn if "sklearn" in str(w.message)]
