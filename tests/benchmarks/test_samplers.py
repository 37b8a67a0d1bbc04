"""Short runs of the samplers' benchmark, with each way of plugging in."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("diffusers.guiders")

from benchmarks import sampler_contests
from benchmarks.compare import results_of
from benchmarks.sampler_contests import Bout, Contest, contests
from benchmarks.samplers import differences, measure
from benchmarks.sections import Plan, wanted
from benchmarks.timelines import FUSED, GUIDANCE, PASSES

CHOSEN = {"demo": "DPMSolverMultistep", "Flux": "FlowMatchEulerDiscrete", "Wan, modular": "FlowMatchEulerDiscrete"}
"""A loop of our own, a classic pipeline and a modular one; the others differ in the model."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_contests, "STEPS", 3)


@pytest.mark.parametrize("model", CHOSEN)
@torch.no_grad()
def test_fastcfg_and_the_stock_run_end_alike(model: str) -> None:
    contest = next(c for c in contests(full=False) if (c.model, c.scheduler) == (model, CHOSEN[model]))
    rows, timelines = measure(contest, "cpu", rounds=1)
    assert [row["provider"] for row in rows] == ["fastcfg", "diffusers"]
    ours, stock = rows
    assert ours["error"] <= ours["bound"] < 1e-3 and stock["error"] == 0.0
    assert ours["ratio"] == 1.0 and stock["ratio"] == pytest.approx(stock["ms_per_step"] / ours["ms_per_step"])
    for row, timeline in zip(rows, timelines, strict=True):
        parts = {part["name"]: part["ms"] for part in timeline["parts"]}
        assert row["provider"] == timeline["provider"] and timeline["model"] == model
        fused = model == "demo" and row is ours
        assert PASSES in parts and (FUSED in parts, GUIDANCE in parts) == (fused, not fused)
        assert 0 < row["guidance_ms"] <= row["outside_ms"] < row["ms_per_step"]
        assert row["guidance_share"] == pytest.approx(row["guidance_ms"] / row["ms_per_step"])
    assert json.loads(json.dumps(rows)) == rows


def test_a_wrong_guidance_is_not_timed() -> None:
    noise = torch.randn(1, 4)
    bout = Bout(noise, {"fastcfg": lambda x, timeline: 1.001 * x, "diffusers": lambda x, timeline: x})
    with pytest.raises(RuntimeError, match="differs by"):
        differences(bout)
    contest = Contest("m", "s", "r", "how", lambda device: bout)
    with pytest.raises(RuntimeError, match="m, s, r: the last latent"):
        measure(contest, "cpu", 1)
    nan = Bout(noise, {"fastcfg": lambda x, timeline: x / 0 * 0, "diffusers": lambda x, timeline: x})
    with pytest.raises(RuntimeError, match="nan"):
        differences(nan)


def test_the_guard_reads_what_is_outside_the_passes() -> None:
    row = {"model": "m", "scheduler": "s", "rule": "r", "ratio": 1.0, "ratio_p20": 1.0, "ratio_p80": 1.0}
    outside = {"outside_ratio": 3.0, "outside_ratio_p20": 2.0, "outside_ratio_p80": 4.0}
    rows = [{**row, "provider": "fastcfg"}, {**row, **outside, "provider": "diffusers"}]
    found = results_of({"kind": "samplers", "environment": {}, "rows": rows}).ratios
    assert found == {(("samplers", "m", "s", "r"), "diffusers"): (2.0, 3.0, 4.0)}


def test_contests_are_told_apart_and_can_be_chosen() -> None:
    quick, full = (list(contests(full)) for full in (False, True))
    keys = [(c.model, c.scheduler, c.rule) for c in full]
    assert len(set(keys)) == len(keys) and {(c.model, c.scheduler, c.rule) for c in quick} < set(keys)
    plan = Plan(only=frozenset({("samplers", *keys[0])}))
    assert [key for key in keys if wanted(plan, "samplers", *key)] == keys[:1]
