"""How a plan is called, on a stand-in for the library: no GPU is needed to see what it is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastcfg_export import Axis, GuidedModule, SidecarError
from fastcfg_export.plan_runner import PlanRunner, choose_profile
from fastcfg_export.runtimes import TensorRT
from fastcfg_export.sample_inputs import draw_inputs
from fastcfg_export.sidecar import Sidecar

from benchmarks.export_models import toy
from fastcfg import CFG


class Severity(int):
    WARNING = 2


class ILogger:
    Severity = Severity


@dataclass
class Context:
    """Records what it is told, and doubles the sample when it is launched."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    fails: bool = False

    def set_optimization_profile_async(self, index: int, stream: int) -> None:
        self.calls.append(("profile", index, stream))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.calls.append(("shape", name, shape))

    def set_tensor_address(self, name: str, address: int) -> None:
        self.calls.append(("address", name, address))

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("launch", stream))
        return not self.fails


class Runtime:
    context: Context
    readable = True

    def __init__(self, logger: object) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        assert content == b"a plan"
        return SimpleNamespace(create_execution_context=lambda: self.context) if self.readable else None


def sidecar() -> Sidecar:
    signature = GuidedModule(toy(), CFG()).signature
    small = {**signature.axes, "height": Axis(4, 8, 16, 4, 8), "batch": Axis(1, 1, 2)}
    large = {**signature.axes, "height": Axis(32, 32, 64, 4, 8), "batch": Axis(1, 1, 4)}
    return Sidecar("toy.onnx", {}, "", 6, "tensorrt", "11.0", ("9.0",), (small, large), signature, "0")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PlanRunner, Context]]:
    (tmp_path / "toy.plan").write_bytes(b"a plan")
    Runtime.context, Runtime.readable = Context(), True
    library = TensorRT("tensorrt", SimpleNamespace(__version__="11.0", ILogger=ILogger, Runtime=Runtime))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    yield PlanRunner(library, tmp_path / "toy.plan", sidecar(), torch.device("cpu")), Runtime.context


def inputs(**sizes: int) -> dict[str, torch.Tensor]:
    signature = sidecar().signature
    drawn = draw_inputs(signature, {"batch": 2, "height": 8, "width": 8, "tokens": 3} | sizes)
    return {spec.name: tensor for spec, tensor in zip(signature.inputs, drawn, strict=True)}


def test_inputs_are_read_in_place_on_the_current_stream(runner: tuple[PlanRunner, Context]) -> None:
    run, context = runner
    given = inputs()
    results = run.run(given)
    assert results["prediction"].shape == (2, 4, 8, 8)
    assert context.calls[0] == ("profile", 0, 7) and context.calls[-1] == ("launch", 7)
    addresses = {name: address for kind, name, *(address,) in context.calls[1:-1] if kind == "address"}
    assert addresses == {name: tensor.data_ptr() for name, tensor in {**given, **results}.items()}
    shapes = {name: shape for kind, name, *(shape,) in context.calls[1:-1] if kind == "shape"}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in given.items()}


def test_the_profile_changes_with_the_size(runner: tuple[PlanRunner, Context]) -> None:
    run, context = runner
    for height in (8, 8, 32, 8):
        run.run(inputs(height=height))
    assert [call[1] for call in context.calls if call[0] == "profile"] == [0, 1, 0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 20}, r"profile 0: height 20 \(serves 4 to 16\); profile 1: height 20 \(serves 32 to 64\)"),
        ({"batch": 4}, r"profile 0: batch 4 \(serves 1 to 2\); profile 1: height 8"),
        ({"height": 6}, "sample: height: expected a multiple of 4, got 6"),
    ],
)
def test_outside_of_the_profiles(runner: tuple[PlanRunner, Context], sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runner[0].run(inputs(**sizes))
    assert not runner[1].calls


def test_what_cannot_be_read_in_place_is_refused(runner: tuple[PlanRunner, Context]) -> None:
    given = inputs()
    with pytest.raises(TypeError, match=r"sample: expected float32, got torch\.float16"):
        runner[0].run({**given, "sample": given["sample"].half()})
    with pytest.raises(ValueError, match="sample: expected a contiguous tensor"):
        runner[0].run({**given, "sample": given["sample"].transpose(2, 3)})
    with pytest.raises(ValueError, match="sample: expected a tensor on cpu, got one on meta"):
        runner[0].run({**given, "sample": given["sample"].to("meta")})
    runner[1].fails = True
    with pytest.raises(RuntimeError, match="engine: the launch failed"):
        runner[0].run(given)


def test_a_plan_that_the_library_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "toy.plan").write_bytes(b"a plan")
    Runtime.readable = False
    library = TensorRT("tensorrt", SimpleNamespace(__version__="11.0", ILogger=ILogger, Runtime=Runtime))
    with pytest.raises(SidecarError, match=r"plan: tensorrt cannot read toy\.plan"):
        PlanRunner(library, tmp_path / "toy.plan", sidecar(), torch.device("cpu"))


def test_a_cuda_graph_holds_its_own_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.plan").write_bytes(b"a plan")
    Runtime.context, Runtime.readable = Context(), True
    replays: list[int] = []

    class Graph:
        def replay(self) -> None:
            replays.append(1)

    @contextmanager
    def anything(*_: object) -> Iterator[None]:
        yield

    stream = SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None)
    for name, value in {
        "current_stream": lambda device: stream,
        "Stream": lambda device: stream,
        "stream": anything,
        "graph": anything,
        "CUDAGraph": Graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    library = TensorRT("tensorrt", SimpleNamespace(__version__="11.0", ILogger=ILogger, Runtime=Runtime))
    run = PlanRunner(library, tmp_path / "toy.plan", sidecar(), torch.device("cpu"), cuda_graph=True)
    given = inputs()
    first, second = run.run(given), run.run(given)
    launches = [call for call in Runtime.context.calls if call[0] == "launch"]
    assert len(launches) == 2 and len(replays) == 2  # One to warm up, one captured; then replays alone.
    assert first["prediction"].data_ptr() != second["prediction"].data_ptr()
    read = {call[2] for call in Runtime.context.calls if call[0] == "address"}
    assert not read & {tensor.data_ptr() for tensor in given.values()}
    run.run(inputs(height=32))
    assert len([call for call in Runtime.context.calls if call[0] == "launch"]) == 4


def test_the_first_profile_that_fits() -> None:
    beside = sidecar()
    sizes = {"batch": 2, "height": 8, "width": 8, "tokens": 3}
    assert choose_profile(beside, sizes) == 0
    assert choose_profile(beside, {**sizes, "height": 32}) == 1
