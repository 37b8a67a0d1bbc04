"""Scales for each frame of a video, and guidance by them.

Videos are ``[B, C, F, H, W]`` (``frame_dim=2``) or ``[B, F, C, H, W]`` (``frame_dim=1``); any tensor with a frame
dimension will do.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.backends.torch.tiles import accumulator, basis, sample_sums
from fastcfg_kernels.finite import finite_number
from fastcfg_kernels.groups import Groups
from fastcfg_kernels.host import weigh_on_host
from fastcfg_kernels.tracing import constant_when_traced
from torch import Tensor

from ..rules import Rule
from ..rules.linear import itself
from ..schedules import Schedule
from .guide import guide
from .launch import check_names

__all__ = ["guide_frames", "keyframe_scales", "temporal_decay", "uniform_scales"]


def _count(num_frames: Any) -> int:
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
        raise ValueError(f"num_frames: expected a positive integer, got {num_frames!r}")
    return num_frames


def uniform_scales(num_frames: int, scale: float, *, device: torch.device | str | None = None) -> Tensor:
    """The same scale for every frame: ``[F]`` in float32."""
    return torch.full((_count(num_frames),), finite_number("scale", scale), device=device)


def keyframe_scales(
    num_frames: int,
    low: float,
    high: float,
    *,
    keyframes: Sequence[int] | None = None,
    interpolation: Literal["none", "linear"] = "none",
    device: torch.device | str | None = None,
) -> Tensor:
    """``high`` on the keyframes and ``low`` elsewhere: ``[F]`` in float32.

    Args:
        keyframes: frame numbers, negative ones from the end; default the first, the middle (``F // 2``) and the last.
        interpolation: ``"linear"``: ``low + (high - low) * (1 - distance / largest distance)``, the distance being
            that to the nearest keyframe.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    count = _count(num_frames)
    low, high = finite_number("low", low), finite_number("high", high)
    if interpolation not in ("none", "linear"):
        raise ValueError(f"interpolation: expected 'none' or 'linear', got {interpolation!r}")
    chosen = [0, count // 2, count - 1] if keyframes is None else list(keyframes)
    if not chosen or any(isinstance(k, bool) or not isinstance(k, int) or not -count <= k < count for k in chosen):
        raise ValueError(f"keyframes: expected frame numbers in {-count} ... {count - 1}, got {chosen}")
    distance = [min(abs(f - k % count) for k in chosen) for f in range(count)]
    largest = max(*distance, 1)
    if interpolation == "none":
        values = [high if d == 0 else low for d in distance]
    else:
        values = [high if d == 0 else low + (high - low) * (1 - d / largest) for d in distance]
    return torch.tensor(values, dtype=torch.float32, device=device)


def temporal_decay(
    num_frames: int,
    start: float,
    end: float,
    *,
    kind: Literal["linear", "exponential"] = "linear",
    device: torch.device | str | None = None,
) -> Tensor:
    """Return scales from ``start`` at the first frame to ``end`` at the last: ``[F]`` in float32.

    Args:
        kind: equal differences (``"linear"``) or equal factors (``"exponential"``, which needs numbers above zero).

    Raises:
        TypeError, ValueError: naming the argument.
    """
    count = _count(num_frames)
    start, end = finite_number("start", start), finite_number("end", end)
    if kind not in ("linear", "exponential"):
        raise ValueError(f"kind: expected 'linear' or 'exponential', got {kind!r}")
    if kind == "exponential" and (start <= 0 or end <= 0):
        raise ValueError(f"start, end: expected numbers above zero for exponential decay, got {start}, {end}")
    share = [f / max(count - 1, 1) for f in range(count)]
    values = [start + (end - start) * r if kind == "linear" else start * (end / start) ** r for r in share]
    if count > 1:
        values[-1] = end
    return torch.tensor(values, dtype=torch.float32, device=device)


def _frame_values(scales: Any, shape: Sequence[int], frame_dim: int, like: Tensor) -> Tensor:
    """Scales as ``[B, F]`` in the accumulator's dtype on the predictions' device."""
    batch, frames = shape[0], shape[frame_dim]
    values = scales if isinstance(scales, Tensor) else torch.tensor(scales, dtype=torch.float64)
    if not values.is_floating_point():
        raise TypeError(f"scales: expected a floating tensor, got {values.dtype}")
    if tuple(values.shape) not in ((frames,), (1, frames), (batch, frames)):
        raise ValueError(f"scales: expected the shape [{frames}] or [{batch}, {frames}], got {list(values.shape)}")
    if values.device != like.device and values.device.type != "cpu":
        raise ValueError(f"scales: expected a tensor on {like.device}, got one on {values.device}")
    return values.to(like.device, accumulator(like.dtype), non_blocking=True).expand(batch, frames)


def guide_frames(
    rule: Rule,
    scales: Tensor | Sequence[float],
    *,
    frame_dim: int = 2,
    parameter: str = "scale",
    group: Literal["sample", "frame"] = "sample",
    params: Mapping[str, Any] | None = None,
    backend: str | None = None,
    **predictions: Tensor,
) -> Tensor:
    """The guided prediction of a rule whose scale differs between frames.

    For CFG it is ``uncond_f + s_f * (cond_f - uncond_f)``. Any rule without memory will do, with any of its own
    parameters in the place of ``scale``.

    Args:
        rule: a rule whose schedules are resolved.
        scales: ``[F]`` or ``[B, F]``; a floating tensor or a list of numbers.
        frame_dim: the frames' dimension: 2 for ``[B, C, F, H, W]``, 1 for ``[B, F, C, H, W]``.
        parameter: the name of the parameter that varies.
        group: what a rule's sums run over. ``"sample"``: the whole sample, the scales being a map over its elements
            (the rescale of a video keeps the frames' proportions). ``"frame"``: each frame by itself, as if it were
            a sample of its own. Rules without sums give the same for both.
        params: overrides of other parameters, as for :func:`fastcfg.guide`.
        backend: as for :func:`fastcfg.guide`.
        predictions: tensors of one shape, dtype and device, by the names in ``rule.conditions``.

    Returns:
        A tensor of the predictions' shape and dtype, with float32 accumulation (float64 for float64) and one rounding.
        Where the parameter is a factor of the deltas, as CFG's scale with or without a modifier is, it is one fused
        pass with a scale map; so it is for a rule without sums on contiguous predictions. A rule with sums has to
        have guided once before it is traced by ``torch.compile``. Frames as groups are copied together where they are
        not contiguous in memory (``frame_dim=2``).

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
    lowered = rule.lowered
    if lowered.extras or lowered.updates or lowered.dims is not None or lowered.domain is not None or rule.prepares:
        raise ValueError(
            f"rule: {type(rule).__name__} has memory, dims, a domain or levels of its own; give it one scale"
        )
    if group not in ("sample", "frame"):
        raise ValueError(f"group: expected 'sample' or 'frame', got {group!r}")
    names = lowered.predictions
    check_names(rule, names, predictions)
    for name, value in predictions.items():
        if value.shape != predictions[names[0]].shape:
            expected = list(predictions[names[0]].shape)
            raise ValueError(f"{name}: expected the shape of {names[0]}, {expected}, got {list(value.shape)}")
    tensors = [predictions[name] for name in names]
    first = tensors[0]
    if not -first.dim() <= frame_dim < first.dim() or frame_dim % first.dim() == 0:
        raise ValueError(f"frame_dim: expected a dimension 1 ... {first.dim() - 1}, got {frame_dim}")
    frame_dim %= first.dim()
    values = dict(lowered.params) | dict(params or {})
    if unknown := [name for name in (parameter, *(params or {})) if name not in lowered.params]:
        raise ValueError(f"parameter, params: {type(rule).__name__} has {sorted(lowered.params)}, got {unknown}")
    values[parameter] = _frame_values(scales, first.shape, frame_dim, first)
    if rule.scheduled and (unresolved := [name for name, value in values.items() if isinstance(value, Schedule)]):
        raise ValueError(f"{unresolved[0]}: is a schedule; resolve it with rule.at(step, num_steps) before guiding")
    values = {name: values[name] for name in lowered.program.params}
    if (group == "sample" or not lowered.program.reduces) and _multiplies_deltas(rule, parameter):
        shape = [first.shape[d] if d in (0, frame_dim) else 1 for d in range(first.dim())]
        scale_map = values[parameter].reshape(shape)
        given: dict[str, Any] = {**predictions}
        params = {**values, parameter: 1.0}
        return guide(rule, params=params, scale_map=scale_map, backend=backend, **given)
    if not lowered.program.reduces:
        return _elementwise(lowered.program, tensors, values, parameter, frame_dim, backend)
    if group == "frame":
        groups = Groups(first.shape, [d for d in range(1, first.dim()) if d != frame_dim])
        rows = [groups.rows(t) for t in tensors]
        by_group = {n: v.reshape(-1) if n == parameter else groups.values(v) for n, v in values.items()}
        return groups.back(fk.guide(rows, lowered.program, by_group, backend=backend))
    return _whole_sample(rule, predictions, values, parameter, frame_dim, backend)


@constant_when_traced
def _multiplies_deltas(rule: Rule, parameter: str) -> bool:
    """Return whether a parameter is a factor of every delta and nothing else, as CFG's scale is.

    A map can take its place.
    """
    own, _ = _programs(rule)
    if own.reduces or parameter not in own.params:
        return False
    others = [0.5 + 0.375 * k for k in range(len(own.params))]  # Any numbers: linear is linear whatever the others.

    def weights(value: float) -> list[float]:
        return weigh_on_host(
            own, (), 1, [value if n == parameter else o for n, o in zip(own.params, others, strict=True)]
        )

    none, one, two = (weights(value) for value in (0.0, 1.0, 2.0))
    return none[0] == one[0] == two[0] and not any(none[1:]) and two[1:] == [2 * w for w in one[1:]]


def _elementwise(
    program: fk.Program,
    tensors: Sequence[Tensor],
    values: Mapping[str, Any],
    parameter: str,
    frame_dim: int,
    backend: str | None,
) -> Tensor:
    """A rule without sums: rows are cut where the frames are, and no element knows its row."""
    shape = tensors[0].shape
    lead = shape[: frame_dim + 1]

    def over_rows(name: str, value: Any) -> Any:
        if name == parameter:
            return value.view(shape[0], *[1] * (frame_dim - 1), shape[frame_dim]).expand(lead).reshape(-1)
        if isinstance(value, Tensor) and value.dim():
            return value.view(-1, *[1] * frame_dim).expand(lead).reshape(-1)
        return value

    count = math.prod(lead)
    rows = [t.reshape(count, -1) for t in tensors]
    by_row = {name: over_rows(name, value) for name, value in values.items()}
    return fk.guide(rows, program, by_row, backend=backend).view(shape)


def _whole_sample(
    rule: Rule,
    predictions: Mapping[str, Tensor],
    values: Mapping[str, Any],
    parameter: str,
    frame_dim: int,
    backend: str | None,
) -> Tensor:
    """Weights by frame from sums over the sample; then the modifiers, whose sums see the result itself."""
    lowered = rule.lowered
    first = predictions[lowered.predictions[0]]
    batch, rank = first.shape[0], first.dim()
    acc = accumulator(first.dtype)
    own, outer = _programs(rule)
    if parameter not in own.params:
        raise ValueError(
            f"parameter: {parameter!r} belongs to a modifier, whose sums run over the whole sample; group='frame' "
            "gives each frame its own"
        )
    tensors = [predictions[name] for name in lowered.predictions]
    sums = sample_sums(own, [t.reshape(batch, -1) for t in tensors]) if own.reduces else []

    def by_frame(value: Any) -> Any:
        return value.to(acc).view(-1, 1) if isinstance(value, Tensor) and value.dim() == 1 else value

    arguments = tuple(by_frame(values[name]) for name in own.params)
    weights = own.weigh(tuple(s.view(-1, 1) for s in sums), float(first[0].numel()), arguments)

    def over_elements(weight: Any) -> Any:
        if not isinstance(weight, Tensor) or weight.dim() == 0:
            return weight
        return weight.reshape(weight.shape[0], *[1] * (frame_dim - 1), -1, *[1] * (rank - frame_dim - 1))

    guided = torch.zeros((), dtype=acc, device=first.device)
    for weight, vector in zip(weights, basis(own, tensors, (), acc), strict=False):
        guided = guided + over_elements(weight) * vector
    if outer is not None:
        named = [predictions[name].to(acc) for name in outer.predictions[1:]]
        params = {name: values[name] for name in outer.params}
        guided = fk.guide([guided, *named], outer, params, backend=backend)
    return guided.to(first.dtype)


def _programs(rule: Rule) -> tuple[fk.Program, fk.Program | None]:
    """The rule without its modifiers, and the modifiers over a result that is made already.

    Kept with the rule: Dynamo can't trace the making of a program, but finds one there.
    """
    made: tuple[fk.Program, fk.Program | None] | None = getattr(rule, "_frame_programs", None)
    if made is None:
        lowered = rule.lowered
        formula, *modifiers = lowered.stages
        outer = None
        if modifiers:
            read = tuple(name for name in lowered.predictions if _reads(modifiers, name))
            if "guided" in read:
                raise ValueError("rule: a prediction called 'guided' can't be read by a modifier here")
            outer = fk.compile_program(("guided", *read), (fk.Stage(itself, width=1), *modifiers))
        made = fk.compile_program(lowered.predictions, (formula,)), outer
        object.__setattr__(rule, "_frame_programs", made)
    return made


def _reads(stages: Sequence[fk.Stage], prediction: str) -> bool:
    """Return whether modifiers may read a prediction; one that reads a delta would take it from another base here."""
    read = False
    for stage in stages:
        arguments = [f"_{name}_" for name in inspect.signature(stage.fn).parameters]
        vectors = [vector for _, vector in stage.vectors]
        if any("_d_" in name for name in arguments) or any(v == "d" or v.startswith("d_") for v in vectors):
            raise ValueError(f"rule: the modifier {stage.fn.__name__} measures a delta; use group='frame'")
        read |= prediction in vectors or any(f"_{prediction}_" in name for name in arguments)
    return read
