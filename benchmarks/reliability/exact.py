"""What a random call has to give, and how far from it it may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastcfg
from fastcfg import Prediction
from fastcfg.core.launch import domain_levels, parameter_values

from .bounds import error_bound
from .call import Call
from .rules import Oracle

__all__ = ["bound_of", "expected_of", "included"]


def included(call: Call) -> Any:
    """Where the mask leaves elements in."""
    assert call.mask is not None
    return np.broadcast_to((call.mask != 0).numpy(), tuple(call.case.shape))


def expected_of(call: Call, exact: Mapping[str, Any]) -> Any:
    """The oracle's result; where a mask leaves elements out, at the others alone."""
    case, rule = call.case, call.rule
    scale = call.scale.double().numpy() if isinstance(call.scale, Tensor) else call.scale
    if isinstance(scale, np.ndarray) and (scale.ndim == 0 or len(scale) == 1):
        scale = float(scale.reshape(-1)[0])
    state = {n: t.double().numpy() for n, t in call.state.items()}
    levels = None
    if case.levels is not None and call.x is not None:
        source, alpha, sigma = case.levels
        levels = {"x": call.x.tensor.resolve_neg().double().numpy(), "alpha": alpha, "sigma": sigma, "source": source}
    given, measured = dict(exact), None
    if call.scale_map is not None:
        factor = np.broadcast_to(call.scale_map.double().numpy(), tuple(case.shape))
        first = exact[rule.lowered.predictions[0]]
        given = {n: first + factor * (v - first) for n, v in exact.items()}
        measured = dict(exact)
    with np.errstate(all="ignore"):
        if call.mask is None:
            return Oracle(rule, scale, levels, state, measured)(given)
        inside = included(call)
        made = np.zeros(tuple(case.shape))
        for b, row in enumerate(inside):
            if not row.any():
                continue

            def some(named: Mapping[str, Any], b: int = b, row: Any = row) -> dict[str, Any]:
                return {n: v[b][row][None] for n, v in named.items()}

            here = None if levels is None else {**levels, "x": levels["x"][b][row][None]}
            one = scale[b] if isinstance(scale, np.ndarray) else scale
            of = None if measured is None else some(measured)
            made[b][row] = Oracle(rule, one, here, some(state), of)(some(given))[0]
        return made


def bound_of(call: Call, kept: Mapping[str, Tensor], expected: Any) -> Any:
    """The bound before the store, or None."""
    case, rule = call.case, call.rule
    dtype = getattr(torch, case.dtype)
    if rule.prepares:
        if isinstance(rule, fastcfg.FDG) and "subnormal" not in case.kinds.values():
            unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
            sums = 4 * (expected[0].size / 16) ** 0.5 + 8
            largest = max(float(t.double().abs().max()) for t in kept.values())
            per = unit * (40 * len(rule.scales) + sums) * (max(abs(s) for s in rule.scales) * 2 + 8)
            return np.full(expected.shape, 2 * per * largest)
        return None
    if call.scale_map is not None and "APG" in repr(rule):
        return None  # The oracle projects along the prediction whose delta it scales.
    params = {} if call.scale is None else {"scale": call.scale}
    first = kept[rule.conditions[0]]
    levels: list[Any] = []
    if case.levels is not None and call.x is not None:
        levels = domain_levels(rule, Prediction(*case.levels), call.x.tensor)
    masked = call.mask is not None and rule.program.reduces
    program = rule.lowered.variant(affine=bool(levels), scaled=call.scale_map is not None, masked=masked)
    chosen = [*parameter_values(rule, params, first, False), *levels]
    inputs = [kept[n].double() for n in rule.lowered.predictions]
    inputs += [call.state[n].double() for n in rule.lowered.extras]
    if levels and call.x is not None:
        inputs.append(call.x.tensor.resolve_neg().double())
    if call.scale_map is not None:
        inputs.append(call.scale_map.double().expand(first.shape))
    if masked and call.mask is not None:
        inputs.append(call.mask.double().expand(first.shape))
    found = error_bound(program, inputs, chosen, dtype, rule.lowered.dims)
    return None if found is None else found.numpy()
