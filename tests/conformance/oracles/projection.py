"""Rules that project, scale or split the guidance by sums over a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrays import Array, Dims, Parameter, dot, f64, norm, parallel, per_sample, ratio
from .classifier_free import cfg
from .rescale import rescale_std


def apg(
    *,
    uncond: Array,
    cond: Array,
    scale: Parameter,
    eta: Parameter = 1.0,
    norm_threshold: Parameter = 0.0,
    momentum: Parameter = 0.0,
    average: Array | None = None,
    dims: Dims = None,
    base: str = "uncond",
) -> tuple[Array, Array]:
    """Adaptive projected guidance, Sadat et al., arXiv 2410.02416, algorithm 1.

    ``D = (c − u) + m·D_prev``; ``D' = D·min(1, τ/‖D‖)``; split along c: ``D' = D∥ + D⊥``;
    ``b + s·(D⊥ + η·D∥)``.  ``base="uncond"`` is diffusers; ``"cond"`` with s − 1 is the paper, with s
    ComfyUI. τ = 0 turns the threshold off; D = 0 keeps factor 1; c = 0 has no parallel part.  ``average`` is
    D_prev or None. Norms and projection over ``dims``.  Returns the prediction and the new D (before the
    threshold), ``[B, ...]``.
    """
    u, c = f64(uncond), f64(cond)
    buffer = c - u
    if average is not None:
        buffer = buffer + per_sample(momentum, c) * f64(average)
    tau = per_sample(norm_threshold, c)
    limit = np.where(tau > 0, np.minimum(1.0, ratio(tau, norm(buffer, dims), 1.0)), 1.0)
    update = buffer * limit
    along = parallel(update, c, dims)
    start = {"uncond": u, "cond": c}[base]
    return start + per_sample(scale, c) * ((update - along) + per_sample(eta, c) * along), buffer


def apg_mix(
    *,
    uncond: Array,
    cond: Array,
    step: int,
    start_step: int = 5,
    scale: Parameter = 3.5,
    apg_scale: Parameter = 10.0,
    eta: Parameter = 0.0,
    norm_threshold: Parameter = 10.0,
    momentum: Parameter = -0.5,
    average: Array | None = None,
    base: str = "uncond",
) -> tuple[Array, Array]:
    """CFG while ``step ≤ start_step``, then :func:`apg`; the momentum buffer is updated at every step
    (diffusers).
    """
    guided, buffer = apg(
        uncond=uncond,
        cond=cond,
        scale=apg_scale,
        eta=eta,
        norm_threshold=norm_threshold,
        momentum=momentum,
        average=average,
        base=base,
    )
    return (guided if step > start_step else cfg(uncond=uncond, cond=cond, scale=scale, base=base)), buffer


def cfg_zero_star(
    *,
    uncond: Array,
    cond: Array,
    scale: Parameter,
    eps: float = 1e-8,
    step: int | None = None,
    zero_init_steps: int = 0,
    base: str = "uncond",
) -> Array:
    """CFG-Zero*, Fan et al., arXiv 2503.18886.

    ``α = c·u / (‖u‖² + eps)``; ``αu + s·(c − αu)`` (or base ``c``); zeros for the first ``zero_init_steps``
    steps. u = 0 (and eps = 0) gives α = 0.  Shapes ``[B, ...]``.
    """
    u, c = f64(uncond), f64(cond)
    if step is not None and step < zero_init_steps:
        return np.zeros_like(c)
    alpha = ratio(dot(c, u), dot(u, u) + eps, 0.0)
    return cfg(uncond=alpha * u, cond=c, scale=scale, base=base)


def tcfg_uncond_svd(*, uncond: Array, cond: Array) -> Array:
    """TCFG's damped unconditional prediction by a real SVD, Kwon et al., arXiv 2503.18137.

    The rows c and u of each sample are decomposed, and u keeps only its component along the first right
    singular vector.
    """
    u, c = f64(uncond), f64(cond)
    damped = np.empty_like(u)
    for i in range(u.shape[0]):
        first = np.linalg.svd(np.stack([c[i].ravel(), u[i].ravel()]), full_matrices=False)[2][0]
        damped[i] = (np.dot(u[i].ravel(), first) * first).reshape(u[i].shape)
    return damped


def tcfg_uncond_closed_form(*, uncond: Array, cond: Array) -> Array:
    """The same projection without an SVD.

    ``r = √((2·c·u)² + (‖c‖² − ‖u‖²)²)``; ``u' = (c·u/r)·c + ½·(1 − (‖c‖² − ‖u‖²)/r)·u``.
    r = 0 (c ⊥ u of equal norm: no direction is singled out): both quotients count as 0 and ``u' = u/2``, the
    mean of all choices.
    """
    u, c = f64(uncond), f64(cond)
    cu, gap = dot(c, u), dot(c, c) - dot(u, u)
    r = np.hypot(2 * cu, gap)
    return ratio(cu, r, 0.0) * c + 0.5 * (1 - ratio(gap, r, 0.0)) * u


def tcfg(*, uncond: Array, cond: Array, scale: Parameter, base: str = "uncond", method: str = "svd") -> Array:
    """Tangential damping CFG, arXiv 2503.18137: CFG with the damped u'; method "svd" or "closed_form"."""
    damped = {"svd": tcfg_uncond_svd, "closed_form": tcfg_uncond_closed_form}[method](uncond=uncond, cond=cond)
    return cfg(uncond=damped, cond=cond, scale=scale, base=base)


def mambo_g(*, uncond: Array, cond: Array, scale: Parameter, alpha: Parameter = 8.0, base: str = "uncond") -> Array:
    """MaMBO-G, arXiv 2508.03442: ``u + s'·(c − u)`` with ``s' = 1 + (s − 1)·exp(−α·‖c − u‖/‖u‖)``.

    ``base="cond"`` (diffusers): ``c + s·exp(−α·‖c − u‖/‖u‖)·(c − u)``.  u = 0: the exponential is 0 (1 if c =
    0 too).
    """
    u, c = f64(uncond), f64(cond)
    d = c - u
    q = np.where(norm(d) == 0, 0.0, ratio(norm(d), norm(u), np.inf))
    strength = per_sample(alpha, c)
    with np.errstate(invalid="ignore"):
        damping = np.where(strength == 0, 1.0, np.exp(-strength * q))
    s = per_sample(scale, c)
    return u + (1 + (s - 1) * damping) * d if base == "uncond" else c + s * damping * d


_BINOMIAL = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def _blur(x: Array) -> Array:
    """5×5 binomial filter over the last two dims, reflected at the border (without repeating the edge)."""
    for axis in (-2, -1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (2, 2)
        padded = np.pad(x, pad, mode="reflect")
        size = x.shape[axis]
        x = sum(w * np.take(padded, np.arange(k, k + size), axis=axis) for k, w in enumerate(_BINOMIAL))
    return x


def pyramid_down(x: Array) -> Array:
    """Blur, then halve both last dims (even sizes) by the mean of 2×2 blocks (bilinear, half-pixel
    centres).
    """
    x = _blur(x)
    x = 0.5 * (x[..., 0::2, :] + x[..., 1::2, :])
    return 0.5 * (x[..., 0::2] + x[..., 1::2])


def pyramid_up(x: Array) -> Array:
    """Double both last dims bilinearly (half-pixel centres, edge clamped), then blur."""
    for axis in (-2, -1):
        size = x.shape[axis]
        before = np.take(x, np.maximum(np.arange(size) - 1, 0), axis=axis)
        after = np.take(x, np.minimum(np.arange(size) + 1, size - 1), axis=axis)
        doubled = np.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis)
        shape = list(x.shape)
        shape[axis] = 2 * size
        x = doubled.reshape(shape)
    return _blur(x)


def laplacian_pyramid(x: Array, levels: int) -> list[Array]:
    """Burt & Adelson's pyramid of ``[..., H, W]``: ``levels − 1`` band-pass levels, then the low-pass
    rest.
    """
    bands = []
    for _ in range(levels - 1):
        low = pyramid_down(x)
        bands.append(x - pyramid_up(low))
        x = low
    return [*bands, x]


def from_pyramid(pyramid: Sequence[Array]) -> Array:
    """The image of a Laplacian pyramid."""
    x = pyramid[-1]
    for band in reversed(pyramid[:-1]):
        x = pyramid_up(x) + band
    return x


def _padded_size(height: int, width: int, levels: int) -> tuple[int, int]:
    def is_power(n: int) -> bool:
        return n & (n - 1) == 0

    stride = 2 ** (levels - 1)
    if not (is_power(height) or is_power(width)) or height % stride or width % stride:
        return 1 << (height - 1).bit_length(), 1 << (width - 1).bit_length()
    return height, width


def fdg(
    *,
    uncond: Array,
    cond: Array,
    scales: Sequence[Parameter] = (10.0, 5.0),
    parallel_weights: Sequence[float] | None = None,
    rescale: float | Sequence[float] = 0.0,
    rescale_space: str = "data",
    base: str = "uncond",
    active: Sequence[bool] | None = None,
) -> Array:
    """Frequency-decoupled guidance, Sadat et al., arXiv 2506.19713.

    Laplacian pyramids of c and u; on each level (highest frequencies first) CFG with its own scale, the
    shift's part along c's level weighted by ``parallel_weights``; optionally :func:`rescale_std` per level
    (``"freq"``) or of the result (``"data"``, the first value).  A level with ``active`` False keeps c's.
    ``[B, ..., H, W]``.

    kornia's border rule: sides are reflected on the right and bottom up to powers of two when neither side is
    one, or when a side cannot be halved often enough; here the result is cropped back to the input's size.
    """
    u, c = f64(uncond), f64(cond)
    levels, (height, width) = len(scales), c.shape[-2:]
    full = _padded_size(height, width, levels)
    pad = [(0, 0)] * (c.ndim - 2) + [(0, full[0] - height), (0, full[1] - width)]
    u_levels, c_levels = (laplacian_pyramid(np.pad(x, pad, mode="reflect"), levels) for x in (u, c))
    weights = [1.0] * levels if parallel_weights is None else list(parallel_weights)
    phis = [rescale] * levels if isinstance(rescale, (int, float)) else list(rescale)
    guided = []
    for i, (u_i, c_i) in enumerate(zip(u_levels, c_levels, strict=True)):
        if active is not None and not active[i]:
            guided.append(c_i)
            continue
        shift = c_i - u_i
        along = parallel(shift, c_i)
        shift = weights[i] * along + (shift - along)
        level = (u_i if base == "uncond" else c_i) + per_sample(scales[i], c) * shift
        guided.append(rescale_std(guided=level, cond=c_i, phi=phis[i]) if rescale_space == "freq" else level)
    result = from_pyramid(guided)[..., :height, :width]
    return rescale_std(guided=result, cond=c, phi=phis[0]) if rescale_space == "data" else result
