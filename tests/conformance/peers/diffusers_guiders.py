"""The guiders of diffusers (written against 0.42.1), driven through their real ``forward``.

Every function takes named tensors, the rule's parameters and ``step`` / ``num_steps``, and returns what the
guider returns as ``pred``.  Windows are fractions of the steps: ``int(start·N) ≤ step < int(stop·N)`` for
CFG-like terms and SEG, strict on both sides for the SLG and PAG terms.  A guider whose scale is close to 1 (0
with ``original=True``, the formulation with base ``cond``) skips the rule and returns ``cond``.

Defects that hold for all of them: per-sample scale tensors raise (``math.isclose``); ``rescale_noise_cfg`` is
NaN at zero standard deviation; fp16 norms overflow beyond 65504.  Those of one guider are in its function's
docstring.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    FrequencyDecoupledGuidance,
    LTX2Guidance,
    MagnitudeAwareGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.guider_utils import BaseGuidance, rescale_noise_cfg
from torch import Tensor

__all__ = [
    "adaptive_projected",
    "adaptive_projected_mix",
    "auto",
    "classifier_free",
    "classifier_free_zero_star",
    "frequency_decoupled",
    "has_kornia",
    "ltx2",
    "magnitude_aware",
    "perturbed_attention",
    "rescale_noise_cfg",
    "skip_layer",
    "smoothed_energy",
    "tangential",
]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the guiders' "experimental feature" message, which goes to a logger and not to
    ``warnings``.
    """
    logger = logging.getLogger("diffusers.guiders.guider_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _build(guider: type[BaseGuidance], original: bool | None = None, **config: Any) -> BaseGuidance:
    if original is not None:
        config["use_original_formulation"] = original
    with _quiet():
        return guider(**config)


def _run(guider: BaseGuidance, step: int, num_steps: int, **predictions: Tensor | None) -> Tensor:
    guider.set_state(step=step, num_inference_steps=num_steps, timestep=torch.tensor(0))
    return guider.forward(**predictions).pred


def classifier_free(
    *,
    uncond: Tensor,
    cond: Tensor,
    scale: float,
    rescale: float = 0.0,
    original: bool = False,
    step: int = 0,
    num_steps: int = 1,
    **window: Any,
) -> Tensor:
    """``ClassifierFreeGuidance``; ``window`` takes ``start``, ``stop`` and ``enabled``."""
    guider = _build(ClassifierFreeGuidance, original, guidance_scale=scale, guidance_rescale=rescale, **window)
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=uncond)


def adaptive_projected(
    *,
    pairs: Sequence[tuple[Tensor, Tensor]],
    scale: float,
    momentum: float | None = None,
    norm_threshold: float = 15.0,
    norm_dim: int | tuple[int, ...] | None = None,
    eta: float = 1.0,
    rescale: float = 0.0,
    original: bool = False,
    num_steps: int | None = None,
    **window: Any,
) -> list[Tensor]:
    """``AdaptiveProjectedGuidance`` over successive steps: one prediction per ``(uncond, cond)`` pair, from
    step 0.

    The buffer is reset only when inputs are prepared at step 0.  In half precision the norm, the momentum and
    the final sum are computed in the input's dtype; an overflowing norm removes the guidance.
    """
    guider = _build(
        AdaptiveProjectedGuidance,
        original,
        guidance_scale=scale,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=norm_threshold,
        adaptive_projected_guidance_norm_dim=norm_dim,
        eta=eta,
        guidance_rescale=rescale,
        **window,
    )
    return _sequence(guider, pairs, num_steps)


def _sequence(guider: BaseGuidance, pairs: Sequence[tuple[Tensor, Tensor]], num_steps: int | None) -> list[Tensor]:
    results = []
    for step, (uncond, cond) in enumerate(pairs):
        guider.set_state(step=step, num_inference_steps=num_steps or len(pairs), timestep=torch.tensor(0))
        guider.prepare_inputs({"latents": (cond, uncond)})
        results.append(guider.forward(pred_cond=cond, pred_uncond=uncond).pred)
    return results


def adaptive_projected_mix(
    *,
    pairs: Sequence[tuple[Tensor, Tensor]],
    scale: float = 3.5,
    apg_scale: float = 10.0,
    momentum: float = -0.5,
    norm_threshold: float = 10.0,
    eta: float = 0.0,
    start_step: int = 5,
    rescale: float = 0.0,
    original: bool = False,
    num_steps: int | None = None,
    **window: Any,
) -> list[Tensor]:
    """``AdaptiveProjectedMixGuidance`` over successive steps: CFG while ``step ≤ start_step``, then APG."""
    guider = _build(
        AdaptiveProjectedMixGuidance,
        original,
        guidance_scale=scale,
        guidance_rescale=rescale,
        adaptive_projected_guidance_scale=apg_scale,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=norm_threshold,
        adaptive_projected_guidance_start_step=start_step,
        eta=eta,
        **window,
    )
    return _sequence(guider, pairs, num_steps)


def classifier_free_zero_star(
    *,
    uncond: Tensor,
    cond: Tensor,
    scale: float,
    zero_init_steps: int = 0,
    rescale: float = 0.0,
    original: bool = False,
    step: int = 0,
    num_steps: int = 1,
    **window: Any,
) -> Tensor:
    """``ClassifierFreeZeroStarGuidance``: α is summed in fp32 and cast to the inputs' dtype.

    Defects: NaN at zero-init steps when ``rescale`` is set; α is rounded to half precision before it
    multiplies.
    """
    guider = _build(
        ClassifierFreeZeroStarGuidance,
        original,
        guidance_scale=scale,
        zero_init_steps=zero_init_steps,
        guidance_rescale=rescale,
        **window,
    )
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=uncond)


def tangential(
    *,
    uncond: Tensor,
    cond: Tensor,
    scale: float,
    rescale: float = 0.0,
    original: bool = False,
    step: int = 0,
    num_steps: int = 1,
    **window: Any,
) -> Tensor:
    """``TangentialClassifierFreeGuidance``: an fp32 SVD per sample whatever the inputs' dtype.

    Defects: ``is_conditional`` raises AttributeError; the SVD is 1.5e−6 to 3e−4 (relative) off fp64.
    """
    guider = _build(
        TangentialClassifierFreeGuidance, original, guidance_scale=scale, guidance_rescale=rescale, **window
    )
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=uncond)


def magnitude_aware(
    *,
    uncond: Tensor,
    cond: Tensor,
    scale: float,
    alpha: float = 8.0,
    rescale: float = 0.0,
    original: bool = False,
    step: int = 0,
    num_steps: int = 1,
    **window: Any,
) -> Tensor:
    """``MagnitudeAwareGuidance`` (MaMBO-G).

    Defects: raises on 4-D and 5-D latents (``torch.norm`` over three dims); NaN for a zero ``uncond``.
    """
    guider = _build(
        MagnitudeAwareGuidance,
        original,
        guidance_scale=scale,
        alpha=alpha,
        guidance_rescale=rescale,
        **window,
    )
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=uncond)


def has_kornia() -> bool:
    """Whether kornia, which :func:`frequency_decoupled` needs, can be imported by diffusers."""
    from diffusers.utils import is_kornia_available

    return bool(is_kornia_available())


def frequency_decoupled(
    *,
    uncond: Tensor,
    cond: Tensor,
    scales: Sequence[float] = (10.0, 5.0),
    parallel_weights: float | Sequence[float] | None = None,
    rescale: float | Sequence[float] = 0.0,
    rescale_space: str = "data",
    original: bool = False,
    step: int = 0,
    num_steps: int = 1,
    **window: Any,
) -> Tensor:
    """``FrequencyDecoupledGuidance`` on ``[B, C, H, W]``; needs kornia.

    Defects: a level outside its window, or with a scale close to 1 (0), reads a variable of another level: it
    raises on the first level and puts a wrong one, usually of a wrong size, in place afterwards.  kornia pads
    both sides to powers of two when neither is one or a side is not divisible often enough, and the guider
    returns that padded size. ``parallel_weights`` given as an int, and ``start`` or ``stop`` as ints, raise.
    """
    guider = _build(
        FrequencyDecoupledGuidance,
        original,
        guidance_scales=list(scales),
        parallel_weights=parallel_weights,
        guidance_rescale=rescale,
        guidance_rescale_space=rescale_space,
        **window,
    )
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=uncond)


def auto(
    *,
    cond: Tensor,
    perturbed: Tensor,
    scale: float,
    rescale: float = 0.0,
    original: bool = False,
    step: int = 0,
    num_steps: int = 1,
    **window: Any,
) -> Tensor:
    """``AutoGuidance``: CFG's formula with the weaker model's prediction in the place of ``uncond``."""
    guider = _build(
        AutoGuidance,
        original,
        guidance_scale=scale,
        auto_guidance_layers=[0],
        dropout=1.0,
        guidance_rescale=rescale,
        **window,
    )
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=perturbed)


def skip_layer(
    *,
    cond: Tensor,
    perturbed: Tensor,
    uncond: Tensor | None = None,
    scale: float = 7.5,
    perturbed_scale: float = 2.8,
    perturbed_start: float = 0.01,
    perturbed_stop: float = 0.2,
    rescale: float = 0.0,
    original: bool = False,
    step: int = 1,
    num_steps: int = 10,
    **window: Any,
) -> Tensor:
    """``SkipLayerGuidance``; ``scale=1`` (0 with ``original``) turns the CFG term off and leaves ``uncond``
    unused.

    Defects outside ``forward``: without CFG the skip pass is prepared with the negative prompt, and its hooks
    are not applied.  Without CFG the base changes to the perturbed prediction.
    """
    guider = _build(
        SkipLayerGuidance,
        original,
        guidance_scale=scale,
        skip_layer_guidance_scale=perturbed_scale,
        skip_layer_guidance_start=perturbed_start,
        skip_layer_guidance_stop=perturbed_stop,
        skip_layer_guidance_layers=[0],
        guidance_rescale=rescale,
        **window,
    )
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=uncond, pred_cond_skip=perturbed)


def perturbed_attention(
    *,
    cond: Tensor,
    perturbed: Tensor,
    uncond: Tensor | None = None,
    scale: float = 7.5,
    perturbed_scale: float = 2.8,
    perturbed_start: float = 0.01,
    perturbed_stop: float = 0.2,
    rescale: float = 0.0,
    original: bool = False,
    step: int = 1,
    num_steps: int = 10,
    **window: Any,
) -> Tensor:
    """``PerturbedAttentionGuidance``; its ``forward`` and its defects are :func:`skip_layer`'s."""
    guider = _build(
        PerturbedAttentionGuidance,
        original,
        guidance_scale=scale,
        perturbed_guidance_scale=perturbed_scale,
        perturbed_guidance_start=perturbed_start,
        perturbed_guidance_stop=perturbed_stop,
        perturbed_guidance_layers=[0],
        guidance_rescale=rescale,
        **window,
    )
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=uncond, pred_cond_skip=perturbed)


def smoothed_energy(
    *,
    cond: Tensor,
    perturbed: Tensor,
    uncond: Tensor | None = None,
    scale: float = 7.5,
    perturbed_scale: float = 2.8,
    perturbed_start: float = 0.0,
    perturbed_stop: float = 1.0,
    rescale: float = 0.0,
    original: bool = False,
    step: int = 1,
    num_steps: int = 10,
    **window: Any,
) -> Tensor:
    """``SmoothedEnergyGuidance``: :func:`skip_layer`'s formula.

    Defects outside ``forward``: ``prepare_models`` never counts, so its hook never fires.
    """
    guider = _build(
        SmoothedEnergyGuidance,
        original,
        guidance_scale=scale,
        seg_guidance_scale=perturbed_scale,
        seg_guidance_start=perturbed_start,
        seg_guidance_stop=perturbed_stop,
        seg_guidance_layers=[0],
        guidance_rescale=rescale,
        **window,
    )
    return _run(guider, step, num_steps, pred_cond=cond, pred_uncond=uncond, pred_cond_seg=perturbed)


def ltx2(
    *,
    cond: Tensor,
    uncond: Tensor | None = None,
    perturbed: Tensor | None = None,
    modality: Tensor | None = None,
    scale: float = 1.0,
    perturbed_scale: float = 0.0,
    modality_scale: float = 1.0,
    rescale: float = 0.0,
    step: int = 0,
    num_steps: int = 1,
    **window: Any,
) -> Tensor:
    """``LTX2Guidance``, on x0 predictions."""
    guider = _build(
        LTX2Guidance,
        guidance_scale=scale,
        stg_scale=perturbed_scale,
        modality_scale=modality_scale,
        guidance_rescale=rescale,
        **window,
    )
    predictions = {"pred_uncond": uncond, "pred_cond_stg": perturbed, "pred_cond_modality": modality}
    return _run(guider, step, num_steps, pred_cond=cond, **predictions)
