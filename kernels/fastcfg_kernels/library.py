"""The op ``fastcfg::guide``: a fused guidance as one node of a graph that ``torch.compile`` makes for a GPU.

Eager calls do not come here, since a registered op costs more than a launch. Exported graphs hold torch operations in
its place: a graph has to run where this package is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends.registry import leave, left, requested_backend
from .backends.torch import functional
from .backends.torch.tiles import accumulator
from .backends.triton import backend as triton_backend
from .formula.program import IN_GRAPHS, Program
from .tracing import constant_when_traced

__all__ = ["guide_in_graph", "wanted"]

_library = torch.library.Library("fastcfg", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "guide(Tensor[] inputs, Tensor[] params, str program, str dtypes, int[] results, int[]? dims, "
    "str? strategy, bool forced) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@constant_when_traced
def wanted(is_lerp: bool, device: str, backend: str | None = None) -> bool:
    """Whether a graph for a device should hold the op: on a GPU, for what is not one ``torch.lerp`` anyway.

    Args:
        backend: as a caller gives it; by default the environment variable ``FASTCFG_BACKEND`` says.
    """
    if device != "cuda" or is_lerp or requested_backend(backend) not in ("auto", "triton"):
        return False
    return triton_backend.unavailable(torch.device(device)) is None


def guide_in_graph(
    program: Program,
    inputs: Sequence[Tensor],
    params: Sequence[Any],
    dtypes: Sequence[torch.dtype],
    results: Sequence[int],
    dims: Sequence[int] | None,
    strategy: str | None,
    forced: bool,
) -> list[Tensor]:
    """Guide by the op; numbers become 0-dim tensors, whose values no graph depends on.

    Args:
        inputs, params, results, dims, strategy: as
            :func:`~fastcfg_kernels.backends.triton.backend.guide_triton` has them.
        dtypes: of each result.
        forced: whether a kernel that can't be built or run is an error, not a reason to take torch operations.
    """
    acc = accumulator(inputs[0].dtype)
    device = inputs[0].device
    given = [p if isinstance(p, Tensor) else torch.full((), p, dtype=acc, device=device) for p in params]
    names = ",".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    found: list[Tensor] = torch.ops.fastcfg.guide(
        list(inputs), given, program.in_graph(), names, list(results), dims, strategy, forced
    )
    return found


def _dtypes(names: str) -> list[torch.dtype]:
    return [getattr(torch, name) for name in names.split(",")]


def _empty(inputs: Sequence[Tensor], dtypes: str) -> list[Tensor]:
    return [torch.empty_like(inputs[0], dtype=dtype) for dtype in _dtypes(dtypes)]


def _fake(inputs: list[Tensor], params: list[Tensor], program: str, dtypes: str, *rest: Any) -> Any:
    return _empty(inputs, dtypes)


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
    outs, chosen = _empty(inputs, dtypes), IN_GRAPHS[program]
    if forced or not left(chosen):
        try:
            triton_backend.guide_triton(chosen, inputs, params, outs, results, dims=dims, strategy=strategy)
            return outs
        except Exception as error:
            if forced:
                raise
            leave(chosen, "triton", error)
    return _run_torch(inputs, params, program, dtypes, results, dims, strategy, forced)


def _torch(
    inputs: Sequence[Tensor],
    params: Sequence[Tensor],
    program: str,
    dtypes: str,
    results: Sequence[int],
    dims: Sequence[int] | None,
) -> list[Tensor]:
    """The op in torch operations."""
    from .groups import Groups

    shape = inputs[0].shape
    groups = None if dims is None else Groups(shape, dims)
    rows = [t.flatten(1) if groups is None else groups.rows(t) for t in inputs]
    values = params if groups is None else [groups.values(p) for p in params]
    found = functional.guide_rows(IN_GRAPHS[program], rows, values)
    made = [found[k].to(dtype) for k, dtype in zip(results, _dtypes(dtypes), strict=True)]
    return [r.view(shape) if groups is None else groups.back(r) for r in made]


def _run_torch(
    inputs: list[Tensor],
    params: list[Tensor],
    program: str,
    dtypes: str,
    results: list[int],
    dims: list[int] | None,
    strategy: Any,
    forced: bool,
) -> list[Tensor]:
    outs = _empty(inputs, dtypes)
    for out, result in zip(outs, _torch(inputs, params, program, dtypes, results, dims), strict=True):
        out.copy_(result)
    return outs


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors, params, ctx.program, ctx.dtypes, ctx.results, ctx.dims, *_ = inputs
    ctx.size = len(tensors)
    ctx.save_for_backward(*tensors, *params)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Gradients of the torch form, worked out again: sums and weights are cheap beside keeping them."""
    with torch.enable_grad():
        saved = [t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors]
        found = _torch(saved[: ctx.size], saved[ctx.size :], ctx.program, ctx.dtypes, ctx.results, ctx.dims)
        pairs = [(r, g) for r, g in zip(found, grads, strict=True) if g is not None and r.requires_grad]
        wanted = [t for t in saved if t.requires_grad]
        made = iter(torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
    every = [next(made) if t.requires_grad else None for t in saved]
    return every[: ctx.size], every[ctx.size :], None, None, None, None, None, None


_library.impl("guide", _run, "CUDA")  # type: ignore[no-untyped-call]
_library.impl("guide", _run_torch, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("fastcfg::guide", _fake, lib=_library)
torch.library.register_autograd("fastcfg::guide", _backward, setup_context=_setup, lib=_library)
