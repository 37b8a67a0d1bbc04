"""``numerics="eager"``: the bits of diffusers, for rules without sums."""

import ast
import inspect
import textwrap

import pytest
import torch
from conformance.cases import draw
from conformance.peers import diffusers_guiders as peers

from fastcfg import (
    APG,
    CFG,
    TCFG,
    CFGZeroStar,
    DualCFG,
    GatedCFG,
    InstructPix2Pix,
    MaMBOG,
    NegativePrompt,
    NormCap,
    Perturbed,
    Rescale,
    State,
    guide,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
by_scale = pytest.mark.parametrize("scale", [-1.5, 0.4, 3.0, 7.5, 30.0])
SHAPE = (3, 4, 33, 31)


@by_dtype
@by_scale
@pytest.mark.parametrize("base", ["uncond", "cond"])
def test_cfg_has_the_guiders_bits(base: str, scale: float, dtype: torch.dtype) -> None:
    predictions = draw(("uncond", "cond"), SHAPE, dtype)
    peer = peers.classifier_free(**predictions, scale=scale, original=base == "cond")
    ours = guide(CFG(scale, base=base), numerics="eager", **predictions)
    assert ours.dtype == dtype and torch.equal(ours, peer)
    if dtype != torch.float32 and abs(scale) > 1:
        assert not torch.equal(guide(CFG(scale, base=base), **predictions), peer), "the default would pass too"


@by_dtype
@by_scale
def test_a_negative_prompt_has_the_guiders_bits(scale: float, dtype: torch.dtype) -> None:
    p = draw(("negative", "cond"), SHAPE, dtype)
    peer = peers.classifier_free(uncond=p["negative"], cond=p["cond"], scale=scale)
    assert torch.equal(guide(NegativePrompt(scale), numerics="eager", **p), peer)


@by_dtype
@by_scale
@pytest.mark.parametrize("base", ["uncond", "cond"])
@pytest.mark.parametrize(
    "peer", [peers.skip_layer, peers.perturbed_attention, peers.smoothed_energy], ids=lambda f: f.__name__
)
def test_perturbed_has_the_guiders_bits(peer: object, base: str, scale: float, dtype: torch.dtype) -> None:
    predictions = draw(("uncond", "cond", "perturbed"), SHAPE, dtype)
    window = {"perturbed_start": 0.0, "perturbed_stop": 1.0}
    theirs = peer(**predictions, scale=scale, perturbed_scale=2.8, original=base == "cond", **window)
    ours = guide(Perturbed(scale, 2.8, base=base), numerics="eager", **predictions)
    assert torch.equal(ours, theirs)


def pix2pix_expression() -> str:
    """The guidance of diffusers' InstructPix2Pix pipeline, out of its source."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    source = textwrap.dedent(inspect.getsource(StableDiffusionInstructPix2PixPipeline.__call__))
    found = [
        ast.unparse(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and "image_guidance" in ast.dump(node)
    ]
    assert len(found) == 1, found
    return found[0]


@by_dtype
@pytest.mark.parametrize(("scale", "image_scale"), [(7.5, 1.5), (3.0, 0.7), (1.0, 1.0)])
def test_instruct_pix2pix_has_the_pipelines_bits(scale: float, image_scale: float, dtype: torch.dtype) -> None:
    p = draw(("uncond", "image", "cond"), SHAPE, dtype)
    pipeline = type("Pipeline", (), {"guidance_scale": scale, "image_guidance_scale": image_scale})
    names = {"noise_pred_uncond": p["uncond"], "noise_pred_image": p["image"], "noise_pred_text": p["cond"]}
    names |= {"self": pipeline, "guidance_scale": scale, "image_guidance_scale": image_scale}
    peer = eval(pix2pix_expression(), names)
    assert torch.equal(guide(InstructPix2Pix(scale, image_scale), numerics="eager", **p), peer)


@by_dtype
def test_per_sample_scales_and_out(dtype: torch.dtype) -> None:
    predictions = draw(("uncond", "cond"), SHAPE, dtype)
    scales = torch.tensor([1.5, 4.0, 9.0])
    out = torch.empty(SHAPE, dtype=dtype)
    got = guide(CFG(7.5), numerics="eager", params={"scale": scales.to(dtype)}, out=out, **predictions)
    assert got is out
    for b, scale in enumerate(scales.tolist()):
        row = {n: p[b : b + 1] for n, p in predictions.items()}
        assert torch.equal(guide(CFG(scale), numerics="eager", **row), got[b : b + 1])


@pytest.mark.parametrize(
    "rule",
    [
        APG(3.0), APG(3.0, momentum=-0.5), CFG(3.0, rescale=0.5), CFGZeroStar(3.0, 0), DualCFG(3.0), MaMBOG(3.0),
        GatedCFG(3.0, phase="refresh"), NormCap(CFG(3.0)), Rescale(CFG(3.0), phi=0.5), TCFG(3.0),
    ],
    ids=lambda r: r.to_json(),
)  # fmt: skip
def test_rules_that_have_no_such_bits_say_so(rule: object) -> None:
    predictions = draw(rule.conditions, (2, 9), torch.float32)
    with pytest.raises(ValueError, match="numerics: 'eager'"):
        guide(rule, numerics="eager", state=State(), **predictions)


def test_another_name_is_refused() -> None:
    predictions = draw(("uncond", "cond"), (2, 9), torch.float32)
    with pytest.raises(ValueError, match="numerics: expected 'fp32' or 'eager', got 'fp16'"):
        guide(CFG(3.0), numerics="fp16", **predictions)
