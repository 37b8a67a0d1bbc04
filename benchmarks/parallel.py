"""``python -m benchmarks.parallel``: a guided step with its passes over several processes of this machine.

Starts ``torchrun`` with 1 to ``--ranks`` processes, each with the same threads, and writes
``results/parallel-<device>.*``. Processes share the machine: more ranks can't be faster than there are cores for their
threads.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from fastcfg import CFG, GuidedDenoiser, MultiCondition, PerpNeg, Rule
from fastcfg.denoiser import Sequential
from fastcfg.files import write_atomically

from .report import Environment

RESULTS = Path(__file__).parent / "results"
RULES: dict[str, Rule] = {
    "CFG, 2 passes": CFG(4.0, rescale=0.7),
    "perp-neg, 3 passes": PerpNeg(4.0, (1.0,)),
    "3 conditions, 4 passes": MultiCondition((3.0, 2.0, 1.0)),
}
app = typer.Typer(add_completion=False)


@torch.no_grad()
def rank_times(rounds: int, batch: int) -> dict[str, list[float]]:
    """Milliseconds of each step on this rank, by rule: passes over the ranks, and all of them here."""
    from fastcfg.demo.checkpoint import load_denoiser
    from fastcfg.demo.sample import draw_noise
    from fastcfg.parallel import PassParallel

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    model = load_denoiser(device=device)[0]
    x = draw_noise(batch, 0, device)
    times: dict[str, list[float]] = {}
    for name, rule in RULES.items():
        digits = {n: torch.full((batch,), k, device=device) for k, n in enumerate(rule.conditions)}
        conditions = {n: {"digit": d, "colour": torch.zeros_like(d)} for n, d in digits.items()}
        runs = {
            "parallel": GuidedDenoiser(model, rule, mode=PassParallel(inner=Sequential())),
            "serial": GuidedDenoiser(model, rule, mode="sequential"),
        }
        results = {}
        for turn in range(rounds + 2):
            for how, denoiser in runs.items():
                dist.barrier()
                if how == "serial" and dist.get_rank():
                    continue
                start = time.perf_counter()
                results[how] = denoiser(x, 500, conditions=conditions)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn >= 2:
                    times.setdefault(f"{name} | {how}", []).append(1e3 * (time.perf_counter() - start))
        if not dist.get_rank() and not torch.equal(results["parallel"], results["serial"]):
            raise RuntimeError(f"{name}: passes on several ranks gave other bits than one after another")
    return times


def times_over(ranks: int, rounds: int, batch: int) -> dict[str, list[float]]:
    """:func:`rank_times` of the first of so many processes, each with one thread.

    Raises:
        subprocess.CalledProcessError: if one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--standalone", f"--nproc-per-node={ranks}", "-m", "benchmarks.parallel_worker"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, folder, str(rounds), str(batch)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        times: dict[str, list[float]] = json.loads((Path(folder) / "times.json").read_text())
    return times


@app.command()
def main(
    ranks: Annotated[int, typer.Option(min=1, help="Most processes.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each.")] = 15,
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 16,
    output: Annotated[Path, typer.Option(help="Folder for the JSON and Markdown.")] = RESULTS,
) -> None:
    """Time guided steps with passes on 1 to RANKS processes beside a serial run in one of them."""
    rows = []
    for count in range(1, ranks + 1):
        times = times_over(count, rounds, batch)
        for name in RULES:
            parallel, serial = (times[f"{name} | {how}"] for how in ("parallel", "serial"))
            ratio = statistics.median(s / p for s, p in zip(serial, parallel, strict=True))
            row = {"rule": name, "ranks": count, "ms": statistics.median(parallel)}
            rows.append({**row, "serial_ms": statistics.median(serial), "ratio": ratio})
    env = Environment.of("cuda" if torch.cuda.is_available() else "cpu")
    lines = [f"| {r['rule']} | {r['ranks']} | {r['ms']:.1f} | {r['serial_ms']:.1f} | {r['ratio']:.2f} |" for r in rows]
    text = "\n".join(
        [
            f"# Passes over processes, {env.hardware}, {os.cpu_count()} cores, 1 thread each",
            "",
            f"The demo's denoiser, {batch} images, commit {env.commit}. Serial: the same passes one after another in "
            "one process, while the others wait, in the same rounds. The bits were equal in every case.",
            "",
            "| rule | ranks | ms a step | serial ms | serial ÷ parallel |",
            "|---|---:|---:|---:|---:|",
            *lines,
            "",
        ]
    )
    output.mkdir(parents=True, exist_ok=True)
    body = json.dumps(
        {"kind": "parallel", "environment": vars(env), "batch": batch, "rows": rows}, indent=1, default=dict
    )
    for suffix, content in ((".json", body + "\n"), (".md", text)):
        write_atomically(output / f"parallel-{env.device}{suffix}", content)
        typer.echo(f"wrote {output / f'parallel-{env.device}{suffix}'}")


if __name__ == "__main__":
    app()
