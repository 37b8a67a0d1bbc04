"""Work that leaves files behind: what an interruption is tried on."""

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

from fastcfg import CFG, guide
from fastcfg.files import load_tensors, save_tensors, tensors_digest

__all__ = ["WORKS", "Work", "available"]

ABSENT = "absent"
REFUSED = "refused"


@dataclass(frozen=True)
class Work:
    """Something that is made in a folder.

    Attributes:
        make: makes it, going on from what an interrupted one left; what it returns depends on nothing that it finds.
        look: by name a digest of what is there, or :data:`ABSENT`; raises for what is half there.
        before: makes what is in the folder already, another one of the same names.
        needs: modules to import before the process is forked, which would else take most of the time.
        steps: whether results of many steps are kept on the way.
    """

    make: Callable[[Path], Any]
    look: Callable[[Path], dict[str, str]]
    before: Callable[[Path], Any] = lambda folder: None
    needs: tuple[str, ...] = ()
    steps: bool = False


def _tensors(*names: str) -> Callable[[Path], dict[str, str]]:
    def look(folder: Path) -> dict[str, str]:
        found = {}
        for name in names:
            if (folder / name).exists():
                tensors, metadata = load_tensors(folder / name)
                text = tensors_digest(tensors) + json.dumps(metadata, sort_keys=True)
                found[name] = hashlib.sha256(text.encode()).hexdigest()
        return found

    return look


def _network_sizes() -> dict[str, Any]:
    return {"width": 8, "embedding": 16}


def _train(folder: Path) -> Any:
    from fastcfg.demo.checkpoint import save_denoiser
    from fastcfg.demo.data import Digits
    from fastcfg.demo.model import UNetConfig
    from fastcfg.demo.train import TrainConfig, train

    generator = torch.Generator().manual_seed(0)
    digits = Digits(torch.rand(20, 28, 28, generator=generator), torch.arange(20) % 10)
    config = TrainConfig(steps=6, batch=4, warmup=2, model=UNetConfig(**_network_sizes()))
    trainer = train(config, digits, folder / "state.safetensors", resume=True, save_every=2, progress=False)
    save_denoiser(folder / "denoiser.safetensors", trainer.average, trainer.metadata())


def _distil(folder: Path) -> Any:
    from fastcfg.demo.distillation import demo_task
    from fastcfg.demo.model import UNet, UNetConfig
    from fastcfg.distill import DistillConfig, LoraConfig, distill

    torch.manual_seed(0)
    network = UNet(UNetConfig(**_network_sizes()))
    teacher = folder.with_name(f"{folder.name}-teacher.safetensors")
    save_tensors(teacher, network.state_dict(), {"model": _network_sizes()})
    config = DistillConfig(
        steps=6, batch=4, trajectories=4, sampler_steps=(2,), reuse=1, warmup=2, mode="lora", lora=LoraConfig(rank=2)
    )
    distill(demo_task(CFG(4.0), checkpoint=teacher), config, folder, resume=True, save_every=2, progress=False)
    # A log grows by lines; whole ones, where the run went to its end.
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def _graph(gain: float) -> Any:
    from benchmarks.export_models import toy

    graph = toy()
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.mul_(gain)
    return graph


def _export(gain: float) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        from fastcfg_export import export_onnx

        export_onnx(_graph(gain), CFG(rescale=0.7), folder / "toy.onnx", external_data=True)

    return make


def run_graph(path: Path) -> str:
    """A digest of what a graph or a plan makes of fixed inputs."""
    from fastcfg_export import Engine
    from fastcfg_export.sample_inputs import draw_inputs, tracing_sizes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = Engine(path, runtime="onnx")
    given = draw_inputs(engine.signature, tracing_sizes(engine.signature.axes))
    made = engine.run({spec.name: t for spec, t in zip(engine.signature.inputs, given, strict=True)})
    return tensors_digest(made)


def _look_at_graph(folder: Path) -> dict[str, str]:
    path = folder / "toy.onnx"
    return {path.name: run_graph(path) if path.exists() else ABSENT}


def _build(*capabilities: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        from fastcfg_export import build_engine

        if not (folder / "toy.onnx").exists():
            _export(1.0)(folder)
        build_engine(folder / "toy.onnx", capabilities=capabilities)

    return make


def _look_at_plan(folder: Path) -> dict[str, str]:
    from fastcfg_export import SidecarError
    from fastcfg_export.sidecar import Sidecar

    plan = folder / "toy.plan"
    if not plan.exists():
        return {plan.name: ABSENT}
    try:
        sidecar = Sidecar.read(plan)
        sidecar.check_plan(plan)
    except SidecarError:
        return {plan.name: REFUSED}
    # Two builds may choose other kernels.
    return {plan.name: f"{sidecar.capabilities} {run_graph(plan)}"}


def _write_results(name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        from benchmarks.environment import Environment
        from benchmarks.records import Record

        where = Environment(**{**vars(Environment.of("cpu")), "commit": name})
        rows = [{"row": i, "of": name, "value": i / 7} for i in range(200)]
        Record("reliability", "result", where, rows, f"# {name}\n" * 50).write(folder)

    return make


def _look_at_results(folder: Path) -> dict[str, str]:
    from benchmarks.records import read

    if (folder / "result.json").exists():
        read(folder / "result.json", ["reliability"])
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("result.*")}


def guide_anew(folder: Path) -> str:
    """A digest of what native code gives that is compiled now or found in a cache below ``folder``."""
    from fastcfg_kernels.backends.cpu import backend, build

    for cached in (build.cache_folder, build.load, backend._function):
        cached.cache_clear()
    os.environ["FASTCFG_CACHE_DIR"] = str(folder)
    generator = torch.Generator().manual_seed(0)
    p = {name: torch.randn(2, 4, 9, 9, generator=generator) for name in ("uncond", "cond")}
    return tensors_digest({"guided": guide(CFG(3.0, rescale=0.5), backend="cpp", **p)})


def _look_at_native_code(folder: Path) -> dict[str, str]:
    found = sorted(folder.rglob("*.so"))
    for library in found:
        if hashlib.sha256(library.read_bytes()).hexdigest()[:16] != library.stem[-16:]:
            raise ValueError(f"{library.name} is not what its name says")
    return {"libraries": " ".join(p.name for p in found) or ABSENT}


_EXPORT = ("fastcfg_export", "torch._dynamo", "torch.onnx._internal.exporter._core", "onnxscript", "onnxruntime")
_DEMO = ("fastcfg.demo.train", "fastcfg.demo.checkpoint", "diffusers")
WORKS: Mapping[str, Work] = {
    "results": Work(_write_results("new"), _look_at_results, _write_results("old")),
    "training": Work(_train, _tensors("state.safetensors", "denoiser.safetensors"), needs=_DEMO, steps=True),
    "native code": Work(guide_anew, _look_at_native_code),
    "distillation": Work(
        _distil,
        _tensors("state.safetensors", "student.safetensors"),
        needs=(*_DEMO, "fastcfg.demo.distillation", "accelerate"),
        steps=True,
    ),
    "export": Work(_export(1.5), _look_at_graph, _export(1.0), _EXPORT),
    "engine": Work(_build("8.9", "12.0"), _look_at_plan, _build("8.9"), (*_EXPORT, "tensorrt_rtx")),
}


def available() -> tuple[str, ...]:
    """What can be made with what is installed."""
    from fastcfg_kernels.backends.cpu.build import compiler

    try:
        import tensorrt_rtx  # noqa: F401

        engines = True
    except ImportError:
        engines = False
    has = {"native code": compiler() is not None, "engine": engines}
    return tuple(name for name in WORKS if has.get(name, True))
