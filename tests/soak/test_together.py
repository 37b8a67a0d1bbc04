"""Threads, and processes, whose first calls come at the same time with caches empty: the bits of one alone."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from fastcfg_kernels.backends.cpu import backend as native
from fastcfg_kernels.backends.cpu import build
from fastcfg_kernels.formula.program import compiled
from hypothesis import given
from hypothesis import strategies as st
from soak.examples import examples
from soak.tensors import bits
from soak.test_calls import draw_call
from torch import Tensor

from fastcfg import CFG, GuidedDenoiser, Requests

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 150.0
TASKS = st.lists(st.integers(0, 40), min_size=2, max_size=5)
CONDITIONS = {name: {"label": torch.full((1,), value)} for name, value in (("uncond", 0.0), ("cond", 1.0))}


def model(x: Tensor, t: Any, label: Tensor) -> Tensor:
    return torch.tanh(x) * 0.9 + label.view(-1, 1, 1)


@torch.no_grad()
def work(task: int) -> str:
    """A digest of what a task gives, whose bits are its own: a random call, or requests that join and leave."""
    rng, found = Random(task), hashlib.sha256()
    if task % 3:
        made = [draw_call(rng).run()]
    else:
        requests, made = Requests(GuidedDenoiser(model, CFG(4.0))), []
        for turn in range(5):
            if turn < 3:
                requests.add(turn, CONDITIONS, num_steps=3, rule=CFG(rng.uniform(1, 9), rescale=rng.choice((0.0, 0.5))))
            x = torch.from_numpy(np.random.default_rng(rng.randrange(99)).normal(size=(len(requests), 6, 6))).float()
            made.append(requests(x, torch.zeros(len(requests))))
            for name in [name for name in requests.ids if requests[name].done]:
                requests.remove(name)
    for tensor in made:
        found.update(bits(tensor).numpy().tobytes())
    return found.hexdigest()


def forget() -> None:
    """Empty what is made once in a process, as at its first call."""
    compiled.cache_clear()
    native._function.cache_clear()
    build.load.cache_clear()


@given(st.sampled_from((2, 4, 8, 16)), TASKS, st.sampled_from((1, 1, 2)))
@examples(2, share=0.3)
def test_threads(count: int, tasks: list[int], torch_threads: int) -> None:
    torch.set_num_threads(torch_threads)
    try:
        check_threads(count, tasks)
    finally:
        torch.set_num_threads(1)


def check_threads(count: int, tasks: list[int]) -> None:
    forget()
    together = threading.Barrier(count)
    found: list[tuple[int, str]] = []
    raised: list[BaseException] = []

    def body(own: int) -> None:
        try:
            together.wait(60)
            for k in range(len(tasks)):
                task = tasks[(own + k) % len(tasks)]
                found.append((task, work(task)))
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=body, args=(own,), daemon=True) for own in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if raised:
        raise raised[0]
    expected = {task: work(task) for task in set(tasks)}
    assert len(found) == count * len(tasks)
    for task, result in found:
        assert result == expected[task], f"{task} differs from one thread alone"


def results(tasks: Sequence[int]) -> str:
    return " ".join(map(work, tasks))


def _started_anew(count: int, tasks: Sequence[int], folder: str) -> list[str]:
    code = f"from soak.test_together import results; print(results({tasks!r}))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    around = {**os.environ, "PYTHONPATH": path, "FASTCFG_CACHE_DIR": folder}
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    running = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=around) for _ in range(count)]
    found = []
    for process in running:
        out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        found.append(out.strip())
    return found


def _child(tasks: Any, pipe: Any) -> None:
    pipe.send(results(tasks))
    pipe.close()


def _forked(count: int, tasks: Sequence[int]) -> list[str]:
    """Forked after this process has used several threads of native code."""
    context: Any = multiprocessing.get_context("fork")
    torch.set_num_threads(2)
    work(1)
    torch.set_num_threads(1)
    pairs = []
    for _ in range(count):
        mine, other = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(tasks, other))
        process.start()
        other.close()
        pairs.append((process, mine))
    found = []
    for process, mine in pairs:
        hangs = not mine.poll(PATIENCE)
        if hangs:
            process.kill()
        assert not hangs, "a forked process hangs"
        found.append(mine.recv())
        process.join()
    return found


@pytest.mark.parametrize("start", ["new", "fork"])
@given(st.sampled_from((2, 3, 4)), TASKS)
@examples(1, share=0.1)
def test_processes(start: str, count: int, tasks: list[int]) -> None:
    """Those that start anew share an empty cache of compiled code, and leave nothing unfinished under a library's name.

    A process that ends while it compiles in the background leaves a temporary file, which the next one removes.
    """
    with tempfile.TemporaryDirectory() as folder:
        new = start == "new"
        found = _started_anew(count, tasks, folder) if new else _forked(count, tasks)
        if new and (cache := Path(folder, "fastcfg", "cpp")).exists():
            assert not [p.name for p in cache.iterdir() if p.suffix != ".so" and not p.name.endswith(".partial")]
    assert found == [results(tasks)] * count


def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "work", lambda task: threading.current_thread().name)
    with pytest.raises(AssertionError, match="differs from one thread alone"):
        check_threads(2, [1])
