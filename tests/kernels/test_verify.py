"""Verification of launch strategies: the watchdog, the record, and counters of cooperative launches."""

import json
import sys
from pathlib import Path

import pytest
import torch
from fastcfg_kernels.backends.triton import backend as triton_backend
from fastcfg_kernels.backends.triton import verified, verify
from fastcfg_kernels.backends.triton.arrivals import CAPTURED, Arrivals
from typer.testing import CliRunner

from fastcfg.cli.app import app

CPU = torch.device("cpu")


@pytest.mark.parametrize("strategy", ["row", "two_launch"])
def test_strategies_pass_the_check_in_the_interpreter(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SIZES", {"row": (64,), "two_launch": (5_000,)})
    verify.check_strategy(strategy, CPU, runs=1)


def test_a_wrong_strategy_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    right = verify.guide_outputs
    calls = []

    def wrong(*args: object, backend: str, strategy: str | None = None, **kwargs: object) -> list[torch.Tensor]:
        results = right(*args, backend="torch", **kwargs)
        calls.append(strategy)
        return [r + (strategy == "two_launch") * 1e-7 for r in results]

    monkeypatch.setattr(verify, "guide_outputs", wrong)
    with pytest.raises(AssertionError, match="other bits than two_launch"):
        verify.check_strategy("row", CPU, runs=1)
    monkeypatch.setattr(verify, "guide_outputs", lambda *a, **k: [r + ("strategy" in k) for r in wrong(*a, **k)])
    with pytest.raises(AssertionError, match=r"rescale, 64 elements, torch\.float32: error 1"):
        verify.check_strategy("row", CPU, runs=1)


def test_a_hang_ends_in_an_error() -> None:
    reason = verify.run_watched([sys.executable, "-c", "while True: pass"], 0.5)
    assert reason == "did not end within 0.5 s and was killed"
    assert verify.run_watched([sys.executable, "-c", "raise ValueError('why')"], 60) == "ValueError: why"
    assert verify.run_watched([sys.executable, "-c", "raise SystemExit(3)"], 60) == "ended with status 3"
    assert verify.run_watched([sys.executable, "-c", ""], 60) is None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTCFG_CACHE_DIR", str(tmp_path / "cache"))
    verified.verified.cache_clear()
    return tmp_path / "cache" / "fastcfg" / "verified.json"


def test_the_record_is_by_device_and_survives_a_broken_file(cache: Path) -> None:
    assert verified.verified("a GPU") == frozenset()
    assert verified.record("a GPU", ["two_launch", "row"]) == cache
    verified.record("another", [])
    assert verified.verified("a GPU") == {"row", "two_launch"} and verified.verified("another") == frozenset()
    assert json.loads(cache.read_text()) == {"a GPU": ["row", "two_launch"], "another": []}
    assert [path.name for path in cache.parent.iterdir()] == ["verified.json"]
    cache.write_text("{not JSON")
    verified.verified.cache_clear()
    assert verified.verified("a GPU") == frozenset()
    verified.record("a GPU", ["row"])
    assert json.loads(cache.read_text()) == {"a GPU": ["row"]}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU as far as the choice of a strategy looks."""
    monkeypatch.setattr(torch.version, "hip", None)
    for module in (triton_backend, verify):
        monkeypatch.setattr(module, "device_key", lambda index: f"GPU {index}")
    monkeypatch.setattr(triton_backend, "_multiprocessors", lambda index: 132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return torch.device("cuda", 0)


def test_auto_takes_cooperative_where_it_passed(
    cache: Path, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = triton_backend._cooperative_programs
    assert programs(gpu, None) == 0 and programs(gpu, "cooperative") == 132 and programs(gpu, "row") == 0
    commands = []

    def watched(command: list[str], seconds: float) -> str | None:
        commands.append(command)
        return "did not end within 300 s and was killed" if "row" in command else None

    monkeypatch.setattr(verify, "run_watched", watched)
    outcomes = {o.strategy: o.passed for o in verify.verify(0)}
    assert outcomes == {"row": False, "two_launch": True, "cooperative": True}
    assert len(commands) == 3 and all("fastcfg_kernels.backends.triton.verify" in command for command in commands)
    assert programs(gpu, None) == 132
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert programs(gpu, None) == programs(gpu, "cooperative") == 0
    assert {o.strategy: o.passed for o in verify.verify(0)}["cooperative"] is False
    assert programs(CPU, "cooperative") == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so() -> None:
    result = CliRunner().invoke(app, ["info", "--verify"])
    assert result.exit_code == 1
    assert result.output.strip() == "error: device: there is no GPU to verify the kernels on"


def test_counters_by_stream_and_for_good_when_captured() -> None:
    counters = Arrivals()
    with pytest.raises(RuntimeError, match="falls inside a CUDA graph capture"):
        counters.take(2, CPU, 1, capturing=True)
    first = counters.take(2, CPU, 1, capturing=False)
    assert first.dtype == torch.int32 and not first.any()
    assert counters.take(3, CPU, 1, capturing=False).data_ptr() == first.data_ptr()
    assert counters.take(2, CPU, 2, capturing=False).data_ptr() != first.data_ptr()
    captured = [counters.take(2, CPU, 1, capturing=True) for _ in range(2)]
    assert captured[1].data_ptr() >= captured[0].data_ptr() + 8, "captured launches share no counter"
    assert all(c.data_ptr() % 16 == first.data_ptr() % 16 for c in captured), "the kernel is compiled for one alignment"
    with pytest.raises(RuntimeError, match="all that is set aside"):
        counters.take(CAPTURED - 7, CPU, 1, capturing=True)
