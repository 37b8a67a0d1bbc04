"""A case that raises, crashes or hangs is a failure with a command that shows it again, and the others are made."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks.reliability.isolation import isolated

MODULE = """
import os, sys, time

def cases(seed, start):
    for number, kind in list(enumerate(("good", "wrong", "loud", "crash", "good", "wrong", "hang", "good")))[start:]:
        yield {"kind": kind, "number": number}

def check(case):
    if case["kind"] == "wrong":
        raise ValueError("what is wrong")
    if case["kind"] == "loud":
        print("x" * 1_000_000)
        print("y" * 1_000_000, file=sys.stderr)
    if case["kind"] == "crash":
        print("the last word", file=sys.stderr, flush=True)
        os.abort()
    if case["kind"] == "hang":
        time.sleep(600)
    return {"number": case["number"]}

def merge(figures):
    return {"made": [f["number"] for f in figures]}
"""


def test_what_crashes_or_hangs_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_cases.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    ticks: list[int] = []
    row = isolated("broken", "broken_cases", 300.0, 0, ticks.append, patience=4.0)
    del sys.modules["broken_cases"]
    assert row.figures == {"made": [0, 2, 4, 7], "distinct failures": 1}
    assert row.calls == 8 and ticks == [1, 2, 3, 5, 6, 8]
    kinds = {failure.case["number"]: failure.what for failure in row.failures}
    assert kinds == {
        1: "ValueError: what is wrong",
        3: "process died: SIGABRT ['the last word']",
        5: "ValueError: what is wrong",
        6: "process hangs",
    }
    command = shlex.split(row.failures[0].command)
    assert command[:5] == ["python", "-m", "benchmarks.reliability", "--run", "broken"]
    assert json.loads(command[-1]) == {"kind": "wrong", "number": 1}
    assert row.to_dict()["failures"] == 4 and len(row.to_dict()["found"]) == 4


def test_no_more_cases_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good_cases.py").write_text(MODULE.replace('raise ValueError("what is wrong")', "pass"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    row = isolated("good", "good_cases", 300.0, 0, lambda calls: None, most=3)
    assert (row.calls, row.failures, row.figures["made"]) == (3, [], [0, 1, 2])
