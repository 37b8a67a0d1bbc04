"""The geometry of a guided step, from sums over the predictions: lengths, angles, and how much longer the result is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from fastcfg_kernels import Program, check_param
from fastcfg_kernels.backends.torch.tiles import accumulator, sample_sums
from torch import Tensor

from ..rules import Rule
from ..schedules import Schedule

__all__ = ["Geometry", "geometry"]


@dataclass(frozen=True)
class Geometry:
    """Lengths and cosines, each ``[B]`` in float32 (float64 for float64 predictions) on the predictions' device.

    Attributes:
        norm_uncond, norm_cond, norm_delta: L2 norms of u, c and d = c - u over all dimensions but the batch.
        cos_uncond_cond, cos_uncond_delta: cosines; 0 where a vector is zero.
        norm_guided: L2 norm of the guided prediction, before a clamp.
        gain: norm_guided / norm_cond; 1 where both are zero, infinite where only norm_cond is.
    """

    norm_uncond: Tensor
    norm_cond: Tensor
    norm_delta: Tensor
    cos_uncond_cond: Tensor
    cos_uncond_delta: Tensor
    norm_guided: Tensor
    gain: Tensor

    def to_dict(self) -> dict[str, list[float]]:
        """Lists of numbers by name. This waits for the device; nothing else here does."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}


def geometry(
    rule: Rule,
    *,
    origin: str | None = None,
    target: str = "cond",
    params: Mapping[str, Any] | None = None,
    **predictions: Tensor,
) -> Geometry:
    """Lengths and angles of the predictions that a rule combines, and the length of its result, which is not formed.

    Everything comes from one Gram matrix of the difference basis, so that d is exact where it is small; the norm of
    the result ``sum_k w_k b_k`` is ``sqrt(w' G w)``. No value is read back from the device. Before ``torch.compile``
    traces a call, one has to have been made with the same rule.

    Args:
        rule: a rule whose schedules are resolved, without memory and with sums over all dimensions but the batch.
        origin: the prediction that is u; default ``"uncond"``, or else the first that is not ``target``.
        target: the prediction that is c.
        params: overrides as for :func:`fastcfg.guide`.
        predictions: tensors ``[B, ...]`` of one shape, dtype and device, by the names in ``rule.conditions``.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
    lowered, program = rule.lowered, rule.program
    names = lowered.predictions
    if lowered.extras or lowered.updates or lowered.dims is not None or lowered.domain is not None or rule.prepares:
        raise ValueError(
            f"rule: {type(rule).__name__} has memory, dims, a domain or levels of its own, and no one Gram matrix"
        )
    if set(predictions) != set(names):
        missing = [n for n in names if n not in predictions]
        extra = [n for n in predictions if n not in names]
        raise ValueError(f"predictions: {type(rule).__name__} takes {list(names)}; missing {missing}, unknown {extra}")
    if target not in names:
        raise ValueError(f"target: expected one of {list(names)}, got {target!r}")
    others = [name for name in names if name != target]
    start = origin if origin is not None else "uncond" if "uncond" in others else (others or [target])[0]
    if start not in others:
        raise ValueError(f"origin: expected a prediction of {list(names)} other than {target!r}, got {start!r}")
    tensors = [predictions[name] for name in names]
    first = tensors[0]
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() < 2:
            raise TypeError(f"{name}: expected a floating tensor [B, ...], got {tensor!r:.80}")
        if tensor.shape != first.shape or tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(f"{name}: expected the shape, dtype and device of {names[0]}")
    given = dict(lowered.params) | dict(params or {})
    if unknown := [name for name in given if name not in lowered.params]:
        raise ValueError(f"params: {type(rule).__name__} has {sorted(lowered.params)}, got {unknown}")
    if schedules := [name for name, value in given.items() if isinstance(value, Schedule)]:
        raise ValueError(f"{schedules[0]}: is a schedule; resolve it with rule.at(step, num_steps) first")

    batch, size = first.shape[0], len(names)
    acc = accumulator(first.dtype)
    values = [check_param(name, given[name], batch, first.device) for name in program.params]
    # u and c are raw predictions: the base is vector 0, the others follow the basis.
    u, c = (0 if name == names[0] else size - 1 + names.index(name) for name in (start, target))
    raw = [("dot", min(a, b), max(a, b)) for a, b in ((u, u), (c, c), (u, c))]
    widened = _widened(rule, u, c)
    wanted, count = widened.pairs, len(widened.pairs)
    sums = sample_sums(widened, [t.reshape(batch, -1) for t in tensors])
    gram = dict(zip(wanted, sums, strict=False))

    arguments = tuple(v.to(acc) if isinstance(v, Tensor) else v for v in values)
    own = (*sums[: len(program.pairs)], *sums[count:])
    weights = program.weigh(own, float(first[0].numel()), arguments)[:size]
    square = torch.zeros(batch, dtype=acc, device=first.device)
    for i in range(size):
        for j in range(i, size):
            square = square + (1.0 if i == j else 2.0) * weights[i] * weights[j] * gram["dot", i, j]

    def product(a: Mapping[int, float], b: Mapping[int, float]) -> Tensor:
        """The dot product of two vectors by their coordinates in the difference basis."""
        total = torch.zeros(batch, dtype=acc, device=first.device)
        for k, x in a.items():
            for m, y in b.items():
                total = total + x * y * gram["dot", min(k, m), max(k, m)]
        return total

    at_u, at_c = ({} if name == names[0] else {names.index(name): 1.0} for name in (start, target))
    d = at_c | {k: -1.0 for k in at_u}
    uu, cc, uc = (gram[pair] for pair in raw)
    norm_u, norm_c, norm_d, norm_y = (x.clamp_min(0).sqrt() for x in (uu, cc, product(d, d), square))
    ud = product({0: 1.0} | at_u, d)

    def ratio(a: Tensor, b: Tensor, otherwise: Tensor | float) -> Tensor:
        return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), otherwise)

    return Geometry(
        norm_uncond=norm_u,
        norm_cond=norm_c,
        norm_delta=norm_d,
        cos_uncond_cond=ratio(uc, norm_u * norm_c, 0.0).clamp(-1, 1),
        cos_uncond_delta=ratio(ud, norm_u * norm_d, 0.0).clamp(-1, 1),
        norm_guided=norm_y,
        gain=ratio(norm_y, norm_c, torch.where(norm_y > 0, torch.inf, 1.0).to(acc)),
    )


def _widened(rule: Rule, u: int, c: int) -> Program:
    """The rule's program, its pairs followed by those of the difference basis and of two raw vectors.

    Kept with the rule: Dynamo can't trace the making of a program, but finds one there.
    """
    kept: dict[tuple[int, int], Program] | None = getattr(rule, "_geometry_programs", None)
    if kept is None:
        kept = {}
        object.__setattr__(rule, "_geometry_programs", kept)
    if (u, c) not in kept:
        program = rule.program
        size = len(program.predictions)
        basis = [("dot", i, j) for i in range(size) for j in range(i, size)]
        raw = [("dot", min(a, b), max(a, b)) for a, b in ((u, u), (c, c), (u, c))]
        kept[u, c] = replace(program, pairs=tuple(dict.fromkeys([*program.pairs, *basis, *raw])))
    return kept[u, c]
