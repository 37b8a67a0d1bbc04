"""Guidance scales of known models, and advice about a scale."""

from __future__ import annotations

import dataclasses
import re
import warnings
from dataclasses import dataclass
from typing import Literal

from ..schedules import Schedule
from ..validate import check_choice, number
from . import CFG

__all__ = [
    "EXTREME_SCALE",
    "SWEET_SPOTS",
    "Preset",
    "SweetSpot",
    "all_presets",
    "guard_extreme_scale",
    "preset",
    "sweet_spot_advice",
]

EXTREME_SCALE = 20.0
"""Above it a guided prediction without rescale saturates; a rescale of at least :data:`EXTREME_RESCALE` is advised."""

EXTREME_RESCALE = 0.5


@dataclass(frozen=True)
class Preset:
    """The guidance scale that a model is used with.

    Attributes:
        name: the model.
        scale, low, high: usual scale, and the range around it; None where the model has none.
        kind: ``"cfg"``: the sampler guides. ``"distilled"``: the model takes the scale as an input and one pass is
            right. ``"api"``: the scale is the service's own.
        medium: ``"image"`` or ``"video"``.
        estimated: whether the number is an estimate that its makers never published.
        note: what else to know.
        base: which prediction the scale starts from: at ``"cond"`` a scale of 0 is no guidance.
        aliases: other names that :func:`preset` takes.
    """

    name: str
    scale: float | None
    low: float | None
    high: float | None
    kind: Literal["cfg", "distilled", "api"] = "cfg"
    medium: Literal["image", "video"] = "image"
    estimated: bool = False
    note: str = ""
    base: Literal["uncond", "cond"] = "uncond"
    aliases: tuple[str, ...] = ()

    def rule(self, scale: float | None = None) -> CFG:
        """The rule to sample with: ``CFG(scale)``, and ``CFG(1.0)`` (one pass) for a distilled model.

        Args:
            scale: in place of the preset's; see :meth:`advice` for what is out of range.

        Raises:
            ValueError: for a model that is served only, or a scale given to a distilled model's rule.
        """
        if self.kind == "api":
            raise ValueError(f"preset: {self.name} is available as a service only; its guidance can't be set from here")
        if self.kind == "distilled":
            if scale is not None:
                raise ValueError(f"scale: {self.name} takes its scale as a model input, not as a rule")
            return CFG(1.0)
        chosen = self.scale if scale is None else scale
        assert chosen is not None
        return CFG(number("scale", chosen), base=self.base)

    def advice(self, scale: float) -> tuple[str, ...]:
        """Return what to know about a scale for this model; empty if there is nothing."""
        scale = number("scale", scale)
        found = []
        if self.low is not None and self.high is not None and not self.low <= scale <= self.high:
            effect = (
                "weak adherence to the prompt"
                if scale < self.low
                else "oversaturation and loss of diversity"
                + (", flicker and loss of motion" if self.medium == "video" else "")
            )
            found.append(
                f"scale {scale:g} is outside {self.low:g} ... {self.high:g}, the range of {self.name}: expect {effect}"
            )
        if scale > EXTREME_SCALE and self.kind == "cfg":
            found.append(_extreme_text(scale))
        return tuple(found)


_VIDEO = "video: lower scales than for images keep motion and temporal coherence"

_PRESETS = (
    Preset("SD1.5", 7.5, 5.0, 12.0, aliases=("Stable Diffusion 1.5",)),
    Preset("SDXL", 7.0, 5.0, 10.0, aliases=("Stable Diffusion XL",)),
    Preset(
        "Flux.1", 3.5, 2.5, 5.0, "distilled", note="Flux.1-dev embeds the scale; a second pass would guide it twice"
    ),
    Preset("Wan2.2", 5.0, 3.5, 7.0, medium="video", note=_VIDEO, aliases=("Wan 2.2 T2V",)),
    Preset("LTX-2", 5.0, 3.0, 7.0, medium="video", note=_VIDEO),
    Preset("AnimateDiff", 7.5, 5.0, 9.0, medium="video", note=f"{_VIDEO}; the base model is SD 1.5"),
    Preset("CogVideo", 6.0, 4.0, 8.0, medium="video", note=_VIDEO),
    Preset("DALL-E 3", None, None, None, "api", note="the service exposes no scale"),
    Preset("Kling", 4.5, None, None, "api", "video", True, "an estimate; the service sets it", aliases=("Kling 3.0",)),
    Preset("Sora", 4.0, None, None, "api", "video", True, "an estimate; the service sets it", aliases=("Sora 2",)),
)


def _key(name: str) -> str:
    """Return letters and digits alone, without what stands in brackets."""
    return "".join(ch for ch in re.sub(r"\(.*?\)", "", name).lower() if ch.isalnum())


_BY_KEY = {_key(name): p for p in _PRESETS for name in (p.name, *p.aliases)}


def all_presets() -> tuple[Preset, ...]:
    """All presets."""
    return _PRESETS


def preset(name: str) -> Preset:
    """Return the preset of a model by name.

    Case, spaces, punctuation and a part in brackets don't matter: ``"sd-1.5"`` is ``"SD1.5"``, and ``"Flux.1 (Black
    Forest Labs)"`` is ``"Flux.1"``.

    Raises:
        ValueError: for a model without one.
    """
    if not isinstance(name, str) or _key(name) not in _BY_KEY:
        raise ValueError(f"name: expected one of {', '.join(p.name for p in _PRESETS)}, got {name!r}")
    return _BY_KEY[_key(name)]


@dataclass(frozen=True)
class SweetSpot:
    """Scales at which a metric is usually best; ``image`` and ``video`` are ranges, None where it has none."""

    metric: str
    image: tuple[float, float] | None
    video: tuple[float, float] | None


SWEET_SPOTS: tuple[SweetSpot, ...] = (
    SweetSpot("fidelity", (5.0, 8.0), (3.5, 6.0)),
    SweetSpot("alignment", (6.0, 10.0), (4.0, 7.0)),
    SweetSpot("human", (5.0, 8.0), (4.0, 6.0)),
    SweetSpot("temporal", None, (2.0, 5.0)),
)
"""Fidelity is FID or FVD, alignment the CLIP score, human preference studies, temporal coherence of frames. They are
the rules of thumb of a survey for latent models, not measurements of this package; measure for your own model."""


def sweet_spot_advice(metric: str, medium: Literal["image", "video"] = "image") -> str:
    """The sweet spot of a metric in a sentence.

    Raises:
        ValueError: for an unknown metric or medium, or a metric that the medium doesn't have.
    """
    check_choice("medium", medium, ("image", "video"))
    check_choice("metric", metric, tuple(spot.metric for spot in SWEET_SPOTS))
    spot = next(s for s in SWEET_SPOTS if s.metric == metric)
    scales = spot.image if medium == "image" else spot.video
    if scales is None:
        raise ValueError(f"metric: {metric!r} is not measured on {medium}s")
    return (
        f"{metric} of {medium}s is usually best at scales {scales[0]:g} ... {scales[1]:g} "
        "(a survey's rule of thumb; measure it on your model)"
    )


def _extreme_text(scale: float) -> str:
    return (
        f"scale {scale:g} is above {EXTREME_SCALE:g}: use a rescale of at least {EXTREME_RESCALE:g}, "
        f"CFG({scale:g}, rescale={EXTREME_RESCALE:g}), or half types may overflow and colours saturate"
    )


def guard_extreme_scale(rule: CFG, *, mode: Literal["warn", "auto"] = "warn") -> CFG:
    """Warn about, or repair, a scale above :data:`EXTREME_SCALE` without enough rescale.

    Args:
        rule: CFG; one whose scale or rescale is a schedule is judged by :meth:`Rule.at` first, step by step.
        mode: ``"warn"`` gives a UserWarning and the rule itself; ``"auto"`` gives the rule with a rescale of at
            least :data:`EXTREME_RESCALE`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_choice("mode", mode, ("warn", "auto"))
    if not isinstance(rule, CFG):
        raise TypeError(f"rule: expected CFG, got {type(rule).__name__}")
    scale, rescale = rule.scale, rule.rescale
    if isinstance(scale, Schedule) or isinstance(rescale, Schedule):
        raise ValueError("rule: has schedules; resolve them with rule.at(step, num_steps) first")
    if scale <= EXTREME_SCALE or rescale >= EXTREME_RESCALE:
        return rule
    if mode == "auto":
        return dataclasses.replace(rule, rescale=EXTREME_RESCALE)
    warnings.warn(_extreme_text(scale), UserWarning, stacklevel=2)
    return rule
