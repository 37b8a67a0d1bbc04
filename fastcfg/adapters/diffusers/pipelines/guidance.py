"""The guidance of a pipeline's run: what its stand-ins for the denoiser and the scheduler do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....core.conditions import Condition
from ....core.frames import guide_frames
from ....core.guide import guide
from ....core.state import State
from ....denoiser import Gate
from ....denoiser.gates import gate_for
from ....denoiser.gating import Gating, Origin
from ....denoiser.planner import PassPlan, plan
from ....rules import Linear, Rule
from ..noise import Level, SchedulerLevels, noise_levels, run_length
from .arguments import call_arguments, check_arguments
from .caches import Caches, one_state
from .calls import Call
from .check import combination_error
from .forms import PipelineForm
from .handover import Handover
from .inputs import bind, certain_blocks, first_shape
from .parts import finished, output_tensor, part_of, with_output
from .space import given_mask, guide_in_space
from .stand_ins import StandIn, methods_replaced, signature_of

__all__ = ["Conditions", "PipelineGuidance"]

Conditions = Mapping[str, "Mapping[str, Any] | Condition"]

_CONDITIONS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "encoder_hidden_states_image",
    "encoder_hidden_states_t5",
    "pooled_projections",
    "added_cond_kwargs",
    "class_labels",
    "cap_feats",
    "text_embedding_mask",
    "clip_text_pooled",
)
"""Arguments of denoisers that hold the prompt, or what else does not change by itself over a run."""


def _scale_of(pipe: Any) -> float | None:
    """A pipeline's guidance scale of this call, where it keeps one number that its callbacks may change."""
    scale = vars(pipe).get("_guidance_scale")
    return float(scale) if isinstance(scale, int | float) else None


class PipelineGuidance:
    """A rule in a pipeline: what :func:`guided` yields.

    Attributes:
        form: how the pipeline runs its passes.
        state: what the rule carries from step to step; made anew when the scheduler's timesteps are set.
        step: steps taken in this run; a run that starts late (img2img) counts its own.
        passes_run, passes_saved: passes of one batch that were run, and those that the pipeline would have run besides
            (guidance outside its interval, scale 1).
    """

    state: State
    step: int
    _calls: list[Call]
    _noise: list[Level] | None
    _run_length: int | None
    _scale: float | None
    _per_token: Tensor | None

    def __init__(
        self,
        pipe: Any,
        rules: Mapping[str, Rule],
        gates: Mapping[str, Gate | None],
        form: PipelineForm,
        conditions: Conditions,
        options: Mapping[str, Any],
        check: bool,
    ) -> None:
        self.form = form
        self.passes_run = self.passes_saved = 0
        self._pipe = pipe
        self._name = type(pipe).__name__
        pairs = {name: gate_for(rule, gates[name]) for name, rule in rules.items()}
        self._rules = {name: rule for name, (rule, _) in pairs.items()}
        self._gatings = {
            name: Gating(rule.conditions, gate) for name, (rule, gate) in pairs.items() if gate is not None
        }
        if self._gatings and form.also:
            raise ValueError(
                f"gate: {type(pipe).__name__} runs {form.how}, which can't be taken apart to leave one out"
            )
        self._conditions = conditions
        self._options = options
        self._check = check
        self._active = False
        self._given: Mapping[str, Any] = {}
        self._scheduler: Any = vars(pipe)["scheduler"]
        self._plans: dict[str, PassPlan] = {}
        taken = {name for rule in rules.values() for name in rule.conditions}
        for rule in rules.values():
            for name in rule.conditions if rule.scheduled else self._planned(rule).passes:
                taken.add(self._source(rule, name))
        if unused := sorted(set(conditions) - taken):
            raise ValueError(f"conditions: {', '.join(unused)}: no prediction that the rule takes")
        self.state = State()
        self._begin()

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        if self._run_length is None:
            self._run_length = run_length(self._pipe, self._scheduler)
        return self._run_length

    def call(self, run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call of the pipeline, with stand-ins for its denoisers and the scheduler's methods until it returns.

        Args:
            run: the pipeline's own call.
        """
        if self._active:  # It calls itself.
            return run(*args, **kwargs)
        self._given = call_arguments(run, args, kwargs)
        check_arguments(self._given, {name for rule in self._rules.values() for name in rule.conditions})
        with self._in_place():
            return run(*args, **kwargs)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        components = vars(self._pipe)  # Past the pipeline's __setattr__, which would write to its config.
        inner = {name: components[name] for name in self._rules}
        stand_ins = {name: StandIn(inner[name], call=partial(self._denoise, name, inner[name])) for name in self._rules}
        self._scheduler = components["scheduler"]
        own = {name: getattr(self._scheduler, name) for name in ("step", "set_timesteps")}
        self._own_step, self._own_set_timesteps = own["step"], own["set_timesteps"]
        self._step_signature = signature_of(self._scheduler, "step")
        self._scale = None
        self._begin()
        components.update(stand_ins)
        self._active = True
        try:
            with methods_replaced(self._scheduler, step=self._step, set_timesteps=self._set_timesteps):
                yield
        finally:
            self._active = False
            for name, stand_in in stand_ins.items():
                if components.get(name) is stand_in:
                    components[name] = inner[name]

    def _begin(self) -> None:
        self.state.restart()
        self._caches = Caches()
        self.step = 0
        self._calls = []
        self._run_length = None
        self._noise = None
        self._per_token = None
        self._handover = Handover()

    def _levels(self) -> SchedulerLevels:
        if self._noise is None:
            self._noise = noise_levels(self._scheduler)
        return SchedulerLevels(self._scheduler, self.step, self.num_steps, self._noise, self._per_token)

    def _source(self, rule: Rule, name: str) -> str:
        """The caller's condition, or the pipeline's pass, behind a prediction that a rule takes."""
        if name in self._conditions or name in self.form.names:
            return name
        if name == "negative" and "uncond" in self.form.names and "uncond" not in rule.conditions:
            return "uncond"
        if name == "cond_1":
            return "cond"
        raise ValueError(
            f"conditions: {type(rule).__name__} takes {name!r}, which {self._name} does not run ({self.form.how}); "
            f"give conditions={{{name!r}: {{...}}}} with the denoiser's arguments for it"
        )

    # The denoiser's side: take note of the passes, and leave out those that the step does not need.

    def _denoise(self, component: str, denoiser: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._active:  # Somebody kept the stand-in beyond the block.
            return denoiser(*args, **kwargs)
        if vars(self._pipe)["scheduler"] is not self._scheduler:
            raise RuntimeError("pipe: its scheduler was replaced during the call; replace it before")
        if self._scale is None:
            self._scale = _scale_of(self._pipe)
        if _scale_of(self._pipe) != self._scale:
            raise ValueError(
                f"callback_on_step_end: it changed the pipeline's guidance scale from {self._scale} to "
                f"{_scale_of(self._pipe)}; guided takes that place: give the rule a schedule (Step, Interval)"
            )
        if not self._calls:
            self._left_out = False
            self._plan_step(component, denoiser, args, kwargs)
        names: tuple[str, ...] | None
        if self.form.batched and not self._calls:
            keep = self._kept_blocks()
            inputs = certain_blocks(denoiser, args, kwargs, keep, len(self.form.passes))
            if inputs is not None:
                return self._denoise_blocks(denoiser, keep, inputs)
            self._check_left_out(f"which part of its batch it is, is not certain in {self._name}'s call")
            names = None if len(self.form.passes) > 1 else self.form.passes
        else:
            names = (self._next_pass(),)
            if self._calls and names[0] not in self._needed and names[0] in self.form.passes and not self._all:
                self._left_out = True
                return self._calls[0].handed  # The pipeline combines something; its result is not used.
        with self._caches.context(denoiser, names or self.form.passes, part=False):
            result = denoiser(*args, **kwargs)
        output = output_tensor(result)
        handed = self._handover.hand_on(result, output)
        self._calls.append(Call(denoiser, names, args, kwargs, output, handed))
        return handed

    def _plan_step(self, component: str, denoiser: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The rule, plan and needed passes of a step that begins with a call of a component."""
        rule = self._rule = self._rules[component]
        if rule.scheduled:
            sigma = self._levels().sigma()
            self._plan = self._planned(rule, step=self.step, num_steps=self.num_steps, sigma=sigma)
        else:
            if component not in self._plans:
                self._plans[component] = self._planned(rule)
            self._plan = self._plans[component]
        self._gating = self._gatings.get(component)
        if self._gating is not None:
            named = bind(denoiser, args, kwargs)
            given = {name: named[name] for name in _CONDITIONS if name in named}
            under = {name: self._conditions.get(self._source(rule, name), given) for name in self._plan.passes}
            self._origin = Origin(component, first_shape(named), under)
            self._plan = self._gating.plan(self._plan, self.state, self.step, self.num_steps, self._origin)
        self._needed = {self._source(rule, name) for name in self._plan.passes}
        self._all = one_state(denoiser) is not None
        if self._all:
            self._check_left_out(f"{one_state(denoiser)} keeps one state for all passes")
        self._caches.begin(set(self.form.passes) if self._all else self._needed)

    def _planned(self, rule: Rule, **where: Any) -> PassPlan:
        options = self._options
        steps = plan(rule, None, **where, fixed=bool(options["params"]) or "scales" in options)
        if options.get("numerics") == "eager" and isinstance(steps.rule, Linear) and not steps.unguided:
            return plan(rule, None, **where, fixed=True)  # Linear has no eager numerics.
        return steps

    def _check_left_out(self, why: str) -> None:
        """Raise if the gate leaves out a pass of the pipeline's that has to be run."""
        left_out = {self._source(self._rule, name) for name, _ in self._plan.recalled} & set(self.form.passes)
        if left_out:
            raise RuntimeError(
                f"gate: {', '.join(sorted(left_out))} can't be left out: {why}; guide without a gate, or change that"
            )

    def _next_pass(self) -> str:
        form, index = self.form, len(self._calls)
        order: list[str] = ["batch"] if form.batched else list(form.passes)
        order += [] if form.then is None else [form.then]
        if index >= len(order):
            raise RuntimeError(
                f"pipe: {self._name} called its denoiser {index + 1} times in step {self.step}, "
                f"where its form is {form.how}"
            )
        return order[index]

    def _kept_blocks(self) -> list[int]:
        """Numbers of the blocks of the batch that the step needs; all of them where the batch can't be taken apart."""
        names, whole = self.form.passes, list(range(len(self.form.passes)))
        if self._all or self.form.also or not getattr(self._pipe, "do_classifier_free_guidance", True):
            return whole
        needed = self._needed
        if needed.isdisjoint(names) or not needed.isdisjoint(self._conditions):
            needed = needed | {"cond"}  # Other conditions take its inputs.
        return [i for i in whole if names[i] in needed]

    def _denoise_blocks(self, denoiser: Any, keep: list[int], inputs: dict[str, Any]) -> Any:
        self._left_out = True
        names = self.form.passes
        with self._caches.context(denoiser, [names[k] for k in keep], part=True):
            result = denoiser(**inputs)
        output = output_tensor(result)
        parts = dict(zip(keep, output.chunk(len(keep)), strict=True))
        # The pipeline gets a batch as it expects it; what it makes of that is not used.
        batch = torch.cat([parts.get(i, parts[keep[0]]) for i in range(len(names))])
        handed = self._handover.hand_on(with_output(result, batch), batch)
        self._calls.append(Call(denoiser, tuple(names[i] for i in keep), (), inputs, output, handed))
        return handed

    # The scheduler's side: guide, and hand on.

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
        self._begin()
        return self._own_set_timesteps(*args, **kwargs)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        if not self._calls:
            raise RuntimeError(f"pipe: {self._name} stepped its scheduler without a call of its denoiser")
        bound = self._step_signature.bind(*args, **kwargs)
        given = bound.arguments
        self._per_token = given.get("per_token_timesteps")
        given["model_output"] = self._guide(given["model_output"], given["sample"], given["timestep"])
        self._calls.clear()
        self.step += 1
        return self._own_step(*bound.args, **bound.kwargs)

    def _guide(self, made: Tensor, sample: Tensor, timestep: Any) -> Tensor:
        """The guided prediction in place of what the pipeline made of the step's passes."""
        made = self._handover.whole(made)
        raw = {name: output for call in self._calls for name, output in call.passes(self.form, made).items()}
        ours = {name: part_of(self._pipe, self.form, output, made, sample) for name, output in raw.items()}
        if self._check and not self._handover.checked and not self._left_out:
            self._verify(made, ours)
            if self.form.part != "ltx_frames":  # Its tokens are taken apart by their width.
                self._handover.check_passed(self._calls[0].output, made)
        self.passes_run += len(raw)
        self.passes_saved += max(0, len(self.form.passes) - len(raw))
        results: dict[str, Tensor] = {}
        for name in self._plan.passes:
            source = self._source(self._rule, name)
            if source in self._conditions:
                output = self._calls[0].under(source, self._conditions[source])
                results[name] = part_of(self._pipe, self.form, output, made, sample)
                self.passes_run += 1
            elif source in ours:
                results[name] = ours[source]
            elif source == self.form.then and self._given.get("skip_guidance_layers") is not None:
                results[name] = ours["cond"]  # Outside the pipeline's window for that pass its term is zero.
            else:
                raise ValueError(self._missing(source, ours))
        return finished(self.form, self._combined(self._recalled(results), sample, timestep), made, raw)

    def _recalled(self, results: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The passes' results, and what the gate has in place of those that it leaves out."""
        if self._gating is None:
            return results
        levels = None if self._gating.gate.space is None else self._levels()
        level = None if levels is None else levels.prediction()
        if levels is not None and (levels.sign < 0 or levels.per_token is not None):
            raise ValueError(
                f"gate: its space is not for a step of {type(self._scheduler).__name__} that runs against the noise; "
                "leave the space out"
            )
        measured = self._gating.remember(self._plan, results, self.state, level)
        found = self._gating.recall(self._plan, results, self.state, level)
        self._gating.note(self._plan, self.state, self.step, measured, self._origin)
        return found

    def _combined(self, results: Mapping[str, Tensor], sample: Tensor, timestep: Any) -> Tensor:
        steps, options = self._plan, self._options
        if steps.unguided:
            return results[steps.passes[0]]
        predictions: dict[str, Any] = dict(steps.predictions(results))
        if "scales" in options:
            return guide_frames(steps.rule, **options, **predictions)
        options = {**options, "state": self.state}
        if steps.rule.lowered.program.reduces and options["numerics"] != "eager":
            mask = given_mask(self._calls[0], sample, self._per_token)
            options |= {} if mask is None else {"mask": mask}
        if steps.rule.lowered.domain is None:
            return guide(steps.rule, **options, **predictions)
        levels = self._levels()
        x = levels.model_sample(sample, timestep).to(results[steps.passes[0]].dtype)
        return guide_in_space(steps.rule, predictions, x, levels, options)

    def _verify(self, made: Tensor, ours: Mapping[str, Tensor]) -> None:
        shown = made
        if self.form.part == "doubled":
            shown, other = made.chunk(2)
            if not torch.equal(shown, other):
                raise ValueError(self._missing("uncond", {"cond": made}))
        elif self.form.part == "variance":
            shown = made[:, : next(iter(ours.values())).shape[1]]
        error = combination_error(shown, ours, self.form.factors)
        if error is not None:
            raise RuntimeError(
                f"pipe: {self._name} does not combine its passes as its form says ({self.form.how}): {error}. "
                "Nothing was guided; check=False guides all the same"
            )

    def _missing(self, name: str, ours: Mapping[str, Any]) -> str:
        rule = type(self._rule).__name__
        return (
            f"pipe: {self._name} ran {', '.join(ours)} at step {self.step}, and {rule} takes {name!r} too: call it "
            f"with its own guidance on ({self.form.switch} above 1; only the rule's scale counts), "
            f"or give conditions={{{name!r}: {{...}}}}"
        )
