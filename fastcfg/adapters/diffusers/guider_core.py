"""What the fused guiders share: a rule for the step, the passes it needs, its memory, and the call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers.guiders.guider_utils import BaseGuidance
from fastcfg_kernels.tiles import accumulator
from torch import Tensor

from ...combination import check_choice
from ...guidance import guide
from ...rules import Linear, Rescale, Rule
from ...schedules import Schedule
from ...state import State
from .guider_arguments import FusedOutput, as_scale, initialiser

__all__ = ["PLACEHOLDER", "Call", "FusedGuider"]

PLACEHOLDER = 2.0
"""Stands in a rule for a value that each call brings as a tensor."""


@dataclass(frozen=True)
class Call:
    """What a guider does at one step.

    Attributes:
        rule: None where the result is ``pred_cond`` itself.
        sources: for each prediction of the rule, the guider's name for it.
        params: values of the rule's parameters that are tensors.
        rescale: what is done to the result by itself, where the rule's own sums do not let it be fused.
    """

    rule: Rule | None
    sources: tuple[tuple[str, str], ...] = ()
    params: tuple[tuple[str, Tensor], ...] = ()
    rescale: Rescale | None = None


class FusedGuider(BaseGuidance):
    """Mixed in before a guider of diffusers: the same arguments, config and windows, with fastcfg's arithmetic.

    A subclass gives the rule of a step (:meth:`_rule`) and, where they are not those of CFG, its passes. Besides
    diffusers' own, a scale may be a :class:`fastcfg.Schedule` (kept in the config as a JSON object) or one value a
    sample (a list, or a floating tensor ``[B]``).

    What differs from diffusers for all of them: scales for each sample work; a prediction without spread is left as it
    is by the rescale (diffusers: NaN); sums are accumulated in float32 and the result is rounded once; ``.pred`` can be
    read under ``torch.compile``; after the last step of a run :attr:`num_conditions` is again what a whole run may
    need, so that a pipeline with ``stop < 1`` runs a second time (diffusers: the negative prompt is not encoded); and
    memory is forgotten whenever a run begins, whichever step it begins at (diffusers: at step 0 alone, so that the
    second guider of a two-model pipeline has none).

    Like diffusers' guiders, one instance serves one run at a time.
    """

    _scales: ClassVar[Mapping[str, str]]
    """Arguments that may be schedules or tensors, and the attributes that hold them."""
    _eager: ClassVar[bool]
    """Whether the rules have diffusers' own order of operations."""

    use_original_formulation: bool = False
    guidance_rescale: Any = 0.0
    _enabled: bool
    _start: float
    _stop: float
    _step: int | None
    _num_inference_steps: int | None
    _count_prepared: int

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
        self._finished = False
        self._call: Call | None = None
        self._calls: dict[tuple[int, int] | None, Call] = {}

    def _ready(self) -> None:
        """Called when the arguments are set."""
        self._refresh()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_") or name == "_enabled":
            super().__setattr__("_call", None)
            super().__setattr__("_calls", {})

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
        """What is carried between steps (a momentum, a cached delta): one for each run."""
        return self._state

    @property
    def _base(self) -> Any:
        return "cond" if self.use_original_formulation else "uncond"

    def _at(self) -> tuple[int, int] | None:
        """The step and the number of steps, or None before a run and after it.

        A second-order scheduler has more model calls than steps: those beyond count as the last step.
        """
        if self._step is None or self._num_inference_steps is None or self._finished:
            return None
        return self._step, self._num_inference_steps

    def _last(self) -> tuple[int, int]:
        """As :meth:`_at`, the first step where there is none, and never beyond the last."""
        step, count = self._at() or (0, 1)
        return min(step, count - 1), count

    def _within(self, start: float, stop: float, strict: bool = False) -> bool:
        """diffusers' windows: ``int(start * N) <= step < int(stop * N)``, or ``<`` on both sides."""
        at = self._at()
        if at is None:
            return True
        step, count = at
        first, last = int(start * count), int(stop * count)
        return (first < step if strict else first <= step) and step < last

    def _value(self, name: str) -> float:
        """A scale's number at this step; a placeholder for what the call brings as a tensor."""
        value = getattr(self, name)
        if isinstance(value, Schedule):
            return value.at(*self._last())
        if isinstance(value, Tensor | list | tuple):
            return PLACEHOLDER
        return value  # type: ignore[no-any-return]

    def _is_at(self, name: str, neutral: float) -> bool:
        """Whether a scale leaves its term out. One that changes does not, while the step is not known."""
        value = getattr(self, name)
        if isinstance(value, Tensor | list | tuple) or (isinstance(value, Schedule) and self._at() is None):
            return False
        return math.isclose(self._value(name), neutral)

    def _guided(self) -> bool:
        neutral = 0.0 if self.use_original_formulation else 1.0
        on = self._enabled and self._within(self._start, self._stop)
        return on and not self._is_at("guidance_scale", neutral)

    def _make(self) -> Call:
        """The call of this step."""
        if not self._guided():
            return Call(None)
        rule, phi, after = self._rule(), self._phi(), None
        if phi > 0:
            if self._numerics == "eager":
                raise ValueError("numerics: 'eager' is for guidance without a rescale, got guidance_rescale > 0")
            if rule.lowered.dims is None:
                rule = Rescale(rule, phi=phi)
            else:
                after = Rescale(Linear((("guided", 1.0),)), phi=phi)
        params = {key: as_scale(name, getattr(self, name)) for key, name in self._parameters().items()}
        tensors = {k: v for k, v in params.items() if isinstance(v, Tensor) and k in rule.lowered.params}
        sources = self._sources()
        return Call(rule, tuple((n, sources[n]) for n in rule.conditions), tuple(tensors.items()), after)

    def _phi(self) -> float:
        return float(self.guidance_rescale)

    def _refresh(self) -> None:
        key = self._at()
        call = self._calls.get(key)
        if call is None:
            call = self._make()
            # Equal calls are one object: ``torch.compile`` recompiles where it meets another.
            same = (c for c in self._calls.values() if c.rule == call.rule and c.sources == call.sources)
            call = next((c for c in same if not (c.params or call.params or c.rescale)), call)
            self._calls[key] = call
        self._call = call

    def _guide(self, predictions: Mapping[str, Tensor | None]) -> FusedOutput:
        """The guided prediction of predictions by the guider's names for them."""
        if self._call is None:
            self._refresh()
        call = self._call
        assert call is not None
        cond = predictions["pred_cond"]
        assert cond is not None
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

    def _combine(self, call: Call, predictions: Mapping[str, Tensor]) -> Tensor:
        assert call.rule is not None
        params = {name: self._placed(value, predictions) for name, value in call.params}
        given: dict[str, Any] = {"params": params or None, "state": self._state, "numerics": self._numerics}
        return guide(call.rule, **given | dict(predictions))

    @staticmethod
    def _placed(value: Tensor, predictions: Mapping[str, Tensor]) -> Tensor:
        like = next(iter(predictions.values()))
        return value.to(like.device, accumulator(like.dtype))

    # --- diffusers' interface -----------------------------------------------------------------------------------------

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Where the sampler is; a step that does not follow the last one begins a run, which forgets the memory."""
        begins = step == 0 or self._step is None or step < self._step or self._finished
        super().set_state(step, num_inference_steps, timestep)
        self._finished = False
        if begins:
            self._state.reset()
        self._refresh()

    def get_state(self) -> dict[str, Any]:
        """diffusers' state variables and what is remembered between steps."""
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
        result: FusedOutput = super().__call__(data)
        at = self._at()
        self._finished = at is not None and at[0] >= at[1] - 1
        return result

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """A batch for each of the step's passes, from tuples ``(cond, uncond, ...)`` of model inputs."""
        return [self._prepare_batch(data, place, name) for name, place in self._passes()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """A batch for each of the step's passes, from the names of fields of a block state."""
        prepare = self._prepare_batch_from_block_state
        return [prepare(input_fields, data, place, name) for name, place in self._passes()]

    @property
    def num_conditions(self) -> int:
        """Passes of the model at this step."""
        return len(self._passes())

    @property
    def is_conditional(self) -> bool:
        """Whether the pass under way (counted by ``prepare_models``) runs with the conditional inputs."""
        passes = self._passes()
        return 0 < self._count_prepared <= len(passes) and passes[self._count_prepared - 1][1] == 0
