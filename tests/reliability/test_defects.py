"""Each run fails where what it guards is broken."""

import mmap
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastcfg_kernels import partial
from torch import Tensor

import fastcfg.files
from benchmarks.reliability import call, corruption, forks, fuzz, interrupts, memory, processes, refusals, threads
from benchmarks.reliability.cases import Case
from benchmarks.reliability.outcome import Wrong
from benchmarks.reliability.works import Work
from fastcfg import CFG, guide
from fastcfg.demo.train import Trainer

RESCALED = CFG(3.0, rescale=0.5).to_dict()


def guided(change: Callable[[Tensor, dict[str, Any]], Tensor]) -> Callable[..., Tensor]:
    """``guide`` with a defect."""

    def broken(rule: Any, **given: Any) -> Tensor:
        return change(guide(rule, **given), given)

    return broken


def one_more_bit(result: Tensor, given: dict[str, Any]) -> Tensor:
    return result.mul_(1 + 2**-10)


def into_an_input(result: Tensor, given: dict[str, Any]) -> Tensor:
    given["uncond"].view(-1)[0] += 1
    return result


def beside_the_result(result: Tensor, given: dict[str, Any]) -> Tensor:
    if given.get("out") is not None:
        torch.as_strided(result, (1,), (1,), result.storage_offset() - 1).add_(1)
    return result


def of_the_whole_batch(result: Tensor, given: dict[str, Any]) -> Tensor:
    return result.add_(result.mean() * 2**-20)


def of_another_dtype(result: Tensor, given: dict[str, Any]) -> Tensor:
    return result.double()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (one_more_bit, {}, "values: .* bound"),
        (into_an_input, {}, "uncond: an input was written"),
        (beside_the_result, {"out": "strided", "layouts": {"out": "offset"}}, "out: memory outside of it was written"),
        (of_the_whole_batch, {}, r"bits: not those of sample \d alone"),
        (of_another_dtype, {}, "result: .* of torch.float64"),
    ],
)
def test_fuzz(
    change: Callable[..., Tensor], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(5, RESCALED, (3, 4, 9), kinds={"uncond": "normal", "cond": "normal"}, **options)
    assert fuzz.check_case(case).bounded
    monkeypatch.setattr(call, "guide", guided(change))
    with pytest.raises(Wrong, match=message):
        fuzz.check_case(case)


def test_a_failing_case_shrinks_to_what_it_hangs_on() -> None:
    case = Case(5, RESCALED, (3, 4, 9), dtype="bfloat16", kinds={"uncond": "far"}, scale="batch", threads=2)
    small = fuzz.shrink(case, lambda other: other.scale == "batch" and other.shape[0] > 1)
    assert (small.scale, small.shape, small.dtype, small.threads) == ("batch", [3, 1, 1], "float32", 1)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"wrong": "integers", "rule": RESCALED, "seed": 0}
    refusals.check(case)
    monkeypatch.setattr(refusals, "guide", lambda rule, **given: torch.zeros(2))
    with pytest.raises(Wrong, match=r"integers: the call gave \[2\] and no error"):
        refusals.check(case)

    def unclear(rule: Any, **given: Any) -> None:
        raise RuntimeError("something went wrong")

    monkeypatch.setattr(refusals, "guide", unclear)
    with pytest.raises(Wrong, match="integers: the error names no argument: RuntimeError: something went wrong"):
        refusals.check(case)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"threads": 2, "tasks": [["guide", 0]], "torch_threads": 1}
    monkeypatch.setattr(threads, "work", lambda kind, seed: threading.current_thread().name)
    with pytest.raises(Wrong, match=r"bits: .* differs from one thread alone"):
        threads.check(case)

    def raises(kind: str, seed: int) -> str:
        raise OSError("in a thread")

    monkeypatch.setattr(threads, "work", raises)
    with pytest.raises(OSError, match="in a thread"):
        threads.check(case)


def test_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"processes": 2, "start": "new", "tasks": [["guide", 0]]}

    def started(case: Any, folder: str) -> list[str]:
        (Path(folder) / "fastcfg" / "cpp").mkdir(parents=True)
        return ["a", "b"]

    monkeypatch.setattr(processes, "_started_anew", started)
    monkeypatch.setattr(processes, "results", lambda tasks: "a")
    with pytest.raises(Wrong, match="bits: 1 of 2 processes differ"):
        processes.check(case)

    def leaves(case: Any, folder: str) -> list[str]:
        started(case, folder)
        (Path(folder) / "fastcfg" / "cpp" / ".x.partial").touch()
        return ["a", "a"]

    monkeypatch.setattr(processes, "_started_anew", leaves)
    with pytest.raises(Wrong, match=r"cache: \['\.x\.partial'\] were left"):
        processes.check(case)


@pytest.mark.parametrize("kind", ["objects", "tensors", "bytes", "files"])
def test_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    # Of its own pages: the allocator would take what earlier tests freed, and resident memory stand still.
    pages = mmap.mmap(-1, 1000 * 20_480)
    leaks = {
        "objects": lambda i: kept.append([i]),
        "tensors": lambda i: kept.append(torch.zeros(1)),
        "bytes": lambda i: pages.write(bytes(20_480)),
        "files": lambda i: kept.append(os.fdopen(os.open("/dev/null", os.O_RDONLY))),
    }
    monkeypatch.setattr(
        memory, "SCENARIOS", {"leak": (lambda: leaks[kind], 1.0), "none": (lambda: lambda i: None, 1.0)}
    )
    case = {"calls": 400, "seconds": 0.0}
    memory.check({"scenario": "none", **case})
    with pytest.raises(Wrong, match=f"{kind}: .* became"):
        memory.check({"scenario": "leak", **case})
    for file in kept if kind == "files" else ():
        file.close()


INTERRUPTED = {"work": "results", "how": "bytes", "at": 0.5}


@pytest.fixture(autouse=True)
def forget_what_was_whole() -> None:
    interrupts._reference.cache_clear()
    corruption._whole.cache_clear()


def test_a_write_that_is_not_atomic(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts.check(INTERRUPTED)
    monkeypatch.setattr(fastcfg.files, "write_whole", lambda path, content: path.write_bytes(content))
    with pytest.raises(Wrong, match=r"half: results left what cannot be read: .*result\.json is not a result file"):
        interrupts.check(INTERRUPTED)


def test_what_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_clear", lambda path: None)
    with pytest.raises(Wrong, match=r"files: \['\.result\..*\.partial'\] are left"):
        interrupts.check(INTERRUPTED)


def test_a_resumed_training_that_forgets_its_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"work": "training", "how": "operation", "at": 0.6}
    interrupts.check(case)
    restore = Trainer.restore

    def forgetful(trainer: Trainer, path: Path) -> None:
        restore(trainer, path)
        trainer.optimizer.state.clear()

    monkeypatch.setattr(Trainer, "restore", forgetful)
    with pytest.raises(Wrong, match=r"again: training after operation .* differs from one that nothing interrupted"):
        interrupts.check(case)


def test_a_full_disk_that_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(path: Path, content: bytes) -> None:
        with path.with_name(f".{path.name}").open("wb") as file:
            file.write(content)
        path.with_name(f".{path.name}").replace(path)

    monkeypatch.setattr(fastcfg.files, "write_whole", nameless)
    with pytest.raises(Wrong, match=r"full: results: the error names no file: OSError: .*File too large"):
        interrupts.check({**INTERRUPTED, "how": "full"})


def test_work_that_hangs_or_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.5)
    with pytest.raises(Wrong, match=r"process: hangs for 0\.5 s"):
        forks.aside(lambda: time.sleep(60), tmp_path)
    with pytest.raises(Wrong, match="process: died of SIGTERM"):
        forks.aside(lambda: os.kill(os.getpid(), signal.SIGTERM), tmp_path)
    assert forks.aside(lambda: [1, "x"], tmp_path).value == [1, "x"]
    assert forks.aside(lambda: 1 / 0, tmp_path).error == "ZeroDivisionError: division by zero"


def test_what_is_neither_old_nor_new(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path) -> None:
        for text in ("between", "new"):
            (folder / "a").write_text(text)

    work = Work(make, lambda folder: {"a": (folder / "a").read_text()}, lambda folder: (folder / "a").write_text("old"))
    monkeypatch.setattr(interrupts, "WORKS", {"broken": work})
    with pytest.raises(Wrong, match="half: a of broken is neither the old nor the new one"):
        interrupts.check({"work": "broken", "how": "operation", "at": 0.5})


FLIPPED = [{"file": "denoiser", "damage": "bit", "seed": seed} for seed in range(8)]


def test_a_digest_that_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in FLIPPED:
        corruption.check(case)
    monkeypatch.setattr(fastcfg.files, "_digest", lambda tensors, metadata: "always this")
    corruption._whole.cache_clear()
    with pytest.raises(Wrong, match=r"silent: denoiser\.safetensors was read, and is not what it was"):
        for case in FLIPPED:
            corruption.check(case)


def test_an_error_that_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = corruption.KEPT["rule"]

    def read(folder: Path) -> str:
        return kept.read(folder) if (folder / "rule.json").stat().st_size else str({}["rule"])  # type: ignore[index]

    monkeypatch.setattr(corruption, "KEPT", {"rule": replace(kept, read=read)})
    with pytest.raises(Wrong, match=r"unclear: rule\.json: KeyError"):
        corruption.check({"file": "rule", "damage": "emptied", "seed": 0})


def test_what_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = corruption.KEPT["rule"]
    corruption.check({"file": "rule", "damage": "pickle", "seed": 0})

    def read(folder: Path) -> str:
        content = (folder / "rule.json").read_bytes()
        return kept.read(folder) if content.startswith(b"{") else str(pickle.loads(content))

    monkeypatch.setattr(corruption, "KEPT", {"rule": replace(kept, read=read)})
    with pytest.raises(Wrong, match=r"unpickled: rule\.json"):
        corruption.check({"file": "rule", "damage": "pickle", "seed": 0})


def test_what_is_not_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = replace(corruption.KEPT["rule"], recovers=True)
    monkeypatch.setattr(corruption, "KEPT", {"rule": kept})
    with pytest.raises(Wrong, match=r"unrecovered: rule\.json"):
        corruption.check({"file": "rule", "damage": "emptied", "seed": 0})
