"""Guidance away from a degraded prediction: autoguidance, PAG, SEG, SLG, STG, SAG and LTX-2's sum."""

from __future__ import annotations

from .arrays import Array, Parameter, f64, per_sample
from .classifier_free import cfg


def autoguidance(*, cond: Array, perturbed: Array, scale: Parameter, base: str = "perturbed") -> Array:
    """``p + s·(c − p)``, Karras et al., arXiv 2406.02507, p from a weaker model; base "cond":
    ``c + s·(c − p)``.
    """
    return cfg(uncond=perturbed, cond=cond, scale=scale, base="uncond" if base == "perturbed" else "cond")


def perturbed_sum(
    *,
    cond: Array,
    perturbed: Array,
    perturbed_scale: Parameter,
    uncond: Array | None = None,
    scale: Parameter = 1.0,
    base: str = "uncond",
) -> Array:
    """``b + s·(c − u) + k·(c − p)``: CFG with PAG, SEG, SLG or STG.

    PAG: Ahn et al., arXiv 2403.17377; SEG: Hong, arXiv 2408.00760; STG: Hyung et al., arXiv 2411.18664; SLG:
    Stable Diffusion 3.5.  ``base`` is "uncond", "cond" or, without ``uncond``, "perturbed": ``p + k·(c − p)``
    (diffusers' SLG alone). Without ``uncond``, base "cond" is ``c + k·(c − p)`` (the PAG pipelines).  Shapes
    ``[B, ...]``.
    """
    c, p = f64(cond), f64(perturbed)
    k = per_sample(perturbed_scale, c)
    if uncond is None:
        return {"cond": c, "perturbed": p}[base] + k * (c - p)
    u = f64(uncond)
    return {"uncond": u, "cond": c}[base] + per_sample(scale, c) * (c - u) + k * (c - p)


def self_attention_guidance(*, guided: Array, uncond: Array, perturbed: Array, scale: Parameter = 0.75) -> Array:
    """``y + k·(u − ε(x̃))``, Hong et al., arXiv 2210.00939; ``perturbed`` = ε of the degraded input."""
    y, u, p = f64(guided), f64(uncond), f64(perturbed)
    return y + per_sample(scale, y) * (u - p)


def ltx2(
    *,
    cond: Array,
    uncond: Array | None = None,
    perturbed: Array | None = None,
    modality: Array | None = None,
    scale: Parameter = 1.0,
    perturbed_scale: Parameter = 0.0,
    modality_scale: Parameter = 1.0,
) -> Array:
    """``c + (s − 1)·(c − u) + k·(c − p) + (m − 1)·(c − p_mod)``, on x0 predictions ``[B, ...]`` (LTX-2)."""
    c = f64(cond)
    y = c.copy()
    for other, weight in (
        (uncond, per_sample(scale, c) - 1),
        (perturbed, per_sample(perturbed_scale, c)),
        (modality, per_sample(modality_scale, c) - 1),
    ):
        if other is not None:
            y = y + weight * (c - f64(other))
    return y
