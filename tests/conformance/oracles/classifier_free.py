"""Classifier-free guidance, its relatives with fixed weights, and the schedules of their scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .arrays import Array, Parameter, dot, f64, per_sample, ratio


def cfg(*, uncond: Array, cond: Array, scale: Parameter, base: str = "uncond") -> Array:
    """Classifier-free guidance, Ho & Salimans, arXiv 2207.12598, eq. 6.

    ``base="uncond"``: ``(1 − s)·u + s·c`` (Imagen's s).  ``base="cond"``: ``(1 + s)·c − s·u`` (the paper's w
    = s − 1). Shapes: ``[B, ...]``; scale a float or ``[B]``.
    """
    u, c = f64(uncond), f64(cond)
    s = per_sample(scale, c)
    if base == "uncond":
        return (1 - s) * u + s * c
    if base == "cond":
        return (1 + s) * c - s * u
    raise ValueError(f"base must be 'uncond' or 'cond', got {base!r}")


def negative_prompt(*, cond: Array, negative: Array, scale: Parameter) -> Array:
    """``n + s·(c − n)``: the negative prompt takes the place of the unconditional one.  Shapes
    ``[B, ...]``.
    """
    c, n = f64(cond), f64(negative)
    return n + per_sample(scale, c) * (c - n)


def dual(*, uncond: Array, cond: Array, negative: Array, scale: Parameter, negative_scale: Parameter) -> Array:
    """``u + s_p·(c − u) − s_n·(n − u)``: attraction and repulsion with a scale each.

    ``s_n = 0`` is CFG; ``s_p = s, s_n = s − 1`` is :func:`negative_prompt` with scale s.  Shapes
    ``[B, ...]``.
    """
    u, c, n = f64(uncond), f64(cond), f64(negative)
    return u + per_sample(scale, c) * (c - u) - per_sample(negative_scale, c) * (n - u)


def multi_condition(*, uncond: Array, conds: Sequence[Array], scales: Sequence[Parameter]) -> Array:
    """``u + Σ s_i·(c_i − u)``: composable diffusion's conjunction, Liu et al., arXiv 2206.01714.

    ``conds``: n arrays ``[B, ...]``; ``scales``: n floats or ``[B]`` arrays.
    """
    u = f64(uncond)
    if len(conds) != len(scales):
        raise ValueError(f"{len(conds)} conditions but {len(scales)} scales")
    total = u.copy()
    for c, s in zip(conds, scales, strict=True):
        total = total + per_sample(s, u) * (f64(c) - u)
    return total


def instruct_pix2pix(
    *, uncond: Array, image: Array, cond: Array, scale: Parameter = 7.5, image_scale: Parameter = 1.5
) -> Array:
    """``e(∅,∅) + s_I·(e(I,∅) − e(∅,∅)) + s_T·(e(I,T) − e(I,∅))``, Brooks et al., arXiv 2211.09800, eq. 3.

    ``uncond`` = e(∅,∅), ``image`` = e(I,∅), ``cond`` = e(I,T); all ``[B, ...]``.
    """
    u, i, c = f64(uncond), f64(image), f64(cond)
    return u + per_sample(image_scale, c) * (i - u) + per_sample(scale, c) * (c - i)


def perpendicular(vector: Array, direction: Array, guard: float = 0.0) -> Array:
    """``v − (v·d / max(‖d‖², guard))·d`` per sample; ``v`` itself where d = 0.  Shapes ``[B, ...]``."""
    v, d = f64(vector), f64(direction)
    return v - ratio(dot(v, d), np.maximum(dot(d, d), guard), 0.0) * d


def perp_neg(
    *,
    cond: Array,
    negative: Array | Sequence[Array],
    empty: Array | None = None,
    uncond: Array | None = None,
    scale: Parameter,
    negative_scale: Parameter | Sequence[Parameter] = 1.0,
    scale_negative: bool = False,
    guard: float = 0.0,
) -> Array:
    """Perp-Neg, Armandpour et al., arXiv 2304.04968, per sample.

    ``u + s_p·Δp − Σ s_n,i·Δn_i⊥`` with ``Δp = c − u``, ``Δn_i = n_i − u`` and
    ``Δn⊥ = Δn − (Δn·Δp / ‖Δp‖²)·Δp``.  ``scale_negative=True`` is the authors' and ComfyUI's code: the
    negatives are multiplied by s_p too.  Where Δp = 0, ``Δn⊥ = Δn``.  ``guard`` bounds ‖Δp‖² from below (the
    authors: 1e−6, which leaves a parallel part for directions shorter than 1e−3).  The empty-prompt
    prediction may be named ``empty`` or ``uncond``.  ``negative``: one array ``[B, ...]`` or a list of them,
    with a scale or one each.
    """
    if (empty is None) == (uncond is None):
        raise ValueError("give the empty-prompt prediction once, as `empty` or as `uncond`")
    origin = uncond if empty is None else empty
    assert origin is not None
    u, c = f64(origin), f64(cond)
    negatives: list[Array] = list(negative) if isinstance(negative, (list, tuple)) else [f64(negative)]
    scales: list[Parameter] = [negative_scale] * len(negatives)  # type: ignore[list-item]
    if isinstance(negative_scale, (list, tuple)):
        scales = list(negative_scale)
    delta = c - u
    repulsion = np.zeros_like(u)
    for n, s in zip(negatives, scales, strict=True):
        repulsion = repulsion + per_sample(s, u) * perpendicular(f64(n) - u, delta, guard)
    s_p = per_sample(scale, u)
    return u + s_p * delta - (s_p * repulsion if scale_negative else repulsion)


def inner_guidance(
    *,
    cond: Array,
    uncond: Array,
    without_inner: Array,
    scale: Parameter = 5.0,
    inner_scale: Parameter = 3.0,
) -> Array:
    """VideoJAM's inner guidance, Chefer et al., arXiv 2502.02492.

    ``(1 + w₁ + w₂)·p(x,d,y) − w₁·p(x,d,∅) − w₂·p(x,∅,y)`` with ``cond`` = p(x,d,y), ``uncond`` = p(x,d,∅),
    ``without_inner`` = p(x,∅,y), w₁ = ``scale``, w₂ = ``inner_scale``.  Arrays hold the joint output
    ``[B, ...]``.
    """
    full, no_text, no_inner = f64(cond), f64(uncond), f64(without_inner)
    w1, w2 = per_sample(scale, full), per_sample(inner_scale, full)
    return (1 + w1 + w2) * full - w1 * no_text - w2 * no_inner


def history_vanilla(*, uncond: Array, cond: Array, scale: Parameter) -> Array:
    """Vanilla history guidance, Song et al., arXiv 2502.06764: ``u + s·(c_H − u)``, c_H given clean
    history.
    """
    u, c = f64(uncond), f64(cond)
    return u + per_sample(scale, u) * (c - u)


def history_general(*, uncond: Array, conds: Sequence[Array], weights: Sequence[Parameter]) -> Array:
    """General history guidance, arXiv 2502.06764: ``u + Σ γ_i·(c_{H_i, t_i} − u)``.  Shapes ``[B, ...]``."""
    return multi_condition(uncond=uncond, conds=conds, scales=weights)


def history_between_levels(
    *, uncond: Array, starts: Sequence[Array], ends: Sequence[Array], weights: Sequence[Parameter]
) -> Array:
    """DFoT's band form: ``u + Σ γ_i·(c_{start,i} − c_{end,i})`` between two noise levels of the history."""
    u = f64(uncond)
    total = u.copy()
    for a, b, weight in zip(starts, ends, weights, strict=True):
        total = total + per_sample(weight, u) * (f64(a) - f64(b))
    return total


def history_fractional(*, uncond: Array, cond: Array, partial: Array, weight: Parameter) -> Array:
    """Fractional history guidance, arXiv 2502.06764: ``c + γ·(c_{t_H} − u)``.

    ``partial`` is conditioned on the history noised to t_H.  t_H = 0 (``partial`` = ``cond``) is vanilla
    guidance with s = 1 + γ; t_H = 1 (``partial`` = ``uncond``) leaves ``cond``.
    """
    u, c, p = f64(uncond), f64(cond), f64(partial)
    return c + per_sample(weight, u) * (p - u)


def per_frame_cfg(*, uncond: Array, cond: Array, scales: Array, frame_dim: int) -> Array:
    """CFG with a scale per frame: ``u_f + s_f·(c_f − u_f)``.

    ``scales``: ``[F]`` or ``[B, F]``; ``frame_dim``: 2 for ``[B, C, F, H, W]``, 1 for ``[B, F, C, H, W]``.
    """
    u, c, s = f64(uncond), f64(cond), f64(scales)
    shape = [1] * u.ndim
    shape[frame_dim] = u.shape[frame_dim]
    if s.ndim == 2:
        shape[0] = u.shape[0]
    s = s.reshape(shape)
    return u + s * (c - u)


def keyframe_scales(
    num_frames: int,
    *,
    low: float,
    high: float,
    keyframes: Sequence[int] | None = None,
    interpolation: str = "none",
) -> Array:
    """Per-frame scales ``[F]``: ``high`` on the keyframes (default first, middle, last), ``low`` elsewhere.

    ``interpolation="linear"``: ``low + (high − low)·(1 − d_f / max d)``, d_f the distance to the nearest
    keyframe.
    """
    keys = [0, num_frames // 2, num_frames - 1] if keyframes is None else list(keyframes)
    distance = np.min(np.abs(np.arange(num_frames)[:, None] - np.asarray(keys)[None, :]), axis=1).astype(np.float64)
    if interpolation == "none":
        return np.where(distance == 0, high, low).astype(np.float64)
    if interpolation == "linear":
        return low + (high - low) * (1 - distance / max(distance.max(), 1.0))
    raise ValueError(f"interpolation must be 'none' or 'linear', got {interpolation!r}")


def temporal_decay_scales(num_frames: int, *, start: float, end: float, kind: str = "linear") -> Array:
    """Per-frame scales ``[F]`` from ``start`` (first frame) to ``end`` (last), linear or exponential."""
    r = np.array([progress(f, num_frames) for f in range(num_frames)])
    if kind == "linear":
        return start + (end - start) * r
    if kind == "exponential":
        return start * (end / start) ** r
    raise ValueError(f"kind must be 'linear' or 'exponential', got {kind!r}")


def progress(step: int, num_steps: int) -> float:
    """``step / (N − 1)``: 0 at the first step, 1 at the last, 0 when there is only one."""
    if not 0 <= step < num_steps:
        raise ValueError(f"step must be in [0, {num_steps}), got {step}")
    return 0.0 if num_steps == 1 else step / (num_steps - 1)


def constant_schedule(step: int, num_steps: int, value: float) -> float:
    """``value`` at every step."""
    progress(step, num_steps)
    return value


def linear_schedule(step: int, num_steps: int, start: float, end: float) -> float:
    """From ``start`` at step 0 to exactly ``end`` at the last; ``start`` when there is one step."""
    r = progress(step, num_steps)
    return end if r == 1 else start + (end - start) * r


def linear_schedule_in_time(t: float, total: float, low: float, high: float) -> float:
    """``low + (high − low)·t/T`` with t counted from T down to 1 (the last value is above ``low``)."""
    return low + (high - low) * t / total


def cosine_schedule(step: int, num_steps: int, start: float, end: float) -> float:
    """``end + (start − end)·(1 + cos(π·r))/2``: the half-way step has the mean of both ends."""
    r = progress(step, num_steps)
    return end if r == 1 else end + (start - end) * 0.5 * (1 + math.cos(math.pi * r))


def step_schedule(step: int, num_steps: int, high: float, low: float, switch: float = 0.5) -> float:
    """``high`` while the remaining time ``1 − r`` is strictly above ``switch``, then ``low``."""
    return high if 1 - progress(step, num_steps) > switch else low


def step_schedule_in_time(t: float, high: float, low: float, t_switch: float) -> float:
    """``high`` for ``t > t_switch`` (strict), else ``low``."""
    return high if t > t_switch else low


def in_interval(step: int, num_steps: int, start: float = 0.0, stop: float = 1.0, *, strict: bool = False) -> bool:
    """``⌊start·N⌋ ≤ step < ⌊stop·N⌋`` (diffusers' CFG window), or ``<`` on both sides (its SLG)."""
    first, last = int(start * num_steps), int(stop * num_steps)
    return first < step < last if strict else first <= step < last


def interval_schedule(
    step: int, num_steps: int, value: float, *, outside: float = 1.0, start: float = 0.0, stop: float = 1.0
) -> float:
    """``value`` inside the interval and ``outside`` (1: no guidance, one pass) elsewhere."""
    return value if in_interval(step, num_steps, start, stop) else outside


def sigma_interval_schedule(sigma: float, value: float, *, low: float, high: float, outside: float = 1.0) -> float:
    """``value`` for ``σ_low < σ ≤ σ_high``, Kynkäänniemi et al., arXiv 2404.07724, else ``outside``."""
    return value if low < sigma <= high else outside
