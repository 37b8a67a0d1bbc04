"""The comparison of gated with full guidance: what it runs, and how it picks."""

import pytest

from benchmarks.gating_demo import Row, guidances, sweet_spot, to_markdown
from benchmarks.report import Environment
from fastcfg import CFG, Gate
from fastcfg.denoiser.planner import run_cost
from fastcfg.metrics import Quality


def row(name: str, passes: float, digit: float, distance: float) -> Row:
    quality = Quality(digit, 0.9, 0.8, 1.0, 0.9, distance, 1.0, 100)
    return Row(name, "CFG()", None, 2 * passes - 1, passes, 0.1, digit, 1.0, quality)


def test_unconditional_passes_fall_from_all_to_a_quarter_and_none() -> None:
    rules = guidances(3.0, {"tuned, 0.7": Gate(steps=tuple(range(8)), num_steps=20)})
    measured = {n for n, (_, gate) in rules.items() if gate is not None and gate.measures}
    shares = {n: run_cost(r, 20, gate=g).nfe / 20 - 1 for n, (r, g) in rules.items() if n not in measured}
    assert next(iter(rules)) == "full" and list(rules)[-1] == "none" and rules["full"] == (CFG(3.0), None)
    assert shares["tuned, 0.7"] == pytest.approx(0.4) and {name.partition(",")[0] for name in measured} == {
        "drift", "Adaptive Guidance"
    }  # fmt: skip
    assert shares["full"] == 1 and shares["none"] == 0 and {0.5, 0.25} <= set(shares.values())


def test_the_sweet_spot_has_the_fewest_passes_of_those_that_are_as_good() -> None:
    rows = [
        row("full", 1.0, 0.99, 2.0), row("good", 0.75, 0.985, 2.1), row("best", 0.7, 0.98, 2.2),
        row("far", 0.6, 0.99, 2.3), row("wrong", 0.5, 0.97, 2.0),
    ]  # fmt: skip
    assert sweet_spot(rows).name == "best"
    assert sweet_spot(rows[:1]).name == "full"
    text = to_markdown(
        rows, {"samples": 100, "steps": 20, "scale": 3.0}, Environment("cpu", "x", 1, "c", {"torch": "2"})
    )
    assert all(f"| {r.name} |" in text for r in rows) and "**best**, with 40 % of the unconditional" in text
