"""Checks of tensors' memory: may native code touch it, and is it shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["collide", "observed", "readable", "stored"]

_OWN = (Tensor, Parameter)
"""Types whose memory is what they hold. A subclass may wrap other tensors, stand for none, or keep them elsewhere."""


def observed() -> bool:
    """Return whether something has to see torch's own operations: a trace, a transform, or a dispatch mode.

    These are ``torch.compile`` and ``torch.export``, ``torch.jit.trace``, ``torch.func`` (vmap, grad, jvp),
    forward-mode differentiation, and every ``TorchDispatchMode`` (``FakeTensorMode``, ``make_fx``, counters).
    Inside them a new tensor may have no memory, whatever the inputs have.
    """
    return (
        torch.compiler.is_compiling()
        or (_len_torch_dispatch_stack() > 0 and not _counted())
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _get_tracing_state() is not None  # type: ignore[no-untyped-call]
    )


def _counted() -> bool:
    """Return whether every dispatch mode only counts operations, as its class says by ``counts_only``."""
    return all(getattr(mode, "counts_only", False) for mode in _get_current_dispatch_mode_stack())


def readable(tensors: Sequence[Tensor], values: Sequence[Any] = ()) -> bool:
    """Return whether native code may read and write the memory of all tensors, which no other function has to ask.

    It may not where something is :func:`observed`, where a gradient is recorded, or where a tensor is of a subclass.
    torch's own operations are right in all these cases.

    Args:
        tensors: inputs and outputs; values: parameters, of which tensors count.
    """
    if observed():
        return False
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if type(tensor) not in _OWN or (grad and tensor.requires_grad):
            return False
    return all([not isinstance(v, Tensor) or (type(v) in _OWN and not (grad and v.requires_grad)) for v in values])


def stored(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors with their values in memory: torch negates some views (an imaginary part's) as it reads."""
    return [tensor.resolve_neg() for tensor in tensors]


def collide(target: Tensor, source: Tensor) -> bool:
    """Return whether writing ``target`` element by element could change what is still to be read of ``source``."""
    if not _share(target, source):
        return False
    same_place = target.data_ptr() == source.data_ptr() and target.stride() == source.stride()
    return not (same_place and target.dtype == source.dtype)


def _share(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors lie in one memory; what another library lent may be in several storages."""
    a, b = one.untyped_storage(), other.untyped_storage()
    return a.data_ptr() < b.data_ptr() + b.nbytes() and b.data_ptr() < a.data_ptr() + a.nbytes()
