"""Any rule in diffusers' classic pipelines, whose guidance is inlined, for the time of a ``with`` block.

    with guided(pipe, APG(7.5, eta=0.0, norm_threshold=15.0)):
        image = pipe("a fox", guidance_scale=7.5).images[0]

While the pipeline is called, its denoiser has a stand-in, which takes note of the passes, and its scheduler's ``step``
hands on the rule's result instead of what the pipeline made of those passes, so that the bits are the rule's whatever
the pipeline computes. Between calls, and for whoever else has the components, they are what they are: to be compiled,
copied, or given to another pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ....denoiser import Gate
from ....rules import Rule
from ....validate import check_choice
from .forms import PipelineForm
from .guidance import Conditions, PipelineGuidance
from .stand_ins import GuidedCalls, calls_through
from .table import form_of, has_guiders

if TYPE_CHECKING:
    from .by_guiders import GuiderRun

__all__ = ["guided"]


@contextmanager
def guided(
    pipe: Any,
    rule: Rule | Mapping[str, Rule],
    *,
    gate: Gate | Mapping[str, Gate] | None = None,
    conditions: Conditions | None = None,
    params: Mapping[str, Any] | None = None,
    numerics: Literal["fp32", "eager"] = "fp32",
    backend: str | None = None,
    frame_scales: Tensor | Sequence[float] | None = None,
    frame_dim: int = 2,
    check: bool = True,
    form: PipelineForm | None = None,
) -> Iterator[PipelineGuidance | GuiderRun]:
    """A classic pipeline guided by a rule inside the ``with`` block.

    The pipeline is called as ever, with its own guidance switched on (``guidance_scale`` above 1, or
    ``true_cfg_scale`` with a negative prompt), so that it runs its passes; that scale's value has no effect, and its
    other guidance arguments (``guidance_rescale``, ``cfg_truncation``, a callback that changes the scale) are errors
    that say what the rule takes instead. Schedules resolve by the pipeline's own steps; noise levels and
    what the model predicts come from its scheduler.

    Args:
        pipe: an instance of a pipeline in :func:`coverage`; or one whose guidance is a guider component, which is
            a :class:`.RuleGuidance` by the rule meanwhile.
        rule: the guidance; or a rule for each denoiser by its component's name, where a pipeline changes between two
            (``{"transformer": CFG(4.0), "transformer_2": CFG(3.0)}`` for Wan 2.2).
        gate: when passes are left out (:class:`fastcfg.Gate`); or one for each denoiser, as for ``rule``. A pass that
            is left out is not run: a batch comes without its block, and a call of its own is not made.
        conditions: for predictions that the pipeline does not run (``negative`` beside ``uncond``, say), the
            denoiser's arguments that differ from the conditional pass's, by prediction. Each is a call of its own.
        params, numerics, backend: as for :func:`fastcfg.guide`; ``"eager"`` gives the pipeline's own bits for CFG.
        frame_scales, frame_dim: a scale for each frame of a video and the frames' dimension, as for
            :func:`fastcfg.guide_frames` (1 for Stable Video Diffusion, whose own guidance is of this kind).
        check: at a run's first step, check that what the pipeline made of its passes is the combination that its form
            says, which waits for the device once. From then on the pipeline gets a sliver of the outputs, so that its
            own combination costs next to nothing.
        form: how the pipeline runs its passes, for one that :func:`coverage` does not list.

    Yields:
        The run's state, its step and how many passes were run.

    Raises:
        TypeError, ValueError: naming the argument; also for a pipeline that is not covered.
        RuntimeError: if the pipeline is guided already, or does not run as its form says.
    """
    if isinstance(pipe, GuidedCalls):
        raise RuntimeError("pipe: is guided already; leave that with block first")
    check_choice("numerics", numerics, ("fp32", "eager"))
    if form is None and has_guiders(pipe):
        from .by_guiders import guided_by_guiders  # Imports diffusers' guiders, which an older diffusers has not.

        others = {"params": params, "numerics": numerics, "gate": gate, "frame_dim": frame_dim}
        with guided_by_guiders(pipe, rule, conditions or {}, backend, frame_scales, others) as run:
            yield run
        return
    form = form_of(pipe) if form is None else form
    denoisers = [name for name in form.denoisers if vars(pipe).get(name) is not None]
    if not denoisers:
        raise ValueError(f"pipe: it has no {' or '.join(form.denoisers)}")
    rules = dict(rule) if isinstance(rule, Mapping) else dict.fromkeys(denoisers, rule)
    if set(rules) != set(denoisers):
        raise ValueError(f"rule: expected one for each of {denoisers}, got {sorted(rules)}")
    for value in rules.values():
        if not isinstance(value, Rule):
            raise TypeError(f"rule: expected a fastcfg rule, got {type(value).__name__}")
    gates = dict(gate) if isinstance(gate, Mapping) else dict.fromkeys(denoisers, gate)
    if set(gates) != set(denoisers):
        raise ValueError(f"gate: expected one for each of {denoisers}, got {sorted(gates)}")
    options: dict[str, Any] = {"params": params, "backend": backend}
    if frame_scales is None:
        options["numerics"] = numerics
    elif numerics == "eager":
        raise ValueError("numerics: frame_scales has 'fp32' only, got 'eager'")
    else:
        options |= {"scales": frame_scales, "frame_dim": frame_dim}
    guidance = PipelineGuidance(pipe, rules, gates, form, conditions or {}, options, check)
    with calls_through(pipe, guidance.call):
        yield guidance
