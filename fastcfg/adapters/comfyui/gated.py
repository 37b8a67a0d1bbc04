"""A gate in a sampling run of ComfyUI: which passes a call leaves out, and what stands for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from ...denoiser import Gate
from ...denoiser.gating import Gating, Origin
from ...denoiser.planner import PassPlan
from ...prediction import Prediction
from ...rules import Linear
from .run import Memory
from .space import kind_of, prediction_at

__all__ = ["FLAG", "OURS", "GatedCall", "needs_all"]

FLAG = "disable_cfg1_optimization"
"""The option by which a node tells ComfyUI that it needs both passes."""

OURS = "fastcfg"
"""What our nodes set it to: true for ComfyUI, and not taken for another node's wish."""

_ANY = Linear((("cond", 1.0),))


def needs_all(options: Mapping[str, Any]) -> bool:
    """Return whether a node that is not ours has declared that it needs both passes of every step."""
    return options.get(FLAG, False) is True


class GatedCall:
    """A call of the model: made before its passes are run, and asked for the predictions after.

    Args:
        gate: the policy; passes: those of the step, by their sources' names, the conditional one being ``main``.
        conds: ComfyUI's conditions by source.
        memory: of the run; the model's ``options``, the latent ``x`` and its noise level ``sigma`` are the call's.
    """

    def __init__(
        self,
        gate: Gate,
        passes: Sequence[str],
        main: str,
        conds: Mapping[str, Any],
        memory: Memory,
        options: MutableMapping[str, Any],
        x: Tensor,
        sigma: Tensor,
        model: Any,
    ) -> None:
        self._memory, self._x, self._sigma, self._model = memory, x, sigma, model
        self._gating = Gating((main,), gate)
        self._step, num_steps = memory.step(options, sigma)
        active = {name: {"active": tuple(_active(conds.get(name), sigma))} for name in passes}
        self._origin = Origin(model, x.shape, active)
        full = PassPlan(_ANY, tuple(passes), tuple((name, name) for name in passes))
        self.plan = self._gating.plan(full, memory.gate, self._step, num_steps, self._origin)
        memory.ended = self.plan.ended

    def complete(self, results: Mapping[str, Tensor], passes: Sequence[str]) -> dict[str, Tensor]:
        """All the step's clean samples: those of the passes that were run, and what the gate has for the others.

        Deltas are those of what the network predicts, as everywhere; here it is told from the clean samples.
        """
        kind = kind_of("model", self._model)
        x, clean = prediction_at(self._model, self._sigma, self._x, {kind})
        level = Prediction(kind, clean.alpha, clean.sigma)
        own = {name: clean.convert(results[name], x, kind) for name in self.plan.passes}
        state, gating = self._memory.gate, self._gating
        measured = gating.remember(self.plan, own, state, level)
        found = gating.recall(self.plan, own, state, level)
        gating.note(self.plan, state, self._step, measured, self._origin)
        recalled = {name: level.convert(found[name], x, "x0") for name, _ in self.plan.recalled}
        main = results[self._gating.main]
        return {name: recalled.get(name, results.get(name, main)) for name in passes}


def _active(cond: Any, sigma: Tensor) -> Iterator[Any]:
    """Return what identifies the parts of a condition that act at a noise level."""
    for part in cond or ():
        start, end = part.get("timestep_start"), part.get("timestep_end")
        if (start is not None and float(sigma[0]) > start) or (end is not None and float(sigma[0]) < end):
            continue
        yield object() if part.get("hooks") is not None else part.get("uuid", id(part))  # Hooks may change by step.
