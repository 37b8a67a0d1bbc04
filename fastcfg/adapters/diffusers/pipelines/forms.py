"""Forms of diffusers' classic pipelines: their passes, and the hand-over to the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ....rules import CFG, InstructPix2Pix, NormCap, Perturbed, Rescale, Rule

__all__ = ["OWN_RULES", "PipelineForm"]

Part = Literal["head", "variance", "doubled", "list", "ltx_frames"]


def _by_frames(scale: float, first: float) -> Rule:
    if first != scale:
        raise ValueError(
            f"values: the scale runs over the frames, from {first} to {scale}: give guided CFG() with "
            f"frame_scales=torch.linspace({first}, {scale}, num_frames) and frame_dim=1"
        )
    return CFG(scale)


def _by_token(scale: float, normalized: bool) -> Rule:
    return NormCap(CFG(scale), mode="full", over="token") if normalized else CFG(scale)


def _rescaled(rule: Rule, phi: float) -> Rule:
    return Rescale(rule, phi) if phi else rule


OWN_RULES: Mapping[str, Callable[..., Rule]] = {
    "CFG(scale)": lambda scale: CFG(scale),
    "CFG(scale, rescale)": lambda scale, rescale=0.0: CFG(scale, rescale),
    "CFG(scale, base='cond')": lambda scale: CFG(scale, base="cond"),
    "InstructPix2Pix(scale, image_scale)": lambda scale, image_scale: InstructPix2Pix(scale, image_scale),
    "Perturbed(scale, perturbed_scale)": lambda scale, perturbed_scale: Perturbed(scale, perturbed_scale),
    "NormCap(CFG(scale), mode='full', over='token')": lambda scale: NormCap(CFG(scale), mode="full", over="token"),
    "NormCap(CFG(scale), mode='clamp', over='token', eps=1e-8)": lambda scale, low=0.0, enable_cfg_renorm=True: (
        NormCap(CFG(scale), mode="clamp", low=low, over="token", eps=1e-8) if enable_cfg_renorm else CFG(scale)
    ),
    "CFG(scale), by frames": lambda scale, first=1.0: _by_frames(scale, first),
    "CFG(scale, rescale=0.7 where normalize)": lambda scale, normalize=False: CFG(scale, 0.7 if normalize else 0.0),
    "CFG(scale), NormCap where cfg_normalize": lambda scale, cfg_normalize=False: _by_token(scale, cfg_normalize),
    "NormCap(CFG(scale)) where cfg_normalization": lambda scale, cfg_normalization=True: _by_token(
        scale, cfg_normalization
    ),
    "Perturbed(scale, perturbed_scale), rescale": lambda scale, perturbed_scale, rescale=0.0: _rescaled(
        Perturbed(scale, perturbed_scale) if perturbed_scale else CFG(scale), rescale
    ),
    "CFG(scale), or Perturbed(scale, perturbed_scale)": lambda scale, perturbed_scale=0.0: (
        Perturbed(scale, perturbed_scale) if perturbed_scale else CFG(scale)
    ),
    "CFG(scale, base='cond'), NormCap(…, cap)": lambda scale, cap=0.0: (
        NormCap(CFG(scale, base="cond"), cap) if cap else CFG(scale, base="cond")
    ),
}
"""A pipeline's own guidance as a rule, by its text in the table."""


@dataclass(frozen=True)
class PipelineForm:
    """The passes of a pipeline, and the part of them that its scheduler gets.

    Args:
        passes: the passes' names (``"uncond"``, ``"cond"``, ``"image"``, ``"perturbed"``): the blocks of the batch in
            their order, or the calls in theirs.
        batched: one call of the denoiser for all passes, or one for each.
        denoisers: components that predict; more than one where a run changes between them.
        switch: argument of the pipeline that turns its guidance on.
        own: its own guidance as a rule, a key of :data:`OWN_RULES`.
        also: other sets of passes it may run, with more or fewer blocks.
        then: a pass that may follow as a call of its own.
        sign: -1 where the scheduler gets the negated combination.
        part: what the scheduler gets of a prediction: ``"head"``, as much of each dimension as its sample has, from
            the start; ``"variance"``, with the conditional pass's variance appended where the scheduler takes it;
            ``"doubled"``, the same for both halves of a doubled sample; ``"list"``, a stack of samples that the
            denoiser returns one by one; ``"ltx_frames"``, LTX's tokens as video without its given frame 0, which a
            rule's sums leave out, too (the pipeline's own rescale does not).
        tail: a dimension of which the scheduler gets the end.
        factors: leading dimensions over which the pipeline's own factors vary: 1, a sample's; 2, a frame's; -1, all but
            the last, a row's.
    """

    passes: tuple[str, ...] = ("uncond", "cond")
    batched: bool = True
    denoisers: tuple[str, ...] = ("transformer",)
    switch: str = "guidance_scale"
    own: str = "CFG(scale)"
    also: tuple[tuple[str, ...], ...] = ()
    then: str | None = None
    sign: int = 1
    part: Part = "head"
    tail: int | None = None
    factors: int = 1

    def __post_init__(self) -> None:
        if not self.passes or len(set(self.passes)) != len(self.passes):
            raise ValueError(f"passes: expected one or more distinct names, got {self.passes!r}")
        if self.own not in OWN_RULES:
            raise ValueError(f"own: expected one of {sorted(OWN_RULES)}, got {self.own!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """Every pass that the pipeline may run."""
        then = () if self.then is None else (self.then,)
        return tuple(dict.fromkeys((*self.passes, *(n for names in self.also for n in names), *then)))

    @property
    def how(self) -> str:
        """The form in a few words."""
        names = " or ".join(f"[{', '.join(names)}]" for names in (self.passes, *self.also))
        if len(self.names) == 1:
            return "one pass"
        return f"one call on {names}" if self.batched else f"calls in turn {names}"
