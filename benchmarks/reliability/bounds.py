"""How far a call may be from the exact result: an error bound that is computed along with the sums.

The expected value comes from the oracles; the program that is tested only says which sums its weights hang on.
With ``u`` the accumulator's unit roundoff and ``gamma = (4 sqrt(n/16) + 8) u`` for a sum of n elements (see
``tests/conformance/tolerances.py``):

* a vector is wrong by ``e = u |d|`` for the delta that it is, and by ``4 u (|shift x| + |gain p|)`` where the space
  changes;
* a sum of products a b by ``gamma |a| |b| + |e_a| |b| + |a| |e_b|`` (Cauchy-Schwarz);
* a weight by what it moves when each sum moves so far, up and down, one after the other, evaluated in float64 and in
  the accumulator's dtype, whose roundings inside the formula show there;
* the result by ``sum |dw| |v| + |w| e`` and ``(K + 8) u sum |w v|``, and half a spacing of the store.

Where that is not finite (sums beyond the accumulator's range, a formula at its pole) there is no bound, and the call
is checked for everything but its values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fastcfg_kernels as fk
import torch
from conformance.cases import EPSILON
from fastcfg_kernels.backends.torch.tiles import basis, sample_moments, spread
from fastcfg_kernels.groups import Groups
from torch import Tensor

__all__ = ["error_bound"]

TINY = {torch.float32: 2.0**-149, torch.float64: 2.0**-1074}


def error_bound(
    program: fk.Program, inputs: Sequence[Tensor], values: Sequence[Any], dtype: torch.dtype, dims: Any
) -> Tensor | None:
    """The bound before the store, ``[B, ...]`` in float64; None where there is none.

    Args:
        inputs: the program's inputs ``[B, ...]``, in float64 and exact.
        values: its parameters; dtype: of the predictions.
        dims: dimensions that the sums run over, None for all but the batch.
    """
    shape = inputs[0].shape
    groups = None if dims is None else Groups(shape, dims)
    rows = [t.reshape(shape[0], -1) if groups is None else groups.rows(t) for t in inputs]
    rows = [r.contiguous() for r in rows]
    params = tuple(v.double() if isinstance(v, Tensor) else v for v in values)
    if groups is not None:
        params = tuple(groups.values(v) for v in params)
    found = _of_rows(program, rows, params, dtype)
    if not bool(found.isfinite().all()):
        return None
    return found.view(shape) if groups is None else groups.back(found)


def _of_rows(program: fk.Program, rows: list[Tensor], params: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    unit, tiny = EPSILON[dtype], TINY[acc]
    size, count = len(program.predictions), rows[0].shape[-1]
    vectors, errors = _vectors(program, rows, params, acc, unit)
    inside = rows[-1] != 0 if program.masked else torch.ones_like(rows[0], dtype=torch.bool)
    moments = sample_moments(program, rows, params)
    sums = list(moments.sums(program))
    number = moments.count.clamp(min=1) if isinstance(moments.count, Tensor) else moments.count
    moved = _sum_errors(program, vectors, errors, inside, (4 * math.sqrt(max(count / 16, 1)) + 8) * unit, unit, tiny)
    weights, wander = _weights(program, sums, moved, number, params, acc, unit)
    width = program.width
    result = torch.zeros_like(rows[0])
    total = torch.zeros_like(rows[0])
    for k in range(width):
        w, dw = (spread(v, rows[0]) for v in (weights[k], wander[k]))
        total = total + w.abs() * vectors[k].abs()
        result = result + dw * vectors[k].abs() + w.abs() * errors[k]
    # torch.lerp starts from the other end, so that the predictions themselves count among the terms.
    total = total + torch.stack([r.abs() for r in rows[:size]]).amax(0)
    result = result + (width + 8) * (unit * total + tiny)
    if program.clamps:
        at = program.outputs * width
        result = result + spread(wander[at] + wander[at + 1], result)
    if program.affine:
        shift, gain = (spread(v, result) for v in params[-2:])
        moved_x = abs(shift) * rows[width].abs()
        result = (result + 4 * unit * (total + moved_x)) / abs(gain)
    return result * (4 if dtype == torch.float64 else 1)


def _vectors(
    program: fk.Program, rows: list[Tensor], params: tuple[Any, ...], acc: torch.dtype, unit: float
) -> tuple[list[Tensor], list[Tensor]]:
    """The difference basis, the extras, and the predictions other than the base; and how wrong each may be."""
    size = len(program.predictions)
    vectors = list(basis(program, rows, params, torch.float64))
    made = list(rows[:size])
    if program.affine:
        shift, gain = (spread(v, rows[0]) for v in params[-2:])
        x = rows[program.width]
        made = [shift * x + gain * p for p in made]
        # The oracle goes by x0 and eps, and divides by levels of 1/16 and more.
        roundabout = 2.0**-43 / (4 * unit)
        sizes = [abs(shift) * x.abs() + abs(gain) * p.abs() + roundabout * (x.abs() + p.abs()) for p in rows[:size]]
    else:
        sizes = [p.abs() for p in rows[:size]]
    changed = 4 * unit if program.affine else 0.0
    # The oracle in float64 rounds as much as what it checks, in the predictions' own sizes.
    changed += 4 * unit if acc == torch.float64 else 0.0
    errors = [changed * sizes[0]]
    errors += [
        3 * unit * vectors[k].abs() + (changed + unit * program.affine) * (sizes[0] + sizes[k]) for k in range(1, size)
    ]
    errors += [torch.zeros_like(v) for v in vectors[size:]]
    return vectors + made[1:], errors + [changed * s for s in sizes[1:]]


def _sum_errors(
    program: fk.Program,
    vectors: list[Tensor],
    errors: list[Tensor],
    inside: Tensor,
    gamma: float,
    unit: float,
    tiny: float,
) -> list[Tensor]:
    """How wrong each sum may be, in the order of the program's sums."""
    kept = [torch.where(inside, v, 0.0) for v in vectors]
    number = inside.sum(-1, keepdim=True).clamp(min=1)
    means = [v.sum(-1, keepdim=True) / number for v in kept]
    lost = [torch.where(inside, e, 0.0).norm(dim=-1) for e in errors]
    found = []
    for kind, a, b in program.pairs:
        if kind == "cov":
            x, y = (torch.where(inside, vectors[v] - means[v], 0.0) for v in (a, b))
            # The oracle in float64 has an error of its own: NumPy adds in pairs above 128 elements, and below them in 8
            # lanes. Of a constant, whose roundings are all alike, none of them cancels.
            mean_error = (20 + math.log2(max(1.0, inside.shape[-1] / 128)) if unit < 2.0**-40 else 2) * unit
            off = [mean_error * means[v].abs()[..., 0] * number[..., 0].sqrt() for v in (a, b)]
        else:
            (x, y), off = (kept[a], kept[b]), [torch.zeros_like(lost[a])] * 2
        lx, ly = x.norm(dim=-1), y.norm(dim=-1)
        ea, eb = lost[a] + unit * lx + off[0], lost[b] + unit * ly + off[1]
        cross = lost[a] * ly + lost[b] * lx + unit * lx * ly
        found.append(gamma * lx * ly + cross + ea * eb + number[..., 0] * tiny)
    for v in program.means:
        spread_of = torch.where(inside, vectors[v] - means[v], 0.0).norm(dim=-1)
        found.append(gamma * spread_of + 2 * unit * means[v].abs()[..., 0] + lost[v] + tiny)
    return found


def _weights(
    program: fk.Program,
    sums: list[Tensor],
    moved: list[Tensor],
    number: Any,
    params: tuple[Any, ...],
    acc: torch.dtype,
    unit: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """The weights, and how wrong each may be."""
    like = (
        sums[0]
        if sums
        else torch.zeros(next((len(p) for p in params if isinstance(p, Tensor) and p.dim()), 1)).double()
    )

    def weigh(at: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        given = tuple(s.to(dtype) for s in at)
        values = tuple(p.to(dtype) if isinstance(p, Tensor) else p for p in params)
        n = number.to(dtype) if isinstance(number, Tensor) else number
        out = program.weigh(given, n, values)
        return torch.stack([torch.as_tensor(w, dtype=dtype).double().expand(like.shape) for w in out])

    exact = weigh(sums, torch.float64)
    wander = 4 * (weigh(sums, acc) - exact).abs() + 8 * unit * exact.abs()
    for k, step in enumerate(moved):
        worst = torch.zeros_like(exact)
        for sign in (-1.0, 1.0):
            at = [s + sign * step if i == k else s for i, s in enumerate(sums)]
            if program.pairs and k < len(program.pairs) and program.pairs[k][1] == program.pairs[k][2]:
                at[k] = at[k].clamp(min=0.0)  # A square.
            for dtype in {acc, torch.float64}:
                worst = torch.maximum(worst, (weigh(at, dtype) - exact).abs())
        wander = wander + worst
    return list(exact), list(wander)
