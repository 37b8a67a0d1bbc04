"""The fleet's model in the limits where it can be worked out by hand, and what it takes from recorded results."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.fleet import Parts, Setup, latency_ms, mean_wait, outcomes, servers_needed, setups
from benchmarks.fleet_command import app, to_markdown
from benchmarks.fleet_parts import ASSUMED, assumptions, checks, measured, section

BARE = Parts(pass_ms=100.0, steps=10, combine_ms=0.0, scheduler_ms=0.0, fixed_ms=0.0, prediction_mb=0.0, link_us=0.0)
BASE = Setup("base")


def test_every_millisecond_is_counted_once() -> None:
    parts = replace(BARE, combine_ms=1.0, scheduler_ms=2.0, fixed_ms=50.0, prediction_mb=30.0, link_us=500.0)
    assert latency_ms(parts, BASE) == 50 + 10 * (2 * 100 + 1 + 2)
    assert latency_ms(parts, Setup("", student=True)) == 50 + 10 * (100 + 2), "one pass leaves nothing to combine"
    # 30 MB at 10 GB/s are 3 ms, after half a millisecond of latency; the slower GPU takes a tenth more.
    slow = replace(parts, link_gb_per_s=10.0, imbalance=1.1)
    assert latency_ms(slow, Setup("", ranks=2)) == pytest.approx(50 + 10 * (110 + 3.5 + 1 + 2))
    assert latency_ms(slow, Setup("", ranks=2, free_link=True)) == 50 + 10 * (100 + 1 + 2)


@pytest.mark.parametrize("passes", [2, 4])
def test_cfg_parallel_halves_the_latency_and_leaves_images_a_gpu(passes: int) -> None:
    base, split = outcomes(replace(BARE, passes=passes), [BASE, Setup("", ranks=2)])
    assert split.latency_s == base.latency_s / 2 and split.speedup == 2 and split.gpus == 2
    assert split.relative == 1 and split.images_per_second == 2 * base.images_per_second


def test_three_passes_on_two_gpus_are_two_and_one() -> None:
    parts = replace(BARE, passes=3)
    assert latency_ms(parts, Setup("", ranks=2)) == 10 * 200
    # The GPU with one pass is sent two predictions, the other one: the larger counts.
    sent = replace(parts, prediction_mb=50.0, link_gb_per_s=10.0)
    assert latency_ms(sent, Setup("", ranks=2)) == 10 * (200 + 2 * 5)


def test_gating() -> None:
    assert latency_ms(BARE, Setup("", kept=1.0)) == latency_ms(BARE, BASE)
    assert latency_ms(BARE, Setup("", kept=0.0)) == 10 * 100, "no step is guided: one pass each"
    base, half = outcomes(BARE, [BASE, Setup("", kept=0.5)])
    assert half.passes_per_step == 1.5 and half.relative == base.passes_per_step / half.passes_per_step
    # A step of one pass runs on every rank, and nothing is sent.
    linked = replace(BARE, link_us=1e6)
    assert latency_ms(linked, Setup("", ranks=2, kept=0.0)) == 10 * 100


@pytest.mark.parametrize("passes", [1, 2, 3, 4])
def test_a_student_is_as_much_faster_as_there_were_passes(passes: int) -> None:
    parts = replace(BARE, passes=passes)
    assert outcomes(parts, [BASE, Setup("", student=True)])[1].relative == pytest.approx(passes)
    costly = replace(parts, student_cost=1.25)
    assert outcomes(costly, [BASE, Setup("", student=True)])[1].relative == pytest.approx(passes / 1.25)


def test_a_batch_of_two() -> None:
    for gain, ms in ((1.0, 200), (1.25, 160), (2.0, 100)):
        assert latency_ms(replace(BARE, steps=1, batch_gain=gain), Setup("", batched=True)) == ms
    # Each further pass costs as much more as the second: 100 + 3 * 60.
    assert replace(BARE, batch_gain=1.25).passes_ms(4, batched=True) == pytest.approx(280)


def test_replicas_and_images_add_up() -> None:
    one, two = outcomes(BARE, [BASE, Setup("", replicas=2)])
    assert two.images_per_second == 2 * one.images_per_second and two.latency_s == one.latency_s and two.relative == 1
    assert outcomes(replace(BARE, images=4), [BASE])[0].images_per_second == 4 / 2.0


def test_the_combine_is_a_small_part_of_a_large_network() -> None:
    base = next(iter(outcomes(replace(BARE, combine_ms=0.02))))
    assert base.combine_share == pytest.approx(0.02 / 200.02)
    text = to_markdown(section(replace(BARE, combine_ms=0.02), ASSUMED))
    assert "at most 0.02 % of a call" in text and "take longer than 1.98 ms" in text


@given(
    value=st.floats(1e-3, 1e4),
    more=st.floats(1e-3, 1e4),
    name=st.sampled_from(["pass_ms", "combine_ms", "scheduler_ms", "fixed_ms", "prediction_mb", "link_us"]),
    setup=st.sampled_from(list(setups())),
)
def test_what_costs_more_takes_no_less(value: float, more: float, name: str, setup: Setup) -> None:
    less, costlier = (latency_ms(replace(Parts(), **{name: v}), setup) for v in (value, value + more))
    assert less <= costlier
    assert latency_ms(replace(Parts(), link_gb_per_s=value + more), setup) <= latency_ms(
        replace(Parts(), link_gb_per_s=value), setup
    )


def test_the_queue() -> None:
    # One server: the wait is busy / (1 - busy) services. Two: busy² / (1 - busy²), their closed form.
    for busy in (0.1, 0.5, 0.9):
        assert mean_wait(1, busy) == pytest.approx(busy / (1 - busy))
        assert mean_wait(2, 2 * busy) == pytest.approx(busy**2 / (1 - busy**2))
    assert mean_wait(3, 0.0) == 0 and mean_wait(3, 3.0) == math.inf
    assert mean_wait(200, 140.0) < mean_wait(20, 14.0) < mean_wait(2, 1.4), "a larger fleet waits less at the same use"


@given(offered=st.floats(0.01, 500), cap=st.floats(0.05, 1.0))
def test_the_fewest_servers_within_the_cap(offered: float, cap: float) -> None:
    servers = servers_needed(offered, cap)
    # The bound is that of a quotient that counts as whole.
    assert offered / servers <= cap * (1 + 1e-8)
    assert servers == 1 or offered / (servers - 1) > cap * (1 - 1e-8)


def test_a_demand_in_gpus() -> None:
    # 2 s a call: 7 images a second keep 14 replicas busy, and 20 are busy 70 % of the time.
    base, split = outcomes(replace(BARE, utilisation=0.7), [BASE, Setup("", ranks=2)], demand=7.0)
    assert base.fleet == 20 and split.fleet == 20 and split.wait_s is not None and split.wait_s > 0
    assert outcomes(BARE, [BASE])[0].fleet is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pass_ms", 0.0), ("pass_ms", math.nan), ("steps", 0), ("passes", 1.5), ("images", -1), ("batch_gain", 3.0),
        ("combine_ms", -1.0), ("link_gb_per_s", 0.0), ("imbalance", 0.9), ("student_cost", 0.0), ("utilisation", 1.1),
        ("utilisation", 0.0), ("fixed_ms", "1"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_is_named(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
        replace(Parts(), **{name: value})


@pytest.mark.parametrize(("name", "value"), [("ranks", 0), ("replicas", 0), ("kept", 1.5)])
def test_a_setup_that_cannot_be_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        Setup("", **{name: value})


def test_a_demand_of_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"^demand: expected"):
        outcomes(BARE, demand=0.0)


def test_parts_come_from_the_recorded_results() -> None:
    parts, sources = measured()
    for name, file in {
        "batch_gain": "guided-step",
        "imbalance": "parallel",
        "student_cost": "distillation",
    }.items():
        assert sources[name].startswith(f"measured here: {file}"), name
    assert {each.name for each in assumptions(parts, sources)} == {part.name for part in fields(Parts)}
    assert all(each.unit and each.source for each in assumptions(parts, sources))
    for check in checks():
        # Of times measured on shared cores; a model that is wrong in kind is off by a factor.
        assert 0.5 < check.predicted / check.measured < 2, check


def _write(folder: Path, name: str, data: object) -> None:
    (folder / name).write_text(json.dumps(data))


def test_parts_are_worked_out_of_what_was_measured(tmp_path: Path) -> None:
    cpu, gpu = {"device": "cpu"}, {"device": "cuda"}
    steps = [{"contestant": "sequential", "ratio": r} for r in (1.0, 1.2, 1.6)]
    _write(tmp_path, "a.json", {"kind": "guided-step", "environment": cpu, "rows": steps})
    shared = [{"rule": "CFG, 2 passes", "ranks": 2, "ratio": 1.6}, {"rule": "CFG, 2 passes", "ranks": 1, "ratio": 1.0}]
    _write(tmp_path, "parallel-cpu.json", {"environment": cpu, "rows": shared})
    times = {"cfg": {"time": {"teacher": 20.0, "student": 11.0, "teacher_passes": 2}}}
    times["lora"] = {"time": {"teacher": 20.0, "student": 30.0, "teacher_passes": 2}}
    _write(tmp_path, "distillation.json", {"environment": cpu, "findings": times})
    law = {"axis": "frames", "rule": "CFG + rescale 0.7", "fixed_ms": 0.01, "ms_per_unit": 0.02}
    law["elements_per_unit"] = 16 * 128 * 128
    _write(tmp_path, "scaling-gpu.json", {"kind": "scaling", "environment": gpu, "fits": [law]})
    parts, sources = measured(tmp_path)
    assert (parts.batch_gain, parts.imbalance, parts.student_cost) == (1.2, 1.25, 1.1)
    assert parts.combine_ms == pytest.approx(0.03) and "scaling-gpu.json" in sources["combine_ms"]
    _write(tmp_path, "scaling-gpu.json", {"kind": "scaling", "environment": cpu, "fits": [law]})
    assert measured(tmp_path)[1]["combine_ms"] == ASSUMED["combine_ms"], "a CPU's combine is no GPU's"


def test_without_results_all_is_assumed(tmp_path: Path) -> None:
    assert measured(tmp_path) == (Parts(), dict(ASSUMED)) and checks(tmp_path) == []
    assert set(ASSUMED) == {part.name for part in fields(Parts)}
    (tmp_path / "scaling.json").write_text("{")
    with pytest.raises(ValueError, match=r"^results: expected result files, got .*scaling\.json"):
        measured(tmp_path)
    with pytest.raises(ValueError, match=r"^results: expected a folder"):
        measured(tmp_path / "none")


def test_command(tmp_path: Path) -> None:
    arguments = ["--pass-ms", "100", "--steps", "10", "--demand", "2", "--results", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(result.output)
    assert {each["name"]: each["source"] for each in found["assumptions"]}["pass_ms"] == "given"
    assert found["rows"][0]["latency_s"] == pytest.approx(0.15 + 10 * 0.20012) and found["rows"][0]["fleet"] == 7
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "left out: Memory" in shown.output and "GPUs for the demand" in shown.output
    wrong = CliRunner().invoke(app, [*arguments, "--pass-ms", "-1"])
    assert (
        wrong.exit_code == 1 and wrong.output.startswith("error: pass_ms: expected") and wrong.output.count("\n") == 1
    )
