"""A whole step as one piece: the passes, their guidance and the sampler's step, captured or compiled, and replayed.

What changes from step to step is data: the rule's parameters, the timestep, the sampler's coefficients are tensors that
a replay reads from memory. What makes another piece is structure: which passes are run, the rule's formula, shapes and
dtypes. A run with an interval has two pieces, with two passes and with one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from fastcfg_kernels.tiles import accumulator
from torch import Tensor

from ..conditions import Conditions
from ..parameterization import Kind, Prediction
from ..planner import PassPlan
from ..state import State
from .layout import Inputs, Layout
from .passes import Pass
from .replay import Function, ReplayBackend, check_backend, replayer
from .structure import structure_of

if TYPE_CHECKING:
    from .guided import GuidedDenoiser

__all__ = ["CapturedStep"]

SamplerStep = Callable[..., Tensor]


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
        denoiser = self._denoiser
        planned = denoiser.plan(conditions, step, num_steps, sigma=sigma, params=params, state=state)
        passes = denoiser.passes(planned, conditions)
        lowered = planned.rule.lowered
        given = dict(params or {})
        if not planned.rule.prepares and not planned.unguided:
            given = {name: lowered.params[name] for name in lowered.program.params} | given
        inputs = Inputs(x.device, accumulator(x.dtype))
        inputs.add("x", x)
        inputs.add("t", t if isinstance(t, Tensor) else torch.tensor(t, device=x.device))
        inputs.add("kwargs", [one.kwargs for one in passes])
        inputs.add_numbers("params", given)
        inputs.add_numbers("coefficients", coefficients or {})
        if state is not None:
            inputs.add("state", {n: state[n] for n in (*lowered.extras, *lowered.updates) if n in state})
        if prediction is not None:
            inputs.add_numbers("levels", {"alpha": prediction.alpha, "sigma": prediction.sigma})
        layout, tensors = inputs.finish()
        who = tuple((one.name, id(one.model), one.context) for one in passes)
        kind = None if prediction is None else prediction.kind
        key = (structure_of(planned.rule), planned.sources, planned.unguided, who, kind, layout.signature)
        if (piece := self._pieces.get(key)) is None:
            piece = self._pieces[key] = self._prepare(planned, passes, layout, kind, tensors)
        result, *others = piece(tensors)
        denoiser.count(planned)
        if state is not None:
            for name, tensor in zip(lowered.updates, others, strict=False):
                state[name] = tensor.clone()
            measured = others[-1].clone() if len(others) > len(lowered.updates) else None
            denoiser.note_refresh(planned, state, step, measured)
        return result.clone()

    def _prepare(
        self, planned: PassPlan, passes: Sequence[Pass], layout: Layout, kind: Kind | None, tensors: Sequence[Tensor]
    ) -> Function:
        denoiser, sampler = self._denoiser, self._step
        measures = denoiser.measures(planned)
        passes = [one._replace(kwargs={}) for one in passes]  # Their tensors are not to be held.

        def piece(tensors: Sequence[Tensor]) -> list[Tensor]:
            values = layout.fill(tensors)
            x = values["x"]
            filled = [one._replace(kwargs=kwargs) for one, kwargs in zip(passes, values["kwargs"], strict=True)]
            results = denoiser.executor.run(x, values["t"], filled)
            state = State(values["state"]) if "state" in values else None
            space: dict[str, Any] = {}
            if kind is not None:
                space = {"x": x, "prediction": Prediction(kind, **values["levels"])}
            guided = denoiser.combine(planned, results, params=values["params"] or None, state=state, **space)
            found = [guided if sampler is None else sampler(x, guided, **values["coefficients"])]
            if state is not None:
                found += [state[name] for name in planned.rule.lowered.updates]
                if measures:
                    found.append(denoiser.measure(planned, results, values["state"].get("delta"), state))
            return found

        if self._pool is None and tensors[0].is_cuda and self._backend in ("auto", "cudagraph"):
            self._pool = torch.cuda.graph_pool_handle()
        return replayer(piece, tensors, self._backend, self._pool, self._options)
