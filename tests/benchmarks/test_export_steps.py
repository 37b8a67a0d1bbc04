"""Short runs of the exported graphs' benchmark."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("onnxruntime")

from pathlib import Path

from benchmarks.compare import results_of
from benchmarks.export_models import toy
from benchmarks.export_steps import EAGER, Subject, errors, measure, subjects


@torch.no_grad()
def test_inside_and_outside_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(batch: int) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        generator = torch.Generator().manual_seed(0)
        texts = torch.randn(2, batch, 7, 4, generator=generator)
        latent = torch.randn(batch, 4, 16, 16, generator=generator)
        return latent, {"uncond": {"embedding": texts[0]}, "cond": {"embedding": texts[1]}}

    rows = measure(Subject("toy", toy, draw), (1, 2), 1, tmp_path)
    providers = ["fastcfg", "fastcfg, eager", "ONNX Runtime, guidance outside", EAGER]
    assert [row["provider"] for row in rows] == 2 * providers
    assert all(row["error"] <= row["bound"] < 1e-4 and row["p50"] > 0 for row in rows)
    found = results_of({"kind": "export", "environment": {}, "rows": rows}).ratios
    assert {(case[-1], peer) for case, peer in found} == {(b, peer) for b in "12" for peer in providers[2:]}


def test_a_wrong_result_is_not_timed() -> None:
    with pytest.raises(RuntimeError, match="fastcfg differs by"):
        errors(torch.randn(1, 4), {"fastcfg": lambda x: 1.01 * x, EAGER: lambda x: x})


def test_a_full_run_has_more() -> None:
    assert [s.name for s in subjects(False)] == ["demo"] and [s.name for s in subjects(True)] == ["demo", "unet"]
    for subject in subjects(True):
        latent, conditions = subject.draw(2)
        assert len(latent) == 2 and set(conditions) == {"uncond", "cond"}
        assert all(len(t) == 2 for condition in conditions.values() for t in condition.values())
