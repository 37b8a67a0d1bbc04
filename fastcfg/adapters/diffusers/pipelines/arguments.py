"""Arguments of a pipeline's call that its own guidance would have read, and :func:`guided` does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

__all__ = ["INSTEAD", "call_arguments", "check_arguments"]

INSTEAD: Mapping[str, str] = {
    "cfg_normalization": "give NormCap(rule), as own_rule does",
    "cfg_normalize": "give NormCap(rule, mode='full', over='token'), as own_rule does",
    "cfg_renorm_min": "give NormCap(rule, mode='clamp', low=…), as own_rule does",
    "cfg_trunc_ratio": "give the rule an Interval",
    "cfg_truncation": "give the rule an Interval",
    "enable_cfg_renorm": "give the rule without a NormCap",
    "guidance_rescale": "give CFG(rescale=…), or Rescale(rule)",
    "guidance_scale_2": "give a rule for each denoiser: {'transformer': …, 'transformer_2': …}",
    "normalize": "give CFG(rescale=0.7), as own_rule does",
    "pag_adaptive_scale": "give Perturbed a schedule of its perturbed_scale",
    "skip_layer_guidance_scale": "give Perturbed(perturbed_scale=…)",
    "use_dynamic_cfg": "give the rule Values, a scale for each step",
}
"""Arguments of the pipelines' own guidance, and what to give :func:`guided` in their place."""

_CUTOFF = "CFGCutoff"


def call_arguments(call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call that are not its defaults, by name; none where they do not fit."""
    signature = inspect.signature(call)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return {}  # The pipeline says it better.
    return {name: value for name, value in given.items() if not _same(value, signature.parameters[name].default)}


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, bool | int | float) and value == default)


def check_arguments(given: Mapping[str, Any], conditions: Collection[str]) -> None:
    """Raise for an argument whose effect would be lost.

    Args:
        given: :func:`call_arguments`; conditions: what the rules take.

    Raises:
        ValueError: naming the argument, and what to give :func:`guided` instead.
    """
    for name, instead in INSTEAD.items():
        if name in given and given[name] is not None:
            raise ValueError(
                f"{name}: is of the pipeline's own guidance, which guided takes the place of, so that "
                f"{given[name]!r} would have no effect: {instead}, and leave {name} out"
            )
    if given.get("skip_guidance_layers") is not None and "perturbed" not in conditions:
        raise ValueError(
            "skip_guidance_layers: makes the pipeline run a pass that the rule does not take; give Perturbed"
        )
    callback = given.get("callback_on_step_end")
    for part in getattr(callback, "callbacks", [callback]):
        if _CUTOFF in type(part).__name__:
            raise ValueError(
                f"callback_on_step_end: {type(part).__name__} ends the pipeline's own guidance, which guided takes "
                "the place of: give the rule an Interval instead"
            )
