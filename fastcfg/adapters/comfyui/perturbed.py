"""Guidance by a perturbed pass, as ComfyUI's ``sampler_post_cfg_function``: it adds to whatever the step gave."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...core.guide import guide
from ...rules import Linear, Rescale, Rule
from .hooks import comfy

__all__ = ["Patch", "PerturbedPass", "attach_perturbed", "layers", "skip_attention", "skip_layer"]


@dataclass(frozen=True)
class Patch:
    """One entry of ComfyUI's ``patches_replace``."""

    function: Callable[..., Any]
    name: str
    block: str
    number: int


def skip_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: Any, mask: Tensor | None = None) -> Tensor:
    """Self-attention whose map is the identity (perturbed-attention guidance, 2403.17377)."""
    return v


def skip_layer(args: Any, extra_args: Any) -> Any:
    """A transformer block that does nothing (skip-layer guidance)."""
    return args


def layers(text: str) -> list[int]:
    """The layer numbers in ``"7, 8, 9"``."""
    return [int(number) for number in re.findall(r"\d+", text)]


@dataclass(frozen=True)
class PerturbedPass:
    """``denoised + scale * (cond - perturbed)``, rescaled by ``phi`` to cond's deviation, per sample.

    Args:
        patches: what perturbs the pass.
        scale: of the difference; phi: 0 is off.
        window: noise levels (low, high), both in.
    """

    patches: tuple[Patch, ...]
    scale: float
    phi: float = 0.0
    window: tuple[float, float] | None = None

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """The hook: a clean sample ``[B, ...]``."""
        denoised: Tensor = args["denoised"]
        sigma, options = args["sigma"], args["model_options"]
        if self.scale == 0 or not self.patches:
            return denoised
        if self.window is not None and not self.window[0] <= float(sigma.max()) <= self.window[1]:
            return denoised
        replace = comfy("model_patcher").set_model_options_patch_replace
        changed = options.copy()
        for patch in self.patches:
            changed = replace(changed, patch.function, patch.name, patch.block, patch.number)
        calc = comfy("samplers").calc_cond_batch
        [perturbed] = calc(args["model"], [args["cond"]], args["input"], sigma, changed)
        return guide(self.rule, guided=denoised, cond=args["cond_denoised"], perturbed=perturbed)

    @property
    def rule(self) -> Rule:
        """The weights of the three predictions, and the rescale."""
        added = Linear((("guided", 1.0), ("cond", self.scale), ("perturbed", -self.scale)))
        return Rescale(added, phi=self.phi) if self.phi else added


def attach_perturbed(model: Any, patches: Sequence[Patch], scale: float, **options: Any) -> Any:
    """A clone of a ComfyUI model with a :class:`PerturbedPass` after its guidance."""
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(PerturbedPass(tuple(patches), scale, **options))
    return clone
