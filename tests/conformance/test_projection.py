"""APG, CFG-Zero*, TCFG and MaMBO-G against the fp64 oracles: bounds, bits of a batch's rows, steps with momentum."""

import numpy as np
import pytest
import torch

from conformance.cases import Case, draw, exact
from conformance.field_cases import (
    APGS,
    COMPOSED,
    PROJECTED,
    TCFGS,
    Carried,
    apg,
    check,
    check_rows,
    check_update,
    grouped,
    run_with_state,
    shape_of,
    tcfg,
)
from conformance.oracles import projection
from conformance.oracles.arrays import Array
from conformance.peers import diffusers_guiders
from conformance.tolerances import accumulation_bound, check_error
from fastcfg import APG, TCFG, APGMix, CFGZeroStar, MaMBOG, Rescale, State, guide

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
by_case = pytest.mark.parametrize("case", PROJECTED + COMPOSED, ids=str)
WHOLE = [case for case in PROJECTED + COMPOSED if not grouped(case)]


@by_dtype
@pytest.mark.parametrize("path", ["auto", "torch"])
@by_case
def test_torch_and_the_small_path_are_within_the_bound(case: Case, path: str, dtype: torch.dtype) -> None:
    check(case, path, shape_of(case), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_large_samples_are_within_the_bound(case: Case, dtype: torch.dtype) -> None:
    check(case, "torch", (2, 33_001), dtype)


@by_dtype
@pytest.mark.parametrize("path", ["row", "two_launch"])
@pytest.mark.parametrize("case", [c for c in WHOLE if c.rule.program.reduces], ids=str)
def test_triton_is_within_the_bound(case: Case, path: str, dtype: torch.dtype) -> None:
    if case in COMPOSED and path == "two_launch" and dtype != torch.float32:
        pytest.skip("modifiers are weights, which both launches share")
    # A float64 row, and one of three tensors, fills a program's registers at half the size.
    check(case, path, (2, 3001) if path == "row" and dtype == torch.float64 else shape_of(case), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", [c for c in PROJECTED + COMPOSED if grouped(c)], ids=str)
def test_triton_is_within_the_bound_over_tokens_and_channels(case: Case, dtype: torch.dtype) -> None:
    check(case, "row", tuple(min(n, 8) for n in shape_of(case)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("path", ["auto", "torch"])
@by_case
def test_rows_of_a_batch_have_their_own_bits(case: Case, path: str, dtype: torch.dtype) -> None:
    check_rows(case, path, shape_of(case), dtype)


@pytest.mark.parametrize("path", ["row", "two_launch"])
@pytest.mark.parametrize("name", ["APG_momentum", "CFGZeroStar", "TCFG", "MaMBOG"])
def test_rows_of_a_batch_have_their_own_bits_in_triton(name: str, path: str) -> None:
    case = next(c for c in PROJECTED if c.name == name)
    check_rows(case, path, (8, 1, 71, 71), torch.float32)


# --- Momentum over steps -----------------------------------------------------------------------------------------


def steps_of(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    return [draw(("uncond", "cond"), shape, dtype, seed) for seed in range(count)]


@by_dtype
@pytest.mark.parametrize("path", ["auto", "torch", "two_launch"])
@pytest.mark.parametrize("case", [c for c in APGS if c.rule.momentum], ids=str)
def test_apg_momentum_over_steps(case: Carried, path: str, dtype: torch.dtype) -> None:
    if path == "two_launch" and (grouped(case) or dtype == torch.float16):
        pytest.skip("the same kernel, slow in the interpreter")
    state = State()
    average: Array | None = None
    drift = np.zeros(1)
    m = case.rule.momentum
    for step, predictions in enumerate(steps_of(shape_of(case), 5, dtype)):
        before = {"average": state["average"]} if state else {}
        given = exact({**predictions, **before})
        actual = run_with_state(case.rule, predictions, state, path)
        # Against the oracle given the state that the step had: nothing has been added up over steps.
        check_error(case, actual, given, truncates=path == "two_launch" and dtype == torch.bfloat16)
        magnitude = sum(abs(p) for p in given.values())
        check_update(state["average"], case.writes["average"](given), magnitude, dtype)
        # And from the first step on in float64: the state's errors shrink by |m| a step.
        p = exact(predictions)
        average = p["cond"] - p["uncond"] + (m * average if average is not None else 0)
        unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
        drift = abs(m) * drift + 6 * unit * (magnitude + abs(average))
        assert (abs(state["average"].double().numpy() - average) <= drift).all(), f"step {step}"
    assert step == 4 and set(state) == {"average"}


@pytest.mark.parametrize("base", ["uncond", "cond"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
def test_apg_mix_over_steps(dtype: torch.dtype, base: str) -> None:
    rule = APGMix(start_step=2, norm_threshold=3.0, base=base)
    later = apg("APG", APG(10.0, eta=0.0, norm_threshold=3.0, momentum=-0.5, base=base))
    state = State()
    for step, predictions in enumerate(steps_of((2, 4, 25, 49), 6, dtype)):
        before = {"average": state["average"]} if state else {}
        given = exact({**predictions, **before})
        actual = guide(rule.at(step, 6), state=state, **predictions)
        expected, buffer = projection.apg_mix(
            **exact(predictions), step=step, start_step=2, norm_threshold=3.0, average=given.get("average"), base=base
        )
        bound = accumulation_bound(later, given, dtype)  # CFG at a smaller scale has the smaller one.
        spacing = 2.0 ** -{torch.float32: 24, torch.bfloat16: 8, torch.float64: 53}[dtype]
        assert (abs(actual.double().numpy() - expected) <= bound + spacing * abs(expected)).all(), step
        check_update(state["average"], [buffer], 3 * sum(abs(p) for p in given.values()), dtype)
    with pytest.raises(ValueError, match=r"rule\.at"):
        guide(rule, state=State(), **predictions)


def test_a_run_can_be_saved_and_taken_up_again() -> None:
    rule = APG(6.0, 0.0, 4.0, -0.5)
    steps = steps_of((1, 4, 8, 8), 4, torch.bfloat16)
    straight = State()
    expected = [guide(rule, state=straight, **p) for p in steps]
    first, second = State(), State()
    got = [guide(rule, state=first, **p) for p in steps[:2]]
    second.load_state_dict({n: t.clone() for n, t in first.state_dict().items()})
    got += [guide(rule, state=second, **p) for p in steps[2:]]
    assert all(map(torch.equal, got, expected))
    first.reset()
    assert torch.equal(guide(rule, state=first, **steps[0]), expected[0])


def test_momentum_without_a_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state: APG carries"):
        guide(APG(6.0, momentum=-0.5), **draw(("uncond", "cond"), (1, 8), torch.float32))


# --- Each rule's own corners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["auto", "torch", "row"])
@pytest.mark.parametrize("base", ["uncond", "cond"])
def test_apg_in_fp16_keeps_the_guidance_where_the_peer_loses_it(base: str, path: str) -> None:
    """diffusers: |cond - uncond| is infinite in float16, 15/inf is 0, and the result is the base itself."""
    case = apg("APG", APG(7.5, eta=0.25, norm_threshold=15.0, base=base))
    predictions = {n: p * 1200 for n, p in draw(case, (2, 4, 60, 60), torch.float16, mean=0.0).items()}
    u, c = predictions["uncond"], predictions["cond"]
    assert (c - u).isfinite().all() and not (c - u).norm().isfinite()
    (peer,) = diffusers_guiders.adaptive_projected(
        pairs=[(u, c)], scale=7.5, norm_threshold=15.0, eta=0.25, original=base == "cond"
    )
    assert torch.equal(peer, predictions[base])
    actual = run_with_state(case.rule, predictions, State(), path)
    check_error(case, actual, exact(predictions))
    assert not torch.equal(actual, predictions[base])


@pytest.mark.parametrize("base", ["uncond", "cond"])
def test_apg_without_its_options_is_cfg_and_equal_predictions_are_returned(base: str) -> None:
    predictions = draw(("uncond", "cond"), (2, 4, 8, 8), torch.float64)
    u, c = predictions.values()
    got = guide(APG(5.0, 1.0, 0.0, base=base), uncond=u, cond=c)
    assert torch.allclose(got, (u if base == "uncond" else c) + 5.0 * (c - u), rtol=0, atol=64 * 2.0**-53 * 20)
    for same in (c, torch.zeros_like(c)):
        assert torch.equal(guide(APG(5.0, 0.0, 1.0, base=base), uncond=same, cond=same), same)
    zero = guide(APG(5.0, 0.0, 0.0, base="uncond"), uncond=u, cond=torch.zeros_like(c))
    assert torch.allclose(zero, -4 * u, rtol=8 * 2.0**-53, atol=0)


@pytest.mark.parametrize("path", ["auto", "torch", "row"])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_apg_limits_the_norm_of_the_guidance(scale: float, path: str) -> None:
    predictions = draw(("uncond", "cond"), (3, 900), torch.float32)
    predictions["cond"][1] = predictions["uncond"][1] + 1e-4  # A delta below the limit stays.
    got = run_with_state(APG(scale, 1.0, 2.0), predictions, State(), path) - predictions["uncond"]
    delta = (predictions["cond"] - predictions["uncond"]).norm(dim=1)
    expected = scale * delta.clamp(max=2.0)
    assert torch.allclose(got.norm(dim=1), expected, rtol=1e-5, atol=1e-6)
    assert delta[0] > 2 > delta[1]


@by_dtype
def test_cfg_zero_star_returns_zeros_for_its_first_steps(dtype: torch.dtype) -> None:
    """With a rescale too, where diffusers returns NaN."""
    rule = CFGZeroStar(5.0, zero_init_steps=2)
    predictions = draw(("uncond", "cond"), (2, 4, 9), dtype)
    for step in range(4):
        for resolved in (rule.at(step, 4), Rescale(rule, phi=0.5).at(step, 4)):
            got = guide(resolved, **predictions)
            assert got.dtype == dtype and got.isfinite().all()
            assert bool(got.any()) == (step >= 2)
    assert rule.at(0, 4).simplify().conditions == ("cond",)
    with pytest.raises(ValueError, match="step"):
        guide(rule, **predictions)


def test_cfg_zero_star_is_nan_in_the_peer_with_a_rescale() -> None:
    predictions = draw(("uncond", "cond"), (2, 4, 9), torch.float32)
    options = {"scale": 5.0, "zero_init_steps": 2, "step": 1, "num_steps": 9, "rescale": 0.5}
    assert diffusers_guiders.classifier_free_zero_star(**predictions, **options).isnan().all()
    assert not guide(Rescale(CFGZeroStar(5.0, 2), phi=0.5).at(1, 9), **predictions).any()


@pytest.mark.parametrize("path", ["auto", "torch", "row"])
def test_cfg_zero_star_without_an_unconditional_prediction(path: str) -> None:
    c = draw(("cond",), (2, 900), torch.float32)["cond"]
    for eps in (0.0, 1e-8):
        rule = CFGZeroStar(5.0, zero_init_steps=0, eps=eps)
        got = run_with_state(rule, {"uncond": torch.zeros_like(c), "cond": c}, State(), path)
        assert torch.allclose(got, 5 * c, rtol=2.0**-23, atol=0)


@by_dtype
@pytest.mark.parametrize("shape", [(3, 7), (2, 4, 25, 49), (1, 3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("case", TCFGS, ids=str)
def test_tcfg_without_an_svd_is_the_svd(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    by_svd = tcfg(f"{case.name}_svd", case.rule, method="svd")
    predictions = draw(case, shape, dtype)
    check_error(by_svd, guide(case.rule, **predictions), exact(predictions))


def test_tcfg_is_nearer_to_fp64_than_an_fp32_svd() -> None:
    case = TCFGS[0]
    predictions = draw(case, (2, 4, 64, 64), torch.float32)
    expected = case.oracle(exact(predictions))
    peer = diffusers_guiders.tangential(**predictions, scale=7.5)
    ours = guide(case.rule, **predictions)
    error, peer_error = (abs(x.double().numpy() - expected).max() for x in (ours, peer))
    assert error < peer_error, (error, peer_error)


@pytest.mark.parametrize("path", ["auto", "torch", "row", "two_launch"])
def test_tcfg_where_no_direction_is_singled_out(path: str) -> None:
    """cond is orthogonal to uncond and as long: uncond' is the mean of all choices, uncond/2."""
    u, c = torch.zeros(3, 64), torch.zeros(3, 64)
    u[0, 3], c[0, 5] = 3.0, 3.0
    u[1, :2], c[1, 0], c[1, 1] = 1.5, 1.5, -1.5
    got = run_with_state(TCFG(4.0), {"uncond": u, "cond": c}, State(), path)
    assert torch.equal(got, 0.5 * u + 4.0 * (c - 0.5 * u))
    assert not got[2].any()
    for same in (u, c):
        got = run_with_state(TCFG(4.0), {"uncond": same, "cond": same}, State(), path)
        torch.testing.assert_close(got, same, rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("path", ["auto", "torch", "row"])
def test_mambo_g_on_latents_where_the_peer_raises(path: str) -> None:
    case = next(c for c in PROJECTED if c.name == "MaMBOG")
    predictions = draw(case, (2, 4, 24, 24), torch.float32)
    with pytest.raises((RuntimeError, ValueError)):
        diffusers_guiders.magnitude_aware(**predictions, scale=7.5)
    check_error(case, run_with_state(case.rule, predictions, State(), path), exact(predictions))


@pytest.mark.parametrize("path", ["auto", "torch", "row"])
def test_mambo_g_limits(path: str) -> None:
    predictions = draw(("uncond", "cond"), (2, 900), torch.float32)
    u, c = predictions["uncond"], predictions["cond"]

    def call(rule: MaMBOG, uncond: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return run_with_state(rule, {"uncond": uncond, "cond": cond}, State(), path)

    # Without damping it is CFG; a zero uncond damps everything, which leaves cond; so does a strong alpha.
    torch.testing.assert_close(call(MaMBOG(5.0, alpha=0.0), u, c), u + 5.0 * (c - u), rtol=0, atol=2.0**-18)
    for alpha in (0.0, 8.0):
        zero = torch.zeros_like(u)
        assert torch.equal(call(MaMBOG(5.0, alpha), zero, zero), zero)
    assert torch.equal(call(MaMBOG(5.0), torch.zeros_like(u), c), c)
    torch.testing.assert_close(call(MaMBOG(5.0, alpha=1e4), u, c), c, rtol=0, atol=2.0**-21)


@pytest.mark.parametrize("path", ["auto", "torch"])
def test_per_sample_parameters_are_rows(path: str) -> None:
    values = torch.tensor([0.5, 3.0, 9.0])
    for rule, names in (
        (APG(1.0, 0.3, 2.0), ("scale", "eta", "norm_threshold")),
        (APG(1.0, 0.3, 2.0, dims=(1,)), ("scale", "norm_threshold")),
        (CFGZeroStar(1.0, 0), ("scale",)),
        (TCFG(1.0), ("scale",)),
        (MaMBOG(5.0), ("scale", "alpha")),
    ):
        predictions = draw(rule.conditions, (3, 4, 6, 6), torch.float32)
        for name in names:
            together = guide(rule, params={name: values}, backend=path, **predictions)
            for b in range(3):
                row = {n: p[b : b + 1].clone() for n, p in predictions.items()}
                alone = guide(rule, params={name: values[b : b + 1]}, backend=path, **row)
                assert torch.equal(alone, together[b : b + 1]), (rule, name, b)
            assert not torch.equal(together, guide(rule, backend=path, **predictions)), (rule, name)


def test_the_bounds_can_fail() -> None:
    # Parameters that are wrong by one in ten thousand.
    for case, wrong in (
        (APGS[2], APG(7.5, eta=0.25, norm_threshold=2.0002)),
        (APGS[1], APG(7.5, eta=1e-4)),
        (TCFGS[0], TCFG(7.5007)),
        (next(c for c in PROJECTED if c.name == "MaMBOG_cond"), MaMBOG(6.5, alpha=0.7001, base="cond")),
    ):
        predictions = draw(case, (2, 4, 25, 49), torch.float32)
        with pytest.raises(AssertionError, match="bound"):
            check_error(case, guide(wrong, **predictions), exact(predictions))
