"""Frequency-decoupled guidance: a scale for each band of frequencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import fastcfg_kernels as fk
from fastcfg_kernels.backends.torch.tiles import accumulator, sample_sums
from fastcfg_kernels.math import sqrt, where
from torch import Tensor

from ..schedules import Schedule
from .base import SHARE, Lowered, Parameter, Rule, number_or_schedule
from .classifier_free import CFG
from .linear import Linear, itself
from .modifiers import check_share, rescale_formula
from .multi_condition import check_scales
from .pyramid import from_laplacian, gaussian_pyramid, pad_to_pyramid, pyramid_up

__all__ = ["FDG"]


def level_delta(dot_cond_cond: Any, dot_cond_shift: Any, scale: Any, weight: Any) -> tuple[Any, Any]:
    """``s (d + (w - 1) d_par)`` in a level's cond and shift."""
    share = where(dot_cond_cond > 0.0, dot_cond_shift / dot_cond_cond, 0.0)
    return scale * (weight - 1.0) * share, scale


def level_rescaled(
    dot_cond_cond: Any,
    dot_cond_shift: Any,
    cov_cond_cond: Any,
    cov_cond_shift: Any,
    cov_shift_shift: Any,
    scale: Any,
    weight: Any,
    phi: Any,
    own: Any,
) -> tuple[Any, Any]:
    """``y = c + (s - own) d + s (w - 1) d_par``, rescaled to std(c) by a share phi; own is 1 for the base uncond."""
    share = where(dot_cond_cond > 0.0, dot_cond_shift / dot_cond_cond, 0.0)
    a, b = 1.0 + scale * (weight - 1.0) * share, scale - own
    variance = a * a * cov_cond_cond + 2.0 * a * b * cov_cond_shift + b * b * cov_shift_shift
    factor = 1.0 - phi + phi * where(variance > 0.0, sqrt(cov_cond_cond / variance), 1.0)
    return a * factor, b * factor


_DELTA, _RESCALED = (fk.compile_program(("cond", "shift"), (fk.Stage(f),)) for f in (level_delta, level_rescaled))


def _spread(name: str, value: Any, count: int, check: Callable[[str, Any], Parameter]) -> tuple[Parameter, ...]:
    """One value for all levels, or one for each."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * count
    if len(values) != count:
        raise ValueError(f"{name}: expected one number, or {count} as there are scales, got {len(values)}")
    return tuple(check(f"{name}[{i}]", v) for i, v in enumerate(values))


@dataclass(frozen=True)
class FDG(Rule):
    """Frequency-decoupled guidance: the levels of a Laplacian pyramid of cond - uncond get a scale each.

    Level by level ``y_i = u_i + s_i * (d_i + (w_i - 1) * par_i)``, where ``par_i`` is the part of ``d_i`` along
    ``c_i``, and the result is the image of the levels ``y_i``. The pyramid is linear, so that with all ``w_i = 1`` one
    pyramid, that of d, is enough: ``u + image(s_i * d_i)``.

    Predictions are ``[B, ..., H, W]``. Sides that can't be halved often enough are reflected up to powers of two and
    the result is cropped back (diffusers returns the padded size there).

    Args:
        scales: one for each level, the highest frequencies first; a number or schedule each. The parameters are called
            ``scale_1``, ``scale_2``, … A number that means no guidance (1, or 0 with ``base="cond"``) leaves cond's
            own level as it is, whatever its other options: ``Interval`` gives a level a window.
        parallel_weights: weights w of the parallel parts: one for all levels, or one for each. Below 1 it reduces
            oversaturation.
        rescale: towards the standard deviation of cond, 0 is off. In ``"data"`` space one number, for the result
            (parameter ``rescale``); in ``"freq"`` space one for all levels, or one for each.
        rescale_space: ``"data"`` or ``"freq"``.
        base: ``"uncond"``, or ``"cond"`` for ``c_i + s_i * …``.

    Source: Sadat et al., 2506.19713, algorithm 1.
    """

    scales: tuple[Parameter, ...] = (10.0, 5.0)
    parallel_weights: float | tuple[float, ...] = 1.0
    rescale: Parameter | tuple[Parameter, ...] = 0.0
    rescale_space: Literal["data", "freq"] = "data"
    base: Literal["uncond", "cond"] = "uncond"

    title = "image(u_i + s_i * (d_i + (w_i - 1) * d_i along c_i)), levels i of a Laplacian pyramid  [2506.19713]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales("scales", self.scales))
        if self.base not in ("uncond", "cond"):
            raise ValueError(f"base: expected 'uncond' or 'cond', got {self.base!r}")
        if self.rescale_space not in ("data", "freq"):
            raise ValueError(f"rescale_space: expected 'data' or 'freq', got {self.rescale_space!r}")
        levels = len(self.scales)
        weights = _spread("parallel_weights", self.parallel_weights, levels, number_or_schedule)
        object.__setattr__(self, "parallel_weights", weights)
        if self.rescale_space == "freq":
            object.__setattr__(self, "rescale", _spread("rescale", self.rescale, levels, check_share))
        elif isinstance(self.rescale, tuple | list):
            raise TypeError(f"rescale: expected one number in data space, got {self.rescale!r}")
        else:
            object.__setattr__(self, "rescale", check_share("rescale", self.rescale))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond")

    @property
    def prepares(self) -> bool:
        return True

    def lower(self) -> Lowered:
        if self.rescale_space == "freq" or self.rescale == 0.0:
            return Lowered(("fdg",), (fk.Stage(itself),), {})
        rescale = fk.Stage(rescale_formula("std"), "factor", (("phi", "rescale"),), (("ref", "cond"),))
        return Lowered(
            ("fdg", "cond"), (fk.Stage(itself, width=1), rescale), {"rescale": self._phis[0]}, ranges={"rescale": SHARE}
        )

    @property
    def _phis(self) -> tuple[Parameter, ...]:
        return self.rescale if isinstance(self.rescale, tuple) else (self.rescale,)

    @property
    def _weights(self) -> tuple[float, ...]:
        weights = self.parallel_weights
        return weights if isinstance(weights, tuple) else (weights,)

    def prepare(
        self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        u, c = predictions["uncond"], predictions["cond"]
        if u.dim() < 4:
            tokens = "; tokens [B, N, C] need their picture's grid=(H, W)" if u.dim() == 3 else ""
            raise ValueError(f"uncond: expected [B, C, ..., H, W], got {list(u.shape)}{tokens}")
        if c.shape != u.shape or c.dtype != u.dtype or c.device != u.device:
            raise ValueError(
                f"cond: expected the shape, dtype and device of uncond, {list(u.shape)}, got {list(c.shape)}"
            )
        acc = accumulator(u.dtype)
        left = dict(params)
        scales: list[Any] = []
        for i, own in enumerate(self.scales, start=1):
            scale = left.pop(f"scale_{i}", own)
            if isinstance(scale, Schedule):
                raise ValueError(f"scale_{i}: is a schedule; resolve it with rule.at(step, num_steps) before guiding")
            scale = fk.check_param(f"scale_{i}", scale, u.shape[0], u.device)
            scales.append(scale.to(acc) if isinstance(scale, Tensor) else scale)
        return {"fdg": self._guided(u.to(acc), c.to(acc), scales)}, left

    def _guided(self, u: Tensor, c: Tensor, scales: list[Any]) -> Tensor:
        """The guided prediction in the dtype of ``u`` and ``c``, before a rescale in data space."""
        levels = len(scales)
        neutral = 1.0 if self.base == "uncond" else 0.0
        on = [isinstance(s, Tensor) or s != neutral for s in scales]
        weights = [w if active else 1.0 for w, active in zip(self._weights, on, strict=True)]
        phis = [0.0] * levels
        if self.rescale_space == "freq":
            phis = [p if active else 0.0 for p, active in zip(self._phis, on, strict=True)]  # type: ignore[misc]
        height, width = c.shape[-2:]
        shifts = gaussian_pyramid(pad_to_pyramid(c - u, levels), levels)

        def times(value: Any, x: Tensor) -> Tensor:
            return (value.view(-1, *[1] * (x.dim() - 1)) if isinstance(value, Tensor) and value.dim() else value) * x

        if all(w == 1 for w in weights) and not any(phis):
            # image(s_i d_i), without forming the bands: what a coarser level adds is relative to this level's scale.
            delta = times(scales[-1], shifts[-1])
            for i in reversed(range(levels - 1)):
                delta = times(scales[i], shifts[i]) + pyramid_up(delta - times(scales[i], shifts[i + 1]))
            return (u if self.base == "uncond" else c) + delta[..., :height, :width]

        conds = gaussian_pyramid(pad_to_pyramid(c, levels), levels)
        for i in range(levels - 1):
            shifts[i] = shifts[i] - pyramid_up(shifts[i + 1])
            conds[i] = conds[i] - pyramid_up(conds[i + 1])
        program = _RESCALED if any(phis) else _DELTA
        guided = []
        for i, (cond, shift) in enumerate(zip(conds, shifts, strict=True)):
            values = {"scale": scales[i], "weight": weights[i], "phi": phis[i], "own": neutral}
            sums = sample_sums(program, [x.reshape(x.shape[0], -1) for x in (cond, shift)])
            arguments = tuple(values[name] for name in program.params)
            along, across = program.weigh(tuple(sums), float(cond[0].numel()), arguments)
            guided.append(times(along, cond) + times(across, shift))
        image = from_laplacian(guided)[..., :height, :width]
        # With a rescale by level the levels hold the base already; else they are what is added to it.
        return image if any(phis) else (u if self.base == "uncond" else c) + image

    def simplify(self) -> Rule:
        if self.scheduled:
            return self
        neutral = 1.0 if self.base == "uncond" else 0.0
        if all(scale == neutral for scale in self.scales):
            return Linear((("cond", 1.0),))
        plain = all(w == 1 for w in self._weights) and (self.rescale_space == "data" or not any(self._phis))
        if plain and len(set(self.scales)) == 1:
            phi = self._phis[0] if self.rescale_space == "data" else 0.0
            return CFG(self.scales[0], rescale=phi, base=self.base).simplify()
        return self
