"""The nodes of guidance that is no rule: ComfyUI's hooks before and after the guidance of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...methods.fresca import fresca
from ...methods.mahiro import mahiro
from ...methods.noise_rescaling import epsilon_scaling, temporal_score_rescaling
from ...methods.thresholding import dynamic_threshold
from .space import prediction_at
from .spec import MODEL, Node, number, whole

__all__ = ["RESULT_NODES"]


def _after(model: Any, change: Callable[[dict[str, Any]], Tensor]) -> Any:
    """A clone of a ComfyUI model with a ``sampler_post_cfg_function``."""
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(change)
    return clone


def _threshold(model: Any, quantile: float, cap: float, bound: float) -> Any:
    if 0 < cap < 1:
        raise ValueError(f"cap: expected 0 (none) or a number of 1 or more, got {cap}")

    def change(args: dict[str, Any]) -> Tensor:
        return dynamic_threshold(args["denoised"] / bound, quantile=quantile, cap=cap or None) * bound

    return _after(model, change)


def _epsilon_scaling(model: Any, factor: float) -> Any:
    return _after(model, lambda args: epsilon_scaling(args["input"], args["denoised"], factor=factor))


def _temporal_score_rescaling(model: Any, k: float, spread: float) -> Any:
    def change(args: dict[str, Any]) -> Tensor:
        x = args["input"]
        level = prediction_at(args["model"], args["sigma"], x, ())[1]
        # A flow begins at alpha = 0, where the change vanishes with alpha.
        alpha = level.alpha.clamp(min=1e-6) if isinstance(level.alpha, Tensor) else level.alpha
        return temporal_score_rescaling(x, args["denoised"], alpha=alpha, sigma=level.sigma, k=k, spread=spread)

    return _after(model, change)


def _mahiro(model: Any) -> Any:
    def change(args: dict[str, Any]) -> Tensor:
        if args["uncond"] is None:
            return args["denoised"]  # type: ignore[no-any-return]
        scale = float(args["cond_scale"])
        return mahiro(uncond=args["uncond_denoised"], cond=args["cond_denoised"], scale=scale)

    return _after(model, change)


def _fresca(model: Any, low: float, high: float, cutoff: int) -> Any:
    def change(args: dict[str, Any]) -> list[Any]:
        out = args["conds_out"]
        if len(out) < 2 or None in args["conds"][:2]:
            return out  # type: ignore[no-any-return]
        cond = fresca(uncond=out[1], cond=out[0], scale=1.0, low=low, high=high, cutoff=cutoff)
        return [cond, *out[1:]]

    clone = model.clone()
    clone.set_model_sampler_pre_cfg_function(change)
    return clone


RESULT_NODES = (
    Node(
        "FastcfgDynamicThreshold", "Dynamic thresholding (fastcfg)",
        "Brings clean samples into range by their own quantile (Imagen, 2205.11487); made for models of pixels.",
        (
            MODEL,
            number("quantile", 0.995, 0.0, 1.0, 0.001, "Quantile of a sample's absolute values."),
            number("cap", 0.0, 0.0, 100.0, 0.1, "Largest divisor, from 1; 0 is none."),
            number("bound", 1.0, 0.01, 100.0, 0.01, "The range, 1 for pixels; latents need their own."),
        ),
        _threshold,
    ),
    Node(
        "FastcfgEpsilonScaling", "Epsilon scaling (fastcfg)",
        "Divides the predicted noise by a factor, against exposure bias (2308.15321); after any guidance.",
        (MODEL, number("factor", 1.005, 0.5, 1.5, 0.001, "1 is off.")),
        _epsilon_scaling,
    ),
    Node(
        "FastcfgTemporalScoreRescaling", "Temporal score rescaling (fastcfg)",
        "Sharpens the distribution that is sampled (2510.01184); after any guidance.",
        (
            MODEL,
            number("k", 0.95, 0.01, 10.0, 0.01, "1 is off, smaller gives more detail."),
            number("spread", 1.0, 0.01, 100.0, 0.01, "Larger acts earlier."),
        ),
        _temporal_score_rescaling,
    ),
    Node(
        "FastcfgMahiro", "Mahiro (fastcfg)",
        "Guides more along the positive prompt's direction, in the place of CFG; by the similarity in each sample.",
        (MODEL,), _mahiro,
    ),
    Node(
        "FastcfgFreSca", "FreSca (fastcfg)",
        "A scale for low and one for high frequencies of the difference (2504.02154), before any guidance.",
        (
            MODEL,
            number("low", 1.0, 0.0, 10.0, 0.01, "Scale of the low frequencies."),
            number("high", 1.25, 0.0, 10.0, 0.01, "Scale of the high frequencies."),
            whole("cutoff", 20, 1, 10000, "Frequencies on either side that are low ones."),
        ),
        _fresca,
    ),
)  # fmt: skip
