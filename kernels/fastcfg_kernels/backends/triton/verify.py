"""Runs the launch strategies on this machine's GPU against float64, each in a process of its own under a watchdog.

A barrier between programs that went wrong would wait for ever, and no exception ends that: the process is killed then,
and the strategy has not passed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guide import guide_outputs
from .gates import PARAMS, programs
from .verified import device_key, record

__all__ = ["STRATEGIES", "Outcome", "check_strategy", "run_watched", "verify"]

STRATEGIES = ("row", "two_launch", "cooperative")
SIZES = {"row": (64, 4_096), "two_launch": (5_000, 65_536), "cooperative": (16_384, 65_536, 262_144)}
RUNS = 100
SECONDS = 300.0
"""What a strategy may take, its compilation included."""


@dataclass(frozen=True)
class Outcome:
    """A strategy on this machine: whether it passed, or why not."""

    strategy: str
    passed: bool
    reason: str


def _check(strategy: str, name: str, count: int, dtype: torch.dtype, device: torch.device, runs: int) -> None:
    program = programs()[name]
    params = {name: PARAMS[name] for name in program.params}
    generator = torch.Generator().manual_seed(count)
    tensors = [torch.randn(2, count, generator=generator) for _ in (*program.predictions, *program.extras)]
    predictions = [t.to(dtype) for t in tensors[: len(program.predictions)]]
    extras = tensors[len(program.predictions) :]
    exact = guide_outputs(
        [p.double() for p in predictions], program, params, extras=[e.double() for e in extras], backend="torch"
    )[0]
    given, more = [p.to(device) for p in predictions], [e.to(device) for e in extras]

    def guided(launch: Any) -> Tensor:
        return guide_outputs(given, program, params, extras=more, backend="triton", strategy=launch)[0]

    first = guided(strategy)
    what = f"{name}, {count} elements, {dtype}"
    # A rounding of the result, and the rounding of float32 sums carried into the weights.
    bound = (torch.finfo(dtype).eps + 64 * torch.finfo(torch.float32).eps) * float(exact.abs().max())
    error = float((first.cpu().double() - exact).abs().max())
    if not error <= bound:
        raise AssertionError(f"{what}: error {error:.3g}, at most {bound:.3g} is rounding")
    if not torch.equal(first, guided("two_launch")):
        raise AssertionError(f"{what}: other bits than two_launch")
    for _ in range(runs):
        if not torch.equal(first, guided(strategy)):
            raise AssertionError(f"{what}: other bits than in the run before")


def check_strategy(strategy: str, device: torch.device, runs: int = RUNS) -> None:
    """Guide by a strategy, compare with the torch path in float64, and again for equal bits.

    Raises:
        AssertionError: for a result out of bounds, or that changes between runs or from ``two_launch``'s.
    """
    for name in ("rescale", "perpendicular", "projected"):
        for count in SIZES[strategy]:
            for dtype in (torch.float32, torch.bfloat16):
                _check(strategy, name, count, dtype, device, runs)


def run_watched(command: Sequence[str], seconds: float) -> str | None:
    """Run a command; None if it succeeded, else why not. After ``seconds`` it is killed."""
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"did not end within {seconds:g} s and was killed"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ended with status {done.returncode}"
    return None


def verify(index: int = 0, seconds: float = SECONDS) -> list[Outcome]:
    """Run every strategy on a GPU and record those that passed, for ``auto`` to use.

    Raises:
        RuntimeError: if there is no GPU.
        OSError: if the record can't be written.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("device: there is no GPU to verify the kernels on")
    outcomes = []
    for strategy in STRATEGIES:
        if strategy == "cooperative" and torch.version.hip:
            outcomes.append(Outcome(strategy, False, "programs that wait for each other are for NVIDIA's GPUs"))
            continue
        command = [
            sys.executable,
            "-m",
            "fastcfg_kernels.backends.triton.verify",
            "--strategy",
            strategy,
            "--device",
            str(index),
        ]
        reason = run_watched(command, seconds)
        outcomes.append(Outcome(strategy, reason is None, reason or "equal bits, and within rounding of float64"))
    record(device_key(index), [o.strategy for o in outcomes if o.passed])
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """The child process: checks one strategy."""
    parser = argparse.ArgumentParser(prog="python -m fastcfg_kernels.backends.triton.verify")
    parser.add_argument("--strategy", choices=STRATEGIES, required=True)
    parser.add_argument("--device", type=int, default=0)
    given = parser.parse_args(arguments)
    check_strategy(given.strategy, torch.device("cuda", given.device))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
