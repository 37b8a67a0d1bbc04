"""The race of whole steps: the contestants run the passes that they claim, and the same sampler."""

import pytest
import torch

from benchmarks.bench_guided_step import STEPS, Row, contestants, settings, to_markdown
from benchmarks.environment import Environment

pytest.importorskip("diffusers")


@torch.no_grad()
def test_passes_and_results() -> None:
    setting = next(s for s in settings() if s.name == "sd3")
    found = contestants(setting)
    assert {name: passes for name, (_, passes) in found.items()} == {
        "batched": 16, "sequential": 16, "auto": 16, "interval, middle half": 12, "gated, every 2": 12,
        "gated, every 4": 10, "no guidance": 8, "by hand": 16,
    }  # fmt: skip
    results = {name: call() for name, (call, _) in found.items()}
    scale = results["batched"].abs().max().item()
    for name in ("sequential", "auto", "by hand"):
        # The same sums in another order, eight steps long.
        torch.testing.assert_close(results[name], results["batched"], rtol=0, atol=2.0**-12 * scale)
    assert not torch.allclose(results["gated, every 4"], results["batched"], rtol=0, atol=2.0**-12 * scale)


def test_a_table_has_every_row() -> None:
    rows = [Row("m", "1×4", name, 12, 2 * STEPS, 1.0, 2.0, 3.0, 0.75, 5, 0.7, 0.8) for name in ("batched", "gated")]
    text = to_markdown(rows, Environment("cpu", "a CPU", 2, "abc", {"torch": "2.13"}))
    assert "| m | 1×4 | gated | 12/16 | 2.00 | 0.75 |" in text and "2 threads" in text
