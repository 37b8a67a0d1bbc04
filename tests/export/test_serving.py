"""The model repository: what Triton Inference Server reads."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastcfg_export import Exported, export_onnx, write_repository
from fastcfg_export.files import sha256_of
from fastcfg_export.serving import docker_command
from fastcfg_export.sidecar import Sidecar

import fastcfg
from benchmarks.export_models import toy
from fastcfg import CFG


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    graph = toy(torch.float16)
    axes = {"batch": replace(graph.axes["batch"], usual=4, high=8)}
    path = tmp_path_factory.mktemp("serving") / "toy.onnx"
    return export_onnx(graph, CFG(), path, axes=axes, external_data=True)


def test_a_graph_with_its_weights(exported: Exported, tmp_path: Path) -> None:
    folder = write_repository(exported.path, tmp_path / "models", name="guided")
    assert folder == tmp_path / "models" / "guided"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == ["1/toy.onnx", "1/toy.onnx.data", "config.pbtxt"]
    config = (folder / "config.pbtxt").read_text()
    assert 'platform: "onnxruntime_onnx"' in config and 'default_model_filename: "toy.onnx"' in config
    assert "max_batch_size: 8" in config and "preferred_batch_size: [ 4 ]" in config
    assert "kind: KIND_GPU" in config
    # The batch stands in no dims; tensors of the batch alone are [B, 1] outside.
    shapes = dict(re.findall(r'name: "(\w+)"\n    data_type: \w+\n    dims: (\[.*\])', config))
    assert shapes["sample"] == shapes["prediction"] == "[ 4, -1, -1 ]"
    assert shapes["uncond_embedding"] == "[ -1, 4 ]"
    assert shapes["guidance_scale"] == "[ 1 ]" and config.count("reshape: { shape: [ ] }") == 2
    assert 'name: "sample"\n    data_type: TYPE_FP16' in config


def test_again_over_a_repository_that_is_there(exported: Exported, tmp_path: Path) -> None:
    for kind in ("KIND_CPU", "KIND_GPU"):
        folder = write_repository(exported.path, tmp_path, kind=kind)
        assert f"kind: {kind}" in (folder / "config.pbtxt").read_text()
    assert sorted(p.name for p in (folder / "1").iterdir()) == ["toy.onnx", "toy.onnx.data"]


def plan(exported: Exported, folder: Path, runtime: str) -> Path:
    path = folder / "toy.plan"
    path.write_bytes(b"a plan")
    profile = {**exported.signature.axes, "batch": replace(exported.signature.axes["batch"], high=2, usual=2)}
    built = (sha256_of(path), 6, runtime, "11.0", ("9.0",), (profile,), exported.signature, fastcfg.__version__)
    Sidecar("toy.onnx", {}, *built).write(path)
    return path


def test_a_plan(exported: Exported, tmp_path: Path) -> None:
    folder = write_repository(plan(exported, tmp_path, "tensorrt"), tmp_path / "models")
    config = (folder / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in config and "max_batch_size: 2" in config
    assert (folder / "1" / "toy.plan").read_bytes() == b"a plan"


def test_it_refuses(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a plan of tensorrt_rtx"):
        write_repository(plan(exported, tmp_path, "tensorrt_rtx"), tmp_path / "models")
    with pytest.raises(ValueError, match="name: expected letters"):
        write_repository(exported.path, tmp_path, name="../up")
    with pytest.raises(ValueError, match="kind: expected one of"):
        write_repository(exported.path, tmp_path, kind="TPU")
    with pytest.raises(ValueError, match="delay_us: expected 0 or more"):
        write_repository(exported.path, tmp_path, delay_us=-1)
    with pytest.raises(FileNotFoundError, match="path: expected a file"):
        write_repository(tmp_path / "none.onnx", tmp_path)
    assert not (tmp_path / "models").exists()


def test_the_command(tmp_path: Path) -> None:
    command = docker_command(tmp_path, gpu=True)
    assert command.startswith("docker run --rm --gpus all") and f"-v {tmp_path}:/models:ro" in command
    assert "--gpus" not in docker_command(tmp_path, gpu=False)
