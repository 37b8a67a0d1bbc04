"""Inputs where a careless formula loses all its digits, overflows, or divides by zero."""

import numpy as np
import pytest
import torch

from conformance.cases import BY_NAME, CASES, Case, draw, exact, run
from conformance.oracles import classifier_free, rescale
from conformance.oracles.rounding import ulp
from conformance.tolerances import check_error
from fastcfg import CFG, Clamp, PerpNeg, Rescale

# path, elements of a sample: the small path, tiles in torch, and both launches in the interpreter.
PATHS = [("torch", 5000), ("torch", 33001), ("row", 5000), ("two_launch", 5000)]
by_path = pytest.mark.parametrize(("path", "size"), PATHS, ids=lambda v: str(v))


def zeros_and_equals(case: Case, size: int, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    shape = (2, size)
    noise = draw(["x"], shape, dtype)["x"]
    return {
        "zero": {name: torch.zeros(shape, dtype=dtype) for name in case.conditions},
        "constant": {name: torch.full(shape, 0.7, dtype=dtype) for name in case.conditions},
        "equal": {name: noise.clone() for name in case.conditions},
    }


@by_path
@pytest.mark.parametrize("case", CASES, ids=str)
def test_zero_constant_and_equal_predictions_are_finite_and_right(case: Case, path: str, size: int) -> None:
    if path == "row" and not case.rule.program.reduces:
        pytest.skip("a rule without sums has one launch")
    for kind, predictions in zeros_and_equals(case, size, torch.float32).items():
        actual = run(case.rule, predictions, path)
        assert actual.isfinite().all(), kind
        if case.name.startswith("Linear+") and kind == "constant":
            continue  # Its weights add to 1.25 in exact arithmetic alone: a constant has a spread of one rounding.
        check_error(case, actual, exact(predictions))


@by_path
@pytest.mark.parametrize("ratio", [1e3, 1e4])
def test_standard_deviation_far_from_the_mean(path: str, size: int, ratio: float) -> None:
    # sum(x^2) - sum(x)^2/n has no digit left here in float32. cond's std is 1, uncond's 3: the factor is far from 1.
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 2, size))
    predictions = {
        "uncond": torch.from_numpy(noise[0] * 3 + ratio).float(),
        "cond": torch.from_numpy(noise[1] + ratio).float(),
    }
    p = exact(predictions)
    guided = classifier_free.cfg(**p, scale=3.0)
    expected = rescale.rescale_std(guided=guided, cond=p["cond"], phi=1.0)
    actual = run(CFG(3.0, rescale=1.0), predictions, path).double().numpy()
    # A tile's mean is taken from its own first element, so that only spreads are summed: 100 roundings are ample.
    assert (abs(actual - expected) <= 100 * 2.0**-24 * abs(guided)).all()
    spread = np.std(actual, axis=1, ddof=1) / np.std(p["cond"], axis=1, ddof=1)
    assert np.allclose(spread, 1, rtol=0, atol=100 * 2.0**-24 * ratio / np.sqrt(size) + 1e-5)


@by_path
def test_clamp_bounds_far_from_the_mean(path: str, size: int) -> None:
    rng = np.random.default_rng(1)
    predictions = {n: torch.from_numpy(rng.normal(size=(2, size)) + 1000).float() for n in ("uncond", "cond")}
    p = exact(predictions)
    expected = rescale.clamp_std(guided=classifier_free.cfg(**p, scale=3.0), cond=p["cond"], k=4.0)
    actual = run(Clamp(CFG(3.0), k=4.0), predictions, path).double().numpy()
    assert (abs(actual - expected) <= 100 * 2.0**-24 * abs(expected)).all()


@by_path
@pytest.mark.parametrize("norm", ["std", "l2"])
def test_fp16_at_the_edge_of_its_range(path: str, size: int, norm: str) -> None:
    predictions = {n: p * 1200 for n, p in draw(("uncond", "cond"), (2, size), torch.float16, mean=0.0).items()}
    u, c = predictions["uncond"], predictions["cond"]
    eager = u + 30.0 * (c - u)
    length = (lambda x: x.std(1, keepdim=True)) if norm == "std" else (lambda x: x.norm(dim=1, keepdim=True))
    assert not (eager * (length(c) / length(eager))).isfinite().all(), "the plain formula was to overflow here"

    p = exact(predictions)
    apply = {"std": rescale.rescale_std, "l2": rescale.rescale_l2}[norm]
    expected = apply(guided=classifier_free.cfg(**p, scale=30.0), cond=p["cond"], phi=1.0)
    actual = run(Rescale(CFG(30.0), phi=1.0, norm=norm), predictions, path)
    assert actual.dtype == torch.float16 and actual.isfinite().all()
    error = abs(actual.double().numpy() - expected)
    assert (error <= 0.5 * ulp(expected, torch.float16) + 1e-4 * abs(expected) / 16 + 0.01).all()


@by_path
def test_perp_neg_is_orthogonal(path: str, size: int) -> None:
    # With scale 0 the result is uncond - n_perp. Negatives that are nearly parallel make n_perp small.
    for angle in (1.0, 1e-1, 1e-2, 1e-3):
        rng = np.random.default_rng(2)
        p, q = rng.normal(size=(2, 2, size))
        predictions = {
            "uncond": torch.zeros((2, size)),
            "cond": torch.from_numpy(p).float(),
            "negative": torch.from_numpy(p + angle * q).float(),
        }
        perp = -run(PerpNeg(0.0, (1.0,)), predictions, path).double().numpy()
        p = predictions["cond"].double().numpy()
        n = predictions["negative"].double().numpy()
        length = np.linalg.norm(perp, axis=1)
        cosine = abs((perp * p).sum(1)) / (length * np.linalg.norm(p, axis=1))
        # eps |n|/|n_perp|: the store rounds by eps/2, the two sums and the share by less than 20 eps together.
        assert (cosine <= 20 * 2.0**-23 * np.linalg.norm(n, axis=1) / length).all(), angle


@by_path
def test_perp_neg_with_deltas_far_below_the_predictions(path: str, size: int) -> None:
    # In the (c, u) basis |c - u|^2 = c.c - 2 c.u + u.u would be noise: deltas are a ten-thousandth of the predictions.
    rng = np.random.default_rng(3)
    base = rng.normal(size=(2, size))
    predictions = {
        name: torch.from_numpy(base + 1e-4 * rng.normal(size=base.shape)).float()
        for name in ("uncond", "cond", "negative")
    }
    case = BY_NAME["PerpNeg_1"]
    p = exact(predictions)
    actual = run(case.rule, predictions, path).double().numpy()
    guidance = abs(case.oracle(p) - p["uncond"])
    error = abs(actual - case.oracle(p))
    assert (error <= 2 * 2.0**-24 * abs(p["uncond"]) + 200 * 2.0**-24 * np.maximum(guidance, guidance.max() / 10)).all()


@by_path
def test_perp_neg_without_a_direction_keeps_the_whole_negative(path: str, size: int) -> None:
    predictions = draw(("uncond", "cond", "negative"), (2, size), torch.float32)
    predictions["cond"] = predictions["uncond"].clone()
    expected = predictions["uncond"] - 1.5 * (predictions["negative"] - predictions["uncond"])
    actual = run(PerpNeg(7.5, (1.5,)), predictions, path)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@by_path
def test_no_spread_in_the_result_leaves_it_alone(path: str, size: int) -> None:
    # u + s (c - u) is the constant 2 although cond varies.
    cond = draw(["x"], (2, size), torch.float32)["x"]
    predictions = {"cond": cond, "uncond": (2 - 0.5 * cond) / 0.5}
    actual = run(Rescale(CFG(0.5), phi=1.0, norm="std"), predictions, path)
    assert actual.isfinite().all()


@by_path
@pytest.mark.parametrize("case", [BY_NAME[n] for n in ("CFG(rescale)", "PerpNeg_1", "DualCFG+clamp")], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_nonfinite_input_shows_and_stays_in_its_sample(case: Case, path: str, size: int, bad: float) -> None:
    predictions = draw(case, (3, size), torch.float32)
    clean = run(case.rule, predictions, path)
    for name in case.conditions:
        spoiled = {n: p.clone() for n, p in predictions.items()}
        spoiled[name][1, 3] = bad
        actual = run(case.rule, spoiled, path)
        assert torch.equal(actual[0], clean[0]) and torch.equal(actual[2], clean[2]), name
        if bad != bad or not case.rule.program.clamps:  # Clipping an infinity is a clamp's work.
            assert not actual[1].isfinite().all(), f"{name}: {bad} was hidden"
        if bad != bad:
            assert actual[1, 3].isnan(), name
