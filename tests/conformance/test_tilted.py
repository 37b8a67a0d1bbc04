"""What guidance samples from: the tilted density p(x) p(c|x)^s, on a Gaussian and on a grid."""

import numpy as np
import pytest
import torch

from fastcfg import CFG, DualCFG, HistoryGuidance, InnerGuidance, MultiCondition, guide


def score(x: torch.Tensor, mean: float, variance: float) -> torch.Tensor:
    return (mean - x) / variance


@pytest.mark.parametrize("scale", [-0.25, 0.0, 0.5, 1.0, 3.0, 7.5])
def test_gaussian_precision(scale: float) -> None:
    m, v1, v0 = 1.0, 0.25, 1.0
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).view(1, -1)
    guided = guide(CFG(scale), uncond=score(x, 0.0, v0), cond=score(x, m, v1))
    precision = (1 - scale) / v0 + scale / v1
    mean = scale * m / v1 / precision
    torch.testing.assert_close(guided, score(x, mean, 1 / precision), rtol=0, atol=1e-13)
    if scale == 3.0:
        assert (mean, 1 / precision) == (1.2, 0.1)


def test_langevin_samples_have_the_tilted_moments() -> None:
    # An exact discretisation of the Ornstein-Uhlenbeck process that the guided score drives: no step-size error.
    torch.manual_seed(0)
    x = torch.randn(1, 200_000, dtype=torch.float64)
    decay = 0.5
    guided = guide(CFG(3.0), uncond=score(x, 0.0, 1.0), cond=score(x, 1.0, 0.25))
    jump = (1 - decay) * 0.1
    for _ in range(12):
        x = x + jump * guided + (0.1 * (1 - decay**2)) ** 0.5 * torch.randn_like(x)
        guided = guide(CFG(3.0), uncond=score(x, 0.0, 1.0), cond=score(x, 1.0, 0.25))
    # Standard errors of 200,000 samples: 7e-4 of the mean, 3.2e-4 of the variance; five of them.
    assert abs(x.mean().item() - 1.2) < 4e-3 and abs(x.var().item() - 0.1) < 1.6e-3


def test_grid_density() -> None:
    """On a grid, the guided score is the slope of log p(x) + s log p(c|x), whatever the densities."""
    x = np.linspace(-4, 4, 2001)
    step = x[1] - x[0]
    joint = np.stack([np.exp(-((x - m) ** 2) / (2 * v)) * w for m, v, w in ((-1, 0.5, 0.6), (1.5, 0.3, 0.4))])
    p = joint.sum(0)
    log_p, log_joint = np.log(p / p.sum()), np.log(joint / joint.sum(1, keepdims=True))
    log_classifier = np.log(joint / p)

    def slope(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.diff(values) / step).view(1, -1)

    u, c = slope(log_p), [slope(values) for values in log_joint]
    for scale in (0.0, 1.0, 3.0, 7.5):
        guided = guide(CFG(scale), uncond=u, cond=c[0])
        tilted = slope(log_p + scale * log_classifier[0])
        torch.testing.assert_close(guided, tilted, rtol=0, atol=1e-9)
    both = guide(MultiCondition((2.0, 0.5)), uncond=u, cond_1=c[0], cond_2=c[1])
    tilted = slope(log_p + 2.0 * log_classifier[0] + 0.5 * log_classifier[1])
    torch.testing.assert_close(both, tilted, rtol=0, atol=1e-9)
    away = guide(DualCFG(2.0, 0.5), uncond=u, cond=c[0], negative=c[1])
    torch.testing.assert_close(
        away, slope(log_p + 2.0 * log_classifier[0] - 0.5 * log_classifier[1]), rtol=0, atol=1e-9
    )
    # Two parts of a history are two conditions, and inner guidance is two ratios of densities.
    history = guide(HistoryGuidance((2.0, 0.5), kind="temporal"), uncond=u, cond_1=c[0], cond_2=c[1])
    torch.testing.assert_close(history, both, rtol=0, atol=1e-12)
    inner = guide(InnerGuidance(2.0, 0.5), cond=c[0], uncond=u, without_inner=c[1])
    tilted = slope(log_joint[0] + 2.0 * (log_joint[0] - log_p) + 0.5 * (log_joint[0] - log_joint[1]))
    torch.testing.assert_close(inner, tilted, rtol=0, atol=1e-9)
