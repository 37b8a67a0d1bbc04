"""The committed table of the software GPU."""

import json
from pathlib import Path

from gpu.table import to_markdown

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_page_is_what_the_record_says() -> None:
    record = json.loads((RESULTS / "gpu-emulated.json").read_text())
    assert (RESULTS / "gpu-emulated.md").read_text() == to_markdown(record)


def test_the_record_holds_equal_bits_within_the_bound_and_no_finding() -> None:
    record = json.loads((RESULTS / "gpu-emulated.json").read_text())
    assert {row["arch"] for row in record["rows"]} == {80, 90, 100, 120}
    for row in record["rows"]:
        assert row["equal"]
        for found in row["strategies"].values():
            assert found["error_over_bound"] <= 1
            assert all(kernel["findings"] == 0 for kernel in found["kernels"])
