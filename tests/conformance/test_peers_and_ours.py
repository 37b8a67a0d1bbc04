"""The guiders of diffusers beside ours, both against fp64; and what theirs get wrong.

``python -m conformance.peer_table`` prints the errors that are compared here.
"""

import math

import pytest
import torch
from diffusers.guiders import TangentialClassifierFreeGuidance

from conformance.cases import draw, exact
from conformance.peer_table import ROWS, SHAPE, Row, errors
from conformance.peers import diffusers_guiders as peers
from conformance.tolerances import check_error
from fastcfg import APG, CFG, TCFG, Autoguidance, Perturbed, Rescale, State, guide

by_row = pytest.mark.parametrize("row", ROWS, ids=str)
# Both errors are root mean squares of n roundings, whose own relative spread is 1/sqrt(2n); four of them.
SLACK = 1 + 4 / math.sqrt(2 * math.prod(SHAPE))
NEARER = [row for row in ROWS if isinstance(row.rule, APG) or "rescale" in row.name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@by_row
def test_ours_is_nearer_to_fp64_in_half_precision(row: Row, dtype: torch.dtype) -> None:
    ours, theirs = errors(row, dtype)
    assert ours <= SLACK * theirs, (ours, theirs)
    assert ours <= 1.01, "more than a single rounding"


@pytest.mark.parametrize("row", NEARER, ids=str)
def test_rescale_and_apg_are_1_3_times_nearer_in_bf16(row: Row) -> None:
    ours, theirs = errors(row, torch.bfloat16)
    assert 1.3 * ours <= theirs, (ours, theirs)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.momentum], ids=str)
def test_in_fp32_ours_is_within_its_bound(row: Row) -> None:
    """No comparison: both are a few roundings from fp64, and which is nearer differs by rule."""
    predictions = draw(row.case, row.shape, torch.float32)
    check_error(row.case, guide(row.rule, state=State(), **predictions), exact(predictions))


@pytest.mark.parametrize("row", [row for row in ROWS if row.name.startswith("TCFG")], ids=str)
def test_tcfg_in_fp32_is_ten_times_nearer_than_an_svd(row: Row) -> None:
    ours, theirs = errors(row, torch.float32)
    assert 10 * ours <= theirs, (ours, theirs)


def test_a_zero_standard_deviation_is_nan_in_the_peer() -> None:
    constant = torch.full((2, 4, 5), 1.25)
    assert peers.classifier_free(uncond=constant, cond=constant, scale=3.0, rescale=0.7).isnan().all()
    assert torch.equal(guide(CFG(3.0, rescale=0.7), uncond=constant, cond=constant), constant)


def test_a_scale_per_sample_raises_in_the_peer() -> None:
    predictions = draw(("uncond", "cond"), (3, 4, 5), torch.float32)
    scales = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        peers.classifier_free(**predictions, scale=scales)
    got = guide(CFG(7.5), params={"scale": scales}, **predictions)
    for b, s in enumerate(scales.tolist()):
        row = {n: p[b : b + 1] for n, p in predictions.items()}
        torch.testing.assert_close(got[b : b + 1], guide(CFG(s), **row), rtol=0, atol=2.0**-20)


def test_tcfg_of_the_peer_does_not_know_whether_it_is_conditional() -> None:
    guider = peers._build(TangentialClassifierFreeGuidance)
    with pytest.raises(AttributeError):
        _ = guider.is_conditional
    assert TCFG().conditions == ("uncond", "cond")


def test_the_peers_skip_layer_guidance_changes_its_base_where_cfg_is_off() -> None:
    predictions = draw(("cond", "perturbed"), (2, 4, 5), torch.float64)
    alone = peers.skip_layer(**predictions, scale=1.0, perturbed_scale=2.0, perturbed_start=0.0, perturbed_stop=1.0)
    close = {"rtol": 0, "atol": 2.0**-48}
    torch.testing.assert_close(alone, guide(Autoguidance(2.0), **predictions), **close)
    uncond = torch.zeros_like(predictions["cond"])
    ours = guide(Perturbed(1.0, 2.0), uncond=uncond, **predictions)
    torch.testing.assert_close(ours, guide(Autoguidance(2.0, base="cond"), **predictions), **close)
    assert not torch.allclose(ours, alone)


def test_fp16_standard_deviations_and_results_beyond_its_range() -> None:
    """The peer's guided prediction overflows before its rescale brings it back; ours is rounded once, after it."""
    predictions = {n: p * 3000 for n, p in draw(("uncond", "cond"), (2, 4, 16, 16), torch.float16, mean=0.0).items()}
    theirs = peers.classifier_free(**predictions, scale=30.0, rescale=1.0)
    ours = guide(Rescale(CFG(30.0), phi=1.0), **predictions)
    assert not theirs.isfinite().all()
    assert ours.isfinite().all()
    expected = guide(Rescale(CFG(30.0), phi=1.0), **{n: p.double() for n, p in predictions.items()})
    torch.testing.assert_close(ours.double(), expected, rtol=2.0**-11 + 2.0**-20, atol=0)
