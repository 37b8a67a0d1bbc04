"""The contestants compute what they should, each by itself."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from conformance.oracles import classifier_free as cf
from conformance.oracles import projection, rescale

from benchmarks import peers
from benchmarks.cases import DTYPES, MORE_SHAPES, QUICK, REFERENCE, RULES, SHAPES, Case, cases, contestants, draw, exact
from benchmarks.race import check

SMALL = (2, 3, 8, 8)
ORACLES = {
    "CFG": lambda p: cf.cfg(**p, scale=7.5),
    "CFG + rescale 0.7": lambda p: rescale.rescale_std(guided=cf.cfg(**p, scale=7.5), cond=p["cond"], phi=0.7),
    "CFG-Zero*": lambda p: projection.cfg_zero_star(**p, scale=7.5),
    "APG": lambda p: projection.apg(**p, scale=7.5, eta=0.5, norm_threshold=15.0)[0],
    "TCFG": lambda p: projection.tcfg(**p, scale=7.5),
    "PerpNeg": lambda p: cf.perp_neg(**p, scale=7.5, negative_scale=1.5),
    "DualCFG": lambda p: cf.dual(**p, scale=7.5, negative_scale=2.0),
    "MultiCondition(3)": lambda p: cf.multi_condition(
        uncond=p["uncond"], conds=[p[f"cond_{i}"] for i in (1, 2, 3)], scales=(5.0, 2.5, -1.0)
    ),
    "InstructPix2Pix": lambda p: cf.instruct_pix2pix(**p, scale=7.5, image_scale=1.5),
    "Perturbed": lambda p: cf.cfg(uncond=p["uncond"], cond=p["cond"], scale=7.5) + 2.8 * (p["cond"] - p["perturbed"]),
}


@pytest.mark.parametrize("contest", RULES, ids=lambda c: c.name)
def test_the_transcription_in_float64_is_the_oracle(contest) -> None:
    case = Case(contest, SMALL, "fp32")
    predictions = draw(case, "cpu")
    truth = ORACLES[contest.name]({name: p.double().numpy() for name, p in predictions.items()})
    torch.testing.assert_close(exact(case, predictions), torch.from_numpy(truth), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("contest", RULES, ids=lambda c: c.name)
def test_everyone_but_the_compiled_passes_the_check(contest, dtype: str) -> None:
    case = Case(contest, SMALL, dtype)
    predictions = draw(case, "cpu")
    truth = exact(case, predictions)
    found = contestants(case, strategies=False)
    assert next(iter(found)) == REFERENCE and {"eager", "torch.compile"} <= set(found)
    for name, bind in found.items():
        if name.startswith("diffusers") and not importlib.util.find_spec("diffusers"):
            continue
        if name != "torch.compile":
            check(bind(predictions)(), truth, case.dtype)


def test_the_compiled_transcription_passes_the_check() -> None:
    case = Case(RULES[0], SMALL, "fp32")
    predictions = draw(case, "cpu")
    call = contestants(case, strategies=False)["torch.compile"](predictions)
    with torch.no_grad():
        check(call(), exact(case, predictions), case.dtype)


def test_signatures_compile_apart() -> None:
    # One code object for all would hit Dynamo's limit of recompilations, after which it runs eagerly.
    case = Case(RULES[0], SMALL, "fp32")
    seen = []

    def compile_(fn, **kwargs):
        seen.append(fn.__code__)
        return fn

    original, torch.compile = torch.compile, compile_
    try:
        for _ in range(2):
            peers.compiled(case.contest.formula)(draw(case, "cpu"))
    finally:
        torch.compile = original
    assert seen[0] != seen[1]


def test_guider_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    guiders = pytest.importorskip("diffusers.guiders")
    made = []
    original = guiders.ClassifierFreeGuidance.__init__

    def counted(self, *args, **kwargs):
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(guiders.ClassifierFreeGuidance, "__init__", counted)
    case = Case(RULES[0], SMALL, "fp32")
    call = contestants(case, strategies=False)["diffusers ClassifierFreeGuidance"](draw(case, "cpu"))
    call(), call()
    assert len(made) == 1


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton, at least its interpreter")
@pytest.mark.parametrize("name", ["fastcfg row", "fastcfg two_launch"])
def test_strategies_run_where_they_fit(name: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Case(RULES[1], SMALL, "fp32")
    found = contestants(case, strategies=True)
    predictions = draw(case, device)
    check(found[name](predictions)(), exact(case, predictions), case.dtype)
    if name == "fastcfg row":
        large = replace(case, shape=(1, 40_000))
        with pytest.raises(ValueError, match="row"):
            found[name](draw(large, device))


def test_strategies_by_rule() -> None:
    plain, rescaled = (contestants(Case(c, SMALL, "fp32"), strategies=True) for c in RULES[:2])
    assert {f"fastcfg {s}" for s in ("row", "cooperative", "two_launch")} <= set(rescaled)
    assert "torch.compile cooperative" in rescaled
    assert "fastcfg row" not in plain and "fastcfg cooperative" not in plain and "fastcfg two_launch" in plain


def test_the_option_of_the_cooperative_baseline_exists() -> None:
    from torch._inductor import config

    assert hasattr(config.triton, "cooperative_reductions")


def test_cases_of_a_device() -> None:
    on_cpu, on_cuda, full = list(cases("cpu")), list(cases("cuda")), list(cases("cpu", full=True))
    assert len(full) == len(RULES) * (len(SHAPES) + len(MORE_SHAPES)) * 2
    assert len(on_cuda) == len(RULES) * len(SHAPES) * len(DTYPES)
    assert set(on_cpu) < set(full) and {c.contest for c in on_cpu} == set(RULES), "a quick run has every rule"
    assert {(c.shape, c.dtype_name) for c in on_cpu} == QUICK and len(on_cpu) < len(full) / 6
    assert len({str(c) for c in on_cuda}) == len(on_cuda) and len({hash(c) for c in on_cuda}) == len(on_cuda)
