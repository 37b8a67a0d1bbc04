"""The op ``fastcfg::guide``: a fused guidance as one node of a graph that ``torch.compile`` makes for a GPU.

Eager calls do not come here, since a registered op costs more than a launch. Exported graphs hold torch operations in
its place: a graph has to run where this package is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.torch import backend as torch_operations
from .backends.torch.tiles import accumulator
from .backends.triton import backend as triton_backend
from .call import Call
from .formula.program import IN_GRAPHS
from .groups import Groups
from .tracing import constant_when_traced

__all__ = ["guide_in_graph", "wanted", "wanted_in_graph"]

_library = torch.library.Library("fastcfg", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "guide(Tensor[] inputs, Tensor[] params, str program, str dtypes, int[] results, int[]? dims, "
    "str? strategy, bool forced) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@constant_when_traced
def wanted(is_lerp: bool, device: str, backend: str | None = None) -> bool:
    """Return whether a graph for a device should hold the op: on a GPU, for what is not one ``torch.lerp`` anyway.

    Args:
        backend: as a caller gives it; by default the environment variable ``FASTCFG_BACKEND`` says.
    """
    if device != "cuda" or is_lerp or registry.requested_backend(backend) not in ("auto", "triton"):
        return False
    return triton_backend.unavailable(torch.device(device)) is None


def wanted_in_graph(call: Call, backend: str | None) -> bool:
    """Return whether the graph that is being traced should hold the op; exported graphs hold torch operations."""
    if torch.compiler.is_exporting() or call.merge is not None or call.stats is not None:
        return False
    return wanted(call.program.is_lerp, call.first.device.type, backend)


def guide_in_graph(call: Call, forced: bool) -> list[Tensor]:
    """Guide by the op; numbers become 0-dim tensors, whose values no graph depends on.

    Args:
        forced: whether Triton was asked for by name: where it fails, the op raises then. Otherwise it says so once
            and takes torch operations, as a call outside graphs does.

    Returns:
        New tensors, one for each target.
    """
    first = call.first
    acc = accumulator(first.dtype)
    given = [p if isinstance(p, Tensor) else torch.full((), p, dtype=acc, device=first.device) for p in call.values]
    dtypes = [t if isinstance(t, torch.dtype) else t.dtype for _, t in call.targets]
    names = ",".join([str(dtype).removeprefix("torch.") for dtype in dtypes])
    dims = None if call.groups is None else call.groups.dims
    found: list[Tensor] = torch.ops.fastcfg.guide(
        list(call.tensors), given, call.program.in_graph(), names, list(call.results), dims, call.strategy, forced
    )
    return found


def _dtypes(names: str) -> list[torch.dtype]:
    return [getattr(torch, name) for name in names.split(",")]


def _empty(inputs: Sequence[Tensor], dtypes: str) -> list[Tensor]:
    return [torch.empty_like(inputs[0], dtype=dtype) for dtype in _dtypes(dtypes)]


def _fake(inputs: list[Tensor], params: list[Tensor], program: str, dtypes: str, *rest: Any) -> Any:
    return _empty(inputs, dtypes)


def _call(
    inputs: Sequence[Tensor],
    params: Sequence[Tensor],
    program: str,
    dtypes: str,
    results: Sequence[int],
    dims: Sequence[int] | None,
    strategy: Any = None,
    native: bool = True,
) -> Call:
    """Return what the op was given as a call; a trace has checked it."""
    of = IN_GRAPHS[program]
    end = len(of.predictions) + len(of.extras)
    groups = None if dims is None else Groups(inputs[0].shape, dims)
    tensors = tuple(inputs)
    places = _empty(inputs, dtypes) if native else _dtypes(dtypes)  # As the fake has them, whatever the groups.
    targets: Any = tuple(zip(results, places, strict=True))
    return Call(of, tensors[:end], tensors[end:], tuple(params), targets, groups, None, None, strategy, native)


def _run(
    inputs: list[Tensor],
    params: list[Tensor],
    program: str,
    dtypes: str,
    results: list[int],
    dims: list[int] | None,
    strategy: Any,
    forced: bool,
) -> list[Tensor]:
    call = _call(inputs, params, program, dtypes, results, dims, strategy)
    if forced:
        return triton_backend.run(call)
    return registry.run_or_leave("triton", call)


def _on_cpu(
    inputs: list[Tensor],
    params: list[Tensor],
    program: str,
    dtypes: str,
    results: list[int],
    dims: list[int] | None,
    strategy: Any,
    forced: bool,
) -> list[Tensor]:
    return torch_operations.run(_call(inputs, params, program, dtypes, results, dims))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors, params, ctx.program, ctx.dtypes, ctx.results, ctx.dims, _, _ = inputs
    ctx.size = len(tensors)
    ctx.save_for_backward(*tensors, *params)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Gradients of the torch form, worked out again: sums and weights are cheap beside keeping them."""
    with torch.enable_grad():
        saved = [t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors]
        given = (saved[: ctx.size], saved[ctx.size :], ctx.program, ctx.dtypes, ctx.results, ctx.dims)
        found = torch_operations.run(_call(*given, native=False))
        pairs = [(r, g) for r, g in zip(found, grads, strict=True) if g is not None and r.requires_grad]
        wanted = [t for t in saved if t.requires_grad]
        made = iter(torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
    every = [next(made) if t.requires_grad else None for t in saved]
    return every[: ctx.size], every[ctx.size :], None, None, None, None, None, None


_library.impl("guide", _run, "CUDA")  # type: ignore[no-untyped-call]
_library.impl("guide", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("fastcfg::guide", _fake, lib=_library)
torch.library.register_autograd("fastcfg::guide", _backward, setup_context=_setup, lib=_library)
