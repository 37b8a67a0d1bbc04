"""Base of the fused guiders: a rule for the step, the passes it needs, its memory, and the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

from ....core.guide import guide
from ....core.state import State
from ....denoiser import Gate
from ....denoiser.gating import Gating, Origin
from ....denoiser.planner import PassPlan
from ....prediction import Prediction
from ....rules import Linear, Rescale, Rule
from ....schedules import Schedule
from ....validate import check_choice
from .arguments import FusedOutput, as_scale, initialiser
from .steps import StepGuider

__all__ = ["Call", "FusedGuider"]


@dataclass(frozen=True)
class Call:
    """One step's guidance.

    Attributes:
        passes: the guider's name of each prediction, and its place in a tuple of model inputs.
        rule: None where the result is ``pred_cond`` itself.
        sources: for each prediction of the rule, the guider's name for it.
        params: values of the rule's parameters that are tensors.
        rescale: what is done to the result by itself, where the rule's own sums do not let it be fused.
        known: whether the step is known, where the rule changes over a run.
        plan: what of the passes is run at this step and what is remembered, under a gate.
    """

    passes: tuple[tuple[str, int], ...]
    rule: Rule | None = None
    sources: tuple[tuple[str, str], ...] = ()
    params: tuple[tuple[str, Tensor], ...] = ()
    rescale: Rescale | None = None
    known: bool = True
    plan: PassPlan | None = None


class FusedGuider(StepGuider):
    """Mixed in before a guider of diffusers: the same arguments, config and windows, with fastcfg's arithmetic.

    A subclass gives the rule of a step (:meth:`_rule`) and, where they are not those of CFG, its passes. Besides
    diffusers' own, a scale may be a :class:`fastcfg.Schedule` (kept in the config as a JSON object) or one value a
    sample (a list, or a floating tensor ``[B]``).

    What differs from diffusers for all of them: scales for each sample work; a prediction without spread is left as it
    is by the rescale (diffusers: NaN); sums are accumulated in float32 and the result is rounded once; ``.pred`` can be
    read under ``torch.compile``; when a pipeline's step is done :attr:`num_conditions` is what a whole run may need, so
    that one with ``stop < 1`` runs a second time (diffusers: its negative prompt is not encoded); and
    memory is forgotten whenever a run begins, whichever step it begins at (diffusers: at step 0 alone, so that the
    second guider of a two-model pipeline has none).

    Like diffusers' guiders, one instance serves one run at a time.
    """

    _scales: ClassVar[Mapping[str, str]]
    """Arguments that may be schedules or tensors, and the attributes that hold them."""
    _eager: ClassVar[bool]
    """Whether the rules have diffusers' own order of operations."""
    _reference = "cond"
    """What the rule calls ``pred_cond``."""

    guidance_rescale: Any = 0.0
    backend: str | None = None
    """As for :func:`fastcfg.guide`; not part of the config."""
    gate: Gate | None = None
    """When passes are left out: the argument ``gate`` of every fused guider, in the config as a JSON object."""

    def __init_subclass__(
        cls,
        eager: bool = False,
        scales: Mapping[str, str] | Sequence[str] = ("guidance_scale",),
        wrap: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if wrap:
            cls._eager = eager
            cls._scales = scales if isinstance(scales, Mapping) else {name: name for name in scales}
            cls.__init__ = initialiser(cls.__init__, cls._scales, eager)  # type: ignore[method-assign]

    def _begin(self, numerics: str) -> None:
        check_choice("numerics", numerics, ("fp32", "eager"))
        self._numerics = numerics
        self._state = State()
        self._inputs: Mapping[str, Any] = {}
        self._served = False
        self._ran = self._left_out = 0
        self._call: Call | None = None
        self._calls: dict[tuple[Any, ...] | None, Call] = {}
        self._unique: dict[tuple[Any, ...], Call] = {}
        self._placed: dict[tuple[Any, ...], Tensor] = {}

    def _ready(self) -> None:
        """Called when the arguments are set."""
        self._refresh()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_") or name == "_enabled":
            super().__setattr__("_call", None)
            for kept in ("_calls", "_unique", "_placed"):
                super().__setattr__(kept, {})
            self._forget_switch()

    def _forget_switch(self) -> None:
        """Called when an argument is set, for what was made of the arguments."""

    # --- What a subclass says ---------------------------------------------------------------------------------------

    def _rule(self) -> Rule:
        """The rule of a guided step."""
        raise NotImplementedError

    def _passes(self) -> tuple[tuple[str, int], ...]:
        """The step's passes: the guider's name of each prediction, and its place in a tuple of model inputs."""
        passes = (("pred_cond", 0), ("pred_uncond", 1))
        return passes if self._guided() else passes[:1]

    def _parameters(self) -> Mapping[str, str]:
        """The rule's parameters, and the attributes that hold them."""
        return {"scale": "guidance_scale"}

    def _sources(self) -> dict[str, str]:
        """For each prediction of the rule, the guider's name for it."""
        return {"uncond": "pred_uncond", "cond": "pred_cond"}

    # --- The step -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Return what is carried between steps (a momentum, a cached delta): one for each run."""
        return self._state

    def _make(self) -> Call:
        """The call of this step."""
        if not self._guided():
            return Call(self._passes())
        if self._unresolved():
            return Call(self._passes(), known=False)
        rule, phi, after = self._rule(), self._phi(), None
        if phi > 0:
            if self._numerics == "eager":
                raise ValueError("numerics: 'eager' is for guidance without a rescale, got guidance_rescale > 0")
            if rule.lowered.dims is None:
                rule = Rescale(rule, phi=phi, reference=self._reference)
            else:
                after = Rescale(Linear((("guided", 1.0),)), phi=phi)  # Of ``pred_cond``, whatever the rule calls it.
        tensors = {name: value for name, value in self._tensors().items() if name in rule.lowered.params}
        sources = self._sources()
        return Call(
            self._passes(), rule, tuple((n, sources[n]) for n in rule.conditions), tuple(tensors.items()), after
        )

    def _tensors(self) -> dict[str, Tensor]:
        """The rule's parameters that calls bring as tensors."""
        values = {key: as_scale(name, getattr(self, name)) for key, name in self._parameters().items()}
        return {key: value for key, value in values.items() if isinstance(value, Tensor)}

    def _phi(self) -> float:
        return float(self._value("guidance_rescale"))

    def _unresolved(self) -> bool:
        """Return whether a scale changes over a run and the step is not known."""
        names = ("guidance_rescale", *self._scales.values())
        return self._at() is None and any(isinstance(getattr(self, name), Schedule) for name in names)

    def _key(self) -> tuple[Any, ...] | None:
        """Return what a call depends on, besides the attributes."""
        return self._at()

    def _refresh(self) -> None:
        key = self._key()
        call = self._calls.get(key)
        if call is None:
            call = self._make()
            # Equal calls are one object: ``torch.compile`` recompiles where it meets another.
            call = self._unique.setdefault((call.passes, call.rule, call.known), call)
            self._calls[key] = call
        self._call = call if self.gate is None else self._gated(call, self.gate)

    def _gated(self, call: Call, gate: Gate) -> Call:
        """The call with what the gate leaves out of it at this step."""
        at = self._at()
        if at is None or call.rule is None or not call.known:
            return call
        full = PassPlan(call.rule, tuple(name for name, _ in call.passes), call.sources)
        plan = Gating(call.rule.conditions, gate).plan(full, self._state, *at, self._origin())
        if not plan.main and len(plan.passes) < len(full.passes):
            return Call(tuple(pair for pair in call.passes if pair[0] in plan.passes), plan=plan)
        return replace(call, passes=tuple(pair for pair in call.passes if pair[0] in plan.passes), plan=plan)

    def _origin(self) -> Origin:
        return Origin("", None, self._inputs)

    def _of_run(self) -> Call:
        """The call where no step is known."""
        if None not in self._calls:
            step, self._step = self._step, None
            try:
                self._calls[None] = self._make()
            finally:
                self._step = step
        return self._calls[None]

    def _now(self) -> Call:
        if self._call is None:
            self._refresh()
        assert self._call is not None
        return self._call

    def _guide(self, predictions: Mapping[str, Tensor | None]) -> FusedOutput:
        """The guided prediction of predictions by the guider's names for them."""
        call = self._now()
        if not call.known:
            raise ValueError("set_state: the guidance changes over a run; say which step it is at first")
        cond = predictions["pred_cond"]
        assert cond is not None
        predictions = self._recalled(call, predictions)
        pred = cond
        if call.rule is not None:
            tensors: dict[str, Tensor] = {}
            for name, source in call.sources:
                tensor = predictions.get(source)
                if tensor is None:
                    raise ValueError(f"{source}: expected a tensor, guidance is enabled at this step")
                tensors[name] = tensor
            pred = self._combine(call, tensors)
            if call.rescale is not None:
                pred = guide(call.rescale, guided=pred, cond=cond)
        return FusedOutput(pred, cond, predictions.get("pred_uncond"))

    def _recalled(self, call: Call, predictions: Mapping[str, Tensor | None]) -> Mapping[str, Tensor | None]:
        """The step's predictions, and what the gate has in place of those that it left out."""
        if self.gate is None or call.plan is None or call.plan.rule is None:
            return predictions
        at, plan = self._at(), call.plan
        assert at is not None
        given: dict[str, Tensor] = {}
        for name in plan.passes:
            if (tensor := predictions.get(name)) is None:
                raise ValueError(f"{name}: expected a tensor, guidance is enabled at this step")
            given[name] = tensor
        gating = Gating(plan.rule.conditions, self.gate)
        level = None if self.gate.space is None else self._level()
        measured = gating.remember(plan, given, self._state, level)
        found = gating.recall(plan, given, self._state, level)
        gating.note(plan, self._state, at[0], measured, self._origin())
        return {**predictions, **found}

    def _level(self) -> Prediction:
        raise ValueError("gate: one with a space needs the pipeline's noise levels; use RuleGuidance, or no space")

    def _combine(self, call: Call, predictions: Mapping[str, Tensor]) -> Tensor:
        assert call.rule is not None
        like = next(iter(predictions.values()))
        params = {name: self._place(name, value, like) for name, value in call.params}
        given: dict[str, Any] = {"params": params or None, "state": self._state, "numerics": self._numerics}
        given["backend"] = self.backend
        return guide(call.rule, **given | self._space(call.rule, like) | dict(predictions))

    def _space(self, rule: Rule, like: Tensor) -> dict[str, Any]:
        """Return what the call says of the space that the predictions are in, where the rule asks."""
        return {}

    def _place(self, name: str, value: Tensor, like: Tensor) -> Tensor:
        """A parameter where the predictions are; copied to a device once, as a graph's capture needs."""
        dtype = accumulator(like.dtype)
        if torch.compiler.is_compiling():
            return value.to(like.device, dtype)
        key = name, like.device, dtype
        if key not in self._placed:
            self._placed[key] = value.to(like.device, dtype)
        return self._placed[key]

    # --- diffusers' interface -----------------------------------------------------------------------------------------

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Return where the sampler is.

        A step that does not follow the last one begins a run, which forgets the memory.
        """
        begins = self._begins(step)
        self._inputs = {} if begins else self._inputs
        super().set_state(step, num_inference_steps, timestep)
        self._served = False
        if begins:
            self._state.restart()
        self._refresh()

    def get_state(self) -> dict[str, Any]:
        """Diffusers' state variables and what is remembered between steps."""
        state: dict[str, Any] = super().get_state()
        return state | {"memory": self._state}

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> FusedOutput:
        """The guided prediction ``[B, ...]`` of the conditional and the unconditional one.

        Where nothing is to be done (outside the window, or at a scale without effect) ``pred_cond`` itself is
        ``.pred``.

        Raises:
            ValueError: naming a prediction that the step needs and that is None.
        """
        return self._guide({"pred_cond": pred_cond, "pred_uncond": pred_uncond})

    def __call__(self, data: Sequence[Any]) -> FusedOutput:
        """The guided prediction of a pipeline's batches, whose ``noise_pred`` are set."""
        self._served = False
        result: FusedOutput = super().__call__(data)
        self._served = True
        self._ran += len(data)
        self._left_out += len(self._of_run().passes) - len(data)
        return result

    @property
    def passes_run(self) -> int:
        """Passes whose predictions a pipeline brought since the guider was made."""
        return self._ran

    @property
    def passes_saved(self) -> int:
        """Passes that steps did not need (outside a window, at a scale without effect)."""
        return self._left_out

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """A batch for each of the step's passes, from tuples ``(cond, uncond, ...)`` of model inputs."""
        self._take_inputs(data)
        return [self._prepare_batch(data, place, name) for name, place in self._now().passes]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """A batch for each of the step's passes, from the names of fields of a block state."""
        self._take_inputs(input_fields, data)
        prepare = self._prepare_batch_from_block_state
        return [prepare(input_fields, data, place, name) for name, place in self._now().passes]

    def _take_inputs(self, fields: Mapping[str, Any], data: Any = None) -> None:
        """Take down what a gated step's passes are conditioned on, and plan them by it."""
        if self.gate is None:
            return

        def value(field: Any, place: int) -> Any:
            one = field[min(place, len(field) - 1)] if isinstance(field, tuple) else field
            return getattr(data, one, None) if data is not None and isinstance(one, str) else one

        full = self._of_run() if self._at() is None else self._calls[self._key()]
        self._inputs = {name: {k: value(f, place) for k, f in fields.items()} for name, place in full.passes}
        self._refresh()

    @property
    def num_conditions(self) -> int:
        """Passes of the model at this step; between steps and runs, those that a run may need."""
        return len(self._of_run().passes if self._served else self._now().passes)

    @property
    def is_conditional(self) -> bool:
        """Return whether the pass under way (counted by ``prepare_models``) runs with the conditional inputs."""
        passes = self._now().passes
        return 0 < self._count_prepared <= len(passes) and passes[self._count_prepared - 1][1] == 0
