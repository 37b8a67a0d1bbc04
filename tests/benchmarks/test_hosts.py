"""The runner of diffusers' fast tests, on a checkout of our own making."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers.guiders")

from benchmarks.hosts.report import best_of, write_report

ROOT = Path(__file__).parents[2]

MODULE = """
import torch
from conformance.tiny_models import prompts, stable_diffusion
from diffusers import DDPMPipeline, StableDiffusionPipeline


class StableDiffusionPipelineFastTests:
    pipeline_class = StableDiffusionPipeline

    def get_dummy_components(self):
        torch.manual_seed(0)
        return stable_diffusion().components | {"requires_safety_checker": False}

    def get_dummy_inputs(self, device, seed=0):
        generator = torch.Generator(device).manual_seed(seed)
        return {**prompts(), "num_inference_steps": 4, "generator": generator, "output_type": "latent"}


class NotCovered(StableDiffusionPipelineFastTests):
    pipeline_class = DDPMPipeline


class StableDiffusionXLPipelineFastTests(StableDiffusionPipelineFastTests):
    from diffusers import StableDiffusionXLPipeline as pipeline_class
"""


def test_pipelines_of_a_checkout_are_compared(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "pipelines" / "some"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder / "test_some.py").write_text(MODULE)
    paths = [ROOT, ROOT / "kernels", ROOT / "export", ROOT / "tests"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hosts", str(tmp_path), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "hosts.json").read_text())["pipelines"]
    assert sorted(found) == ["StableDiffusionPipeline", "StableDiffusionXLPipeline"]
    run = found["StableDiffusionPipeline"]
    assert run["bits"] and run["error"] == 0.0 and run["steps"] == 4 and run["dtype"] == "float32"
    assert (run["passes"], run["saved"]) == (6, 2), "guidance in the first half of the run alone"
    assert "failed" in found["StableDiffusionXLPipeline"], "its components are not SDXL's"
    table = (tmp_path / "out" / "hosts.md").read_text()
    assert "| StableDiffusionPipeline | guided | `CFG(scale, rescale)` | float32 | 4 | bits | 6, 2 |" in table
    assert "| WanPipeline | | | | | no fast test | |" in table and " 1 ran, 1 of them" in table


def test_a_run_counts_before_a_failure(tmp_path: Path) -> None:
    ran = {"pipeline": "WanPipeline", "bits": False, "error": 1e-6, "how": "guided", "rule": "CFG", "dtype": "float32"}
    ran |= {"steps": 2, "passes": 3, "saved": 1}
    failed = {"pipeline": "WanPipeline", "failed": "no"}
    for lines in ([ran, failed], [failed, ran]):
        assert best_of(lines) == {"WanPipeline": ran}
    assert best_of([failed, {"file": "x", "failed": "y"}]) == {"WanPipeline": failed}
    write_report([ran], tmp_path)
    assert "| 2 | 1.0e-06 | 3, 1 |" in (tmp_path / "hosts.md").read_text()
