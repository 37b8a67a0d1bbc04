"""A plan on the GPU: torch's tensors by name, torch's stream, no copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import SidecarError
from .runtimes import TensorRT, runtime_logger
from .sidecar import Sidecar
from .signature import TensorSpec

__all__ = ["PlanRunner", "check_inputs", "choose_profile"]


def choose_profile(sidecar: Sidecar, sizes: Mapping[str, int]) -> int:
    """The first profile that these sizes are in.

    Raises:
        ValueError: naming the axes that are outside, and what the plan serves.
    """
    reasons = []
    for index, profile in enumerate(sidecar.profiles):
        outside = {name: profile[name].refusal(size) for name, size in sizes.items()}
        refused = [f"{name} {sizes[name]} (serves {why})" for name, why in outside.items() if why]
        if not refused:
            return index
        reasons.append(f"profile {index}: {', '.join(refused)}")
    raise ValueError(f"inputs: outside the plan's profiles: {'; '.join(reasons)}; build one that covers them")


def check_inputs(specs: tuple[TensorSpec, ...], inputs: Mapping[str, Tensor], device: torch.device) -> None:
    """Compare tensors with what a plan reads in place.

    Raises:
        TypeError, ValueError: naming the input that is missing or unknown, or of another dtype, device or layout.
    """
    names = [spec.name for spec in specs]
    if set(inputs) != set(names):
        missing, unknown = sorted(set(names) - set(inputs)), sorted(set(inputs) - set(names))
        raise ValueError(f"inputs: expected {names}; missing {missing}, unknown {unknown}")
    for spec in specs:
        tensor = inputs[spec.name]
        if tensor.dtype != spec.torch_dtype:
            raise TypeError(f"{spec.name}: expected {spec.dtype}, got {tensor.dtype}")
        if tensor.device.type != device.type or (device.index is not None and tensor.device.index != device.index):
            raise ValueError(f"{spec.name}: expected a tensor on {device}, got one on {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{spec.name}: expected a contiguous tensor, since it is read in place")


class PlanRunner:
    """A deserialised plan.

    Args:
        library: the library that built it; plan: its file; sidecar: already compared with the file.
        device: the GPU.
        cuda_graph: capture a graph for each set of shapes. Inputs are then copied into the graph's own memory, and
            outputs out of it, which pays where launches cost more than that: small models.

    Raises:
        SidecarError: if the library cannot read it.
    """

    def __init__(
        self, library: TensorRT, plan: Path, sidecar: Sidecar, device: torch.device, cuda_graph: bool = False
    ) -> None:
        trt = library.module
        self._messages: list[str] = []
        self._logger = runtime_logger(trt, self._messages)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise SidecarError(f"plan: {library.name} cannot read {plan.name}: {'; '.join(self._messages)[-400:]}")
        self._context = self._engine.create_execution_context()
        self._sidecar = sidecar
        self._device = device
        self._profile = -1
        self._graphs: dict[Any, tuple[Any, dict[str, Tensor], dict[str, Tensor]]] | None = {} if cuda_graph else None

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, on the current stream; nothing waits."""
        signature = self._sidecar.signature
        check_inputs(signature.inputs, inputs, self._device)
        sizes = signature.sizes({name: tensor.shape for name, tensor in inputs.items()})
        profile = choose_profile(self._sidecar, sizes)
        if self._graphs is None:
            return self._launch(inputs, sizes, profile)
        key = tuple(sizes.items())
        if key not in self._graphs:
            self._graphs[key] = self._capture(inputs, sizes, profile)
        graph, held, results = self._graphs[key]
        for name, tensor in inputs.items():
            held[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return {name: tensor.clone() for name, tensor in results.items()}

    def _launch(self, inputs: Mapping[str, Tensor], sizes: Mapping[str, int], profile: int) -> dict[str, Tensor]:
        stream = torch.cuda.current_stream(self._device).cuda_stream
        context = self._context
        if profile != self._profile:
            context.set_optimization_profile_async(profile, stream)
            self._profile = profile
        for name, tensor in inputs.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = {}
        for spec in self._sidecar.signature.outputs:
            outputs[spec.name] = torch.empty(spec.shape(sizes), dtype=spec.torch_dtype, device=self._device)
            context.set_tensor_address(spec.name, outputs[spec.name].data_ptr())
        if not context.execute_async_v3(stream):
            raise RuntimeError(f"engine: the launch failed: {'; '.join(self._messages)[-400:]}")
        return outputs

    def _capture(
        self, inputs: Mapping[str, Tensor], sizes: Mapping[str, int], profile: int
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        held = {name: tensor.clone() for name, tensor in inputs.items()}
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            self._launch(held, sizes, profile)  # What is allocated on first use must not be captured.
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self._launch(held, sizes, profile)
        return graph, held, results
