"""Requests in one batch that join and leave: each with its own rule, step, conditions and state.

A step runs the passes that each request needs and no more: the model's batch has a row for each pass of each request,
so that one with guidance takes two rows and one outside its interval, or with a cached delta, takes one. Requests
whose rules differ in numbers alone are guided in one call, their parameters ``[B]`` tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

from ..core.conditions import Conditions
from ..core.state import State, gather_states, scatter_states
from ..prediction import Prediction
from ..rules import Rule
from ..schedules import check_step
from ..validate import check_tensor
from .batching import Buffers, Padding, stack_arguments
from .gates import Gate
from .guided import GuidedDenoiser
from .one_thread import one_thread
from .passes import Pass, own_memory, passes_of, prediction_of
from .planner import PassPlan, check_conditions
from .report import PassReport
from .structure import structure_of

__all__ = ["Request", "Requests"]


@dataclass(eq=False)
class Request:
    """One sample on its way.

    Attributes:
        id: what the caller knows it by.
        denoiser: the model and the request's own rule.
        conditions: for each name in the rule's conditions; tensors of one sample, dim 0 of 1.
        num_steps: steps of its run; step: the next one, from 0.
        state: what its rule carries. It goes where the request goes.
        report: its passes.
    """

    id: Hashable
    denoiser: GuidedDenoiser
    conditions: Conditions
    num_steps: int
    step: int = 0
    state: State = field(default_factory=State)
    report: PassReport = field(default_factory=PassReport)

    @property
    def done(self) -> bool:
        """Return whether all its steps are made."""
        return self.step >= self.num_steps


@dataclass
class _Group:
    """Requests of one step that are guided together: their places in the batch, and their plans."""

    members: list[int] = field(default_factory=list)
    plans: list[PassPlan] = field(default_factory=list)


class Requests:
    """A batch of requests, guided each by its own rule at its own step.

    Args:
        denoiser: the model, and the rule of requests that bring none. Its ``mode`` plays no part.
        padding: as for :class:`Batched`, for requests (and passes) with sequences of unequal length.
        max_rows: most rows of one call of the model; more are run in several calls. None sets no limit.

    The guidance of a request is the same, to the bit, whatever else is in the batch.
    """

    def __init__(
        self, denoiser: GuidedDenoiser, *, padding: Mapping[str, str] | None = None, max_rows: int | None = None
    ) -> None:
        if not isinstance(denoiser, GuidedDenoiser):
            raise TypeError(f"denoiser: expected a GuidedDenoiser, got {type(denoiser).__name__}")
        if max_rows is not None and (type(max_rows) is not int or max_rows < 1):
            raise ValueError(f"max_rows: expected a positive integer or None, got {max_rows!r}")
        self._denoisers: dict[tuple[Rule, Gate | None], GuidedDenoiser] = {(denoiser.rule, None): denoiser}
        self._default = denoiser
        self._padding = None if padding is None else Padding(padding)
        self._max_rows = max_rows
        self._requests: dict[Hashable, Request] = {}
        self._buffers = Buffers()
        self._busy: dict[str, int] = {}
        self._report = PassReport()

    @property
    def ids(self) -> tuple[Hashable, ...]:
        """The requests in the batch, in its order: that in which they joined."""
        return tuple(self._requests)

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, id: Hashable) -> Request:
        return self._requests[id]

    def report(self) -> PassReport:
        """Passes of single samples, run and saved, over all requests; each request has its own report as well."""
        return self._report.copy()

    def add(
        self,
        id: Hashable,
        conditions: Conditions,
        *,
        num_steps: int,
        rule: Rule | None = None,
        gate: Gate | None = None,
        step: int = 0,
        state: State | None = None,
    ) -> Request:
        """Let a request join; it comes last in the batch.

        Args:
            id: anything hashable that no other request in the batch has.
            conditions: for each name in the rule's conditions, the model's keyword arguments for one sample. Tensors
                that are no samples (position ids, say) have to be one object for all requests.
            rule: its guidance; default the denoiser's.
            gate: when its passes are left out; default the denoiser's.
            step, state: where it stands, for one that comes from elsewhere.

        Raises:
            TypeError, ValueError: naming the request and the argument; nothing is kept of it then.
        """
        if id in self._requests:
            raise ValueError(f"id: {id!r} is in the batch already")
        own = State() if state is None else state
        try:
            if not isinstance(own, State):
                raise TypeError(f"state: expected a fastcfg.State, got {type(own).__name__}")
            check_step(step, num_steps)
            denoiser = self._denoiser(rule, gate, conditions, own, None)
        except (TypeError, ValueError) as error:
            raise type(error)(f"id: {id!r} is refused: {error}") from error
        request = Request(id, denoiser, conditions, num_steps, step, own)
        self._requests[id] = request
        return request

    def change(
        self, id: Hashable, *, rule: Rule | None = None, gate: Gate | None = None, conditions: Conditions | None = None
    ) -> Request:
        """Give a request another rule (another scale, say), gate or conditions from its next step on.

        Its step and what it remembers stay.

        Args:
            rule, gate, conditions: as for :meth:`add`; None leaves rule and conditions as they are, and the gate too
                where the rule stays.

        Raises:
            TypeError, ValueError: naming the request and the argument; nothing has changed then.
        """
        if id not in self._requests:
            raise ValueError(f"id: {id!r} is not in the batch, which has {list(self._requests)}")
        request = self._requests[id]
        before = request.denoiser
        if rule is None:
            [(rule, kept)] = [key for key, made in self._denoisers.items() if made is before]
            gate = kept if gate is None else gate
        chosen = request.conditions if conditions is None else conditions
        try:
            denoiser = self._denoiser(rule, gate, chosen, request.state, request)
        except (TypeError, ValueError) as error:
            raise type(error)(f"id: {id!r} is left as it was: {error}") from error
        request.denoiser, request.conditions = denoiser, chosen
        self._let_go(before)
        return request

    def _denoiser(
        self, rule: Rule | None, gate: Gate | None, conditions: Conditions, state: State, request: Request | None
    ) -> GuidedDenoiser:
        """The denoiser of a rule, kept only if the conditions and the state fit it and each other."""
        rule = self._default.rule if rule is None else rule
        if not isinstance(rule, Rule):
            raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
        if not isinstance(conditions, Mapping):
            raise TypeError(f"conditions: expected a mapping from names to keyword arguments, got {conditions!r}")
        check_conditions(rule, conditions)
        if missing := [name for name in rule.lowered.given if name not in state]:
            raise ValueError(f"state: {type(rule).__name__} reads {missing[0]!r}, which the caller puts there")
        denoiser = self._denoisers.get((rule, gate))
        if denoiser is None:
            denoiser = self._default.with_rule(rule, gate)
        self._check_alike(passes_of(rule.conditions, conditions, denoiser.model, prediction_of), request)
        self._denoisers[rule, gate] = denoiser
        return denoiser

    def _check_alike(self, passes: Sequence[Pass], request: Request | None) -> None:
        """Raise unless passes could share a call of the model with each other and with a request that is there."""
        others = [other for other in self._requests.values() if other is not request][:1]
        known = [
            one
            for other in others
            for one in passes_of(tuple(other.conditions), other.conditions, other.denoiser.model, prediction_of)
        ]
        for one in passes:
            if not isinstance(one.kwargs, Mapping):
                raise TypeError(
                    f"conditions: {one.name!r}: expected keyword arguments, got {type(one.kwargs).__name__}"
                )
        for one in passes:
            alike = [o for o in (*passes, *known) if o.model is one.model and o.context == one.context]
            stack_arguments([o.name for o in alike], [o.kwargs for o in alike], 1, self._padding)

    def _let_go(self, denoiser: GuidedDenoiser) -> None:
        """Forget a denoiser that no request has: rules come without end where each request has a scale of its own."""
        if denoiser is not self._default and all(own.denoiser is not denoiser for own in self._requests.values()):
            self._denoisers = {key: kept for key, kept in self._denoisers.items() if kept is not denoiser}

    def remove(self, id: Hashable) -> Request:
        """Take a request out of the batch, with its state."""
        if id not in self._requests:
            raise ValueError(f"id: {id!r} is not in the batch, which has {list(self._requests)}")
        request = self._requests.pop(id)
        # What it leaves with is its own, and those that stay keep no batch alive that it was part of.
        for one in (request, *self._requests.values()):
            one.state.own()
        self._let_go(request.denoiser)
        return request

    def _plan(self, request: Request, sigma: float | None, row: Tensor) -> PassPlan:
        if request.done:
            raise ValueError(f"id: {request.id!r} has made its {request.num_steps} steps; remove it")
        return request.denoiser.plan(
            request.conditions, request.step, request.num_steps, sigma=sigma, state=request.state, x=row
        )

    @one_thread
    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        *,
        sigmas: Sequence[float] | None = None,
        prediction: Prediction | None = None,
    ) -> Tensor:
        """The guided predictions of all requests, each of which moves on by a step.

        Args:
            x: the noisy latents ``[B, ...]``, a row for each of :attr:`ids`.
            t: their timesteps ``[B]``, or ``[B, F]`` by frame or token.
            sigmas: their noise levels, for schedules that run on them.
            prediction: what the model predicts, with levels ``[]`` or ``[B]``, for rules with a domain.

        Returns:
            ``[B, ...]`` in the model's output dtype.

        Raises:
            TypeError, ValueError: naming the argument. Whatever is raised, no request has moved on, and what each
                remembers is what it was.
        """
        requests = list(self._requests.values())
        check_tensor("x", x)
        if not requests or x.shape[0] != len(requests):
            raise ValueError(f"x: expected a row for each of {len(requests)} requests, got {list(x.shape)}")
        if not isinstance(t, Tensor) or t.shape[:1] != (len(requests),):
            raise ValueError(f"t: expected a tensor [{len(requests)}] or [{len(requests)}, ...], got {t!r}")
        if sigmas is not None and len(sigmas) != len(requests):
            raise ValueError(f"sigmas: expected {len(requests)} noise levels, got {len(sigmas)}")
        kept = [request.state.kept() for request in requests]
        try:
            plans, result = self._step(requests, x, t, sigmas, prediction)
        except BaseException:
            for back in kept:
                back()
            raise
        for request, planned in zip(requests, plans, strict=True):
            request.step += 1
            for report in (self._report, request.report):
                report.count(len(planned.passes), planned.saved_by)
        return result

    def _step(
        self,
        requests: Sequence[Request],
        x: Tensor,
        t: Tensor,
        sigmas: Sequence[float] | None,
        prediction: Prediction | None,
    ) -> tuple[list[PassPlan], Tensor]:
        """The requests' plans, and the guided predictions."""
        plans = [
            self._plan(request, None if sigmas is None else sigmas[i], x[i : i + 1])
            for i, request in enumerate(requests)
        ]
        rows = [
            (i, one)
            for i, (request, planned) in enumerate(zip(requests, plans, strict=True))
            for one in request.denoiser.passes(planned, request.conditions)
        ]
        found, place = self._run(x, t, rows)
        groups: dict[Any, _Group] = {}
        for i, planned in enumerate(plans):
            group = groups.setdefault(_likeness(requests[i], planned), _Group())
            group.members.append(i)
            group.plans.append(planned)
        result: Tensor | None = None
        for group in groups.values():
            guided = self._guide(group, requests, x, found, place, prediction)
            if len(groups) == 1:
                result = guided
            else:
                if result is None:
                    result = guided.new_empty(len(requests), *guided.shape[1:])
                result.index_copy_(0, _index(group.members, x.device), guided)
        assert result is not None
        return plans, result

    def _run(self, x: Tensor, t: Tensor, rows: Sequence[tuple[int, Pass]]) -> tuple[Tensor, dict[tuple[int, str], int]]:
        """Run one pass a row; returns the predictions ``[rows, ...]`` and the row of each (member, pass)."""
        calls: dict[tuple[Any, Any], list[tuple[int, Pass]]] = {}
        for i, one in rows:
            calls.setdefault((id(one.model), one.context), []).append((i, one))
        place: dict[tuple[int, str], int] = {}
        parts: list[Tensor] = []
        for call in calls.values():
            size = self._max_rows or len(call)
            for chunk in (call[k : k + size] for k in range(0, len(call), size)):
                which = _index([i for i, _ in chunk], x.device)
                names = [f"{i}.{one.name}" for i, one in chunk]
                kwargs = self._buffers.arguments(names, [one.kwargs for _, one in chunk], 1, self._padding)
                inputs = x.index_select(0, which)
                part = chunk[0][1].given(kwargs).predict(inputs, t.index_select(0, which))
                if part.shape[0] != len(chunk):
                    raise ValueError(f"model: expected {len(chunk)} predictions, got {part.shape[0]}")
                for i, one in chunk:
                    place[i, one.name] = len(place)
                parts.append(part if len(place) == len(rows) else own_memory(part))
        return parts[0] if len(parts) == 1 else torch.cat(parts), place

    def _guide(
        self,
        group: _Group,
        requests: Sequence[Request],
        x: Tensor,
        found: Tensor,
        place: Mapping[tuple[int, str], int],
        prediction: Prediction | None,
    ) -> Tensor:
        planned = group.plans[0]
        members = [requests[i] for i in group.members]
        denoiser = members[0].denoiser
        results = {
            name: found.index_select(0, _index([place[i, name] for i in group.members], x.device))
            for name in planned.passes
        }
        if planned.unguided and not planned.main:
            for member in members:
                member.denoiser.note(planned, member.state, member.step, None, member.conditions, x[:1])
            return denoiser.combine(planned, results)
        lowered = planned.rule.lowered
        dtype = accumulator(found.dtype)
        params: dict[str, Tensor] = {}
        if not planned.rule.prepares and lowered.program.params:
            names = lowered.program.params
            columns = [[one.rule.lowered.params[name] for one in group.plans] for name in names]
            table = _on_device(columns, dtype, x.device)
            params = dict(zip(names, table.unbind(0), strict=True))
        states = [member.state for member in members]
        reads, writes = denoiser.memory(planned)
        state = gather_states(states, dict.fromkeys((*lowered.extras, *lowered.updates, *reads)))
        space = {} if prediction is None else _rows_of(prediction, x, group.members)
        measured = denoiser.remember(planned, results, state, space.get("prediction"))
        guided = denoiser.combine(planned, results, params=params, state=state, **space)
        scatter_states(state, states, (*lowered.updates, *writes))
        for k, member in enumerate(members):
            own = None if measured is None else measured[:, :, k : k + 1]
            member.denoiser.note(planned, member.state, member.step, own, member.conditions, x[:1])
        return guided


def _likeness(request: Request, planned: PassPlan) -> Any:
    """Equal for requests that are guided in one call."""
    gate = request.denoiser.gate if planned.main else None
    return structure_of(planned.rule), planned.sources, planned.unguided, planned.memory, planned.recalled, gate


def _on_device(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _index(numbers: Sequence[int], device: torch.device) -> Tensor:
    return _on_device(numbers, torch.int64, device)


def _rows_of(prediction: Prediction, x: Tensor, members: Sequence[int]) -> dict[str, Any]:
    which = _index(members, x.device)

    def rows(level: Any) -> Any:
        return level.index_select(0, which) if isinstance(level, Tensor) and level.dim() else level

    levels = Prediction(prediction.kind, alpha=rows(prediction.alpha), sigma=rows(prediction.sigma))
    return {"x": x.index_select(0, which), "prediction": levels}
