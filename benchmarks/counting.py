"""Costs of a call besides time: kernels launched and bytes moved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .peers import Call

__all__ = ["Counted", "Work", "count", "gpu_launches", "work"]


@dataclass(frozen=True)
class Counted:
    """Operations that a call asked of torch; the kernels that fastcfg launches itself are not among them.

    Attributes:
        operations: all that are dispatched but views and allocations; scalar arithmetic on tensors among them.
        passes: those that read or write a tensor as large as the latent, a kernel launch each on a GPU.
        traffic: bytes of such tensors that they read and write.
    """

    operations: int
    passes: int
    traffic: int


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched."""

    counts_only = True  # fastcfg takes the path that it takes without.

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.operations, self.passes, self.traffic = size, 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.name.split("::")[1].split(".")[0] in ("empty", "empty_like", "empty_strided"):
            return result
        flat = torch.utils._pytree.tree_leaves((args, kwargs, result))
        large = [t for t in flat if isinstance(t, Tensor) and t.numel() >= self.size]
        self.operations += 1
        self.passes += bool(large)
        self.traffic += sum(t.numel() * t.element_size() for t in large)
        return result


def count(call: Call, size: int) -> Counted:
    """Run a call once and count.

    Args:
        size: elements of the latent.
    """
    with _Counter(size) as counter:
        call()
    return Counted(counter.operations, counter.passes, counter.traffic)


@dataclass(frozen=True)
class Work:
    """The work of one call.

    Attributes:
        launches: kernels: what the GPU was given; on a CPU operations of torch, kernels that Inductor made (the
            libraries' that it calls aside), or 1 for fastcfg's native code.
        moved: bytes that they read and write, whether these come from memory or from a cache; None if not known.
    """

    launches: int
    moved: int | None


def work(call: Call, size: int, device: str, own: Callable[[int], int]) -> Work:
    """Run a call a few times and find out what it does.

    Args:
        call: one that has not run yet: what Inductor makes is seen at its first run.
        size: elements of the prediction; what is smaller is not counted as bytes.
        own: bytes that fastcfg's kernels move by their number, for a call that torch sees nothing of.
    """
    made = _made_by_inductor(call)
    launches = gpu_launches(call) if device == "cuda" else None
    if made is not None:
        return Work(made.launches if launches is None else launches, made.moved)
    seen = count(call, size)
    if not seen.operations:
        launches = launches or 1
        return Work(launches, own(launches))
    return Work(seen.operations if launches is None else launches, seen.traffic)


def _made_by_inductor(call: Call) -> Work | None:
    """Run a call for the first time; the kernels that Inductor makes of it, if any."""
    from torch._inductor import config, metrics

    with _inductor_counts(), config.patch(fx_graph_cache=False):  # A cached graph comes without its bytes.
        kernels, moved = metrics.generated_kernel_count, metrics.num_bytes_accessed
        call()
        kernels, moved = metrics.generated_kernel_count - kernels, metrics.num_bytes_accessed - moved
    return Work(kernels, moved or None) if kernels else None


@contextmanager
def _inductor_counts() -> Iterator[None]:
    """Inductor adds bytes up only while it logs them."""
    from torch._inductor.compile_fx import inductor_metrics_log as log

    level, log.propagate = log.level, False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.propagate = True


def gpu_launches(call: Call, profiler: Any = torch.profiler, wait: Callable[[], None] = torch.cuda.synchronize) -> int:
    """Kernels, copies and fills that a call gives the GPU.

    Args:
        profiler: ``torch.profiler``; wait: for the GPU. Or what stands for them in a test.
    """
    wait()
    with profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        wait()
    return sum(event.device_type.name == "CUDA" for event in profile.events())
