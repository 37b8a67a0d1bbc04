"""Passes on several devices: ``torchrun --nproc-per-node 2 parallel_passes.py`` runs cond and uncond side by side."""

import torch
import torch.distributed as dist

import fastcfg
from fastcfg import CFG, GuidedDenoiser
from fastcfg.denoiser import Sequential
from fastcfg.parallel import PassParallel

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
device = torch.device("cuda", dist.get_rank()) if torch.cuda.is_available() else torch.device("cpu")
torch.manual_seed(0)  # The same weights and noise on every rank.
net = torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False).to(device)
calls = 0


def model(x: torch.Tensor, t: float, label: torch.Tensor) -> torch.Tensor:
    """Stands for yours."""
    global calls
    calls += 1
    return net(x) + torch.sin(label).view(-1, 1, 1, 1) * t


def sample(mode: fastcfg.denoiser.Executor) -> torch.Tensor:
    denoiser = GuidedDenoiser(model, CFG(5.0, rescale=0.7), mode=mode)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(device)
    conditions = {"uncond": {"label": torch.zeros(2, device=device)}, "cond": {"label": torch.ones(2, device=device)}}
    for step in range(10):
        x = x - 0.1 * denoiser(x, 1 - step / 10, conditions=conditions, step=step, num_steps=10)
    return x


parallel, own = sample(PassParallel()), calls
serial = sample(Sequential())
same = torch.equal(parallel, serial)
print(f"rank {dist.get_rank()}: {own} calls instead of {calls - own}, same bits: {same}", flush=True)
dist.destroy_process_group()
