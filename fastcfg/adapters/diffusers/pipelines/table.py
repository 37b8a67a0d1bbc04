"""Table of diffusers' classic pipelines: coverage, and the form of each.

The combination itself is inlined in a pipeline's ``__call__``; what surrounds it follows a few forms. The tests read
this table against the source of the installed pipelines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ....rules import Rule
from .forms import OWN_RULES, PipelineForm

__all__ = ["GUIDERS", "NOT_COVERED", "coverage", "form_of", "has_guiders", "own_rule", "to_markdown"]

_UNET = PipelineForm(denoisers=("unet",))
_RESCALED = replace(_UNET, own="CFG(scale, rescale)")
_PAG = replace(_UNET, own="Perturbed(scale, perturbed_scale), rescale", also=(("uncond", "cond", "perturbed"),))
_BATCHED = PipelineForm()
_PRIOR = PipelineForm(denoisers=("prior",))
_IN_TURN = PipelineForm(("cond", "uncond"), batched=False)
_TRUE_CFG = replace(_IN_TURN, switch="true_cfg_scale")
_TWO_STAGES = replace(_IN_TURN, denoisers=("transformer", "transformer_2"))
_QWEN = replace(_TRUE_CFG, own="NormCap(CFG(scale), mode='full', over='token')", factors=-1)
_Z_IMAGE = PipelineForm(("cond", "uncond"), own="CFG(scale, base='cond'), NormCap(…, cap)", sign=-1, part="list")
_SINGLE = PipelineForm(("cond",))

_GROUPS: Iterable[tuple[PipelineForm, str]] = (
    (
        _UNET,
        """AnimateDiffControlNetPipeline AnimateDiffPipeline AnimateDiffSparseControlNetPipeline
        AnimateDiffVideoToVideoControlNetPipeline AnimateDiffVideoToVideoPipeline AudioLDM2Pipeline
        KolorsImg2ImgPipeline KolorsPipeline LDMTextToImagePipeline StableDiffusionAdapterPipeline
        StableDiffusionControlNetImg2ImgPipeline StableDiffusionControlNetInpaintPipeline
        StableDiffusionControlNetPipeline StableDiffusionDepth2ImgPipeline StableDiffusionImageVariationPipeline
        StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline StableDiffusionUpscalePipeline
        StableDiffusionXLControlNetImg2ImgPipeline StableDiffusionXLControlNetPipeline
        StableDiffusionXLControlNetUnionImg2ImgPipeline StableDiffusionXLControlNetUnionPipeline
        StableUnCLIPImg2ImgPipeline StableUnCLIPPipeline""",
    ),
    (
        replace(_UNET, switch="max_guidance_scale", own="CFG(scale), by frames", factors=2),
        "StableVideoDiffusionPipeline",
    ),
    (
        _RESCALED,
        """AnimateDiffSDXLPipeline StableDiffusionPipeline StableDiffusionXLAdapterPipeline
        StableDiffusionXLControlNetInpaintPipeline StableDiffusionXLControlNetUnionInpaintPipeline
        StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline StableDiffusionXLPipeline""",
    ),
    (
        PipelineForm(("cond", "image", "uncond"), denoisers=("unet",), own="InstructPix2Pix(scale, image_scale)"),
        "StableDiffusionInstructPix2PixPipeline StableDiffusionXLInstructPix2PixPipeline",
    ),
    (
        _PAG,
        """AnimateDiffPAGPipeline KolorsPAGPipeline StableDiffusionControlNetPAGInpaintPipeline
        StableDiffusionControlNetPAGPipeline StableDiffusionPAGImg2ImgPipeline StableDiffusionPAGInpaintPipeline
        StableDiffusionPAGPipeline StableDiffusionXLControlNetPAGImg2ImgPipeline StableDiffusionXLControlNetPAGPipeline
        StableDiffusionXLPAGImg2ImgPipeline StableDiffusionXLPAGInpaintPipeline StableDiffusionXLPAGPipeline""",
    ),
    (
        replace(_PAG, denoisers=("transformer",)),
        """HunyuanDiTPAGPipeline PixArtSigmaPAGPipeline SanaPAGPipeline StableDiffusion3PAGImg2ImgPipeline
        StableDiffusion3PAGPipeline""",
    ),
    (
        replace(_UNET, part="variance"),
        """IFImg2ImgPipeline IFImg2ImgSuperResolutionPipeline IFInpaintingPipeline IFInpaintingSuperResolutionPipeline
        IFPipeline IFSuperResolutionPipeline KandinskyImg2ImgPipeline KandinskyInpaintPipeline KandinskyPipeline
        KandinskyV22ControlnetImg2ImgPipeline KandinskyV22ControlnetPipeline KandinskyV22Img2ImgPipeline
        KandinskyV22InpaintPipeline KandinskyV22Pipeline""",
    ),
    (replace(_UNET, own="CFG(scale, base='cond')"), "Kandinsky3Img2ImgPipeline Kandinsky3Pipeline"),
    (_PRIOR, "KandinskyPriorPipeline KandinskyV22PriorEmb2EmbPipeline KandinskyV22PriorPipeline"),
    (replace(_PRIOR, passes=("cond", "uncond")), "StableCascadePriorPipeline"),
    (PipelineForm(("cond", "uncond"), denoisers=("decoder",)), "StableCascadeDecoderPipeline"),
    (
        _BATCHED,
        """AllegroPipeline AnyFlowPipeline AuraFlowPipeline BriaFiboEditPipeline BriaFiboPipeline
        CogVideoXFunControlPipeline CogVideoXImageToVideoPipeline CogVideoXPipeline CogVideoXVideoToVideoPipeline
        CogView3PlusPipeline ConsisIDPipeline ErnieImagePipeline LattePipeline MochiPipeline PRXPipeline
        PixArtAlphaPipeline PixArtSigmaPipeline SanaControlNetPipeline SanaPipeline SanaVideoPipeline
        StableAudio3Pipeline StableAudioPipeline StableDiffusion3ControlNetInpaintingPipeline
        StableDiffusion3ControlNetPipeline StableDiffusion3Img2ImgPipeline StableDiffusion3InpaintPipeline""",
    ),
    (replace(_BATCHED, own="CFG(scale, rescale=0.7 where normalize)"), "BriaPipeline"),
    (
        replace(_BATCHED, own="CFG(scale), or Perturbed(scale, perturbed_scale)", then="perturbed"),
        "StableDiffusion3Pipeline",
    ),
    (
        replace(_BATCHED, own="CFG(scale, rescale)"),
        """EasyAnimateControlPipeline EasyAnimateInpaintPipeline EasyAnimatePipeline HunyuanDiTControlNetPipeline
        HunyuanDiTPipeline LTXPipeline""",
    ),
    (replace(_BATCHED, own="CFG(scale, rescale)", sign=-1), "LTXConditionPipeline"),
    (replace(_BATCHED, own="CFG(scale, rescale)", part="ltx_frames"), "LTXImageToVideoPipeline"),
    (replace(_BATCHED, sign=-1), "HiDreamImagePipeline"),
    (replace(_BATCHED, tail=2), "SanaImageToVideoPipeline"),
    (PipelineForm(("cond", "uncond"), part="doubled"), "DiTPipeline"),
    (
        _Z_IMAGE,
        """ZImageControlNetInpaintPipeline ZImageControlNetPipeline ZImageImg2ImgPipeline ZImageInpaintPipeline
        ZImageOmniPipeline ZImagePipeline""",
    ),
    (
        _TWO_STAGES,
        "LucyEditPipeline WanImageToVideoPipeline WanPipeline WanVACEPipeline",
    ),
    (
        _IN_TURN,
        """BriaFibo2Pipeline ChromaImg2ImgPipeline ChromaInpaintPipeline ChromaPipeline ChronoEditPipeline
        CogView4ControlPipeline CogView4Pipeline Flux2KleinInpaintPipeline Flux2KleinPipeline GlmImagePipeline
        Kandinsky5I2IPipeline Kandinsky5T2IPipeline Kandinsky5T2VPipeline LongCatAudioDiTPipeline
        LongCatImageEditPipeline OvisImagePipeline SkyReelsV2ImageToVideoPipeline SkyReelsV2Pipeline
        WanAnimatePipeline WanVideoToVideoPipeline""",
    ),
    (replace(_IN_TURN, tail=1), "Kandinsky5I2VPipeline"),
    (replace(_IN_TURN, own="CFG(scale, base='cond')"), "Krea2Pipeline"),
    (
        replace(_IN_TURN, own="NormCap(CFG(scale), mode='clamp', over='token', eps=1e-8)", factors=-1),
        "LongCatImagePipeline",
    ),
    (replace(_QWEN, switch="guidance_scale", sign=-1), "NucleusMoEImagePipeline"),
    (
        replace(_IN_TURN, own="NormCap(CFG(scale)) where cfg_normalization", factors=-1, sign=-1),
        "Lumina2Pipeline",
    ),
    (
        _TRUE_CFG,
        """FluxControlNetPipeline FluxImg2ImgPipeline FluxInpaintPipeline FluxKontextInpaintPipeline
        FluxKontextPipeline FluxPipeline HunyuanSkyreelsImageToVideoPipeline HunyuanVideoFramepackPipeline
        HunyuanVideoPipeline""",
    ),
    (replace(_TRUE_CFG, tail=2), "HunyuanVideoImageToVideoPipeline"),
    (replace(_TRUE_CFG, tail=1), "QwenImage21Pipeline"),
    (
        _QWEN,
        """QwenImageControlNetInpaintPipeline QwenImageControlNetPipeline QwenImageEditInpaintPipeline
        QwenImageEditPipeline QwenImageEditPlusPipeline QwenImageImg2ImgPipeline QwenImageInpaintPipeline
        QwenImagePipeline""",
    ),
    (
        replace(_TRUE_CFG, own="CFG(scale), NormCap where cfg_normalize", factors=-1),
        "QwenImageLayeredPipeline",
    ),
    (
        _SINGLE,
        """Flux2Pipeline FluxControlImg2ImgPipeline FluxControlInpaintPipeline FluxControlNetImg2ImgPipeline
        FluxControlNetInpaintPipeline FluxControlPipeline FluxFillPipeline VisualClozeGenerationPipeline""",
    ),
    (
        replace(_SINGLE, denoisers=("unet",)),
        "LatentConsistencyModelImg2ImgPipeline LatentConsistencyModelPipeline",
    ),
)

_FORMS: Mapping[str, PipelineForm] = {name: form for form, names in _GROUPS for name in names.split()}

GUIDERS = (
    "HunyuanImagePipeline", "HunyuanImageRefinerPipeline", "HunyuanVideo15ImageToVideoPipeline",
    "HunyuanVideo15Pipeline", "MotifVideoImage2VideoPipeline", "MotifVideoPipeline",
)  # fmt: skip
"""Classic pipelines whose guidance is a guider component, which both :func:`guided` and :func:`fuse` swap."""

_REASONS: Iterable[tuple[str, str]] = (
    (
        "it combines denoised samples of its own making, not predictions, before the scheduler",
        """Cosmos2TextToImagePipeline Cosmos2VideoToWorldPipeline Cosmos2_5_PredictBasePipeline
        Cosmos2_5_TransferPipeline CosmosTextToWorldPipeline CosmosVideoToWorldPipeline LTX2ConditionPipeline
        LTX2HDRPipeline LTX2ImageToVideoPipeline LTX2InContextPipeline LTX2Pipeline PRXPixelPipeline
        StableDiffusionLatentUpscalePipeline""",
    ),
    (
        "it combines more than one output of the model",
        "Cosmos3OmniPipeline Kandinsky6TI2VAPipeline",
    ),
    (
        "it guides a part of its channels, or in groups of its own",
        "JoyImageEditPipeline JoyImageEditPlusPipeline LuminaPipeline SanaWMPipeline",
    ),
    (
        "its guidance is an editing method with masks or momentum of its own",
        "AceStepPipeline LEditsPPPipelineStableDiffusion LEditsPPPipelineStableDiffusionXL",
    ),
    (
        "it denoises in windows, stages or tiles with a schedule of their own",
        """AnyFlowFARPipeline HeliosPipeline HeliosPyramidPipeline LTXI2VLongMultiPromptPipeline
        SkyReelsV2DiffusionForcingImageToVideoPipeline SkyReelsV2DiffusionForcingPipeline
        SkyReelsV2DiffusionForcingVideoToVideoPipeline""",
    ),
    (
        "it is made of other pipelines: guide those, its attributes",
        """KandinskyCombinedPipeline KandinskyImg2ImgCombinedPipeline KandinskyInpaintCombinedPipeline
        KandinskyV22CombinedPipeline KandinskyV22Img2ImgCombinedPipeline KandinskyV22InpaintCombinedPipeline
        StableCascadeCombinedPipeline VisualClozePipeline""",
    ),
    (
        "its model and scheduler have an interface of their own",
        """BlipDiffusionControlNetPipeline DreamLitePipeline Ideogram4Pipeline OmniGenPipeline ShapEImg2ImgPipeline
        ShapEPipeline""",
    ),
    (
        "its model is distilled, and its one output is converted before the scheduler",
        "DreamLiteMobilePipeline SanaSprintImg2ImgPipeline SanaSprintPipeline",
    ),
    (
        "it does not run on torch",
        """OnnxStableDiffusionImg2ImgPipeline OnnxStableDiffusionInpaintPipeline OnnxStableDiffusionPipeline
        OnnxStableDiffusionUpscalePipeline""",
    ),
)

NOT_COVERED: Mapping[str, str] = {name: reason for reason, names in _REASONS for name in names.split()}
"""Pipelines with guidance that are not covered, and why."""


_INTRODUCTION = """\
`guided` guides a pipeline of this table by any rule inside a `with` block; after it nothing of it is left:

    from fastcfg import PerpNeg
    from fastcfg.adapters.diffusers import guided

    with guided(pipe, PerpNeg(7.5, (1.0,)), conditions={"negative": {"encoder_hidden_states": embeds}}):
        image = pipe("a fox", negative_prompt="", guidance_scale=7.5).images[0]

- The pipeline is called as ever, with its own guidance turned on by the argument named in the table, so that it
  runs its passes. That scale's value has no effect; another guidance argument (`guidance_rescale`,
  `cfg_truncation`, `guidance_scale_2`, a cut-off callback) is an error that says what the rule takes instead.
- Its negative prompt is the rule's `uncond` (or `negative`, for a rule that has no `uncond`). A prediction that it
  does not run comes from `conditions`, as the denoiser's arguments that differ from the conditional pass's; each is
  a call of its own. A pipeline of one pass takes the unconditional one so.
- Passes that a step does not need (scale 1, outside an interval) are not run: of a batch the others are taken out,
  unless it is not certain which inputs belong to them (then the batch is run whole, and so it is with PAG, whose
  attention takes the batch apart itself). Of calls in turn the first is always run.
- Schedules resolve by the pipeline's own steps; noise levels and the kind of prediction come from its scheduler,
  for rules with a domain. A rule's memory begins anew when the scheduler's timesteps are set.
- A rule's sums run over what the scheduler samples: not over learned variances, tokens of a reference image, or a
  given first frame.
- `own_rule(pipe, ...)` is a pipeline's own guidance as a rule. With `numerics="eager"` plain CFG has the bits of
  the pipeline.
- A first step whose passes do not combine as the table says is an error. For a pipeline of your own give
  `form=PipelineForm(...)`.
"""


def coverage() -> dict[str, PipelineForm]:
    """The covered pipelines: class name in diffusers to how it runs its passes, sorted."""
    return dict(sorted(_FORMS.items()))


def has_guiders(pipe: Any) -> bool:
    """Return whether a pipeline's guidance is a guider component, told without importing diffusers' guiders."""
    parts = (*vars(pipe).values(),)
    return any(any(base.__name__ == "BaseGuidance" for base in type(part).__mro__) for part in parts)


def form_of(pipe: Any) -> PipelineForm:
    """The form of a pipeline, by its class or the covered class whose ``__call__`` it inherits or names.

    Raises:
        ValueError: naming ``pipe``, if it is not covered, with what to do instead.
    """
    cls = type(pipe)
    # optimum's pipelines (OpenVINO, ONNX Runtime) end in the call of the class that they name.
    called = getattr(cls, "auto_model_class", None)
    if isinstance(called, type) and called.__name__ in _FORMS and called.__module__.startswith("diffusers."):
        return _FORMS[called.__name__]
    for base in cls.__mro__:
        if base.__name__ in _FORMS and base.__module__.startswith("diffusers."):
            if cls.__call__ is base.__call__:  # type: ignore[attr-defined]
                return _FORMS[base.__name__]
            raise ValueError(
                f"pipe: {cls.__name__} overrides the __call__ of {base.__name__}; give form=PipelineForm(...)"
            )
    reason = NOT_COVERED.get(cls.__name__)
    if reason is None and cls.__name__ in GUIDERS:
        reason = "its guidance is a guider, and it has none"
    hint = reason or "give form=PipelineForm(...) if it runs its passes as a covered one does"
    raise ValueError(
        f"pipe: {cls.__name__} is not one of the {len(_FORMS)} pipelines of fastcfg.adapters.diffusers.coverage(): "
        f"{hint}; in a loop of your own call fastcfg.guide"
    )


def own_rule(pipe: Any, *values: float, **named: float) -> Rule:
    """A covered pipeline's own guidance as a fastcfg rule: ``own_rule(pipe, 7.5)`` or ``own_rule(pipe, 7.5, 0.7)``.

    Args:
        pipe: the pipeline, an instance.
        values, named: what its rule takes, as ``coverage()[name].own`` writes it.

    Raises:
        ValueError: for a pipeline that is not covered; TypeError: for values that the rule does not take.
    """
    if has_guiders(pipe):
        raise ValueError(f"pipe: the own guidance of {type(pipe).__name__} is that of its guider: use fuse(pipe)")
    own = form_of(pipe).own
    try:
        return OWN_RULES[own](*values, **named)
    except TypeError as error:
        raise TypeError(f"values: {type(pipe).__name__} guides by {own} ({error})") from None


def to_markdown(runs: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The documentation's table of covered pipelines, and the list of those that are not.

    Args:
        runs: what ``make hosts`` recorded, by pipeline.
    """
    lines = ["# Pipelines of diffusers that take any rule", "", *_INTRODUCTION.splitlines(), ""]
    names = {**{name: form for name, form in coverage().items()}, **dict.fromkeys(GUIDERS)}
    tried = {name: _tried(name, runs or {}) for name in names}
    run = sum(text != "read" for text in tried.values())
    lines += [
        f"{run} of the {len(names)} pipelines were run as they are in diffusers' own fast tests, beside themselves;",
        "the others were read against their source. `benchmarks/results/hosts.md` has that run.",
        "",
    ]
    lines += ["| pipeline | denoiser | passes | turned on by | its own guidance | tried |", "|---|---|---|---|---|---|"]
    for name in sorted(names):
        form = names[name]
        if form is None:
            lines.append(f"| {name} | transformer | its guider's | its guider | its guider's | {tried[name]} |")
            continue
        denoisers = ", ".join(form.denoisers)
        lines.append(f"| {name} | {denoisers} | {form.how} | `{form.switch}` | `{form.own}` | {tried[name]} |")
    lines += ["", "Where the guidance is a guider's, `guided` swaps it for one by the rule, and `fuse` for its fused"]
    lines += ["counterpart.", "", "Refused, with what to do instead:", ""]
    for reason, refused in _REASONS:
        lines.append(f"- {reason}: {', '.join(refused.split())}")
    lines += [
        "",
        "Pipelines that diffusers has moved to `deprecated` are not in the table; their classes are still guided",
    ]
    lines += ["where one that is covered is their base."]
    return "\n".join(lines) + "\n"


def _tried(name: str, runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how a row was tried: run, with its bits or how far off, or read."""
    line = runs.get(name)
    if line is None or "failed" in line:
        return "read"
    return f"run: the same bits, {line['dtype']}" if line["bits"] else f"run: {line['error']:.0e}, {line['dtype']}"
