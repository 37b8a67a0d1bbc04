"""Passes with weakened layers as conditions of classic pipelines: SLG, STG, PAG, SEG and TPG by layer names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceConfig
from torch import Tensor, nn

from ...core.conditions import Condition
from ...validate import check_choice
from .guiders.layers import LayerSwitch, Weak, own_configs, self_attention
from .guiders.smoothing import blurred_layers

__all__ = ["weakened"]

_KINDS = ("skip", "attention", "scores", "feed_forward", "blur", "shuffle")


def weakened(
    denoiser: nn.Module,
    layers: Sequence[int],
    kind: str = "skip",
    *,
    fqn: str = "auto",
    sigma: float = 1e7,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
) -> Condition:
    """Return a condition whose pass runs with some of a model's layers weakened, for a rule that takes ``perturbed``.

        condition = weakened(pipe.transformer, [7, 8, 9])
        with guided(pipe, Perturbed(5.0, 2.8), conditions={"perturbed": condition}):
            ...

    Several conditions, of one rule or of different ones, may weaken the same model; each runs as a call of its own.

    Args:
        denoiser: the pipeline's.
        layers: numbers in the stack ``fqn`` (``"auto"``: the first known name of a stack that the model has).
        kind: ``"skip"``: whole layers (SLG, STG); ``"attention"`` or ``"feed_forward"``: that part of them;
            ``"scores"``: the values instead of the attention (PAG); ``"blur"``: queries smoothed over ``sigma`` tokens
            (SEG; beyond 9999 it is their mean); ``"shuffle"``: tokens in another order (TPG), the same for all calls.
        seed: of the order of tokens.
        inputs: the denoiser's arguments that differ besides.

    Raises:
        ValueError: naming what the model does not have.

    Source: SLG 2411.18664; PAG 2403.17377; SEG 2408.00760; TPG 2506.10036.
    """
    check_choice("kind", kind, _KINDS)
    if kind == "blur":
        switch = LayerSwitch(
            denoiser,
            own_configs([SmoothedEnergyGuidanceConfig(list(layers), fqn=fqn)]),
            partial(blurred_layers, sigma=sigma, threshold=9999.0),
        )
    elif kind == "shuffle":
        config = LayerSkipConfig(list(layers), fqn=fqn)
        switch = LayerSwitch(denoiser, own_configs([config]), partial(_shuffled, seed=seed))
    else:
        config = LayerSkipConfig(
            list(layers),
            fqn=fqn,
            skip_attention=kind in ("skip", "attention"),
            skip_attention_scores=kind == "scores",
            skip_ff=kind in ("skip", "feed_forward"),
        )
        switch = LayerSwitch(denoiser, own_configs([config]))
    return Condition(inputs or {}, context=switch.weak)


def _shuffled(denoiser: nn.Module, config: Any, seed: int) -> Iterator[tuple[nn.Module, Weak]]:
    """Self-attentions that get their tokens ``[B, N, C]`` in another order, and give them back in their own."""

    def weak(strong: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        tokens = args[0] if args else kwargs["hidden_states"]
        order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(seed)).to(tokens.device)
        mixed = tokens[:, order]
        given = {**kwargs, "hidden_states": mixed} if not args else kwargs
        out: Tensor = strong(*((mixed, *args[1:]) if args else ()), **given)
        return out[:, order.argsort()]

    for module in self_attention(denoiser, config):
        yield module, weak
