"""Several processes on one machine, over Gloo: equal bits, sums of parts, and faults that end in an error."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from fastcfg import APG, CFG, GuidedDenoiser, guide
from fastcfg.parallel import PassParallel, Shards, share

WORKER = Path(__file__).with_name("worker.py")
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no Gloo")


Saved = list[dict[str, torch.Tensor]]


def launch(folder: Path, ranks: int, *command: str) -> Saved:
    """What every rank saved."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(ranks)]


def torchrun(folder: Path, task: str, ranks: int) -> Saved:
    options = ("--standalone", f"--nproc-per-node={ranks}")
    return launch(folder, ranks, "-m", "torch.distributed.run", *options, str(WORKER), str(folder), task)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_rank_has_the_bits_of_a_serial_run(tmp_path: Path, ranks: int) -> None:
    tasks = "passes,shards" + (",mesh" if ranks == 4 else "")
    found = torchrun(tmp_path, tasks, ranks)
    passes = [name for name in found[0] if name.startswith("passes") and "serial" not in name]
    assert len(passes) == 13
    for name in passes:
        for rank in range(ranks):
            assert torch.equal(found[rank][name], found[0][f"{name} serial"]), (name, rank)
    for rank, saw in enumerate(found):
        for name in [n for n in saw if n.startswith("shards") and n.endswith("part")]:
            rule = name.removesuffix(" part")
            # Both are within float32's accumulation bound of the exact result; sums over 9,150 elements.
            bound = 64 * 2.0**-24 * saw[f"{rule} scale"].item() * 4
            torch.testing.assert_close(saw[name], saw[f"{rule} whole"], rtol=0, atol=bound, msg=f"{name} rank {rank}")
    if ranks == 4:
        for rank, saw in enumerate(found):
            replica = str(rank // 2)
            assert torch.equal(saw[f"mesh: {replica}"], saw[f"mesh: {replica} serial"])
        assert not torch.equal(found[0]["mesh: 0"], found[2]["mesh: 1"])


def test_accelerate_starts_it_too(tmp_path: Path) -> None:
    found = launch(tmp_path, 2, str(WORKER), str(tmp_path), "accelerate", "passes")
    assert found[0].keys() == found[1].keys()
    for name in (name for name in found[0] if "serial" not in name):
        assert torch.equal(found[1][name], found[0][f"{name} serial"])


def start(folder: Path, task: str, ranks: int) -> list[tuple[int, str]]:
    """Exit status and output of ranks that nobody watches, so that each has to notice by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, str(WORKER), str(folder), task]
    started = [
        subprocess.Popen(
            command, env=env | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def test_ranks_that_differ_end_in_an_error_on_all(tmp_path: Path) -> None:
    for status, output in start(tmp_path, "fault:model,shape,rule", 2):
        assert status == 0, output
        assert "model: ParallelError after" in output and "the model failed on rank 1: TypeError" in output
        assert (
            "x: the ranks do different things: [[2, 3, 24, 20], 'torch.float32'] on rank 0, [[3, 3, 24, 20]" in output
        )
        assert "rule: the ranks do different things" in output


def test_a_rank_that_is_killed_or_hangs_is_noticed_by_the_others(tmp_path: Path) -> None:
    *others, (killed, _) = start(tmp_path, "fault:kill", 3)
    assert killed == -9
    for _, output in others:
        assert "kill: ParallelError" in output and "a rank of the group" in output, output
    (_, output), (_, late) = start(tmp_path, "fault:hang", 2)
    assert "hang: ParallelError" in output and "did not answer in time" in output, output
    assert "hang: ParallelError" in late, late


def test_shares_are_even_and_complete() -> None:
    for count in range(1, 8):
        for ranks in range(1, 6):
            parts = [share(count, ranks, rank) for rank in range(ranks)]
            assert [i for part in parts for i in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            assert len(parts[0]) == -(-count // ranks)


def test_without_a_process_group_the_error_says_how_to_start() -> None:
    for make in (PassParallel, Shards):
        with pytest.raises(RuntimeError, match=r"group: torch\.distributed is not initialised; start with torchrun"):
            make()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_of_one_is_a_serial_run(alone: None) -> None:
    def model(x: torch.Tensor, t: float, add: float) -> torch.Tensor:
        return x + add

    x = torch.randn(2, 3, 4)
    conditions = {"uncond": {"add": 0.0}, "cond": {"add": 1.0}}
    inner = GuidedDenoiser(model, CFG(3.0), mode="sequential").executor
    denoiser = GuidedDenoiser(model, CFG(3.0), mode=PassParallel(inner=inner))
    expected = GuidedDenoiser(model, CFG(3.0), mode="sequential")(x, 0, conditions=conditions)
    assert torch.equal(denoiser(x, 0, conditions=conditions), expected)
    with pytest.raises(ValueError, match="timeout: expected seconds above 0, got 0"):
        PassParallel(timeout=0)


def test_parts_of_samples_are_refused_where_sums_have_other_dims(alone: None) -> None:
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"shards: the sums of APG run over dims=\(-1,\)"):
        guide(APG(3.0, dims=(-1,)), uncond=x, cond=x, shards=Shards())
