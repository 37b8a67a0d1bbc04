"""TensorRT and TensorRT-RTX behind one small interface: one network, one builder configuration, one plan."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from fastcfg.validate import check_choice

from .errors import BuildError

__all__ = ["CAPABILITIES", "RuntimeName", "TensorRT", "load_runtime", "runtime_logger", "usable_runtimes"]

RuntimeName = Literal["tensorrt_rtx", "tensorrt"]

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 builds for ahead of time."""

_EXTRAS = {
    "tensorrt_rtx": "pip install 'fastcfg-diffusion[rtx]'",
    "tensorrt": "pip install tensorrt, from NVIDIA's index",
}


@dataclass(frozen=True)
class TensorRT:
    """One of the two libraries.

    Attributes:
        name: of the module; module: the module; version: its version.
    """

    name: RuntimeName
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def ahead_of_time(self) -> bool:
        """Return whether it builds for a GPU that is not there."""
        return self.name == "tensorrt_rtx"

    def build(
        self,
        onnx: Path,
        profiles: Sequence[Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]],
        *,
        capabilities: Sequence[str] = (),
        on_step: Callable[[str], None] = lambda phase: None,
    ) -> tuple[memoryview, list[str]]:
        """Build a strongly typed plan of a graph.

        Args:
            onnx: the file; its external data lies beside it.
            profiles: for each, lowest, usual and highest shape of every input by name.
            capabilities: compute capabilities (``"8.9"``); none is the GPU's own.
            on_step: called with the running phase at each of the builder's steps.

        Returns:
            The plan, and the library's warnings.

        Raises:
            BuildError: with the library's messages.
        """
        trt = self.module
        messages: list[str] = []
        logger = runtime_logger(trt, messages)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(onnx)):
            errors = [str(parser.get_error(i)).strip().splitlines()[0] for i in range(parser.num_errors)]
            raise BuildError(f"onnx: {self.name} cannot read {onnx.name}: {'; '.join(errors)[:600]}")
        config = builder.create_builder_config()
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            for index in range(network.num_inputs):
                name = network.get_input(index).name
                profile.set_shape(name, *(tuple(shape) for shape in shapes[name]))
            config.add_optimization_profile(profile)
        if capabilities:
            config.num_compute_capabilities = len(capabilities)
            for index, capability in enumerate(capabilities):
                config.set_compute_capability(_capability(trt, capability), index)
        config.progress_monitor = _monitor(trt, on_step)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildError(f"onnx: {self.name} cannot build {onnx.name}: {'; '.join(messages)[-600:]}")
        return memoryview(plan), messages


def _capability(trt: Any, text: str) -> Any:
    return getattr(trt.ComputeCapability, f"SM{text.replace('.', '')}")


def runtime_logger(trt: Any, messages: list[str]) -> Any:
    """The library's logger, which keeps warnings and worse in a list."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            # The engine gives integer inputs the dtype that it is told to make sure of.
            if severity <= trt.ILogger.Severity.WARNING and "Make sure input" not in text:
                messages.append(text.strip())

    return Logger()


def _monitor(trt: Any, on_step: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            on_step(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            on_step(phase)
            return True

        def phase_finish(self, phase: str) -> None:
            on_step(phase)

    return Monitor()


def load_runtime(name: str = "tensorrt_rtx") -> TensorRT:
    """A library by name.

    Raises:
        ImportError: if it is not installed, saying how.
        ValueError: for another name.
    """
    check_choice("runtime", name, tuple(_EXTRAS))
    try:
        module = importlib.import_module(name)
        _ = module.__version__
    except Exception as error:  # The bindings raise what their missing libraries make them raise.
        raise ImportError(f"runtime: {name} cannot be imported ({error}); {_EXTRAS[name]}") from None
    return TensorRT(cast(RuntimeName, name), module)


def usable_runtimes() -> dict[str, str]:
    """For each library its version, or ``"no: …"`` and why."""
    found = {}
    for name in _EXTRAS:
        try:
            found[name] = load_runtime(name).version
        except ImportError as error:
            found[name] = f"no: {error}"
    return found
