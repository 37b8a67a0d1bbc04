"""A user's own rule in a few lines runs eager, compiled and in Triton, with equal results."""

from typing import Any

import pytest
import torch
from conformance.cases import draw, run
from fastcfg_kernels.math import exp, minimum, sqrt

import fastcfg
from fastcfg import Clamp, Rescale, Rule, schedules

LIMIT = 2.5


def ratio(a: Any, b: Any) -> Any:
    return sqrt(a / b)


@fastcfg.rule("uncond", "cond")
def damped(dot_d_d: Any, dot_uncond_uncond: Any, cov_cond_cond: Any, count: Any, scale: Any = 5.0, rate: float = 0.5):
    """uncond + f(|d|/|u|) d, with a helper and a constant of this module."""
    strength = scale * exp(-rate * ratio(dot_d_d, dot_uncond_uncond))
    return 1.0, minimum(strength, LIMIT) * sqrt(cov_cond_cond / (count - 1.0))


def expected(u: torch.Tensor, c: torch.Tensor, scale: float = 5.0, rate: float = 0.5) -> torch.Tensor:
    u, c = u.double(), c.double()
    d = c - u
    strength = scale * torch.exp(-rate * d.norm(dim=1, keepdim=True) / u.norm(dim=1, keepdim=True))
    return u + strength.clamp(max=LIMIT) * c.std(dim=1, keepdim=True) * d


PATHS = ["auto", "torch", "row", "two_launch"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [1.5, 5.0])
def test_it_runs_everywhere(path: str, scale: float) -> None:
    predictions = draw(("uncond", "cond"), (2, 5000), torch.float32)
    got = run(damped(scale=scale), predictions, path)
    # Three sums, a root and an exponential: some tens of roundings of numbers up to 10.
    exact = expected(*predictions.values(), scale=scale)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=100 * 2.0**-24 * 10)
    bf16 = {name: p.bfloat16() for name, p in predictions.items()}
    exact = expected(*bf16.values(), scale=scale)
    error = (run(damped(scale=scale), bf16, path).double() - exact).abs()
    assert (error <= exact.abs() * 2.0**-7 + 1e-4).all()


def test_it_is_a_rule_like_any_other() -> None:
    rule = damped(scale=3.0)
    assert rule.conditions == ("uncond", "cond") and "helper" in rule.title
    assert Rule.from_json(rule.to_json()) == rule == damped(3.0) and hash(rule) == hash(damped(3.0))
    predictions = draw(("uncond", "cond"), (2, 50), torch.float64)
    half = damped(schedules.Ramp(1.0, 2.0)).at(4, 5)
    assert half == damped(2.0)
    torch.testing.assert_close(
        fastcfg.guide(rule, params={"scale": torch.tensor([2.0, 2.0])}, **predictions),
        fastcfg.guide(half, **predictions),
    )
    y = fastcfg.guide(Rescale(rule, 1.0), **predictions)
    torch.testing.assert_close(y.std(1), predictions["cond"].std(1))
    bound = 0.5 * predictions["cond"].std(1, keepdim=True)
    assert (fastcfg.guide(Clamp(rule, 0.5), **predictions).abs() <= bound * (1 + 1e-12)).all()


def test_it_traces() -> None:
    torch._dynamo.reset()
    rule = damped()
    predictions = draw(("uncond", "cond"), (2, 50), torch.float32)
    compiled = torch.compile(lambda u, c: fastcfg.guide(rule, uncond=u, cond=c), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(*predictions.values()), fastcfg.guide(rule, **predictions), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("conditions", "formula", "message"),
    [
        ((), lambda: (1.0,), "conditions: expected distinct names"),
        (("a", "a"), lambda: (1.0, 0.0), "conditions: expected distinct names"),
        (("a b",), lambda: (1.0,), "conditions: expected distinct names"),
        (("a", "b"), lambda scale: (1.0, scale), r"arguments \['scale'\] are no sums"),
        (("a", "b"), lambda dot_a_c: (1.0, dot_a_c), "unknown vector"),
    ],
)
def test_errors(conditions: tuple[str, ...], formula: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastcfg.rule(*conditions)(formula)


def test_a_taken_name_is_refused() -> None:
    def CFG(scale: Any = 1.0) -> Any:
        return 1.0, scale

    with pytest.raises(ValueError, match="rule: 'CFG' is the name of a rule already"):
        fastcfg.rule("uncond", "cond")(CFG)
