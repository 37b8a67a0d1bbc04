"""Cases that are measured: rules with their peers, shapes, dtypes.

Shapes are latents that people sample: SD 1.5 (and SDXL at 512 px), SD3 and Flux at 1024 px, Wan 480p with 81 frames. A
full run adds SDXL at 1024 px alone and as a batch of 8, Flux's and Qwen's packed tokens, Wan 720p, Hunyuan's 129 frames
and pixels at 512 px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod

import torch
from torch import Tensor

from fastcfg import APG, CFG, TCFG, CFGZeroStar, DualCFG, InstructPix2Pix, MultiCondition, PerpNeg, Perturbed, Rule

from . import peers
from .peers import Contestant, Predictions

__all__ = [
    "DTYPES",
    "MORE_SHAPES",
    "QUICK",
    "REFERENCE",
    "RULES",
    "SHAPES",
    "Case",
    "Contest",
    "cases",
    "contestants",
    "draw",
    "exact",
]

REFERENCE = "fastcfg"
"""The contestant that ratios are taken to."""

SHAPES: tuple[tuple[int, ...], ...] = ((1, 4, 64, 64), (1, 16, 128, 128), (1, 16, 21, 60, 104))
MORE_SHAPES: tuple[tuple[int, ...], ...] = (
    (1, 4, 128, 128),
    (8, 4, 128, 128),
    (1, 4096, 64),
    (1, 16, 21, 90, 160),
    (1, 16, 33, 90, 160),
    (8, 3, 512, 512),
)
QUICK = frozenset([(SHAPES[0], "fp32"), (SHAPES[1], "bf16"), (SHAPES[2], "fp32"), (SHAPES[2], "bf16")])
"""Of a quick run on a CPU: each shape, each dtype, and both where what fastcfg promises depends on it."""
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Contest:
    """A rule and who computes the same.

    Attributes:
        formula: the transcription, of named predictions.
        peers: further contestants by name.
        allowed: relative error of all of them that is no fault, for a formula whose torch operations lose digits with
            the size of a sample. They are timed and their error stands in the table; fastcfg is held to the limits.
    """

    name: str
    rule: Rule
    formula: Callable[..., Tensor]
    peers: Mapping[str, Contestant] = field(default_factory=dict, hash=False)
    allowed: float = 0.0


_PAIR = {"pred_cond": "cond", "pred_uncond": "uncond"}
_CFG_GUIDER = "diffusers ClassifierFreeGuidance"
_SCALE, _PHI, _SKIP, _NORM = 7.5, 0.7, 2.8, 15.0

RULES: tuple[Contest, ...] = (
    Contest(
        "CFG",
        CFG(_SCALE),
        partial(peers.cfg, scale=_SCALE),
        {
            "torch.lerp": peers.lerp("uncond", "cond", _SCALE),
            _CFG_GUIDER: peers.guider("ClassifierFreeGuidance", _PAIR, guidance_scale=_SCALE),
        },
    ),
    Contest(
        "CFG + rescale 0.7",
        CFG(_SCALE, rescale=_PHI),
        partial(peers.cfg_rescale, scale=_SCALE, phi=_PHI),
        {_CFG_GUIDER: peers.guider("ClassifierFreeGuidance", _PAIR, guidance_scale=_SCALE, guidance_rescale=_PHI)},
    ),
    Contest(
        "CFG-Zero*",
        CFGZeroStar(_SCALE, zero_init_steps=0),
        partial(peers.cfg_zero_star, scale=_SCALE),
        {
            "diffusers ClassifierFreeZeroStarGuidance": peers.guider(
                "ClassifierFreeZeroStarGuidance", _PAIR, guidance_scale=_SCALE, zero_init_steps=0
            )
        },
    ),
    Contest(
        "APG",
        APG(_SCALE, eta=0.5, norm_threshold=_NORM),
        partial(peers.apg, scale=_SCALE, eta=0.5, norm_threshold=_NORM),
        {
            "diffusers AdaptiveProjectedGuidance": peers.guider(
                "AdaptiveProjectedGuidance",
                _PAIR,
                guidance_scale=_SCALE,
                adaptive_projected_guidance_momentum=None,
                adaptive_projected_guidance_rescale=_NORM,
                eta=0.5,
            )
        },
    ),
    Contest(
        "TCFG",
        TCFG(_SCALE),
        partial(peers.tcfg, scale=_SCALE),
        {
            "diffusers TangentialClassifierFreeGuidance": peers.guider(
                "TangentialClassifierFreeGuidance", _PAIR, guidance_scale=_SCALE
            )
        },
        # LAPACK's singular vectors of long rows: of a video's first element the error is twice the root mean square.
        allowed=0.2,
    ),
    Contest("PerpNeg", PerpNeg(_SCALE, (1.5,)), partial(peers.perp_neg, scale=_SCALE, negative_scale=1.5)),
    Contest("DualCFG", DualCFG(_SCALE, 2.0), partial(peers.dual, scale=_SCALE, negative_scale=2.0)),
    Contest(
        "MultiCondition(3)",
        MultiCondition((5.0, 2.5, -1.0)),
        partial(peers.multi_condition, scales=(5.0, 2.5, -1.0)),
    ),
    Contest(
        "InstructPix2Pix",
        InstructPix2Pix(_SCALE, 1.5),
        partial(peers.instruct_pix2pix, scale=_SCALE, image_scale=1.5),
    ),
    Contest(
        "Perturbed",
        Perturbed(_SCALE, _SKIP),
        partial(peers.perturbed, scale=_SCALE, perturbed_scale=_SKIP),
        {
            "diffusers SkipLayerGuidance": peers.guider(
                "SkipLayerGuidance",
                {**_PAIR, "pred_cond_skip": "perturbed"},
                step=1,
                num_steps=10,
                guidance_scale=_SCALE,
                skip_layer_guidance_scale=_SKIP,
                skip_layer_guidance_layers=[0],
                skip_layer_guidance_start=0.0,
                skip_layer_guidance_stop=1.0,
            )
        },
    ),
)


@dataclass(frozen=True)
class Case:
    """A contest at one shape ``[B, ...]`` and dtype."""

    contest: Contest
    shape: tuple[int, ...]
    dtype_name: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def size(self) -> str:
        """The shape as text."""
        return "×".join(map(str, self.shape))

    @property
    def least(self) -> int:
        """Bytes that any kernel has to move: each prediction read once, the result written."""
        return (len(self.contest.rule.conditions) + 1) * prod(self.shape) * self.dtype.itemsize

    def moved_by_fastcfg(self, device: str, launches: int) -> int:
        """Bytes that fastcfg's own kernels read and write, the second read of a rule with sums included.

        On a GPU one launch keeps the predictions in registers between the sums and the combine; two read them twice.
        On a CPU a sample is read again, from a cache where it fits.
        """
        again = self.contest.rule.program.reduces and (device == "cpu" or launches > 1)
        return self.least + again * len(self.contest.rule.conditions) * prod(self.shape) * self.dtype.itemsize

    @property
    def rounds(self) -> int:
        """Rounds to run: more where a call is short and its time therefore noisier."""
        elements = prod(self.shape)
        return 400 if elements < 2**16 else 150 if elements < 2**20 else 50 if elements < 2**22 else 15

    def __str__(self) -> str:
        return f"{self.contest.name}-{'x'.join(map(str, self.shape))}-{self.dtype_name}"


def cases(device: str, *, full: bool = False) -> Iterator[Case]:
    """The cases of a device: float16 on CUDA only, where samplers use it.

    Args:
        full: all shapes. If not, a CPU, on which compiling the peers alone takes minutes, leaves out dtypes, and of the
            rules without sums, which are one pass over more or fewer predictions, all but CFG at one shape.
    """
    for contest in RULES:
        for shape in (*SHAPES, *MORE_SHAPES) if full else SHAPES:
            for name in DTYPES:
                if name == "fp16" and device != "cuda":
                    continue
                if full or device == "cuda" or ((shape, name) in QUICK and (shape == SHAPES[1] or _varies(contest))):
                    yield Case(contest, shape, name)


def _varies(contest: Contest) -> bool:
    """Return whether a quick run looks at more than one shape."""
    return contest.rule.program.reduces or contest.name == "CFG"


def contestants(case: Case, *, strategies: bool) -> dict[str, Contestant]:
    """Everyone who takes part in a case, fastcfg first.

    Args:
        strategies: also each launch strategy of the Triton path, forced, and the compiled transcription as one
            kernel; for a GPU.
    """
    contest = case.contest
    found = {REFERENCE: peers.fused(contest.rule)}
    if strategies:
        only_with_sums = ("row", "cooperative") if contest.rule.program.reduces else ()
        for name in (*only_with_sums, "two_launch"):
            found[f"{REFERENCE} {name}"] = peers.strategy(contest.rule, name)
    found |= contest.peers
    found["eager"] = peers.eager(contest.formula)
    found["torch.compile"] = peers.compiled(contest.formula)
    if strategies and contest.rule.program.reduces:
        cooperative = {"triton.cooperative_reductions": True}
        found["torch.compile cooperative"] = peers.compiled(contest.formula, cooperative)
    return found


def draw(case: Case, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Predictions that share most of what they hold, as a denoiser's do: unit spread, deltas of half."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(case.shape, generator=generator) + 0.1

    def one() -> Tensor:
        return (common + 0.5 * torch.randn(case.shape, generator=generator)).to(device, case.dtype)

    return {name: one() for name in case.contest.rule.conditions}


def exact(case: Case, predictions: Predictions) -> Tensor:
    """The transcription on the same predictions in float64."""
    return case.contest.formula(**{name: p.double() for name, p in predictions.items()})
