"""Students where they are used: samplers, diffusers' own models and pipelines, ONNX Runtime, TensorRT-RTX."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, LatentConsistencyModelPipeline, UNet2DConditionModel
from fastcfg_export import export_onnx
from fastcfg_export.ort import OrtSession

from fastcfg import CFG, GuidedDenoiser
from fastcfg.demo.sample import draw_noise, labels, sample
from fastcfg.distill import (
    Convention,
    DistillConfig,
    Distiller,
    LoraConfig,
    Student,
    Task,
    load_student,
    save_student,
    student_sample,
)
from fastcfg.distill.evaluate import draw_start

CONFIG = DistillConfig(
    steps=2, batch=4, trajectories=2, sampler_steps=(2,), window=1, warmup=0, lora=LoraConfig(rank=2)
)
Make = Callable[..., Task]


def trained(task: Task, config: DistillConfig = CONFIG) -> Student:
    distiller = Distiller(task, config)
    for _ in range(2):
        distiller.step()
    return distiller.student(scale=5.0)


def test_a_diffusers_loop_takes_a_student_for_a_model(tiny_task: Make) -> None:
    task = tiny_task()
    student = trained(task)
    noise, conditions = draw_start(task, 3, 0)
    scheduler = task.scheduler
    scheduler.set_timesteps(4)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(student(x, t, **conditions["cond"]), t, x).prev_sample
    assert torch.equal(x, student_sample(task, student, noise, conditions, 5.0, 4))
    assert student.passes_run == 8 and x.isfinite().all()


def test_the_demos_sampler_takes_it(tiny_task: Make) -> None:
    """The demo samples through a GuidedDenoiser: with scale 1 it is one pass of the student."""
    student = trained(tiny_task())
    noise = draw_noise(2, 0)
    conditions = {"uncond": labels(like=noise), "cond": labels(torch.tensor([3, 4]), torch.tensor([1, 2]), like=noise)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = sample(student, CFG(1.0), conditions, noise, steps=3)  # type: ignore[arg-type]
    assert student.passes_run == 3 and images.isfinite().all()


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_unet_student_is_diffusers_own_model(unet_task: Task, tmp_path: Path, mode: str) -> None:
    student = trained(unet_task, replace(CONFIG, mode=mode, convention=Convention("lcm", 32)))  # type: ignore[arg-type]
    noise, conditions = draw_start(unet_task, 3, 0)
    text = conditions["cond"]["encoder_hidden_states"]
    if mode == "lora":
        save_student(tmp_path / "adapter", student)
        loaded = load_student(tmp_path / "adapter", unet_task.network, scale=5.0)
        assert torch.equal(
            loaded(noise, 500, encoder_hidden_states=text), student(noise, 500, encoder_hidden_states=text)
        )
        student.merge(5.0)
    student.network.save_pretrained(tmp_path / "unet")  # type: ignore[operator]
    model = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert model.config.time_cond_proj_dim == 32
    # As the pipeline of LCM calls it: w = s - 1, embedded by the pipeline.
    w = torch.tensor(5.0 - 1).repeat(3)
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=32)
    peer = model(noise, 500, timestep_cond=embedding, encoder_hidden_states=text).sample
    assert torch.equal(peer, student(noise, 500, encoder_hidden_states=text))
    assert not torch.equal(peer, model(noise, 500, encoder_hidden_states=text).sample)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_flux_student_is_diffusers_own_model(flux_task: Task, tmp_path: Path, mode: str) -> None:
    student = trained(flux_task, replace(CONFIG, mode=mode, convention=Convention("flux")))  # type: ignore[arg-type]
    noise, conditions = draw_start(flux_task, 3, 0)
    condition = conditions["cond"]
    path = tmp_path / "student"
    save_student(path, student)
    again = load_student(path, None if mode == "full" else flux_task.network, scale=5.0)
    assert torch.equal(again(noise, 500.0, **condition), student(noise, 500.0, **condition))
    if mode == "lora":
        student.merge(5.0)
    student.network.save_pretrained(tmp_path / "flux")  # type: ignore[operator]
    model = FluxTransformer2DModel.from_pretrained(tmp_path / "flux")
    assert model.config.guidance_embeds
    peer = model(noise, timestep=torch.full((3,), 0.5), guidance=torch.full((3,), 5.0), **condition).sample
    assert torch.equal(peer, student(noise, 500.0, **condition))
    assert not torch.equal(peer, student(noise, 500.0, scale=2.0, **condition))


def test_a_bfloat16_teacher_with_rescale(unet_task: Task) -> None:
    rule = CFG(4.0, rescale=0.7)
    task = replace(
        unet_task,
        teacher=GuidedDenoiser(unet_task.network.bfloat16(), rule),
        noise=lambda n, g: unet_task.noise(n, g).bfloat16(),
        conditions=lambda n, g: {
            name: {"encoder_hidden_states": one["encoder_hidden_states"].bfloat16()}
            for name, one in unet_task.conditions(n, g).items()
        },
    )
    student = trained(task, replace(CONFIG, convention=Convention("lcm", 32, "bfloat16")))
    noise, conditions = draw_start(task, 2, 0)
    assert student(noise, 500, conditions=conditions).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("form", ["lcm", "flux"])
def test_onnx_runtime(tiny_task: Make, tmp_path: Path, form: str, mode: str) -> None:
    task = tiny_task()
    student = trained(task, replace(CONFIG, mode=mode, convention=Convention(form)))  # type: ignore[arg-type]
    path = tmp_path / "student.onnx"
    export_onnx(student, None, path)
    session = OrtSession(path)
    assert set(session.inputs) == {"sample", "timestep", "cond_digit", "cond_colour", "guidance_scale"}
    for count in (1, 3):  # The batch is open.
        x, conditions = draw_start(task, count, 0)
        t, scale = torch.full((count,), 500.0), torch.linspace(2.0, 7.0, count)
        values = {"sample": x, "timestep": t, "guidance_scale": scale}
        values |= {f"cond_{name}": value for name, value in conditions["cond"].items()}
        (found,) = session.run([values[name] for name in session.inputs])
        # The embedding's phase is (s - 1) * 1000 in float32: half an ulp of 6000 turns it by 2.4e-4; the rest is the
        # order of sums.
        torch.testing.assert_close(found, student(x, t, scale=scale, conditions=conditions), rtol=0, atol=2e-3)


def test_a_tensorrt_rtx_plan(tiny_task: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for Linux and Windows on x86")
    from fastcfg_export.build import build_engine

    path = tmp_path / "student.onnx"
    export_onnx(trained(tiny_task()).network, None, path)
    built = build_engine(path, capabilities=("8.9",))
    assert built.path.stat().st_size > 1000
