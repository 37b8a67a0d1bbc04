"""Guidance on logits, the score of a continuous sequence, Langevin sampling and temperature."""

from __future__ import annotations

import pytest
import torch

from fastcfg.methods.langevin import langevin, sequence_score, temper
from fastcfg.methods.logits import guide_logits

U, C = torch.randn(2, 9), torch.randn(2, 9)


def test_scales_one_and_zero_are_exact() -> None:
    for one, zero in ((1.0, 0.0), (1, 0), (torch.tensor(1.0), torch.tensor(0.0)), (torch.ones(2), torch.zeros(2))):
        assert torch.equal(guide_logits(C, U, one), torch.log_softmax(C, -1))
        assert torch.equal(guide_logits(C, U, zero), torch.log_softmax(U, -1))


def test_shifts_of_logits_do_not_matter() -> None:
    torch.testing.assert_close(guide_logits(C + 3, U - 7, 2.5), guide_logits(C, U, 2.5), rtol=0, atol=1e-5)


def test_nan_is_not_hidden_and_stays_in_its_row() -> None:
    c = C.clone()
    c[0, 2] = torch.nan
    got = guide_logits(c, U, 2.0)
    assert torch.isnan(got[0]).all()
    assert torch.equal(got[1], guide_logits(C, U, 2.0)[1])


def test_sequences_and_gradients() -> None:
    u, c = torch.randn(2, 5, 9), torch.randn(2, 5, 9, requires_grad=True)
    c_masked = c.masked_fill(torch.arange(9) == 4, -torch.inf)
    got = guide_logits(c_masked, u, 2.0)
    got[..., :4].sum().backward()
    assert got.shape == (2, 5, 9)
    assert torch.isfinite(c.grad).all()
    tensor = guide_logits(c_masked.detach(), u, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(tensor, got.detach())


def test_compiles_without_breaks() -> None:
    compiled = torch.compile(guide_logits, fullgraph=True, backend="aot_eager")
    for scale in (2.0, torch.tensor([2.0, 3.0])):
        torch.testing.assert_close(compiled(C, U, scale), guide_logits(C, U, scale))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((C, U[:1], 2.0), "uncond"),
        ((C, U.double(), 2.0), "uncond"),
        ((C.long(), U, 2.0), "cond"),
        ((C[0], U[0], 2.0), "cond"),
        ((C, U, "2"), "scale"),
        ((C, U, float("inf")), "scale"),
        ((C, U, torch.ones(3)), "scale"),
    ],
)
def test_errors_name_the_argument(arguments: tuple[object, ...], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}"):
        guide_logits(*arguments)


def test_sequence_score_of_an_autoregressive_gaussian() -> None:
    """x_t given x_<t is N(0.5 x_{t-1}, 0.25): the joint is Gaussian, with a tridiagonal precision."""

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        before = torch.nn.functional.pad(x, (1, 0))[:, :-1]
        return -((x - 0.5 * before) ** 2) / (2 * 0.25)

    lower = torch.eye(4, dtype=torch.float64) - 0.5 * torch.diag(torch.ones(3, dtype=torch.float64), -1)
    precision = lower.T @ lower / 0.25
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        score = sequence_score(log_prob, x)
    torch.testing.assert_close(score, -x @ precision, rtol=0, atol=1e-13)
    assert not score.requires_grad
    with pytest.raises(ValueError, match="log_prob"):
        sequence_score(lambda z: log_prob(z).sum(), x)


def test_langevin_is_stationary_at_its_own_variance() -> None:
    variance, step = 0.5, 0.4
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20_000, 1, generator=generator)
    end = langevin(lambda x: -x / variance, start, step=step, steps=60, generator=generator)
    expected = variance / (1 - step / (4 * variance))
    # The variance of 20,000 normal samples has a standard deviation of sqrt(2 / 20,000) = 1 %.
    assert abs(end.var().item() / expected - 1) < 0.04
    still = langevin(lambda x: -x / variance, start, step=step, steps=60, temperature=0.0)
    assert still.abs().max() < 1e-3
    assert torch.equal(langevin(lambda x: -x, start, step=0.1, steps=0), start)


def test_temperature_scales_the_variance_and_is_not_guidance() -> None:
    """gamma * score of N(1, v) is the score of N(1, v / gamma); CFG from N(0, 1) moves the mean as well."""
    x = torch.linspace(-3, 3, 31, dtype=torch.float64).unsqueeze(0)
    cond, uncond = -(x - 1) / 0.25, -x
    torch.testing.assert_close(temper(cond, 3.0), -(x - 1) / (0.25 / 3), rtol=0, atol=1e-13)
    guided = uncond + 3 * (cond - uncond)
    torch.testing.assert_close(guided, -(x - 1.2) / 0.1, rtol=0, atol=1e-13)
    assert (guided - temper(cond, 3.0)).abs().max() > 1
    per_sample = temper(cond.repeat(2, 1), torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert torch.equal(per_sample[0], cond[0])


def test_langevin_errors_name_the_argument() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="steps"):
        langevin(lambda z: z, x, step=0.1, steps=-1)
    with pytest.raises(ValueError, match="step"):
        langevin(lambda z: z, x, step=-0.1, steps=1)
    with pytest.raises(ValueError, match="score"):
        langevin(lambda z: z[:1], x, step=0.1, steps=1)
