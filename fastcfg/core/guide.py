"""Guidance of named predictions by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.backends.torch.functional import Merge
from fastcfg_kernels.checks import check_map, check_out, check_tensors
from torch import Tensor

from ..prediction import Prediction
from ..rules import Rule
from .grid import Grid
from .launch import check_names, domain_levels, launch, parameter_values, rule_inputs
from .state import State

__all__ = ["guide", "split_batch"]


def split_batch(rule: Rule, batch: Tensor, order: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The predictions of one tensor that holds all of them along dim 0, as views.

    Args:
        batch: ``[k*B, ...]``, k blocks of B samples in the order of ``rule.conditions``, or of ``order``.
        order: the blocks' names where they come in another order (``("cond", "uncond")``, say).

    Raises:
        ValueError: naming ``order`` or ``batch`` if they don't fit the rule.
    """
    names = tuple(order or rule.conditions)
    if sorted(names) != sorted(rule.conditions):
        raise ValueError(f"order: expected the names {list(rule.conditions)} in some order, got {list(names)}")
    if not isinstance(batch, Tensor):
        raise TypeError(f"batch: expected a tensor, got {type(batch).__name__}")
    if batch.dim() < 2 or batch.shape[0] % len(names):
        raise ValueError(
            f"batch: expected [k*B, ...] with k = {len(names)} ({', '.join(names)}), got {list(batch.shape)}"
        )
    parts = batch.view(len(names), batch.shape[0] // len(names), *batch.shape[1:]).unbind(0)
    return dict(zip(names, parts, strict=True))


def guide(
    rule: Rule,
    batch: Tensor | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
    order: Sequence[str] | None = None,
    check: bool = False,
    state: State | None = None,
    numerics: Literal["fp32", "eager"] = "fp32",
    x: Tensor | None = None,
    prediction: Prediction | None = None,
    scale_map: Tensor | None = None,
    mask: Tensor | None = None,
    shards: Merge | None = None,
    stats: Sequence[str] = (),
    stats_out: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    batched: bool = True,
    **predictions: Tensor,
) -> Tensor:
    """The guided prediction of a rule.

    ``guide(CFG(7.5), uncond=u, cond=c)``, or ``guide(CFG(7.5), batch)`` for one tensor that holds all of them.

    Args:
        rule: a rule whose schedules are resolved (``rule.at(step, num_steps)``).
        batch: ``[k*B, ...]``, the predictions along dim 0 in the order of ``rule.conditions`` (or of ``order``).
        params: overrides of the rule's parameters by name: a number, or a 0-dim or ``[B]`` floating tensor for a
            value per sample. Nothing is read back from a device.
        out: tensor to write; it may be one of the predictions. On a CPU, memory for a new result of some megabytes,
            where the allocator gets it from the system, takes longer than the guidance.
        backend: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"torch"``; see :func:`fastcfg_kernels.guide`.
        order: names of the blocks of ``batch``.
        check: also check that tensors in ``params`` are finite, which waits for the device.
        state: what a rule with memory (momentum, a cached delta) reads and writes: one for each request.
        numerics: ``"fp32"``, float32 accumulation and one rounding; or ``"eager"``, for rules without sums the
            operations of diffusers in their order and the predictions' dtype, and so its bits.
        x, prediction: for a rule with a domain (:class:`fastcfg.InDomain`), the noisy latent ``[B, ...]`` and what
            the model predicts at which noise level.
        scale_map: factor of every delta (what guidance adds to the rule's first prediction), elementwise and before
            anything is measured: 0 leaves that prediction, 1 changes nothing. Floating, of any shape that broadcasts
            to the predictions': ``[B, 1, H, W]`` for regions, ``[B, 1, F, 1, 1]`` for frames. The predictions
            themselves are measured as they are.
        mask: zero or False where an element is left out of every sum (padding tokens, ``[B, T, 1]``); it is guided
            as all others.
        shards: where each rank of ``torch.distributed`` holds a part of every sample, what makes the sums of whole
            samples: a :class:`fastcfg.parallel.Shards`. On torch operations.
        stats: names of scalars that the launch writes too, to say what guidance did to each sample:
            ``"delta_ratio"``, ``"cosine"``, ``"limited"`` and the others of ``fastcfg_kernels.STATS``, or any sum as a
            formula names it (``"dot_uncond_cond"``). The result stays the same to the bit.
        stats_out: where they are written, a contiguous tensor ``[B, K]`` in float32 (float64 for float64) beside the
            predictions; ``[G, K]`` for a rule whose sums run over G groups. Nothing waits for the device.
        grid: the picture's ``(H, W)``, for a rule that works on neighbours (:class:`fastcfg.FDG`) and predictions that
            are tokens ``[B, N, C]``: a pixel each, or a patch of pixels, packed channel by channel.
        batched: False says that the predictions are one sample without a batch's dimension, ``[C, H, W]``, which could
            not be told from a batch of C; so are ``x``, ``out`` and the result then.
        predictions: tensors ``[B, ...]`` of one shape, dtype and device, by the names in ``rule.conditions``.

    Returns:
        ``[B, ...]`` in the predictions' dtype, with float32 accumulation (float64 for float64) and one rounding.

    Raises:
        TypeError, ValueError: naming the argument, for anything that does not fit.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
    if batch is not None:
        if predictions:
            raise ValueError(f"batch: give one tensor or named predictions, not both (got {sorted(predictions)})")
        predictions = split_batch(rule, batch, order)
    elif order is not None:
        raise ValueError(f"order: names the blocks of one tensor that holds all predictions, got {order!r} without it")
    if not batched or grid is not None:
        rest: dict[str, Any] = {"params": params, "backend": backend, "check": check, "state": state, "x": x}
        rest |= {"numerics": numerics, "prediction": prediction, "scale_map": scale_map, "mask": mask}
        rest |= {"shards": shards, "stats": stats, "stats_out": stats_out}
        if not batched:
            if batch is not None:
                raise ValueError("batched: False is for predictions by name, not for one tensor that holds all of them")
            return _of_one_sample(rule, predictions, out, grid, rest)
        return _on_a_grid(rule, predictions, out, grid, rest)
    if params is not None:
        if type(params) is not dict and not isinstance(params, Mapping):
            raise TypeError(f"params: expected a mapping from names to values, got {type(params).__name__}")
        for name in rule.lowered.ranges:
            if name in params:
                rule.lowered.check_range(name, params[name], check)
    plain = scale_map is None and mask is None and shards is None and not stats and stats_out is None
    if (
        plain
        and not check
        and x is None
        and prediction is None
        and numerics == "fp32"
        and not torch.compiler.is_dynamo_compiling()  # The short way itself tells every other trace.
        and (short := rule.short) is not None
    ):
        made = None
        if backend is None:
            made = short.guide(predictions, rule.numbers, params, out)
        if made is None and short.launches is not None and backend in (None, "triton"):
            made = short.launches.guide(predictions, rule.numbers, params, out, backend)
        if made is not None:
            return made
    if rule.prepares:
        if not plain:
            raise ValueError(
                f"scale_map, mask, shards, stats: {type(rule).__name__} makes tensors of the predictions; it takes none"
            )
        return _prepared(rule, predictions, params or {}, out, backend, numerics, check)
    if (x is not None or prediction is not None) and rule.lowered.domain is None:
        raise ValueError(
            f"x, prediction: {type(rule).__name__} works on what the model predicts and reads neither; leave them out, "
            "or give InDomain(rule, ...)"
        )
    tensors, values = rule_inputs(rule, predictions, params, check)
    if mask is not None:
        check_map("mask", mask, tensors[0])
    if numerics == "eager":
        if scale_map is not None or mask is not None or stats or stats_out is not None:
            raise ValueError("numerics: 'eager' has no scale_map, no mask and no stats")
        return _eager(rule, predictions, values, out)
    if numerics != "fp32":
        raise ValueError(f"numerics: expected 'fp32' or 'eager', got {numerics!r}")
    lowered = rule.lowered
    levels, wide = domain_levels(rule, prediction, x)
    if plain and not (levels or lowered.dims or lowered.extras or lowered.updates):
        return fk.guide_checked(tensors, lowered.program, values, out=out, backend=backend)[0]
    mask = mask if stats or lowered.program.reduces else None
    program = lowered.variant(
        affine=len(levels) > 0, scaled=scale_map is not None, masked=mask is not None, stats=stats
    )
    options: dict[str, Any] = {"mask": mask, "shards": shards, "backend": backend, "stats_out": stats_out, "wide": wide}
    if stats and lowered.program.is_lerp and scale_map is None and not levels:
        # A lerp stays one for its bits. Its stats come first: the result may take the place of a prediction.
        launch(rule, program, tensors, values, targets=[], **options)
        named: dict[str, Any] = {**predictions}
        return guide(rule, params=params, out=out, backend=backend, check=check, shards=shards, **named)
    tail = [x] if levels and x is not None else []
    values = [*values, *levels]
    return launch(rule, program, tensors, values, out=out, tail=tail, scale_map=scale_map, state=state, **options)[0]


def _of_one_sample(
    rule: Rule,
    predictions: Mapping[str, Any],
    out: Tensor | None,
    grid: tuple[int, int] | None,
    options: Mapping[str, Any],
) -> Tensor:
    """:func:`guide` of one sample, as a batch of one."""

    def batch_of_one(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        return value.unsqueeze(0)

    given: dict[str, Any] = {name: batch_of_one(name, value) for name, value in predictions.items()}
    x = options["x"]
    one = {**options, "x": None if x is None else batch_of_one("x", x)}
    whole = None if out is None else batch_of_one("out", out)
    result = guide(rule, out=whole, grid=grid, **one, **given)
    return result.squeeze(0) if out is None else out


def _on_a_grid(
    rule: Rule,
    predictions: Mapping[str, Any],
    out: Tensor | None,
    grid: tuple[int, int] | None,
    options: Mapping[str, Any],
) -> Tensor:
    """:func:`guide` of tokens as the picture that they are, for a rule that works on neighbours."""
    names = rule.conditions
    check_names(rule, names, predictions)
    if not rule.prepares:
        raise ValueError(f"grid: {type(rule).__name__} works on elements by themselves and needs none; leave it out")
    shape = Grid(grid, predictions[names[0]])
    for name in names:
        if predictions[name].shape != predictions[names[0]].shape:
            expected = list(predictions[names[0]].shape)
            raise ValueError(
                f"{name}: expected the shape of {names[0]}, {expected}, got {list(predictions[name].shape)}"
            )
    given: dict[str, Any] = {name: shape.unpack(value) for name, value in predictions.items()}
    result = shape.pack(guide(rule, **options, **given))
    if out is None:
        return result
    check_tensors((names[0], "out"), (predictions[names[0]], out))
    check_out(out, predictions[names[0]])
    return out.copy_(result)


def _prepared(
    rule: Rule,
    predictions: Mapping[str, Tensor],
    params: Mapping[str, Any],
    out: Tensor | None,
    backend: str | None,
    numerics: str,
    check: bool,
) -> Tensor:
    """Guide a rule that makes its formula's inputs of the predictions first, in the dtype that is computed in."""
    names = rule.conditions
    check_names(rule, names, predictions)
    given = [predictions[name] for name in names]
    check_tensors(names, given)
    if out is not None:
        check_tensors((names[0], "out"), (given[0], out))
        check_out(out, given[0])
    if numerics != "fp32":
        raise ValueError(f"numerics: {type(rule).__name__} has 'fp32' only, got {numerics!r}")
    if rule.lowered.domain is not None:
        raise ValueError(f"rule: {type(rule).__name__} makes tensors of the predictions, and has no domain of its own")
    first = predictions[names[0]]
    if backend is not None:  # What prepares everything itself leaves a backend nothing; its name is checked still.
        fk.choose_backend(rule.program, first.device, backend)
    made, left = rule.prepare(predictions, params)
    values = parameter_values(rule, left, first, check)
    inputs = [made[n] if n in made else predictions[n] for n in rule.lowered.predictions]
    if len(inputs) > 1:
        inputs = [tensor.to(inputs[0].dtype) for tensor in inputs]
        result = fk.guide_checked(inputs, rule.program, values, backend=backend)[0]
    else:
        result = inputs[0]
    return result.to(first.dtype) if out is None else out.copy_(result)


def _eager(rule: Rule, predictions: Mapping[str, Tensor], values: Sequence[Any], out: Tensor | None) -> Tensor:
    def by_sample(value: Any, like: Tensor) -> Any:
        return value.view(-1, *[1] * (like.dim() - 1)) if isinstance(value, Tensor) and value.dim() else value

    check_tensors(tuple(predictions), list(predictions.values()))
    first = next(iter(predictions.values()))
    if out is not None:
        check_tensors((next(iter(predictions)), "out"), (first, out))
        check_out(out, first)
    named = {n: by_sample(v, first) for n, v in zip(rule.program.params, values, strict=True)}
    result = rule.eager(predictions, named)
    return result if out is None else out.copy_(result)
