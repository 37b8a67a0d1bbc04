"""A Triton driver whose device is this package: Triton compiles to PTX, and the launch runs it on CPU tensors.

    device = install(arch=90)
    kernel[(4,)](x, y, n)           # a CPU tensor is a GPU tensor here
    device.launches[-1].counts      # what it did

Everything of Triton's own launch path is as on a GPU: binder, specialisation, cache of compiled kernels. Only the last
step, from PTX to machine code, is left out, and the launcher is :class:`Launcher`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget

from .launch import Launch
from .memory import Buffer, Fault, Memory, element_spans
from .schedules import SCHEDULES, Schedule

__all__ = ["Device", "install"]

_SHARED = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that a block may have."""


@dataclass
class Device:
    """The device, and what its next launches are like.

    Attributes:
        arch: compute capability, 90 for 9.0.
        resident: blocks that it holds at once.
        schedule: a name in :data:`~.schedules.SCHEDULES`, or a function that makes one.
        warps, spread, count, patience, seed: as :class:`~.launch.Launch` has them.
        unset_is_nan: whether a NaN among the elements of an argument means that nothing was written there; torch fills
            new memory so where ``torch.use_deterministic_algorithms`` is on. Off for inputs that hold NaN.
        strict: whether findings (races, uninitialised memory) are raised at the end of a launch.
        rewrite: changes the PTX before it runs: mutants.
        launches: those that have run, the last ``keep`` of them.
    """

    arch: int = 90
    resident: int = 132
    schedule: str | Callable[[], Schedule] = "fair"
    warps: bool = False
    spread: bool = False
    count: bool = False
    patience: int = 20_000
    seed: int = 0
    unset_is_nan: bool = True
    strict: bool = True
    rewrite: Callable[[str], str] | None = None
    keep: int = 64
    launches: list[Launch] = field(default_factory=list)

    def launch(
        self, text: str, grid: tuple[int, int, int], arguments: Sequence[tuple[str, str, Any]], shared: int,
        cooperative: bool,
    ) -> Launch:  # fmt: skip
        """Run PTX on arguments ``(name, type, value)``.

        Raises:
            Fault: for what a GPU would punish or leave undefined.
        """
        tensors = [(name, value) for name, _, value in arguments if isinstance(value, torch.Tensor)]
        memory = Memory([_buffer(name, tensor, self.unset_is_nan) for name, tensor in tensors])
        # Triton's last two parameters are for memory of its own, which these kernels do not ask for.
        bits = [*(_bits(kind, value) for _, kind, value in arguments), 0, 0]
        launch = Launch(
            text if self.rewrite is None else self.rewrite(text), grid, bits, memory, shared=shared,
            resident=self.resident, cooperative=cooperative, warps=self.warps, spread=self.spread, count=self.count,
            schedule=(SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule)(),
            patience=self.patience, seed=self.seed + len(self.launches),
        )  # fmt: skip
        self.launches.append(launch)
        del self.launches[: -self.keep]
        launch.run()
        if self.strict and launch.findings:
            raise Fault(f"{launch.kernel.name}: " + "; ".join(map(str, launch.findings)))
        return launch


def _buffer(name: str, tensor: torch.Tensor, unset_is_nan: bool) -> Buffer:
    storage = tensor.untyped_storage()
    raw = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    size = tensor.element_size()
    strides = tuple(step * size for step in tensor.stride())
    spans = element_spans(tensor.data_ptr(), tuple(tensor.shape), strides, size)
    buffer = Buffer(name, spans, storage.data_ptr(), raw)
    if unset_is_nan and tensor.is_floating_point():
        bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[size]
        most = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF << 52}
        values = raw[buffer.index()].view(bits)
        nan = (values & bits(2 ** (8 * size - 1) - 1)) > bits(most[tensor.dtype])
        buffer.unset = np.repeat(nan, size) if nan.any() else None
    return buffer


def _bits(kind: str, value: Any) -> int:
    """An argument as the launcher hands it to the device: Triton's type says what it is converted to."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if kind in ("fp32", "fp64"):
        number = {"fp32": np.float32, "fp64": np.float64}[kind](value)
        return int.from_bytes(number.tobytes(), "little")
    if kind in ("i1", "u1"):
        return int(bool(value))
    if kind[0] in "iu":
        return int(value) & (2 ** int(kind[1:]) - 1)
    raise Fault(f"an argument of type {kind}, which this launcher does not know")


def _flat(name: str, kind: Any, value: Any) -> list[tuple[str, str, Any]]:
    """An argument, or a tuple of them, without constants: Triton compiles those in."""
    if isinstance(kind, tuple):
        return [
            found
            for i, (k, v) in enumerate(zip(kind, value, strict=True))
            for found in _flat(f"{name}[{i}]", k, v)
        ]  # fmt: skip
    return [] if kind == "constexpr" else [(name, kind, value)]


class _Launcher:
    """What Triton calls to launch a compiled kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise Fault("a kernel that wants scratch memory, which this device does not hand out")
        self.signature = source.signature
        self.cooperative = metadata.launch_cooperative_grid

    def __call__(
        self, x: int, y: int, z: int, stream: Any, function: Any, packed: Any, metadata: Any, enter: Any, leave: Any,
        *arguments: Any,
    ) -> None:  # fmt: skip
        device, text, shared = function
        given = zip(self.signature.items(), arguments, strict=True)
        flat = [found for (name, kind), value in given for found in _flat(name, kind, value)]
        device.launch(text, (x, y, z), flat, shared, self.cooperative)


class _Utils:
    def __init__(self, device: Device) -> None:
        self.device = device

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        return object(), (self.device, binary.decode(), shared), 32, 0, 1024

    def unload_module(self, module: Any) -> None: ...

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": _SHARED[self.device.arch], "multiprocessor_count": self.device.resident}


class _Driver:
    """Triton's driver interface. The device's number is its architecture, so that Triton keeps their kernels apart."""

    def __init__(self, device: Device) -> None:
        self.device, self.utils, self.launcher_cls = device, _Utils(device), _Launcher

    def get_current_device(self) -> int:
        return self.device.arch

    def set_current_device(self, device: int) -> None:
        self.device.arch = device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    @staticmethod
    def is_active() -> bool:
        return True


def install(arch: int = 90) -> Device:
    """Make the software GPU Triton's device, for this process.

    Raises:
        RuntimeError: under Triton's interpreter (``TRITON_INTERPRET``), which compiles nothing.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("Triton's interpreter is on (TRITON_INTERPRET), so that no kernel is compiled")
    compiler = backends["nvidia"].compiler

    class ToPTX(compiler):  # type: ignore[misc, valid-type]
        """Triton's own compiler for NVIDIA's GPUs, up to PTX."""

        def __init__(self, target: Any) -> None:
            super().__init__(target)
            self.binary_ext = "ptx"

        def add_stages(self, stages: dict[str, Any], options: Any, language: Any) -> None:
            super().add_stages(stages, options, language)
            del stages["cubin"]

        def hash(self) -> str:
            return f"software GPU {self.target.arch}"

    device = Device(arch)
    backends["nvidia"] = type(backends["nvidia"])(compiler=ToPTX, driver=backends["nvidia"].driver)
    triton.runtime.driver.set_active(_Driver(device))
    return device
