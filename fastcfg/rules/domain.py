"""The space that a rule works in, where that is not the model's own prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .base import Lowered, Rule, check_choice

__all__ = ["InDomain"]


@dataclass(frozen=True)
class InDomain(Rule):
    """A rule on the predictions as ``domain``, its result taken back to the model's own kind, in the same pass.

    Weights that add to 1 commute with the change of space; norms, projections and clamps do not: rescale, norm caps,
    APG, CFG-Zero*, TCFG and MaMBO-G differ between eps, v and x0. ComfyUI's nodes work on x0, diffusers' guiders on
    what the model predicts.

    Args:
        rule: any rule; what is around it works in the same space.
        domain: ``"x0"``, ``"eps"``, ``"v"``, ``"flow"`` or ``"score"``.

    The call says what the model predicts: ``guide(rule, x=x, prediction=Prediction("v", alpha, sigma), ...)``.
    """

    rule: Rule
    domain: Literal["x0", "eps", "v", "flow", "score"] = "x0"

    title = "the rule on predictions as x0, eps, v, flow or score"

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule: expected a rule, got {type(self.rule).__name__}")
        check_choice("domain", self.domain, ("x0", "eps", "v", "flow", "score"))
        inner = self.rule.lowered.domain
        if inner not in (None, self.domain):
            raise ValueError(f"domain: the rule works on {inner!r} already, got {self.domain!r}")

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.rule.conditions

    def lower(self) -> Lowered:
        return replace(self.rule.lowered, domain=self.domain)

    def simplify(self) -> Rule:
        """A linear rule with weights that add to 1 needs no change of space."""
        if self.scheduled:
            return self
        inner = self.rule.simplify()
        program = inner.lowered.program
        stateful = program.extras or program.outputs > 1  # What is kept is kept in the domain.
        if not (program.reduces or program.clamps or stateful) and inner.numbers is not None:
            base = program.weigh((), 0.0, inner.numbers)[0]
            if base == 1:
                return inner
        return replace(self, rule=inner)
