"""Autoguidance, perturbed passes, self-attention guidance and LTX-2's sum against the fp64 oracles."""

import pytest
import torch

from conformance.cases import Case, draw, exact
from conformance.field_cases import PERTURBED, check, check_rows, shape_of
from conformance.oracles import perturbed
from fastcfg import CFG, LTX2, Autoguidance, Linear, Perturbed, Rule, SelfAttentionGuidance, guide
from fastcfg.denoiser.planner import plan

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
by_case = pytest.mark.parametrize("case", PERTURBED, ids=str)


@by_dtype
@pytest.mark.parametrize("path", ["auto", "torch", "two_launch"])
@by_case
def test_within_the_bound(case: Case, path: str, dtype: torch.dtype) -> None:
    check(case, path, shape_of(case), dtype)


@by_dtype
@by_case
def test_large_samples_are_within_the_bound(case: Case, dtype: torch.dtype) -> None:
    check(case, "torch", (2, 33_001), dtype)


@pytest.mark.parametrize("path", ["auto", "torch", "two_launch"])
@by_case
def test_rows_of_a_batch_have_their_own_bits(case: Case, path: str) -> None:
    check_rows(case, path, (8, 4, 9, 7), torch.float32)
    check_rows(case, path, (8, 4, 9, 7), torch.bfloat16)


# rule, the conditions that are left, an equal rule of them.
DROPS: list[tuple[Rule, Rule]] = [
    (Perturbed(7.5, 0.0), CFG(7.5)),
    (Perturbed(7.5, 0.0, base="cond"), CFG(7.5, base="cond")),
    (Perturbed(1.0, 3.0), Autoguidance(3.0, base="cond")),
    (Perturbed(0.0, 3.0, base="cond"), Autoguidance(3.0, base="cond")),
    (Perturbed(1.0, 0.0), Linear((("cond", 1.0),))),
    (Perturbed(0.0, 0.0, base="cond"), Linear((("cond", 1.0),))),
    (SelfAttentionGuidance(7.5, 0.0), CFG(7.5)),
    (SelfAttentionGuidance(0.0, 1.0), Linear((("uncond", 2.0), ("perturbed", -1.0)))),
    (LTX2(3.0, 0.0, 1.0), CFG(3.0)),
    (LTX2(1.0, 1.5, 1.0), Autoguidance(1.5, base="cond")),
    (LTX2(1.0, 0.0, 1.0), Linear((("cond", 1.0),))),
    (Autoguidance(1.0), Linear((("cond", 1.0),))),
    (Autoguidance(0.0), Linear((("perturbed", 1.0),))),
    (Autoguidance(0.0, base="cond"), Linear((("cond", 1.0),))),
]


@pytest.mark.parametrize(("rule", "less"), DROPS, ids=lambda r: r.to_json())
def test_zero_scales_drop_their_pass_and_nothing_else(rule: Rule, less: Rule) -> None:
    simple = rule.simplify()
    assert sorted(simple.conditions) == sorted(less.conditions)
    assert plan(rule).count == len(less.conditions)
    predictions = draw(rule.conditions, (2, 5, 7), torch.float64)
    expected = guide(rule, **predictions)
    atol = 32 * 2.0**-53 * 16 * max(p.abs().max() for p in predictions.values())
    for other in (simple, less):
        got = guide(other, **{name: predictions[name] for name in other.conditions})
        assert torch.allclose(got, expected, rtol=0, atol=float(atol))


def test_without_cfg_the_peers_base_is_the_perturbed_prediction() -> None:
    """diffusers' SLG with the CFG term off adds to the perturbed prediction: Autoguidance, not Perturbed(1, k)."""
    predictions = draw(("cond", "perturbed"), (2, 5, 7), torch.float64)
    p = exact(predictions)
    got = guide(Autoguidance(2.8), **predictions).numpy()
    expected = perturbed.perturbed_sum(**p, perturbed_scale=2.8, base="perturbed")
    assert abs(got - expected).max() <= 32 * 2.0**-53 * abs(expected).max()
    pag = guide(Autoguidance(2.8, base="cond"), **predictions).numpy()
    assert abs(pag - perturbed.perturbed_sum(**p, perturbed_scale=2.8, base="cond")).max() <= 1e-14
    assert abs(pag - got).max() > 0.1


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_per_sample_scales_are_rows(backend: str) -> None:
    values = torch.tensor([0.0, 1.5, 4.0])
    for rule in (Perturbed(3.0, 2.0), SelfAttentionGuidance(3.0), LTX2(3.0, 1.0, 2.0)):
        predictions = draw(rule.conditions, (3, 40), torch.float32)
        together = guide(rule, params={"perturbed_scale": values}, backend=backend, **predictions)
        for b in range(3):
            row = {n: p[b : b + 1].clone() for n, p in predictions.items()}
            alone = guide(rule, params={"perturbed_scale": float(values[b])}, backend=backend, **row)
            assert torch.equal(alone, together[b : b + 1])
