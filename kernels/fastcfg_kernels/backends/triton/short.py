"""The short way to a launch: one look-up on the tensors' signature, then pointers are filled in and a kernel runs.

What the look-up finds was worked out by a call that went the long way. It holds compiled kernels, their launchers and
all arguments that shapes and strides fix, so that none of Triton's own look-ups is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...memory import observed
from ..cpu import entry

if TYPE_CHECKING:
    from ...call import Call
    from .launch import Prepared

__all__ = ["Launches", "note"]

KEPT = 256
"""Signatures of a program that are kept; a server's shapes are few."""


class Launches:
    """The prepared launches of a program by signature."""

    def __init__(self, names: Sequence[str], params: Sequence[str], is_lerp: bool) -> None:
        self._names = tuple(names)
        self._params = tuple(params)
        self._is_lerp = is_lerp
        self._known: dict[Any, Callable[..., bool]] = {}

    def add(self, call: Call, alignment: Sequence[int], launch: Callable[..., bool]) -> None:
        """Note what a call has launched.

        Args:
            alignment: of the call's pointers; a new result has memory of its own, which is aligned.
        """
        [(_, target)] = call.targets
        out = target if isinstance(target, Tensor) else None
        tensors = call.inputs if out is None else (*call.inputs, out)
        values = [v for v in call.values if isinstance(v, Tensor)]
        if all([v.is_contiguous() for v in values]):
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[_signature(tensors, call.values)] = launch

    def guide(
        self,
        predictions: Mapping[str, Any],
        numbers: tuple[float, ...],
        params: Mapping[str, Any] | None,
        out: Tensor | None,
        backend: str | None,
    ) -> Tensor | None:
        """Return the guided prediction, or None where the call has to go the long way."""
        # The environment says nothing where the argument does.
        if observed() or not entry.is_open(backend is None) or len(predictions) != len(self._names):
            return None
        grad = torch.is_grad_enabled()
        tensors = [predictions.get(name) for name in self._names]
        if out is not None:
            tensors.append(out)
        for tensor in tensors:
            if type(tensor) is not Tensor or tensor.is_neg() or (grad and tensor.requires_grad):
                return None
        first: Any = tensors[0]
        values: list[Any] = list(numbers)
        if params:
            for name, value in params.items():
                if name not in self._params:
                    return None
                if type(value) is Tensor:
                    if (grad and value.requires_grad) or not value.is_contiguous():
                        return None
                elif type(value) is not float or value - value != 0.0:
                    return None
                values[self._params.index(name)] = value
        if backend is None and (first.device.type != "cuda" or (self._is_lerp and not params)):
            return None
        launch = self._known.get(_signature(tensors, values))
        if launch is None:
            return None
        if out is not None:
            tensors.pop()
            size, start = out.nbytes, out.data_ptr()
            for tensor in tensors:  # Apart, or the very same elements in the same order.
                away = abs(tensor.data_ptr() - start)  # type: ignore[union-attr]
                if away < size and (away or not out.is_contiguous()):
                    return None
        made = torch.empty_like(first) if out is None else out
        return made if launch(tuple(tensors), (made,), tuple(values)) else None


def _signature(tensors: Sequence[Any], values: Sequence[Any]) -> Any:
    """Return what a prepared launch depends on: shapes, strides, dtypes, devices and alignment, of parameters too."""
    parts: list[Any] = []
    for tensor in (*tensors, *values):
        if isinstance(tensor, Tensor):
            parts += (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() & 15)
        else:
            parts.append(None)
    return tuple(parts)


def _launcher(
    prepared: Prepared, alignment: tuple[int, ...], device: torch.device, arrivals: Callable[..., Tensor]
) -> Any:
    """Return a function that launches prepared kernels on predictions, outputs and values; None where none are kept."""
    from triton import knobs
    from triton.runtime import driver

    kernels: list[Any] = [launch.ready(alignment) for launch in prepared.launches]
    if None in kernels:
        return None
    workspace, dtype = prepared.workspace, prepared.accumulator
    cooperative = prepared.plan.strategy == "cooperative"
    groups, on_cuda, index = prepared.layout.groups, device.type == "cuda", device.index

    def launch(predictions: tuple[Tensor, ...], outs: tuple[Tensor, ...], values: tuple[Any, ...]) -> bool:
        runtime, active = knobs.runtime, driver.active
        # A profiler's hook wants to know what the short way does not say. Triton keeps a chain of them, or None.
        for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
            if hook is not None and getattr(hook, "calls", True):
                return False
        if on_cuda and torch._C._cuda_getDevice() != index:
            return False
        given: dict[str, Any] = {"predictions": predictions, "outs": outs, "tail": (), "parameters": values}
        if workspace is not None:
            given["workspace"] = torch.empty(workspace, dtype=dtype, device=device)
        if cooperative:
            given["arrivals"] = arrivals(groups, device)
        stream = active.get_current_stream(active.get_current_device())
        for run, function, packed, programs, fixed, places in kernels:
            arguments = list(fixed)
            for place, name in places:
                arguments[place] = given[name]
            run(programs, 1, 1, stream, function, packed, None, None, None, *arguments)
        return True

    return launch


def note(call: Call, prepared: Prepared, alignment: tuple[int, ...], arrivals: Callable[..., Tensor]) -> None:
    """Keep a call's launches for the short way, where its program has one and the call is of the common kind."""
    program = call.program
    if not program.short or call.strategy or call.groups or call.stats is not None or len(call.targets) != 1:
        return
    [(_, target)] = call.targets
    dtype = target.dtype if isinstance(target, Tensor) else target
    if dtype is not call.first.dtype or dtype is torch.float64:
        return
    launch = _launcher(prepared, alignment, call.first.device, arrivals)
    if launch is not None:
        way = entry.short_way(program)
        if way.launches is None:
            way.launches = Launches(program.predictions, program.params, program.is_lerp)
        way.launches.add(call, alignment, launch)
