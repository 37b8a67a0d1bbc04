"""Guidance as a k-diffusion denoiser: ``denoiser(x, sigma, **extra)`` returns clean samples for any sampler of theirs.

It needs no package: k-diffusion's samplers, and those of the projects that took them over, call any such function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ..core.state import State
from ..denoiser import Gate, GuidedDenoiser
from ..prediction import Kind, Prediction, latent_at
from ..rules import InDomain, Rule
from ..schedules import OnAxis, Schedule, SigmaInterval
from ..validate import check_choice
from .common import step_at, with_scale

__all__ = ["CFGDenoiser"]


def _schedules(value: Any) -> Iterator[Schedule]:
    """The schedules in a rule."""
    if isinstance(value, Schedule):
        yield value
    elif isinstance(value, Rule):
        for field in dataclasses.fields(value):
            yield from _schedules(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _schedules(item)


def _on_noise(schedule: Schedule) -> bool:
    """Return whether a schedule is told by the noise level alone."""
    return isinstance(schedule, SigmaInterval) or (
        isinstance(schedule, OnAxis) and schedule.axis in ("sigma", "logsnr")
    )


CHURN = 1.415
"""How far a step may raise the noise level: k-diffusion's churn is at most sqrt(2), and levels are rounded."""


class CFGDenoiser:
    """Guides a denoiser by any rule, as a denoiser.

    Args:
        inner_model: ``inner_model(x, sigma, **arguments)`` with sigma ``[B]``; by k-diffusion's convention it returns
            clean samples.
        rule: the guidance, of what ``inner_model`` returns; its schedules are resolved by ``sigmas``.
        kind: what ``inner_model`` returns: ``"x0"``, ``"eps"``, ``"v"`` (of a variance-preserving process) or
            ``"flow"``. Results are clean samples whatever it is.
        domain: what the rule works on instead, as :class:`fastcfg.InDomain`.
        process: ``"ve"``: x = x0 + sigma * eps, k-diffusion's; ``"flow"``: x = (1 - sigma) * x0 + sigma * eps.
        argument: ``inner_model``'s name for a condition that is given as a tensor.
        sigmas: the sampler's noise levels, the last being 0: for schedules by steps, and for a gate.
        gate: when passes are left out (:class:`fastcfg.Gate`), of what ``inner_model`` returns.
        mode, backend: as for :class:`fastcfg.GuidedDenoiser`.

    Attributes:
        state: what a rule with memory carries. A noise level well above that of the last call (with ``sigmas``: the
            first of them) begins a new run, and so does :meth:`reset`; a step of several evaluations, with churn or
            without, does not. A sampler of several requests at once needs a denoiser for each.

    ``sample_euler(CFGDenoiser(model, CFG(7.5)), x, sigmas, extra_args={"uncond": u, "cond": c})``.
    """

    def __init__(
        self,
        inner_model: Callable[..., Any],
        rule: Rule,
        *,
        kind: Kind = "x0",
        domain: Kind | None = None,
        process: Literal["ve", "flow"] = "ve",
        argument: str = "cond",
        sigmas: Sequence[float] | Tensor | None = None,
        gate: Gate | None = None,
        mode: Literal["batched", "sequential"] = "batched",
        backend: str | None = None,
    ) -> None:
        check_choice("kind", kind, ("x0", "eps", "v", "flow"))
        check_choice("process", process, ("ve", "flow"))
        if domain is not None and domain != kind:
            rule = InDomain(rule, domain)
        self.inner_model = inner_model
        self.guided = GuidedDenoiser(inner_model, rule, gate=gate, mode=mode, backend=backend)
        self.kind: Kind = kind
        self.process = process
        self.argument = argument
        self.sigmas = None if sigmas is None else [float(sigma) for sigma in sigmas]
        self.state = State()
        self._scales: dict[float, GuidedDenoiser] = {}
        self._last: Tensor | None = None

    @property
    def rule(self) -> Rule:
        """The guidance."""
        return self.guided.rule

    def reset(self) -> None:
        """Begin a new run: forget what the rule remembers."""
        self.state.restart()
        self._last = None

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        *,
        cond_scale: float | Tensor | None = None,
        params: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """Guided clean samples.

        Args:
            x: ``[B, ...]``; sigma: noise levels ``[]`` or ``[B]``.
            cond_scale: in place of the rule's ``scale``: a number, or a tensor ``[B]``.
            params: overrides as for :func:`fastcfg.guide`.
            extra: a condition for each name in ``rule.conditions``: a tensor, or a mapping of ``inner_model``'s
                arguments. All else goes to ``inner_model`` in every pass.

        Returns:
            ``[B, ...]`` in the inner model's dtype.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        guided, params = self._at_scale(cond_scale, dict(params or {}))
        names = guided.rule.conditions
        if missing := [name for name in names if name not in extra]:
            raise ValueError(f"{missing[0]}: expected a condition for each of {list(names)}, got {sorted(extra)}")
        conditions = {name: self._arguments(extra.pop(name)) for name in names}
        for arguments in conditions.values():
            arguments.update(extra)
        levels = sigma.expand(x.shape[0]) if sigma.dim() == 0 else sigma
        self._follow(guided, levels)
        step, num_steps, noise = self._step(guided, levels)
        planned = guided.plan(conditions, step, num_steps, sigma=noise, params=params, state=self.state, x=x)
        guided.count(planned)
        results = guided.executor.run(x, levels, guided.passes(planned, conditions))
        latent, level = self._level(x, levels, guided.rule.lowered.domain)
        measured = guided.remember(planned, results, self.state, level)
        result = guided.combine(planned, results, params=params, state=self.state, x=latent, prediction=level)
        guided.note(planned, self.state, step, measured, conditions, x)
        return level.convert(result, latent, "x0", dtype=result.dtype) if self.kind != "x0" else result

    def _at_scale(self, scale: float | Tensor | None, params: dict[str, Any]) -> tuple[GuidedDenoiser, dict[str, Any]]:
        """The denoiser at a call's scale, and overrides. A number makes another rule, whose passes are planned."""
        if scale is None:
            return self.guided, params
        if isinstance(scale, Tensor):
            return self.guided, {**params, "scale": scale}
        value = float(scale)
        if value not in self._scales:
            if len(self._scales) > 64:
                self._scales.clear()
            rule = with_scale(self.rule, value)
            if rule is None:
                raise ValueError(f"cond_scale: {type(self.rule).__name__} has no scale")
            self._scales[value] = self.guided.with_rule(rule)
        return self._scales[value], params

    def _arguments(self, condition: Any) -> dict[str, Any]:
        return dict(condition) if isinstance(condition, Mapping) else {self.argument: condition}

    def _follow(self, guided: GuidedDenoiser, sigma: Tensor) -> None:
        lowered = guided.rule.lowered
        if guided.gate is None and not (lowered.extras or lowered.updates):
            return
        if self._last is not None and (self._last.shape != sigma.shape or self._begins(sigma, self._last)):
            self.state.restart()
        self._last = sigma

    def _begins(self, sigma: Tensor, last: Tensor) -> bool:
        """Return whether a level begins a run, where it is above the last one.

        Heun's and DPM-2's steps evaluate at two levels, and churn adds noise before a step: up to sqrt(2) of the level
        in k-diffusion. A run begins at the first of the sampler's levels, where they are known.
        """
        if self.sigmas is not None:
            return bool(((sigma >= self.sigmas[0] * (1 - 1e-6)) & (sigma > last)).any())
        return bool((sigma > last * CHURN).any())

    def _step(self, guided: GuidedDenoiser, sigma: Tensor) -> tuple[int | None, int | None, float | None]:
        """Return where a noise level is in the run, for what changes; read from the device for that alone."""
        rule = guided.rule
        if not rule.scheduled and guided.gate is None:
            return None, None, None
        noise = float(sigma.max())
        found = list(_schedules(rule))
        if self.sigmas is None:
            if guided.gate is not None or not found or not all(map(_on_noise, found)):
                what = type(rule).__name__ if guided.gate is None else "a gate"
                raise ValueError(f"sigmas: expected the sampler's noise levels, for {what} changes by step")
            return 0, 1, noise
        return *step_at(self.sigmas, noise), noise

    def _level(self, x: Tensor, sigma: Tensor, domain: str | None) -> tuple[Tensor, Prediction]:
        """The latent and the levels that the spaces are defined for: for v those of a variance-preserving process."""
        return latent_at(x, sigma, self.kind, {self.kind, domain or self.kind}, flow=self.process == "flow")
