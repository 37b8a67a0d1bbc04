"""Guiders that weaken the model in one of their passes."""

from __future__ import annotations

import torch

from .core import FusedGuider
from .layers import LayerSwitch

__all__ = ["SwitchGuider"]


class SwitchGuider(FusedGuider, wrap=False):
    """Base of guiders with a weak pass: one :class:`.LayerSwitch` for a model, put in for the length of a run."""

    _switch: LayerSwitch | None = None

    def _layers(self, denoiser: torch.nn.Module) -> LayerSwitch:
        """The switch of what the weak pass weakens."""
        raise NotImplementedError

    def _is_weak(self, name: str) -> bool:
        """Return whether a pass, by the guider's name of its prediction, is the weak one."""
        raise NotImplementedError

    def _weakens(self) -> bool:
        """Return whether a run may have a weak pass."""
        return True

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Count the pass; at a run's first put the switch in, and turn it on for the weak one."""
        self._count_prepared += 1
        if not self._weakens():
            return
        switch = self._switch
        if switch is None or switch.denoiser is not denoiser:
            if switch is not None:
                switch.take()
            self._switch = switch = self._layers(denoiser)
        switch.put()
        passes = self._now().passes
        here = passes[self._count_prepared - 1][0] if self._count_prepared <= len(passes) else ""
        switch.on = self._is_weak(here)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Turn the switch off; take it out after the last pass of a run, or where there is no run."""
        if self._switch is None:
            return
        self._switch.on = False
        at = self._at()
        if at is None or (at[0] >= at[1] - 1 and self._count_prepared >= len(self._now().passes)):
            self._switch.take()

    def _forget_switch(self) -> None:
        if self._switch is not None:
            self._switch.take()
            self._switch = None
