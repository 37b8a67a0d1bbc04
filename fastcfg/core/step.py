"""Guidance and the solver's step in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.backends.torch.functional import Merge
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

from ..rules import Rule
from ..samplers.step import Step, stage_key
from ..validate import check_tensor
from .guide import split_batch
from .launch import check_names, domain_levels, launch, parameter_values, rule_inputs
from .state import State

__all__ = ["PREVIOUS_X0", "begun", "guide_step"]

PREVIOUS_X0 = "previous_x0"
"""Name in the state of the clean sample that the step before stood for."""


def guide_step(
    rule: Rule,
    step: Step,
    batch: Tensor | None = None,
    *,
    x: Tensor,
    state: State | None = None,
    noise: Tensor | None = None,
    params: Mapping[str, Any] | None = None,
    out: Tensor | None = None,
    batch_out: Tensor | None = None,
    backend: str | None = None,
    order: Sequence[str] | None = None,
    check: bool = False,
    scale_map: Tensor | None = None,
    mask: Tensor | None = None,
    shards: Merge | None = None,
    stats: Sequence[str] = (),
    stats_out: Tensor | None = None,
    **predictions: Tensor,
) -> Tensor:
    """The next latent: guidance by a rule and a solver's step, in one pass over predictions, x, history and noise.

    Args:
        rule: its schedules are resolved by the step's place.
        step: of a :class:`fastcfg.Sampler`. Nothing is compiled anew from one step of a sampler to the next.
        batch, order, params, check, scale_map, mask, shards, backend, stats, stats_out: as for :func:`fastcfg.guide`.
        x: the latent ``[B, ...]``, in the predictions' dtype or float32 (float64 for float64).
        state: what the rule remembers, and the clean sample that a multistep solver reads (``"previous_x0"``, in
            float32): one for each request. The step reads and replaces them. Where it holds none, the run begins at
            this step, whichever it is (img2img, a restart), and the step is of first order.
        noise: standard normal ``[B, ...]``, for a solver with noise, in x's dtype or the predictions'.
        out: tensor for the next latent, of x's shape and dtype; it may be x, or one of the predictions.
        batch_out: tensor ``[k*B, ...]`` of any floating dtype, for the next model input: each of its k blocks becomes
            the next latent times the scheduler's factor for the model's input.
        predictions: tensors ``[B, ...]`` of one shape, dtype and device, by the names in ``rule.conditions``.

    Returns:
        The next latent ``[B, ...]`` in x's dtype. Everything is accumulated in float32 (float64 for float64), and
        each output rounded once.

    Raises:
        TypeError, ValueError: naming the argument, for anything that does not fit.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
    if not isinstance(step, Step):
        raise TypeError(f"step: expected a fastcfg.samplers.Step, got {type(step).__name__}")
    if state is not None:
        step = begun(step, state)
    if rule.scheduled and step.index is not None and step.num_steps is not None:
        rule = rule.at(step.index, step.num_steps, sigma=step.sigma)
    if batch is not None:
        if predictions:
            raise ValueError(f"batch: give one tensor or named predictions, not both (got {sorted(predictions)})")
        predictions = split_batch(rule, batch, order)
    if (noise is None) != (step.noise is None):
        raise ValueError(f"noise: the step takes {'none' if step.noise is None else 'noise; give a tensor'}")
    if rule.prepares:
        tensors, values = _prepared(rule, predictions, params, check)
        if scale_map is not None or mask is not None or shards is not None or stats:
            raise ValueError(
                f"scale_map, mask, shards, stats: {type(rule).__name__} makes tensors of the predictions; it takes none"
            )
    else:
        tensors, values = rule_inputs(rule, predictions, params, check)
    check_tensor("x", x, tensors[0])
    levels, wide = domain_levels(rule, step.level, x, step.input_scale)
    mask = mask if stats or rule.lowered.program.reduces else None
    program = rule.lowered.variant(
        affine=len(levels) > 0,
        step=stage_key(step, batch_out is not None),
        scaled=scale_map is not None,
        masked=mask is not None,
        stats=stats,
    )
    weights = [
        fk.check_param("step", w, x.shape[0], x.device) if isinstance(w, Tensor) else w
        for w in step.values(batch_out is not None)
    ]
    acc = accumulator(tensors[0].dtype)
    tail = [x]
    targets: list[fk.Target] = [(0, x.dtype if out is None else _like(out, x))]
    memory = State() if state is None else state
    if step.keeps_x0:
        if state is None:
            raise ValueError("state: the solver reads the clean sample of the step before; give state=fastcfg.State()")
        tail.append(memory[PREVIOUS_X0] if PREVIOUS_X0 in memory else torch.zeros_like(x, dtype=acc))
        targets.append((1, acc))
    if noise is not None:
        tail.append(noise)
    if batch_out is not None:
        targets += [(1 + step.keeps_x0, block) for block in _blocks(batch_out, x)]
    results = launch(
        rule,
        program,
        tensors,
        [*values, *weights, *levels],
        targets=targets,
        tail=tail,
        scale_map=scale_map,
        mask=mask,
        shards=shards,
        state=state,
        backend=backend,
        stats_out=stats_out,
        wide=wide,
    )
    if step.keeps_x0:
        memory.remember(PREVIOUS_X0, results[1])
    return results[0]


def begun(step: Step, state: State) -> Step:
    """Return a solver's step as it is taken where a run begins: of first order, if the state has no clean sample."""
    late = step.keeps_x0 and PREVIOUS_X0 not in state
    return step.first_order() if late and not isinstance(step.previous_x0, Tensor) and step.previous_x0 else step


def _prepared(
    rule: Rule, predictions: Mapping[str, Tensor], params: Mapping[str, Any] | None, check: bool
) -> tuple[list[Tensor], Sequence[Any]]:
    """The inputs that a rule makes of the predictions first, in the dtype that is computed in."""
    names = rule.conditions
    check_names(rule, names, predictions)
    first = check_tensor(names[0], predictions[names[0]])
    made, left = rule.prepare(predictions, params or {})
    inputs = [made[n] if n in made else predictions[n] for n in rule.lowered.predictions]
    return [t.to(accumulator(first.dtype)) for t in inputs], parameter_values(rule, left, first, check)


def _like(out: Tensor, x: Tensor) -> Tensor:
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        given = f"{list(out.shape)} of {out.dtype} on {out.device}"
        raise ValueError(f"out: expected {list(x.shape)} of {x.dtype} on {x.device}, got {given}")
    return out


def _blocks(batch_out: Tensor, x: Tensor) -> Sequence[Tensor]:
    """The parts of the next batch of model inputs, one for each pass."""
    shape, batch = batch_out.shape, x.shape[0]
    fits = shape[1:] == x.shape[1:] and batch and shape[0] and shape[0] % batch == 0
    if not fits or not batch_out.is_floating_point() or batch_out.device != x.device:
        raise ValueError(
            f"batch_out: expected a floating tensor [k*{batch}, ...] of x's shape {list(x.shape)} on {x.device}, got "
            f"{list(shape)} of {batch_out.dtype} on {batch_out.device}"
        )
    return torch.split(batch_out, batch)
