"""Every run, for a moment, finds nothing; and its cases can be made again from their JSON."""

import json
from itertools import islice

import pytest

from benchmarks.reliability.__main__ import RUNS, the_run
from benchmarks.reliability.outcome import Row

FIGURES = {
    "fuzz": (10, "compared with the oracle"),
    "refusals": (60, "refused"),
    "threads": (1, "pieces of work"),
    "processes": (1, "processes, new"),
    "memory": (3, "calls of all scenarios"),
    "interrupts": (1, "of results"),
    "files": (3, "kinds of file"),
}
"""By run: cases to make, and a figure that says that something was done."""


def made(name: str, most: int, seed: int) -> tuple[Row, list[int]]:
    ticks: list[int] = []
    run = the_run(name)
    return run.run(300.0 if name != "memory" else 6.0, seed, ticks.append, most=most), ticks  # type: ignore[call-arg]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_finds_nothing(name: str) -> None:
    most, figure = FIGURES[name]
    row, ticks = made(name, most, seed=10)
    assert row.failures == [], row.failures
    assert ticks == list(range(1, most + 1))
    assert row.run == name and row.calls >= most
    assert row.figures[figure] and row.figures["distinct failures"] == 0  # type: ignore[operator]
    json.dumps(row.to_dict())


@pytest.mark.parametrize("name", ["fuzz", "refusals", "threads", "files"])
def test_cases_are_the_same_again_and_can_be_made_here(name: str) -> None:
    run = the_run(name)
    cases = [json.loads(json.dumps(case)) for case in islice(run.cases(3, 0), 12)]  # type: ignore[attr-defined]
    assert cases == list(islice(run.cases(3, 0), 12))  # type: ignore[attr-defined]
    assert cases[5:] == list(islice(run.cases(3, 5), 7))  # type: ignore[attr-defined]
    assert cases != list(islice(run.cases(4, 0), 12))  # type: ignore[attr-defined]
    run.replay(cases[0])


def test_a_run_has_a_name() -> None:
    with pytest.raises(ValueError, match=r"run: expected one of fuzz, .*, got 'dance'"):
        the_run("dance")
