"""A model and its guidance as one ONNX graph: the demo's U-Net, exported and run in ONNX Runtime."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fastcfg_export import Engine, export_onnx, verify

from fastcfg import CFG, GuidedDenoiser
from fastcfg.demo.checkpoint import load_denoiser
from fastcfg.demo.diffusion import noise_scheduler
from fastcfg.demo.sample import draw_noise, labels

rule, steps = CFG(3.0, rescale=0.7), 5
model, _ = load_denoiser()
digits = torch.arange(10)
conditions = {"uncond": labels(like=digits), "cond": labels(digits, like=digits)}


@torch.no_grad()
def sample(denoiser: GuidedDenoiser | Engine) -> torch.Tensor:
    """Ten digits, by eager torch or by the graph."""
    scheduler, x = noise_scheduler(), draw_noise(10, seed=0)
    scheduler.set_timesteps(steps)
    for step, t in enumerate(scheduler.timesteps.tolist()):
        v = denoiser(x, t, step=step, num_steps=steps, conditions=conditions)
        x = scheduler.step(v, t, x).prev_sample
    return x


with TemporaryDirectory() as folder:
    exported = export_onnx(model, rule, Path(folder) / "digits.onnx")
    print("inputs:", ", ".join(spec.name for spec in exported.module.signature.inputs))
    print("as eager torch at several sizes and scales:", verify(exported.path, exported.module).ok)
    images = sample(Engine(exported.path, runtime="onnx"))
difference = (images - sample(GuidedDenoiser(model, rule))).abs().max()
print(f"largest difference of a pixel after {steps} steps: {float(difference):.0e}")
