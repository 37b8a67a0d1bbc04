"""A whole step as one piece: the passes, their guidance and the sampler's step, captured or compiled, and replayed.

What changes from step to step is data: the rule's parameters, the timestep, the sampler's coefficients are tensors that
a replay reads from memory. What makes another piece is structure: which passes are run, the rule's formula, shapes and
dtypes. A run with an interval has two pieces, with two passes and with one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

from ..core.conditions import Conditions
from ..core.state import State
from ..core.step import PREVIOUS_X0, begun
from ..prediction import Kind, Prediction
from ..samplers.step import Step, stage_key
from .layout import Inputs, Layout
from .passes import Pass
from .planner import PassPlan
from .replay import Function, ReplayBackend, check_backend, replayer
from .structure import structure_of

if TYPE_CHECKING:
    from .guided import GuidedDenoiser

__all__ = ["CapturedStep"]

SamplerStep = Callable[..., Tensor]
STEP_WEIGHTS = tuple(f.name for f in fields(Step) if f.name not in ("level", "timestep", "index", "num_steps"))


class CapturedStep:
    """A denoiser with the sampler's step, replayed; made by :meth:`fastcfg.GuidedDenoiser.capture`.

    Attributes:
        pieces: how many structures have been captured or compiled so far.
    """

    def __init__(
        self, denoiser: GuidedDenoiser, step: SamplerStep | None, backend: ReplayBackend, options: dict[str, Any]
    ) -> None:
        check_backend(backend)
        if step is not None and not callable(step):
            raise TypeError(f"step: expected a callable step(x, prediction, **coefficients), got {type(step).__name__}")
        self._denoiser, self._step, self._backend, self._options = denoiser, step, backend, options
        self._pieces: dict[Any, Function] = {}
        self._pool: Any = None

    @property
    def pieces(self) -> int:
        return len(self._pieces)

    def reset(self) -> None:
        """Let go of what was captured."""
        self._pieces.clear()
        self._pool = None

    def __call__(
        self,
        x: Tensor,
        t: Tensor | float,
        *,
        conditions: Conditions,
        step: int | None = None,
        num_steps: int | None = None,
        sigma: float | None = None,
        params: Mapping[str, Any] | None = None,
        coefficients: Mapping[str, Tensor | float] | None = None,
        state: State | None = None,
        prediction: Prediction | None = None,
    ) -> Tensor:
        """The next x, or the guided prediction where there is no sampler's step.

        Args:
            coefficients: numbers or tensors for the sampler's step by name.

        The other arguments are those of :class:`fastcfg.GuidedDenoiser`; a number ``t`` reaches the model as a 0-dim
        tensor. The conditions' tensors are copied in at each call, everything else in them is taken as it is.

        Returns:
            A tensor of its own, which later calls leave alone.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        planned = self._denoiser.plan(conditions, step, num_steps, sigma=sigma, params=params, state=state, x=x)
        inputs = self._inputs(planned, x, t, conditions, params)
        inputs.add_numbers("coefficients", coefficients or {})
        if prediction is not None:
            inputs.add_numbers("levels", {"alpha": prediction.alpha, "sigma": prediction.sigma})
        kind = None if prediction is None else prediction.kind
        return self._replay(planned, x, conditions, inputs, kind, state, step, planned.rule.lowered.updates)

    def step(
        self,
        x: Tensor,
        step: Step,
        *,
        conditions: Conditions,
        t: Tensor | float | None = None,
        params: Mapping[str, Any] | None = None,
        state: State | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """:meth:`fastcfg.GuidedDenoiser.step`, replayed: the solver's weights are data, so all steps are one piece.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        t = step.timestep if t is None else t
        if t is None:
            raise ValueError("t: the step has no timestep; give t=")
        planned = self._denoiser.plan(
            conditions, step.index, step.num_steps, sigma=step.sigma, params=params, state=state, x=x
        )
        inputs = self._inputs(planned, x, t, conditions, params)
        step = step if state is None else begun(step, state)
        inputs.add_numbers("weights", {n: w for n in STEP_WEIGHTS if (w := getattr(step, n)) is not None})
        level = step.level
        if level is not None:
            inputs.add_numbers("levels", {"alpha": level.alpha, "sigma": level.sigma})
        inputs.add("noise", noise)
        lowered = planned.rule.lowered
        if lowered.domain is None or level is not None:
            # Made now, since torch.compile can't trace the making of a program.
            affine = lowered.domain is not None and level is not None and level.kind != lowered.domain
            lowered.variant(affine=affine, step=stage_key(step, False))
        kept = (*lowered.updates, *[PREVIOUS_X0] * step.keeps_x0)
        return self._replay(
            planned, x, conditions, inputs, None if level is None else level.kind, state, step.index, kept
        )

    def _inputs(
        self,
        planned: PassPlan,
        x: Tensor,
        t: Tensor | float,
        conditions: Conditions,
        params: Mapping[str, Any] | None,
    ) -> Inputs:
        lowered = planned.rule.lowered
        given = dict(params or {})
        if not planned.rule.prepares:
            given = {name: lowered.params[name] for name in lowered.program.params} | given
        inputs = Inputs(x.device, accumulator(x.dtype))
        inputs.add("x", x)
        inputs.add("t", t if isinstance(t, Tensor) else torch.tensor(t, device=x.device))
        inputs.add("kwargs", [one.kwargs for one in self._denoiser.passes(planned, conditions)])
        inputs.add_numbers("params", given)
        if planned.recalled:
            inputs.add_numbers("recall", {f"{n}.{i}": w for n, pair in planned.recalled for i, w in enumerate(pair)})
        return inputs

    def _replay(
        self,
        planned: PassPlan,
        x: Tensor,
        conditions: Conditions,
        inputs: Inputs,
        kind: Kind | None,
        state: State | None,
        step: int | None,
        kept: tuple[str, ...],
    ) -> Tensor:
        denoiser = self._denoiser
        reads, writes = denoiser.memory(planned)
        kept = (*kept, *writes)
        if state is not None:
            # What is missing is zero, as it is where nothing is captured: the first step is no piece of its own.
            names = dict.fromkeys((*planned.rule.lowered.extras, *reads, *kept))
            zeros = partial(torch.zeros_like, x, dtype=inputs.dtype)
            inputs.add("state", {name: state[name] if name in state else zeros() for name in names})
        elif kept:
            raise ValueError(f"state: the step carries {list(kept)}; give state=fastcfg.State(), one for a request")
        layout, tensors = inputs.finish()
        passes = denoiser.passes(planned, conditions)
        who = tuple((one.name, id(one.model), one.context) for one in passes)
        key = (
            structure_of(planned.rule),
            planned.sources,
            planned.unguided,
            planned.memory,
            who,
            kind,
            kept,
            layout.signature,
        )
        if (piece := self._pieces.get(key)) is None:
            piece = self._pieces[key] = self._prepare(planned, passes, layout, kind, kept, tensors)
        result, *others = piece(tensors)
        denoiser.count(planned)
        if state is not None:
            for name, tensor in zip(kept, others, strict=False):
                state.remember(name, tensor.clone())
            measured = others[-1].clone() if len(others) > len(kept) else None
            denoiser.note(planned, state, step, measured, conditions, x)
        return result.clone()

    def _prepare(
        self,
        planned: PassPlan,
        passes: Sequence[Pass],
        layout: Layout,
        kind: Kind | None,
        kept: tuple[str, ...],
        tensors: Sequence[Tensor],
    ) -> Function:
        denoiser, sampler = self._denoiser, self._step
        recalled = [name for name, _ in planned.recalled]
        passes = [one.given({}) for one in passes]  # Their tensors are not to be held.

        def piece(tensors: Sequence[Tensor]) -> list[Tensor]:
            values = layout.fill(tensors)
            x, params = values["x"], values["params"] or None
            filled = [one.given(kwargs) for one, kwargs in zip(passes, values["kwargs"], strict=True)]
            state = State(values["state"]) if "state" in values else None
            level = None if kind is None else Prediction(kind, **values["levels"])
            weights = {name: [values["recall"][f"{name}.{i}"] for i in range(2)] for name in recalled}
            if "weights" in values:
                step = Step(**values["weights"], level=level)
                results = denoiser.executor.run(step.model_input(x), values["t"], filled)
                measured = denoiser.remember(planned, results, state, level)
                results = denoiser.recall(planned, results, state, level, weights)
                after = denoiser.combine_step(
                    planned, results, step, x=x, params=params, state=state, noise=values["noise"]
                )
            else:
                results = denoiser.executor.run(x, values["t"], filled)
                measured = denoiser.remember(planned, results, state, level)
                results = denoiser.recall(planned, results, state, level, weights)
                space: dict[str, Any] = {} if level is None else {"x": x, "prediction": level}
                after = denoiser.combine(planned, results, params=params, state=state, **space)
                if sampler is not None:
                    after = sampler(x, after, **values["coefficients"])
            found = [after]
            if state is not None:
                found += [state[name] for name in kept]
                if measured is not None:
                    found.append(measured)
            return found

        if self._pool is None and tensors[0].is_cuda and self._backend in ("auto", "cudagraph"):
            self._pool = torch.cuda.graph_pool_handle()
        return replayer(piece, tensors, self._backend, self._pool, self._options)
