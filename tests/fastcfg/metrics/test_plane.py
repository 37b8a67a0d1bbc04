"""Points in the plane of guidance keep their lengths and angles."""

import math

import pytest
import torch

from fastcfg import CFG, guide
from fastcfg.metrics.plane import plane

SCALES = (0.0, 1.0, 2.0, 3.0, 7.0)


def test_guided_predictions_lie_on_one_line_at_their_scale() -> None:
    u, c = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    guided = [guide(CFG(s), uncond=u, cond=c) for s in SCALES]
    points = plane(u, c, *guided)
    expected = points[0] + torch.tensor(SCALES, dtype=torch.float64)[:, None] * (points[1] - points[0])
    torch.testing.assert_close(points[2:], expected)


def test_distances_and_angles_are_exact() -> None:
    u, c = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    first, second = plane(u, c)
    assert math.isclose(first.norm(), u.norm(), rel_tol=1e-12) and first[1] == pytest.approx(0.0, abs=1e-12)
    assert math.isclose((second - first).norm(), (c - u).norm(), rel_tol=1e-12)
    assert math.isclose(first @ second, (u * c).sum(), rel_tol=1e-9)


def test_a_toy_of_known_coordinates() -> None:
    u, c, other = torch.tensor([[[3.0, 4.0, 0.0]], [[3.0, 4.0, 2.0]], [[4.0, -3.0, 1.0]]])
    torch.testing.assert_close(plane(u, c, other), torch.tensor([[5.0, 0.0], [5.0, 2.0], [0.0, 1.0]]))


def test_parallel_predictions_and_a_zero() -> None:
    u = torch.ones(1, 4)
    assert torch.equal(plane(u, 2 * u), torch.tensor([[2.0, 0.0], [4.0, 0.0]]))
    with pytest.raises(ValueError, match="uncond: expected a prediction that is not zero"):
        plane(0 * u, u)
