"""Memory of a sampling run, by guidance node.

It lies in the run's own ``model_options``, by reference: a shallow or nested copy of them during the run finds it, the
next run and other clones of the model do not.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...core.state import State
from ..common import step_at

__all__ = ["Memory", "begin_run", "memory_of"]

KEY = "fastcfg"


@dataclass
class Memory:
    """The state that one node carries from call to call.

    Attributes:
        state: momentum and the like; gate: what a gate remembers.
        sigma: noise level of the last call.
        x, passes: the latent of the last call, and further predictions that were made for it, by name.
        ended: whether a gate has ended the guidance at the last call.
        conditions: further conditions, encoded for the run, by name.
        sigmas: the run's noise levels as numbers.
    """

    state: State = field(default_factory=State)
    gate: State = field(default_factory=State)
    sigma: Tensor | None = None
    x: Tensor | None = None
    passes: dict[str, Tensor] = field(default_factory=dict)
    ended: bool = False
    conditions: dict[str, Any] = field(default_factory=dict)
    sigmas: list[float] | None = None

    def follow(self, sigma: Tensor) -> State:
        """The state at a noise level; one above the last begins anew, as for ComfyUI's APG."""
        if self.sigma is not None and bool((sigma > self.sigma).any()):
            self.state.restart()
        self.sigma = sigma
        return self.state

    def step(self, model_options: MutableMapping[str, Any], sigma: Tensor) -> tuple[int, int]:
        """The sampler's step at a noise level, from 0, and their number; between two steps it is the earlier one.

        Raises:
            RuntimeError: if the sampler doesn't say what its noise levels are.
        """
        if self.sigmas is None:
            sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
            if sigmas is None:
                raise RuntimeError(
                    "sample_sigmas: expected the sampler's noise levels in transformer_options, for a schedule by "
                    "steps; this ComfyUI is too old for one"
                )
            self.sigmas = [float(level) for level in sigmas]
        return step_at(self.sigmas, float(sigma.max()))


class _Run:
    """Memories of one run by owner. No dict, which ComfyUI would copy."""

    def __init__(self) -> None:
        self.memories: dict[object, Memory] = {}


def memory_of(owner: object, model_options: MutableMapping[str, Any]) -> Memory:
    """Return what ``owner`` remembers of the run whose options these are."""
    run = model_options.get(KEY)
    if not isinstance(run, _Run):
        run = model_options[KEY] = _Run()
    return run.memories.setdefault(owner, Memory())


def begin_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """ComfyUI's ``SAMPLER_SAMPLE`` wrapper, ``(guider, sigmas, extra_args, …)``: a run begins with no memory."""
    extra_args = kwargs["extra_args"] if "extra_args" in kwargs else args[2]
    extra_args["model_options"][KEY] = _Run()
    return executor(*args, **kwargs)
