"""A model and its guidance as one callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor

from .guidance import guide
from .parameterization import Prediction
from .planner import plan, same_condition
from .rules import Rule
from .state import State

__all__ = ["GuidedDenoiser"]

Mode = Literal["batched", "sequential"]


def _prediction(result: Any) -> Tensor:
    """The tensor in what a model returned: itself, diffusers' ``.sample``, or the first of a tuple."""
    if isinstance(result, Tensor):
        return result
    if isinstance(getattr(result, "sample", None), Tensor):
        return result.sample  # type: ignore[no-any-return]
    if isinstance(result, tuple) and result and isinstance(result[0], Tensor):
        return result[0]
    raise TypeError(f"model: expected a tensor, an output with .sample, or a tuple, got {type(result).__name__}")


class GuidedDenoiser:
    """Calls ``model(x, t, **condition)`` for each prediction that a rule needs, and guides.

    Args:
        model: any callable ``model(x, t, **kwargs)`` that returns a tensor ``[B, ...]``, an output with ``.sample``,
            or a tuple that begins with the prediction.
        rule: the guidance; its schedules are resolved by the ``step`` of each call.
        mode: ``"batched"`` (one call of the model on all passes, in the order of ``rule.conditions``) or
            ``"sequential"`` (a call for each: less memory, and right for models whose samples interact).
        backend: as for :func:`fastcfg.guide`.

    Attributes:
        passes_run, passes_saved: passes of one sample batch that were run, and those that a step did not need
            (CFG at scale 1 or outside its interval, zero weights, the same condition under two names); see
            :func:`fastcfg.planner.plan`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        rule: Rule,
        *,
        mode: Mode = "batched",
        backend: str | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a callable model(x, t, **conditions), got {type(model).__name__}")
        if not isinstance(rule, Rule):
            raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
        if mode not in ("batched", "sequential"):
            raise ValueError(f"mode: expected 'batched' or 'sequential', got {mode!r}")
        self.model = model
        self.rule = rule
        self.mode: Mode = mode
        self.backend = backend
        self.passes_run = 0
        self.passes_saved = 0

    def reset(self) -> None:
        """Set the pass counters to zero."""
        self.passes_run = self.passes_saved = 0

    def __call__(
        self,
        x: Tensor,
        t: Tensor | float,
        *,
        conditions: Mapping[str, Mapping[str, Any]],
        step: int | None = None,
        num_steps: int | None = None,
        sigma: float | None = None,
        params: Mapping[str, Any] | None = None,
        state: State | None = None,
        prediction: Prediction | None = None,
    ) -> Tensor:
        """The guided prediction at one step.

        Args:
            x: the noisy latent ``[B, ...]``.
            t: timestep as the model wants it: a number, a 0-dim tensor, or ``[B]``.
            conditions: for each name in ``rule.conditions``, the model's keyword arguments. In batched mode their
                tensors have dim 0 of B and are concatenated; everything else must be the same for all.
            step, num_steps: where the sampler is; needed by a rule with schedules.
            sigma: the step's noise level, for schedules that run on it.
            params: overrides as for :func:`fastcfg.guide`; a parameter given here is not used to skip passes.
            state: what a rule with memory carries from step to step: one for each request.
            prediction: what the model predicts at which noise level, for a rule with a domain.

        Returns:
            ``[B, ...]`` in the model's output dtype.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        steps = plan(self.rule, conditions, step, num_steps, sigma=sigma, fixed=bool(params))
        self.passes_run += steps.count
        self.passes_saved += steps.saved
        run = self._batched if self.mode == "batched" and steps.count > 1 else self._sequential
        results = run(x, t, {name: conditions[name] for name in steps.passes})
        if steps.unguided:
            return results[steps.passes[0]]
        predictions = cast(dict[str, Any], steps.predictions(results))
        space: dict[str, Any] = {} if prediction is None else {"x": x, "prediction": prediction}
        return guide(steps.rule, params=params, backend=self.backend, state=state, **space, **predictions)

    def _sequential(self, x: Tensor, t: Any, conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
        return {name: _prediction(self.model(x, t, **kwargs)) for name, kwargs in conditions.items()}

    def _batched(self, x: Tensor, t: Any, conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
        passes = len(conditions)
        batch = x.shape[0]
        kwargs = _stack(conditions, batch)
        many_t = t.repeat(passes) if isinstance(t, Tensor) and t.dim() == 1 and t.shape[0] == batch else t
        result = _prediction(self.model(x.repeat(passes, *[1] * (x.dim() - 1)), many_t, **kwargs))
        if result.shape[0] != passes * batch:
            raise ValueError(
                f"model: expected {passes * batch} predictions for {passes} passes of {batch}, got {result.shape[0]}"
            )
        return dict(zip(conditions, result.view(passes, batch, *result.shape[1:]).unbind(0), strict=True))


def _stack(conditions: Mapping[str, Mapping[str, Any]], batch: int) -> dict[str, Any]:
    """Keyword arguments of all passes as one: tensors of dim 0 = B concatenated, the rest required to be equal."""
    names = list(conditions)
    keys = list(conditions[names[0]])
    for name in names[1:]:
        if set(conditions[name]) != set(keys):
            raise ValueError(
                f"conditions: {name!r} has arguments {sorted(conditions[name])}, {names[0]!r} has {sorted(keys)}; "
                "passes with different arguments need mode='sequential'"
            )
    stacked: dict[str, Any] = {}
    for key in keys:
        values = [conditions[name][key] for name in names]
        if all(isinstance(v, Tensor) and v.dim() and v.shape[0] == batch for v in values):
            if len({v.shape for v in values}) > 1:
                raise ValueError(
                    f"conditions: {key!r} has the shapes {[list(v.shape) for v in values]}; "
                    "pad them to one length or use mode='sequential'"
                )
            stacked[key] = torch.cat(values)
        elif all(same_condition(v, values[0]) for v in values[1:]):
            stacked[key] = values[0]
        else:
            raise ValueError(
                f"conditions: {key!r} differs between passes and is not a tensor of dim 0 = {batch}; "
                "use mode='sequential'"
            )
    return stacked
