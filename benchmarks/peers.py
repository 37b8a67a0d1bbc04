"""The contestants by name: fastcfg, the guiders of diffusers, one torch kernel, and a transcription, eager or compiled.

A contestant is a function of the predictions that returns a call without arguments, so that whatever a user does
once (making a guider, setting its step, compiling) is done before the call that is timed.
"""

from __future__ import annotations

import itertools
import logging
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import fastcfg_kernels as fk
import torch
from torch import Tensor

from fastcfg import Rule, guide

__all__ = ["Call", "Contestant", "Predictions"]

Predictions = Mapping[str, Tensor]
Call = Callable[[], Tensor]
Contestant = Callable[[Predictions], Call]
Formula = Callable[..., Tensor]


# The formulas as their papers print them, in torch: run as they are they are the naive contestant, compiled they are
# the compiled one, and on float64 predictions they are the oracle that every result is checked against.


def cfg(uncond: Tensor, cond: Tensor, *, scale: float) -> Tensor:
    """``u + s (c - u)``; 2207.12598."""
    return uncond + scale * (cond - uncond)


def cfg_rescale(uncond: Tensor, cond: Tensor, *, scale: float, phi: float) -> Tensor:
    """CFG and then ``phi y std(c)/std(y) + (1 - phi) y``; 2305.08891, eqs. 15 and 16."""
    y = cfg(uncond, cond, scale=scale)
    dims = list(range(1, y.dim()))
    factor = cond.std(dim=dims, keepdim=True) / y.std(dim=dims, keepdim=True)
    return phi * (y * factor) + (1 - phi) * y


def dual(uncond: Tensor, cond: Tensor, negative: Tensor, *, scale: float, negative_scale: float) -> Tensor:
    """``u + s (c - u) - s_n (n - u)``."""
    return uncond + scale * (cond - uncond) - negative_scale * (negative - uncond)


def instruct_pix2pix(uncond: Tensor, image: Tensor, cond: Tensor, *, scale: float, image_scale: float) -> Tensor:
    """``u + s_I (i - u) + s_T (c - i)``; 2211.09800, eq. 3."""
    return uncond + image_scale * (image - uncond) + scale * (cond - image)


def multi_condition(uncond: Tensor, *, scales: Sequence[float], **conds: Tensor) -> Tensor:
    """``u + sum_i s_i (c_i - u)``; 2206.01714, eq. 11."""
    y = uncond
    for scale, cond in zip(scales, conds.values(), strict=True):
        y = y + scale * (cond - uncond)
    return y


def perp_neg(uncond: Tensor, cond: Tensor, negative: Tensor, *, scale: float, negative_scale: float) -> Tensor:
    """``u + s p - s_n (n - p <n, p>/<p, p>)`` of deltas from u, per sample; 2304.04968, sec. 4."""
    p, n = cond - uncond, negative - uncond
    dims = list(range(1, p.dim()))
    along = (n * p).sum(dim=dims, keepdim=True) / (p * p).sum(dim=dims, keepdim=True)
    return uncond + scale * p - negative_scale * (n - along * p)


def cfg_zero_star(uncond: Tensor, cond: Tensor, *, scale: float) -> Tensor:
    """``a u + s (c - a u)`` with ``a = <c, u>/(<u, u> + 1e-8)``, per sample; 2503.18886, eqs. 9 to 11."""
    dims = list(range(1, cond.dim()))
    alpha = (cond * uncond).sum(dim=dims, keepdim=True) / ((uncond * uncond).sum(dim=dims, keepdim=True) + 1e-8)
    return alpha * uncond + scale * (cond - alpha * uncond)


def apg(uncond: Tensor, cond: Tensor, *, scale: float, eta: float, norm_threshold: float) -> Tensor:
    """``u + s (D_perp + eta D_par)``, D the delta limited to a norm and split along c; 2410.02416, alg. 1."""
    d = cond - uncond
    dims = list(range(1, d.dim()))
    d = d * (norm_threshold / (d * d).sum(dim=dims, keepdim=True).sqrt()).clamp(max=1)
    along = (d * cond).sum(dim=dims, keepdim=True) / (cond * cond).sum(dim=dims, keepdim=True) * cond
    return uncond + scale * (d - along + eta * along)


def tcfg(uncond: Tensor, cond: Tensor, *, scale: float) -> Tensor:
    """``v + s (c - v)``, v being u's part along the first right singular vector of [c; u]; 2503.18137, alg. 1."""
    rows = torch.stack([cond.flatten(1), uncond.flatten(1)], 1).to(torch.promote_types(cond.dtype, torch.float32))
    axis: Tensor = torch.linalg.svd(rows, full_matrices=False)[2][:, :1]
    along = (rows[:, 1:] @ axis.mT @ axis)[:, 0].view_as(uncond).to(uncond.dtype)
    return along + scale * (cond - along)


def perturbed(uncond: Tensor, cond: Tensor, perturbed: Tensor, *, scale: float, perturbed_scale: float) -> Tensor:
    """``u + s (c - u) + s_p (c - p)``: CFG and a perturbed pass (PAG, skipped layers); 2403.17377."""
    return uncond + scale * (cond - uncond) + perturbed_scale * (cond - perturbed)


def fused(rule: Rule) -> Contestant:
    """fastcfg as a user calls it."""
    return lambda predictions: lambda: guide(rule, **predictions)  # type: ignore[arg-type]


def strategy(rule: Rule, name: str) -> Contestant:
    """fastcfg with a forced launch strategy of the Triton path.

    Raises:
        ValueError: when bound to a sample that does not fit the strategy.
        RuntimeError: when bound to tensors of a device without Triton.
    """

    def bind(predictions: Predictions) -> Call:
        lowered = rule.lowered
        inputs = [predictions[p] for p in lowered.predictions]
        first = inputs[0]
        on_gpu = first.device.type == "cuda"
        programs = torch.cuda.get_device_properties(first.device).multi_processor_count if on_gpu else 0
        sizes = first[0].numel(), len(inputs), first.element_size()
        fk.plan_launch(*sizes, groups=first.shape[0], strategy=name, cooperative=programs)  # type: ignore[arg-type]
        fk.choose_backend(lowered.program, first.device, "triton")
        values = lowered.params
        return lambda: fk.guide(inputs, lowered.program, values, backend="triton", strategy=name)  # type: ignore[arg-type]

    return bind


def lerp(base: str, other: str, weight: float) -> Contestant:
    """``torch.lerp``: one kernel that reads each prediction once, the floor of plain CFG."""

    def bind(predictions: Predictions) -> Call:
        u, c = predictions[base], predictions[other]
        return lambda: torch.lerp(u, c, weight)

    return bind


def guider(name: str, arguments: Mapping[str, str], *, step: int = 0, num_steps: int = 1, **config: Any) -> Contestant:
    """The ``forward`` of a guider of diffusers, its state set once.

    Args:
        name: its class in ``diffusers.guiders``.
        arguments: the prediction's name for each argument of ``forward``.
    """

    def bind(predictions: Predictions) -> Call:
        import diffusers.guiders

        logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)
        made = getattr(diffusers.guiders, name)(**config)
        made.set_state(step=step, num_inference_steps=num_steps, timestep=torch.tensor(0))
        given = {argument: predictions[p] for argument, p in arguments.items()}
        return lambda: made.forward(**given).pred  # type: ignore[no-any-return]

    return bind


def eager(formula: Formula, **params: Any) -> Contestant:
    """The transcription as it stands."""
    return lambda predictions: lambda: formula(**predictions, **params)


_numbers = itertools.count()


def compiled(formula: Formula, options: Mapping[str, Any] | None = None, **params: Any) -> Contestant:
    """``torch.compile`` of the transcription, its sizes known: the fastest code that it makes.

    Args:
        options: Inductor's.

    Returns:
        A contestant for predictions of one shape and dtype: it compiles once, whatever it is bound to.
    """

    @cache
    def compiled_transcription() -> Formula:
        def transcription(**predictions: Tensor) -> Tensor:
            return formula(**predictions, **params)

        # Dynamo counts recompilations by code object and gives up after eight: each signature gets its own.
        code = transcription.__code__.replace(co_name=f"transcription_{next(_numbers)}")
        own = types.FunctionType(code, globals(), code.co_name, None, transcription.__closure__)
        return torch.compile(own, dynamic=False, fullgraph=True, options=dict(options) if options else None)

    def bind(predictions: Predictions) -> Call:
        run = compiled_transcription()
        return lambda: run(**predictions)  # type: ignore[no-any-return]

    return bind
