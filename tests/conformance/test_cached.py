"""Gated and residual CFG against the fp64 oracles, and the passes of a gated run, counted."""

import pytest
import torch

from conformance.cases import Case, draw, exact
from conformance.field_cases import CACHED, capped, check, check_rows, shape_of
from conformance.oracles import classifier_free, nonlinear
from fastcfg import CFG, GatedCFG, GuidedDenoiser, InDomain, NormCap, Rescale, ResidualCFG, State, guide
from fastcfg.denoiser.planner import plan

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
by_case = pytest.mark.parametrize("case", (*CACHED, *(capped(c, mode="full") for c in CACHED)), ids=str)


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


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_gated_over_steps(every: int, backend: str) -> None:
    rule = GatedCFG(5.0, every=every)
    state = State()
    cached = None
    for step in range(7):
        now = draw(("uncond", "cond"), (2, 4, 6, 6), torch.float32, seed=step)
        p = exact(now)
        resolved = rule.at(step, 7)
        got = guide(resolved, state=state, backend=backend, **{n: now[n] for n in resolved.conditions})
        if step % every == 0:
            cached = p["cond"] - p["uncond"]
            expected = classifier_free.cfg(**p, scale=5.0)
            assert resolved.conditions == ("uncond", "cond")
        else:
            expected = nonlinear.gated_guidance(cond=p["cond"], cached_delta=cached, scale=5.0)
            assert resolved.conditions == ("cond",)
        largest = sum(abs(x) for x in p.values()) + 5 * abs(cached)
        assert (abs(got.double().numpy() - expected) <= 12 * 2.0**-24 * largest).all(), step
        assert (abs(state["delta"].double().numpy() - cached) <= 2.0**-24 * abs(cached)).all()


@pytest.mark.parametrize("mode", ["batched", "sequential"])
@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: Rescale(r, phi=0.5), NormCap], ids=["plain", "rescale", "cap"])
def test_a_gated_run_calls_the_model_as_often_as_it_needs(wrap: object, every: int, mode: str) -> None:
    calls: list[int] = []

    def model(x: torch.Tensor, t: float, *, shift: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape[0] // 2)
        return x * (1 + t) + shift

    denoiser = GuidedDenoiser(model, wrap(GatedCFG(4.0, every=every)), mode=mode)
    x = draw(("x",), (2, 3, 5), torch.float32)["x"]
    conditions = {"uncond": {"shift": torch.zeros(2, 1, 1)}, "cond": {"shift": torch.ones(2, 1, 1)}}
    state = State()
    for step in range(9):
        resolved = denoiser.rule.at(step, 9)
        needed = {name: conditions[name] for name in denoiser.rule.conditions}
        got = denoiser(x, 0.1 * step, conditions=needed, step=step, num_steps=9, state=state)
        # The delta does not change over this model's steps: CFG at every one of them.
        full = guide(
            wrap(CFG(4.0)), uncond=model(x, 0.1 * step, **conditions["uncond"]),
            cond=model(x, 0.1 * step, **conditions["cond"]),
        )  # fmt: skip
        del calls[-2:]
        torch.testing.assert_close(got, full, rtol=0, atol=2.0**-20 * 8)
        assert resolved.conditions == (("uncond", "cond") if step % every == 0 else ("cond",))
    refreshes = -(-9 // every)
    assert sum(calls) == 9 + refreshes == denoiser.passes_run
    assert denoiser.passes_saved == 9 - refreshes


def test_a_state_is_needed_and_reuse_without_a_delta_is_cond() -> None:
    predictions = draw(("uncond", "cond"), (2, 30), torch.float32)
    with pytest.raises(ValueError, match="state: GatedCFG carries"):
        guide(GatedCFG(3.0).at(0, 4), **predictions)
    with pytest.raises(ValueError, match="step"):
        guide(GatedCFG(3.0), state=State(), **predictions)
    state = State()
    reuse = GatedCFG(3.0).at(1, 4)
    assert torch.equal(guide(reuse, state=state, cond=predictions["cond"]), predictions["cond"])


def test_a_domain_is_kept_where_a_delta_is_cached() -> None:
    # Alone, CFG would simplify to itself in the model's own space; the reuse reads the delta in the domain.
    rule = InDomain(GatedCFG(3.0), "x0")
    assert [plan(rule.at(step, 4)).rule for step in (0, 1)] == [rule.at(0, 4), rule.at(1, 4)]
    assert plan(InDomain(CFG(3.0), "x0")).rule == CFG(3.0)


def test_residual_cfg_with_the_true_noise_is_cfg_in_one_pass() -> None:
    predictions = draw(("uncond", "cond"), (2, 3, 30), torch.float64)
    rule = ResidualCFG(3.0, delta=0.5)
    assert rule.conditions == ("cond",)
    state = State({"stock": 2 * predictions["uncond"]})
    got = guide(rule, state=state, cond=predictions["cond"])
    torch.testing.assert_close(got, guide(CFG(3.0), **predictions), rtol=0, atol=32 * 2.0**-53 * 8)
    assert torch.equal(state["stock"], 2 * predictions["uncond"])
