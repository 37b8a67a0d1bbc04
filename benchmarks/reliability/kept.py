"""Files that fastcfg reads again: what damage is tried on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcfg import CFG, Clamp
from fastcfg.files import save_tensors, tensors_digest, write_atomically

from .works import available, guide_anew, run_graph

__all__ = ["KEPT", "Kept", "names"]

SIZES = {"width": 8, "embedding": 16}


@dataclass(frozen=True)
class Kept:
    """A file.

    Attributes:
        make: makes it, and what belongs to it, in a folder; file: its name, or a pattern.
        read: reads it; a text of what was found, to the bit.
        signed: whether a digest tells that it changed; what people edit has none, and damage may read as another
            number.
        recovers: whether reading it makes it anew.
    """

    make: Callable[[Path], Any]
    file: str
    read: Callable[[Path], str]
    signed: bool = True
    recovers: bool = False


def _network() -> Any:
    from fastcfg.demo.model import UNet, UNetConfig

    torch.manual_seed(0)
    return UNet(UNetConfig(**SIZES))


def _denoiser(folder: Path) -> None:
    save_tensors(folder / "denoiser.safetensors", _network().state_dict(), {"model": SIZES})


def _read_denoiser(folder: Path) -> str:
    from fastcfg.demo.checkpoint import load_denoiser

    model, metadata = load_denoiser(folder / "denoiser.safetensors")
    return tensors_digest(model.state_dict()) + json.dumps(metadata, sort_keys=True)


def _distiller(folder: Path, mode: Any) -> Any:
    from fastcfg.demo.distillation import demo_task
    from fastcfg.distill import DistillConfig, LoraConfig
    from fastcfg.distill.train import Distiller

    config = DistillConfig(
        steps=2, batch=4, trajectories=4, sampler_steps=(2,), reuse=1, warmup=2, mode=mode, lora=LoraConfig(rank=2)
    )
    return Distiller(demo_task(CFG(4.0), checkpoint=folder / "denoiser.safetensors"), config)


def _student(mode: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from fastcfg.distill.student_file import save_student

        _denoiser(folder)
        distiller = _distiller(folder, mode)
        distiller.step()
        distiller.save(folder / "state.safetensors")
        save_student(folder / "student.safetensors", distiller.student())

    return make


def _read_student(folder: Path) -> str:
    from fastcfg.demo.checkpoint import load_denoiser
    from fastcfg.distill.student_file import load_student

    student = load_student(folder / "student.safetensors", load_denoiser(folder / "denoiser.safetensors")[0])
    return tensors_digest(student.network.state_dict()) + json.dumps(student.card.to_dict(), sort_keys=True)


def _read_state(folder: Path) -> str:
    distiller = _distiller(folder, "lora")
    distiller.restore(folder / "state.safetensors")
    return f"{tensors_digest(distiller.trained)} {tensors_digest(distiller.average)} {distiller.steps_done}"


def _trainer() -> Any:
    from fastcfg.demo.data import Digits
    from fastcfg.demo.model import UNetConfig
    from fastcfg.demo.train import TrainConfig, Trainer

    digits = Digits(torch.zeros(4, 28, 28), torch.arange(4))
    return Trainer(TrainConfig(steps=4, batch=2, warmup=2, model=UNetConfig(**SIZES)), digits)


def _training(folder: Path) -> None:
    trainer = _trainer()
    trainer.step()
    trainer.save(folder / "training.safetensors")


def _read_training(folder: Path) -> str:
    trainer = _trainer()
    trainer.restore(folder / "training.safetensors")
    return f"{tensors_digest(trainer.model.state_dict())} {tensors_digest(trainer.average.state_dict())}"


def _graph(apart: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from fastcfg_export import export_onnx

        from benchmarks.export_models import toy

        export_onnx(toy(), CFG(rescale=0.7), folder / "toy.onnx", external_data=apart)

    return make


def _plan(folder: Path) -> None:
    from fastcfg_export import build_engine

    _graph(True)(folder)
    build_engine(folder / "toy.onnx", capabilities=["8.9"])


def _verified(folder: Path) -> None:
    from fastcfg_kernels.backends.triton.verified import record

    os.environ["FASTCFG_CACHE"] = str(folder)
    record("a device", ["row", "two_launch"])


def _read_verified(folder: Path) -> str:
    """Whether nothing passes for verified that was not; less than was recorded is safe, for it is verified again."""
    from fastcfg_kernels.backends.triton.verified import verified

    os.environ["FASTCFG_CACHE"] = str(folder)
    verified.cache_clear()
    return str("cooperative" not in verified("a device"))


def _rule(folder: Path) -> None:
    write_atomically(folder / "rule.json", Clamp(CFG(3.0, rescale=0.5), k=2.0).to_json())


def _read_rule(folder: Path) -> str:
    from fastcfg_export.sources import parse_rule

    return repr(parse_rule(str(folder / "rule.json")))


def _results(folder: Path) -> None:
    recorded = Path(__file__).resolve().parents[1] / "results" / "guided-step-cpu-2threads.json"
    write_atomically(folder / "result.json", recorded.read_bytes())


def _read_results(folder: Path) -> str:
    from benchmarks.compare import load

    return repr(load(folder / "result.json"))


KEPT: Mapping[str, Kept] = {
    "rule": Kept(_rule, "rule.json", _read_rule, signed=False),
    "results": Kept(_results, "result.json", _read_results, signed=False),
    "verified kernels": Kept(_verified, "verified.json", _read_verified, recovers=True),
    "denoiser": Kept(_denoiser, "denoiser.safetensors", _read_denoiser),
    "native code": Kept(guide_anew, "fastcfg/cpp/*.so", guide_anew, recovers=True),
    "student": Kept(_student("full"), "student.safetensors", _read_student),
    "adapter": Kept(_student("lora"), "student.safetensors", _read_student),
    "training": Kept(_training, "training.safetensors", _read_training),
    "distillation": Kept(_student("lora"), "state.safetensors", _read_state),
    "graph": Kept(_graph(False), "toy.onnx", lambda folder: run_graph(folder / "toy.onnx")),
    "graph's weights": Kept(_graph(True), "toy.onnx.data", lambda folder: run_graph(folder / "toy.onnx")),
    "plan": Kept(_plan, "toy.plan", lambda folder: run_graph(folder / "toy.plan")),
    "sidecar": Kept(_plan, "toy.plan.json", lambda folder: run_graph(folder / "toy.plan")),
}


def names() -> list[str]:
    """What can be made with what is installed."""
    here = available()
    without = {"native code": "native code" not in here} | dict.fromkeys(("plan", "sidecar"), "engine" not in here)
    return [name for name in KEPT if not without.get(name)]
