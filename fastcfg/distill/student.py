"""A distilled network as a denoiser."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.conditions import Conditions
from ..rules import Rule
from ..validate import number
from .card import Card
from .embedding import Convention
from .families import Family, family_of
from .lora import Lora
from .task import arguments_of

__all__ = ["ScaledNetwork", "Student"]


class ScaledNetwork(nn.Module):
    """A student as ``forward(x, t, scale, **condition)`` with scales ``[B]``: the form that exporters take.

    The scale's embedding is inside, and so is the strength of an adapter that follows the scale.
    """

    def __init__(self, network: nn.Module, family: Family, convention: Convention, lora: Lora | None = None) -> None:
        super().__init__()
        self.network = network
        self.family = family
        self.convention = convention
        self.lora = lora

    def forward(
        self, x: Tensor, t: Tensor | float, scale: Tensor, *, computed_in: torch.dtype | None = None, **condition: Any
    ) -> Tensor:
        """The guided prediction ``[B, ...]``.

        Args:
            computed_in: dtype that the network computes in where that is not ``x``'s (autocast).
        """
        if self.lora is not None:
            self.lora.follow(scale)
        arguments = self.convention.arguments(scale, computed_in or x.dtype)
        return self.family.call(self.network, x, t, **condition, **arguments)


class Student:
    """A network that predicts what its teacher's guidance would, in one pass.

    It is called as a :class:`fastcfg.GuidedDenoiser` is (``conditions`` by name, of which it takes one), and as a plain
    model ``student(x, t, **condition)``, so that it fits samplers and adapters of both kinds.

    Args:
        network: with its scale input.
        card: what it is.
        scale: guidance scale where a call gives none.
        lora: the adapter on it, if it has one.

    Attributes:
        passes_run, passes_saved: passes that were run, and those that the teacher's rule would have run besides.
    """

    def __init__(self, network: nn.Module, card: Card, scale: float | None = None, *, lora: Lora | None = None) -> None:
        self.card = card
        self.family = family_of(network)
        self.rule = Rule.from_dict(card.rule)
        self.passes_run = 0
        self.passes_saved = 0
        self._module = ScaledNetwork(network, self.family, card.convention, lora).eval()
        self._one = True  # Whether it knows the scale 1: all are trained on it.
        self._scale = min(max(7.5, card.low), card.high)
        if scale is not None:
            self.scale = scale

    @property
    def network(self) -> nn.Module:
        """The network with its scale input and adapter; it may be replaced, by its compiled form say."""
        return self._module.network

    @network.setter
    def network(self, network: nn.Module) -> None:
        self._module.network = network

    @property
    def lora(self) -> Lora | None:
        """The adapter; None where there is none, or none any more."""
        return self._module.lora

    @property
    def scale(self) -> float:
        """Guidance scale of calls that give none."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = self._checked(value)

    @property
    def embedded_scale(self) -> float:
        """The scale that the network takes itself: guiding it by a rule would guide twice."""
        return self._scale

    def _checked(self, value: Any, depth: int = 3) -> float:
        scale = number("scale", value)
        if not (scale == 1.0 and self._one) and not self.card.low <= scale <= self.card.high:
            warnings.warn(
                f"scale {scale:g} is outside {self.card.low:g} ... {self.card.high:g}, which the student was trained "
                "on; its prediction is an extrapolation",
                UserWarning,
                stacklevel=depth,
            )
        return scale

    def reset(self) -> None:
        """Set the pass counters to zero."""
        self.passes_run = self.passes_saved = 0

    def __call__(
        self,
        x: Tensor,
        t: Tensor | float,
        *,
        conditions: Conditions | None = None,
        scale: float | Tensor | None = None,
        params: Mapping[str, Any] | None = None,
        step: int | None = None,
        num_steps: int | None = None,
        sigma: float | None = None,
        state: Any = None,
        prediction: Any = None,
        **condition: Any,
    ) -> Tensor:
        """The guided prediction of one step, in one pass.

        Args:
            x: the noisy latent ``[B, ...]``.
            t: time as the scheduler has it: a number, a 0-dim tensor, or ``[B]``.
            conditions: the network's arguments by the names of the teacher's predictions; the one that the student
                takes has to be there, others are not looked at. Or give its arguments themselves, as ``condition``.
            scale: guidance scale ``s`` (not ``w = s - 1``), a number or ``[B]``; a number outside the trained range
                warns.
            params: ``{"scale": ...}``, another way to give it.
            step, num_steps, sigma, state, prediction: taken for the sake of the shared protocol. The teacher's
                schedules and its state are part of the student.

        Returns:
            ``[B, ...]``.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if conditions is not None:
            if condition:
                raise ValueError(f"conditions: give them or arguments of their own, not both (got {sorted(condition)})")
            if self.card.condition not in conditions:
                raise ValueError(f"conditions: expected one called {self.card.condition!r}, got {sorted(conditions)}")
            condition = arguments_of(conditions[self.card.condition])
        if params:
            if unknown := sorted(set(params) - {"scale"}):
                raise ValueError(f"params: a student takes 'scale' alone, got {unknown}")
            scale = params["scale"]
        self.passes_run += 1
        self.passes_saved += len(self.rule.conditions) - 1
        guided: Tensor = self._module(x, t, self._scales(scale, x), **condition)
        return guided

    def _scales(self, scale: float | Tensor | None, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if isinstance(scale, Tensor):
            if scale.shape not in ((), (1,), (batch,)) or not scale.is_floating_point():
                raise ValueError(f"scale: expected a floating tensor [{batch}], got {scale.dtype} {list(scale.shape)}")
            return scale.to(device=x.device, dtype=torch.float32).expand(batch)
        value = self._scale if scale is None else self._checked(scale, depth=4)
        return torch.full((batch,), value, device=x.device)

    def module(self) -> ScaledNetwork:
        """The network with its embedding of the scale and its adapter, for exporters."""
        return self._module

    def merge(self, scale: float | None = None) -> None:
        """Fold the adapter into the weights: no products of its own are computed any more.

        Args:
            scale: where the adapter's strength follows the scale, the one that the student has from now on; default:
                its :attr:`scale`. Others warn then.

        Raises:
            ValueError: if there is no adapter.
        """
        if self.lora is None:
            raise ValueError("mode: the student has no adapter to merge")
        if self.lora.config.full_at is None:
            self.lora.merge()
        else:
            merged_at = self._scale if scale is None else self._checked(scale)
            self.lora.merge(merged_at)
            self.card = replace(self.card, low=merged_at, high=merged_at)
            self._one, self._scale = False, merged_at
        self._module.lora = None

    def unload(self) -> nn.Module:
        """Take adapter and scale input off the teacher's network, which is then what it was, to the bit.

        Returns:
            The teacher's network.

        Raises:
            ValueError: for a student of its own weights, or a merged one.
        """
        if self.card.mode == "full" or (self.card.mode == "lora" and self.lora is None):
            what = "has weights of its own" if self.card.mode == "full" else "was merged into the weights"
            raise ValueError(f"mode: the student {what}; there is no teacher to restore")
        if self.lora is not None:
            self.lora.unload()
            self._module.lora = None
        self.family.remove_scale_input(self.network)
        return self.network
