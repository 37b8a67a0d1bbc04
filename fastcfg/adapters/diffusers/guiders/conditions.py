"""Guiders whose passes are a rule's conditions, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.hooks import LayerSkipConfig
from torch import Tensor

from ....core.frames import guide_frames
from ....prediction import Prediction
from ....rules import Linear, Parameter, Rule
from ....schedules import Schedule
from ..noise import Level, SchedulerLevels, noise_levels
from .arguments import FusedOutput
from .core import Call
from .layers import LayerSwitch, own_configs
from .steps import PLACEHOLDER
from .switching import SwitchGuider

__all__ = ["ConditionGuider"]


def _main(conditions: Sequence[str]) -> str:
    """The condition that stands alone where there is no guidance."""
    return next((name for name in ("cond", "cond_1") if name in conditions), conditions[-1])


def _places(conditions: Sequence[str], main: str) -> dict[str, int]:
    """Each condition's place in a tuple of model inputs: the main one's is 0, the unguided one's 1, then in order."""
    other = next((name for name in ("uncond", "negative") if name in conditions), None)
    places = {main: 0} | ({other: 1} if other else {})
    for name in conditions:
        if name == "perturbed":
            places[name] = 0
        elif name not in places:
            places[name] = max(*places.values(), 1) + 1
    return places


class ConditionGuider(SwitchGuider, wrap=False):
    """Base of the guiders that take any rule.

    The prediction ``cond`` (else ``cond_1``, else the last) is diffusers' ``pred_cond``; every other is called
    ``pred_`` and its name. Model inputs come as a pipeline's tuples give them: place 0 is the main condition, 1 the
    unconditional one (the negative one, for a rule without), and from 2 on the others in the rule's order;
    ``perturbed`` runs with place 0. Where a pipeline's tuples are shorter, as those of diffusers' own pipelines are
    (they hold the prompt and the negative prompt), give what is different in :attr:`inputs`.

    Attributes:
        inputs: model inputs by condition and by the pipeline's name for them, laid over the main condition's own:
            ``guider.inputs["negative"] = {"prompt_embeds": ..., "pooled_prompt_embeds": ...}``. Tensors, and so not
            part of the config.
        scheduler: the pipeline's, for rules with a domain and schedules that run on the noise level.
            :func:`fastcfg.adapters.diffusers.fuse` sets it.
    """

    frame_scales: Any = None
    frame_dim: int = 2
    perturbed: Any = None
    scheduler: Any = None

    def _open(self, conditions: Sequence[str], start: float, stop: float, enabled: bool) -> None:
        """Diffusers' own part of the initialisation."""
        main = _main(conditions)
        self._reference = main
        self._place_of = _places(conditions, main)
        self._names = {name: "pred_cond" if name == main else f"pred_{name}" for name in (main, *conditions)}
        self._input_predictions = list(self._names.values())
        self._noise: list[Level] | None = None
        self._input: Tensor | None = None
        self._watch: Any = None
        BaseGuidance.__init__(self, start, stop, enabled)
        self.inputs: dict[str, dict[str, Any]] = {}

    # --- The step -----------------------------------------------------------------------------------------------------

    def _whole(self) -> Rule:
        """The rule with its schedules."""
        raise NotImplementedError

    def _field(self, name: str) -> Parameter:
        """A scale as a rule holds it; a placeholder for what the call brings as a tensor."""
        value = getattr(self, name)
        return PLACEHOLDER if isinstance(value, Tensor | list | tuple) else value

    def _sigma(self) -> float | None:
        levels = self._levels() if self._whole().scheduled else None
        return None if levels is None else levels.sigma()

    def _levels(self) -> SchedulerLevels | None:
        at = self._at()
        return None if self.scheduler is None or at is None else SchedulerLevels(self.scheduler, *at, self._noise)

    def _key(self) -> tuple[Any, ...] | None:
        at = self._at()
        return at and (*at, self._sigma())

    def _rule(self) -> Rule:
        """The rule of this step without the predictions whose weight is zero."""
        rule = self._whole()
        if rule.scheduled:
            rule = rule.at(*self._last(), sigma=self._sigma())
        if self.frame_scales is not None or self._tensors():
            return rule  # Calls override its parameters.
        simple = rule.simplify()
        return rule if self._numerics == "eager" and simple != self._alone else simple

    @property
    def _alone(self) -> Rule:
        return Linear(((self._reference, 1.0),))

    def _unresolved(self) -> bool:
        """Return whether the rule or its rescale changes over a run and the step is not known."""
        changes = self._whole().scheduled or isinstance(self.guidance_rescale, Schedule)
        return self._at() is None and changes

    def _guided(self) -> bool:
        on = self._enabled and self._within(self._start, self._stop)
        return on and (self._unresolved() or self._rule() != self._alone)

    def _passes(self) -> tuple[tuple[str, int], ...]:
        rule = self._whole() if self._unresolved() else self._rule()
        names = dict.fromkeys((self._reference, *(rule.conditions if self._guided() else ())))
        return tuple((self._names[name], self._place_of[name]) for name in names)

    def _sources(self) -> dict[str, str]:
        return self._names

    def _combine(self, call: Call, predictions: Mapping[str, Tensor]) -> Tensor:
        if self.frame_scales is None and call.rule is not None and call.rule.lowered.domain is not None:
            sign, predictions = self._signed(predictions)
            result = super()._combine(call, predictions)
            return result if sign > 0 else -result
        if self.frame_scales is None:
            return super()._combine(call, predictions)
        assert call.rule is not None
        scales = torch.tensor(self.frame_scales, dtype=torch.float64)
        scales = self._place("frame_scales", scales, next(iter(predictions.values())))
        return guide_frames(call.rule, scales, frame_dim=self.frame_dim, **dict[str, Any](predictions))

    def _take_inputs(self, fields: Mapping[str, Any], data: Any = None) -> None:
        super()._take_inputs(fields, data)
        if self.gate is not None and self.inputs:
            by_name = {self._names[key]: given for key, given in self.inputs.items() if key in self._names}
            self._inputs = {name: {**own, **by_name.get(name, {})} for name, own in self._inputs.items()}
            self._refresh()

    def _level(self) -> Prediction:
        levels = self._levels()
        if levels is None:
            raise ValueError("scheduler: the gate remembers deltas in a space, which needs the pipeline's scheduler")
        if levels.sign < 0:
            raise ValueError(
                f"gate: its space is not for {type(self.scheduler).__name__} running against the noise; leave it out"
            )
        return levels.prediction()

    def _space(self, rule: Rule, like: Tensor) -> dict[str, Any]:
        if rule.lowered.domain is None:
            return {}
        x, prediction = self._model_input(like)
        return {"x": x, "prediction": prediction}

    def _signed(self, predictions: Mapping[str, Tensor]) -> tuple[int, Mapping[str, Tensor]]:
        """-1 and the predictions negated where the scheduler's step takes them so, for what works in a space."""
        levels = self._levels()
        if levels is None or levels.sign > 0:
            return 1, predictions
        return -1, {name: -tensor for name, tensor in predictions.items()}

    def _model_input(self, like: Tensor) -> tuple[Tensor, Prediction]:
        """The model's input, shaped as the predictions are, and what the model predicts of it."""
        levels, x = self._levels(), self._input
        if levels is None:
            raise ValueError("scheduler: the rule works on clean samples, which needs the pipeline's scheduler")
        if x is None:
            raise ValueError("x: the rule needs the model's input, which prepare_models takes down; call it before")
        if x.dim() == like.dim() > 3 and x.shape[1] > like.shape[1]:
            x = x[:, : like.shape[1]]  # Behind the latents: a mask and a masked image, or a first frame.
        if x.shape != like.shape:
            raise ValueError(f"x: expected the shape of the prediction, {list(like.shape)}, got {list(x.shape)}")
        return x.to(like.dtype), levels.prediction()

    # --- diffusers' interface -----------------------------------------------------------------------------------------

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """As :meth:`.FusedGuider.set_state`; where a run begins, the scheduler's noise levels are read, once."""
        if self._begins(step):
            self._noise = None if self.scheduler is None else noise_levels(self.scheduler)
        super().set_state(step, num_inference_steps, timestep)

    def forward(  # type: ignore[override]
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, **predictions: Tensor | None
    ) -> FusedOutput:
        """The guided prediction ``[B, ...]`` of ``pred_cond`` and the step's other predictions, by name.

        Raises:
            ValueError: naming a prediction that the step needs and that is None or not given.
        """
        return self._guide({"pred_cond": pred_cond, "pred_uncond": pred_uncond} | predictions)

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Count the pass; perturb the model for a perturbed one, and take down its input where the rule needs it."""
        super().prepare_models(denoiser)
        if self._needs_input() and self._count_prepared == 1:
            self._watch = denoiser.register_forward_pre_hook(self._take_down, with_kwargs=True)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Take the hooks away."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        super().cleanup_models(denoiser)

    def _layers(self, denoiser: torch.nn.Module) -> LayerSwitch:
        return LayerSwitch(denoiser, self._perturbations())

    def _is_weak(self, name: str) -> bool:
        return name == "pred_perturbed"

    def _weakens(self) -> bool:
        return self.perturbed is not None and "pred_perturbed" in self._names.values()

    def _needs_input(self) -> bool:
        return self._whole().lowered.domain is not None

    def _take_down(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._input = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))

    def _perturbations(self) -> list[LayerSkipConfig]:
        given = self.perturbed if isinstance(self.perturbed, list) else [self.perturbed]
        if given == [None]:
            raise ValueError(
                "perturbed: the rule takes a perturbed prediction; say what to skip, {'indices': [7], ...}"
            )
        return own_configs([LayerSkipConfig(**c) if isinstance(c, Mapping) else c for c in given])

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """A batch for each of the step's passes, from tuples of model inputs and :attr:`inputs`."""
        self._take_inputs(data)
        return [self._with_inputs(data, name, place, self._prepare_batch) for name, place in self._now().passes]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """A batch for each of the step's passes, from the names of fields of a block state and :attr:`inputs`."""
        self._take_inputs(input_fields, data)

        def prepare(fields: Any, place: int, name: str) -> Any:
            return self._prepare_batch_from_block_state(fields, data, place, name)

        return [self._with_inputs(input_fields, name, place, prepare) for name, place in self._now().passes]

    def _with_inputs(self, fields: Mapping[str, Any], name: str, place: int, prepare: Any) -> Any:
        """A pass's batch with what is given for its condition laid over it."""
        given = next((self.inputs[key] for key, own in self._names.items() if own == name and key in self.inputs), {})
        short = [key for key, value in fields.items() if isinstance(value, tuple) and len(value) <= place]
        if missing := [key for key in short if key not in given] if not given else []:
            condition = name.removeprefix("pred_")
            raise ValueError(
                f"inputs: {condition!r} has no place {place} in the pipeline's {missing}; give "
                f"guider.inputs[{condition!r}] = {{{missing[0]!r}: ...}}, or a pipeline whose tuples hold it"
            )
        if unknown := sorted(set(given) - set(fields)):
            raise ValueError(f"inputs: the pipeline's model inputs are {sorted(fields)}, got {unknown}")
        batch = prepare(fields, 0 if short else place, name)
        for key, value in given.items():
            batch[key] = value
        return batch
