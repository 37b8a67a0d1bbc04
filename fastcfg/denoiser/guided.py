"""The guided denoiser: which passes a step needs, how they are run, and their guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from fastcfg_kernels.backends.torch.functional import Merge
from torch import Tensor

from ..core.conditions import Conditions
from ..core.state import State
from ..prediction import Prediction
from ..rules import Rule
from ..samplers.step import Step
from .automatic import Auto
from .batching import Buffers
from .capture import CapturedStep
from .channels import GuidedChannels
from .gates import Gate, unfold
from .guidance import Guidance
from .one_thread import one_thread
from .passes import Batched, Executor, Sequential, prediction_of
from .replay import ReplayBackend
from .report import PassReport
from .step_input import StepInput

__all__ = ["GuidedDenoiser", "Mode", "executor_of"]

Mode = Literal["batched", "sequential", "auto"]
_MODES: dict[str, Callable[[], Executor]] = {"batched": Batched, "sequential": Sequential, "auto": Auto}


def executor_of(mode: Mode | Executor) -> Executor:
    """The executor of a mode's name, or the one that is given.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(mode, str) and mode in _MODES:
        return _MODES[mode]()
    if isinstance(mode, Executor) and not isinstance(mode, type):
        return mode
    raise ValueError(f"mode: expected 'batched', 'sequential', 'auto' or an executor, got {mode!r}")


class GuidedDenoiser(Guidance):
    """Calls ``model(x, t, **condition)`` for each prediction that a step needs, and guides.

    Args:
        model: any callable ``model(x, t, **kwargs)`` that returns a tensor ``[B, ...]``, an output with ``.sample``,
            or a tuple that begins with the prediction.
        rule: the guidance; its schedules are resolved by the ``step`` of each call.
        mode: how passes are run: ``"batched"`` (one call of the model on all passes, in the order of
            ``rule.conditions``), ``"sequential"`` (a call for each: less memory, and right for models whose samples
            interact), ``"auto"`` (by free memory, see :class:`Auto`), or an :class:`Executor`, such as
            ``Batched(padding={"encoder_hidden_states": "encoder_attention_mask"})``.
        backend: as for :func:`fastcfg.guide`.
        output: takes the prediction out of what the model returns, where it is none of the above.
        guided_channels: how many channels (of dim 1) are guided, for a model that predicts more: 4 of 8, say, with a
            learned variance. None guides all.
        rest: the pass whose other channels follow the guided ones in the result; a step that does not run it takes
            the first it runs. None leaves them out.
        shards: where each rank holds a part of every sample; see :class:`fastcfg.parallel.Shards`.
        gate: when passes are left out and remembered deltas stand for them (:class:`fastcfg.Gate`); a call needs its
            ``step`` and ``state`` then. None runs all that the rule takes.
        wait: a gate that measures waits for the device at each fresh pass; without it a measure counts once it has
            arrived.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        rule: Rule,
        *,
        mode: Mode | Executor = "batched",
        backend: str | None = None,
        output: Callable[[Any], Tensor] | None = None,
        guided_channels: int | None = None,
        rest: str | None = None,
        shards: Merge | None = None,
        gate: Gate | None = None,
        wait: bool = False,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a callable model(x, t, **conditions), got {type(model).__name__}")
        if output is not None and not callable(output):
            raise TypeError(f"output: expected a callable, got {type(output).__name__}")
        if rest is not None and guided_channels is None:
            raise ValueError(f"rest: goes with guided_channels, got {rest!r} alone")
        self.executor = executor_of(mode)
        bind = getattr(self.executor, "bind", None)
        super().__init__(
            model,
            rule,
            backend=backend,
            take=output or prediction_of,
            channels=None if guided_channels is None else GuidedChannels(guided_channels, rest),
            shards=shards,
            # Ranks have to decide alike, and when a measure arrives is each rank's own matter.
            wait=wait or bind is not None or shards is not None,
            gate=gate,
        )
        if bind is not None:
            bind(rule)
        if isinstance(scale := getattr(model, "embedded_scale", None), float):
            from .conventions import check_double_guidance  # Its package imports this one.

            check_double_guidance(rule, scale)
        self._input = StepInput()
        self._busy: dict[str, int] = {}
        # One that has no batch of its own takes the first block alone.
        self._copies = len(rule.conditions) if hasattr(self.executor, "buffers") else 1

    def with_rule(self, rule: Rule, gate: Gate | None = None) -> GuidedDenoiser:
        """The same model, executor and options with another rule, and counters of its own.

        Args:
            gate: in place of this one's, which stays where it is None and the rule has none of its own.
        """
        channels = self._channels
        made = GuidedDenoiser(
            self.model,
            rule,
            mode=self.executor,
            backend=self.backend,
            output=self._take,
            guided_channels=None if channels is None else channels.count,
            rest=None if channels is None else channels.rest,
            shards=self.shards,
            gate=self._given_gate if gate is None and unfold(rule)[1] is None else gate,
            wait=self._wait,
        )
        made._busy = self._busy  # The executor's buffers are shared.
        return made

    def reset(self) -> None:
        """Set the counters to zero and let go of the executor's buffers."""
        self._report = PassReport()
        self._input.clear()
        reset = getattr(self.executor, "reset", None)
        if reset is not None:
            reset()

    @one_thread
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
        state: State | None = None,
        prediction: Prediction | None = None,
        out: Tensor | None = None,
        scale_map: Tensor | None = None,
        mask: Tensor | None = None,
        stats: Sequence[str] = (),
        stats_out: Tensor | None = None,
    ) -> Tensor:
        """The guided prediction at one step.

        Args:
            x: the noisy latent ``[B, ...]``.
            t: timestep as the model wants it: a number, a 0-dim tensor, ``[B]``, or ``[B, F]`` by frame or token.
            conditions: for each name in ``rule.conditions``, the model's keyword arguments, or a
                :class:`fastcfg.Condition` with a model or hooks of its own. In a batch their tensors have dim 0 of B
                and are concatenated; everything else must be the same for all.
            step, num_steps: where the sampler is; needed by a rule with schedules.
            sigma: the step's noise level, for schedules that run on it.
            params: overrides as for :func:`fastcfg.guide`; a parameter given here is not used to skip passes.
            state: what a rule with memory carries from step to step: one for each request.
            prediction: what the model predicts at which noise level, for a rule with a domain.
            out: tensor to write.
            scale_map, mask: as for :func:`fastcfg.guide`. With a scale map no pass is left out for its weight.
            stats, stats_out: as for :func:`fastcfg.guide`; NaN at a step without guidance, which has one prediction.

        Returns:
            ``[B, ...]`` in the model's output dtype.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        fixed = scale_map is not None
        planned = self.plan(conditions, step, num_steps, sigma=sigma, params=params, state=state, x=x, fixed=fixed)
        if not torch.compiler.is_compiling():
            self.count(planned)
        results = self.executor.run(x, t, self.passes(planned, conditions))
        measured = self.remember(planned, results, state, prediction)
        space: dict[str, Any] = {} if prediction is None else {"x": x, "prediction": prediction}
        told: dict[str, Any] = {"stats": stats, "stats_out": stats_out, "scale_map": scale_map, "mask": mask}
        guided = self.combine(planned, results, params=params, state=state, out=out, **told, **space)
        self.note(planned, state, step, measured, conditions, x)
        return guided

    @one_thread
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
        dtype: torch.dtype | None = None,
        scale_map: Tensor | None = None,
        mask: Tensor | None = None,
        stats: Sequence[str] = (),
        stats_out: Tensor | None = None,
    ) -> Tensor:
        """The next latent: the passes of a step, and their guidance and the solver's step in one pass over them.

        Without gradients the next step's model input is written by the same pass, for as many passes as the rule can
        take. It is used if the next call is given the tensor that this one returned, and nothing was written to it.

        Args:
            x: the latent ``[B, ...]``, in the model's output dtype or float32 (float64 for float64).
            step: of a :class:`fastcfg.Sampler`; it resolves the rule's schedules.
            conditions, params: as for a call.
            t: timestep as the model wants it; default ``step.timestep``.
            state: what the rule and a multistep solver carry: one for each request.
            noise: standard normal ``[B, ...]``, for a solver that takes noise.
            dtype: of the model's input; default x's.
            scale_map, mask, stats, stats_out: as for a call.

        Returns:
            ``[B, ...]`` in x's dtype. Of a model that predicts more, the guided channels alone are stepped.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        t = step.timestep if t is None else t
        if t is None:
            raise ValueError("t: the step has no timestep; give t=")
        at: dict[str, Any] = {"sigma": step.sigma, "params": params, "state": state, "x": x}
        planned = self.plan(conditions, step.index, step.num_steps, fixed=scale_map is not None, **at)
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self.count(planned)
        # What is written again at the next step may be in no graph, of gradients or of a compiler.
        whole = None if compiling or torch.is_grad_enabled() else self._input.take(x, step, self._copies, dtype)
        first = step.model_input(x, dtype=dtype) if whole is None else whole[: x.shape[0]]
        buffers = getattr(self.executor, "buffers", None)
        if whole is not None and isinstance(buffers, Buffers):
            buffers.offer(first, whole)
        results = self.executor.run(first, t, self.passes(planned, conditions))
        measured = self.remember(planned, results, state, step.level)
        given: dict[str, Any] = {"params": params, "state": state, "noise": noise, "batch_out": whole}
        given |= {"scale_map": scale_map, "mask": mask}
        after = self.combine_step(planned, results, step, x=x, stats=stats, stats_out=stats_out, **given)
        if whole is not None:
            self._input.give(after, whole, step.next_input_scale)
        if not compiling:
            self.note(planned, state, step.index, measured, conditions, x)
        return after

    def capture(
        self,
        step: Callable[..., Tensor] | None = None,
        *,
        backend: ReplayBackend = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> CapturedStep:
        """The whole step as one piece that is replayed: passes, guidance and the sampler's step.

        Args:
            step: the sampler's step ``step(x, prediction, **coefficients)`` in torch operations, which gives the next
                x; None captures the guided prediction.
            backend: ``"cudagraph"``; ``"compile"`` (``torch.compile`` with ``fullgraph=True``); ``"eager"``, which runs
                the same piece as it is; or ``"auto"``: a CUDA graph on CUDA, else compiled.
            options: of ``torch.compile``.

        Returns:
            A :class:`CapturedStep`, which counts into this denoiser's report. The model must not wait for the device.
        """
        return CapturedStep(self, step, backend, dict(options or {}))
