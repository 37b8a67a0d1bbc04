"""Work that leaves files behind, and reads them: what interruptions and damage are tried on."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastcfg_kernels.backends.cpu import build

from fastcfg import CFG
from fastcfg.files import load_tensors, save_tensors, tensors_digest

ABSENT = "absent"
SIZES = {"width": 8, "embedding": 16}


@dataclass(frozen=True)
class Work:
    """Something that is made in a folder.

    Attributes:
        make: makes it, going on from what an interrupted one left; what it returns depends on nothing that it finds.
        read: a text of what is there, to the bit, or :data:`ABSENT`; raises for what is damaged or half there.
        files: those that damage is tried on, as patterns.
        before: makes what is in the folder already, another one of the same names.
        recovers: whether reading makes anew what is damaged; steps: whether results of many steps are kept on the way.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], str]
    files: tuple[str, ...]
    before: Callable[[Path], Any] = lambda folder: None
    recovers: bool = False
    steps: bool = False


def _digest(*files: Path) -> str:
    found = []
    for file in files:
        if file.exists():
            tensors, metadata = load_tensors(file)
            found.append(tensors_digest(tensors) + json.dumps(metadata, sort_keys=True))
    return hashlib.sha256("".join(found).encode()).hexdigest() if found else ABSENT


def _network() -> Any:
    from fastcfg.demo.model import UNet, UNetConfig

    torch.manual_seed(0)
    return UNet(UNetConfig(**SIZES))


def _save(gain: float) -> Callable[[Path], None]:
    return lambda folder: save_tensors(
        folder / "weights.safetensors", {n: gain * t for n, t in _network().state_dict().items()}, {"model": SIZES}
    )


def _distil(folder: Path) -> Any:
    from fastcfg.demo.distillation import demo_task
    from fastcfg.distill import DistillConfig, LoraConfig, distill

    teacher = folder.with_name(f"{folder.name}-teacher.safetensors")
    save_tensors(teacher, _network().state_dict(), {"model": SIZES})
    config = DistillConfig(
        steps=6, batch=4, trajectories=4, sampler_steps=(2,), reuse=1, warmup=2, mode="lora", lora=LoraConfig(rank=2)
    )
    torch.manual_seed(0)
    distill(demo_task(CFG(4.0), checkpoint=teacher), config, folder, resume=True, save_every=2, progress=False)


def _read_student(folder: Path) -> str:
    return _digest(folder / "state.safetensors", folder / "student.safetensors")


def _export(gain: float) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from fastcfg_export import export_onnx

        from benchmarks.export_models import toy

        graph = toy()
        with torch.no_grad():
            for parameter in graph.module.parameters():
                parameter.mul_(gain)
        export_onnx(graph, CFG(rescale=0.7), folder / "toy.onnx", external_data=True)

    return make


def _run(name: str) -> Callable[[Path], str]:
    """A digest of what a graph or a plan makes of fixed inputs."""

    def read(folder: Path) -> str:
        from fastcfg_export import Engine
        from fastcfg_export.sample_inputs import draw_inputs, tracing_sizes

        if not (folder / name).exists():
            return ABSENT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine = Engine(folder / name, runtime="onnx")
        drawn = draw_inputs(engine.signature, tracing_sizes(engine.signature.axes))
        return tensors_digest(engine.run({s.name: t for s, t in zip(engine.signature.inputs, drawn, strict=True)}))

    return read


def _plan(folder: Path) -> None:
    from fastcfg_export import build_engine

    _export(1.0)(folder)
    build_engine(folder / "toy.onnx", capabilities=["8.9"])


def _compile_anew(folder: Path) -> str:
    """What native code says that is compiled now or found in a cache below the folder."""
    before = os.environ.get("FASTCFG_CACHE_DIR")
    os.environ["FASTCFG_CACHE_DIR"] = str(folder)
    try:
        build.cache_folder.cache_clear()
        build.load.cache_clear()
        return str(build.load('extern "C" int answer() { return 42; }').answer())
    finally:
        os.environ.pop("FASTCFG_CACHE_DIR") if before is None else os.environ.update(FASTCFG_CACHE_DIR=before)
        build.cache_folder.cache_clear()


WORKS: Mapping[str, Work] = {
    "weights": Work(_save(1.5), lambda f: _digest(f / "weights.safetensors"), ("weights.safetensors",), _save(1.0)),
    "native code": Work(_compile_anew, _compile_anew, ("fastcfg/cpp/*.so",), recovers=True),
    "distillation": Work(_distil, _read_student, ("state.safetensors", "student.safetensors"), steps=True),
    "export": Work(_export(1.5), _run("toy.onnx"), ("toy.onnx", "toy.onnx.data"), _export(1.0)),
    "plan": Work(_plan, _run("toy.plan"), ("toy.plan", "toy.plan.json")),
}
