"""What a rank does in the tests: ``torchrun worker.py FOLDER TASK``; it writes ``FOLDER/<rank>.safetensors``."""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

import fastcfg
from fastcfg import APG, CFG, Clamp, GuidedDenoiser, PerpNeg, Rescale, State
from fastcfg.parallel import ParallelError, PassParallel, Shards

RULES = {
    "cfg": CFG(4.0),
    "rescale": CFG(4.0, rescale=0.7),
    "perp": Rescale(PerpNeg(4.0, (1.0,)), phi=0.5),
    "perp_2": Clamp(PerpNeg(4.0, (1.0, 0.5)), k=3.0),
}
STEPS = 4
CONTIGUOUS, LAST, TURNED = (0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)
LAYOUTS = {
    "last": (LAST, LAST),
    "turned": (TURNED, TURNED),
    "contiguous and last": (CONTIGUOUS, LAST),
    "turned and contiguous": (TURNED, CONTIGUOUS),
}
"""How the predictions of the first label and of the others lie in memory."""


def network(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False).to(dtype)


class Model:
    """A small network of x and a label, which can fail, sleep or die on a rank."""

    def __init__(self, dtype: torch.dtype = torch.float32, lies: tuple[tuple[int, ...], ...] | None = None) -> None:
        self.net = network(dtype)
        self.lies = lies

    def __call__(self, x: torch.Tensor, t: float, label: torch.Tensor) -> torch.Tensor:
        made = self.net(x) + torch.sin(label).view(-1, 1, 1, 1).to(x.dtype) * x
        if self.lies is None:
            return made
        order = self.lies[int(label[0]) > 1]
        return made.permute(order).contiguous().permute([order.index(dim) for dim in range(4)])


def conditions(rule: fastcfg.Rule, batch: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"label": torch.full((batch,), float(k + 1))} for k, name in enumerate(rule.conditions)}


def latent(batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, 24, 20, generator=torch.Generator().manual_seed(7)).to(dtype)


def run(
    rule: fastcfg.Rule, mode: object, dtype: torch.dtype = torch.float32, seed: int = 0, lies: Any = None
) -> torch.Tensor:
    """The last x of a few guided steps."""
    denoiser = GuidedDenoiser(Model(dtype, lies), rule, mode=mode)
    x, state = latent(dtype=dtype) + seed, State()
    for step in range(STEPS):
        guided = denoiser(x, 0.5, conditions=conditions(rule, x.shape[0]), step=step, num_steps=STEPS, state=state)
        x = x - 0.2 * guided
    return x


def passes() -> dict[str, torch.Tensor]:
    """Every rule with its passes over all ranks: on each rank the same as one after another."""
    found = {}
    for name, rule in RULES.items():
        for dtype in (torch.float32, torch.bfloat16):
            parallel = PassParallel(timeout=60, inner=fastcfg.denoiser.Sequential())
            found[f"{name} {dtype}"] = run(rule, parallel, dtype)
            found[f"{name} {dtype} serial"] = run(rule, "sequential", dtype)
    for name in LAYOUTS:
        parallel = PassParallel(timeout=60, inner=fastcfg.denoiser.Sequential())
        found[f"lies {name}"] = run(RULES["rescale"], parallel, lies=LAYOUTS[name])
        found[f"lies {name} serial"] = run(RULES["rescale"], "sequential", lies=LAYOUTS[name])
    gated = fastcfg.GatedCFG(4.0, every=2)
    found["gated"], found["gated serial"] = run(gated, PassParallel()), run(gated, "sequential")
    return found


def mesh() -> dict[str, torch.Tensor]:
    """Two data-parallel groups of passes on different ranks."""
    grid = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "cfg"))
    replica = grid.get_local_rank("dp")
    parallel = PassParallel(grid["cfg"], inner=fastcfg.denoiser.Sequential())
    rule = RULES["perp_2"]
    return {f"{replica}": run(rule, parallel, seed=replica), f"{replica} serial": run(rule, "sequential", seed=replica)}


def shards() -> dict[str, torch.Tensor]:
    """Parts of the rows of an image on each rank, of unequal sizes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, rule in {**RULES, "apg": APG(4.0, momentum=-0.5)}.items():
        whole = {n: 3 + torch.randn(2, 3, 61, 50, generator=generator) for n in rule.conditions}
        edges = [0, *(20 + 61 * k // size // 2 for k in range(1, size)), 61]
        state, parts = State(), State()
        for _ in range(2):
            expected = fastcfg.guide(rule, state=state, backend="torch", **whole)
            mine = {n: p[:, :, edges[rank] : edges[rank + 1]].contiguous() for n, p in whole.items()}
            got = fastcfg.guide(rule, state=parts, shards=Shards(), **mine)
        found[f"{name} whole"] = expected[:, :, edges[rank] : edges[rank + 1]].contiguous()
        found[f"{name} part"] = got
        exact = fastcfg.guide(rule, state=State(), **{n: p.double() for n, p in whole.items()})
        found[f"{name} scale"] = exact.abs().amax()
        mask = (torch.arange(61) < 25).view(1, 1, 61, 1)
        if name == "rescale":  # All of the last rank's part is left out.
            masked = fastcfg.guide(rule, mask=mask, backend="torch", **whole)
            found["mask whole"] = masked[:, :, edges[rank] : edges[rank + 1]].contiguous()
            found["mask part"] = fastcfg.guide(
                rule, mask=mask[:, :, edges[rank] : edges[rank + 1]], shards=Shards(), **mine
            )
            found["mask scale"] = exact.abs().amax()
    return found


def fault(kinds: str) -> None:
    """Go wrong on the last rank in each of some ways, and print what this rank raised and when."""
    rank, size = dist.get_rank(), dist.get_world_size()
    last = rank == size - 1
    for kind in kinds.split(","):
        rule = CFG(5.0 if kind == "rule" and last else 4.0)
        denoiser = GuidedDenoiser(Model(), rule, mode=PassParallel(timeout=8))
        x = latent(3 if kind == "shape" and last else 2)
        start = time.monotonic()
        try:
            for step in range(100):
                if last and step == 2:
                    if kind == "kill":
                        os.kill(os.getpid(), 9)
                    if kind == "hang":
                        time.sleep(12)
                    if kind == "model":
                        denoiser.model = None
                denoiser(x, 0.5, conditions=conditions(rule, x.shape[0]))
        except ParallelError as error:
            print(f"{kind}: ParallelError after {time.monotonic() - start:.1f} s: {error}", flush=True)
    os._exit(0)  # A group with a rank that is gone can't be taken down in order.


TASKS = {"passes": passes, "mesh": mesh, "shards": shards}


def save(folder: Path, names: str) -> None:
    """Run tasks and write what they found."""
    found = {f"{name}: {key}": value for name in names.split(",") for key, value in TASKS[name]().items()}
    save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{dist.get_rank()}.safetensors")


def under_accelerate(folder: str, names: str) -> None:
    """The same in a process that accelerate has started."""
    from accelerate import PartialState

    torch.set_num_threads(1)
    PartialState(cpu=True)
    save(Path(folder), names)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "accelerate":
        from accelerate import debug_launcher

        debug_launcher(under_accelerate, (sys.argv[1], sys.argv[3]), num_processes=2)
    else:
        dist.init_process_group("gloo")
        task, _, kind = sys.argv[2].partition(":")
        if task == "fault":
            fault(kind)
        else:
            save(Path(sys.argv[1]), sys.argv[2])
            dist.destroy_process_group()
