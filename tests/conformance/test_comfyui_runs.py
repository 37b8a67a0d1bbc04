"""Whole runs of ComfyUI's samplers with our nodes: beside its own, with memory, schedules and fewer passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg.adapters import comfyui as pack

from .clients import comfyui as client
from .comfyui_pairs import PAIRS, SCALE, UNIT, ours

pytestmark = pytest.mark.skipif(client.WHY is not None, reason=str(client.WHY))

EMPTY = 3


def perp_neg_guider(k: Any, model: Any, name: str) -> Any:
    """A guider of ours or theirs under the conditionings 1, 2 and 3."""
    conds = {"positive": client.conditioning(1), "negative": client.conditioning(2)}
    empty = client.conditioning(EMPTY)
    if name == "theirs":
        return k.perpneg.PerpNegGuider.execute(model, *conds.values(), empty, SCALE, 0.8)[0]
    return ours(
        "FastcfgPerpNegGuider", model=model, empty_conditioning=empty, cfg=SCALE, neg_scale=0.8, scale_negative=True,
        **conds,
    )  # fmt: skip


def dual_guider(k: Any, model: Any, name: str) -> Any:
    """ComfyUI's regular dual CFG."""
    first, second, negative = (client.conditioning(i) for i in (1, EMPTY, 2))
    if name == "theirs":
        return k.custom_sampler.DualCFGGuider().get_guider(model, first, second, negative, SCALE, 1.5, "regular")[0]
    return ours(
        "FastcfgTwoStageGuider",
        model=model,
        positive=first,
        middle=second,
        negative=negative,
        cfg=SCALE,
        middle_cfg=1.5,
    )


def pag(k: Any, model: Any, name: str) -> Any:
    """Perturbed attention of a U-Net's middle block."""
    if name == "theirs":
        return k.pag.PerturbedAttentionGuidance.execute(model, 2.0)[0]
    return ours("FastcfgPerturbedAttention", model=model, scale=2.0, block="middle", number=0, rescale=0.0)


def slg(k: Any, model: Any, name: str) -> Any:
    """Skipped blocks of a transformer."""
    if name == "theirs":
        return k.slg.SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 0.9, double_layers="1", single_layers="")[0]
    return ours(
        "FastcfgSkipLayers", model=model, double_layers="1", single_layers="", scale=2.0, rescale=0.0,
        start_percent=0.0, end_percent=0.9,
    )  # fmt: skip


def by_pair(index: int) -> Callable[[Any, Any, str], Any]:
    """One of PAIRS."""
    return lambda k, model, name: PAIRS[index].theirs(k, model) if name == "theirs" else PAIRS[index].ours(model)


def apg_momentum(k: Any, model: Any, name: str) -> Any:
    """APG with memory."""
    if name == "theirs":
        return k.apg.APG.execute(model, 0.3, 3.0, -0.5)[0]
    return ours("FastcfgAPG", model=model, eta=0.3, norm_threshold=3.0, momentum=-0.5, base="cond", space="x0")


RUNS = {
    "CFG": ("unet", by_pair(0)), "RescaleCFG": ("unet", by_pair(1)), "RescaleCFG-v": ("unet-v", by_pair(1)),
    "APG": ("unet", apg_momentum), "TCFG": ("unet-v", by_pair(4)), "CFGNorm": ("unet", by_pair(5)),
    "PAG": ("unet", pag), "DualCFG": ("unet", dual_guider), "PerpNegGuider": ("unet", perp_neg_guider),
    "CFGZeroStar-wan": ("wan", by_pair(3)), "TCFG-wan": ("wan", by_pair(4)), "CFG-wan": ("wan", by_pair(0)),
    "SLG-wan": ("wan", slg),
}  # fmt: skip


def run(patched: Any, noise: Tensor, jitter: float = 0.0, sampler: str = "dpmpp_2m") -> Tensor:
    """A run of a MODEL or a GUIDER; ``jitter``: a relative change of each step's result, of either sign."""
    k = client.load()

    def shake(args: dict[str, Any]) -> Tensor:
        y, x = args["denoised"], args["input"]
        size = x.abs() + (2 * SCALE + 1) * y.abs()
        sign = torch.where(torch.arange(y.numel()).view_as(y) % 2 == 0, 1.0, -1.0)
        return y + jitter * size * sign  # type: ignore[no-any-return]

    if isinstance(patched, k.samplers.CFGGuider):
        if jitter:
            patched.model_options = k.model_patcher.set_model_options_post_cfg_function(
                dict(patched.model_options), shake
            )
        sigmas = k.samplers.calculate_sigmas(patched.model_patcher.get_model_object("model_sampling"), "normal", 4)
        solver = k.samplers.sampler_object(sampler)
        with torch.inference_mode():
            result = patched.sample(noise.clone(), torch.zeros_like(noise), solver, sigmas, disable_pbar=True, seed=0)
        return result  # type: ignore[no-any-return]
    if jitter:
        patched = patched.clone()
        patched.set_model_sampler_post_cfg_function(shake)
    return client.sample(patched, noise.clone(), SCALE, sampler=sampler)


# ComfyUI's perp-neg mixes the samples of a batch.
CASES = [(name, batch) for name in RUNS for batch in (1, 4) if name != "PerpNegGuider" or batch == 1]


@pytest.mark.parametrize(("name", "batch"), CASES)
def test_runs_of_real_models(name: str, batch: int) -> None:
    """A network amplifies roundings: ComfyUI's own node, shaken by the call's bound at each step, is the control."""
    net, make = RUNS[name]
    model = {"unet": client.unet, "unet-v": lambda: client.unet("v"), "wan": client.wan}[net]()
    shape = (batch, 16, 3, 4, 4) if net == "wan" else (batch, 4, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(batch))
    k = client.load()
    results = {who: run(make(k, model, who), noise) for who in ("ours", "theirs")}
    control = run(make(k, model, "theirs"), noise, 24 * UNIT)
    distance = (results["ours"] - results["theirs"]).norm()
    assert distance <= (control - results["theirs"]).norm()
    plain = run(model, noise)
    if not name.startswith("CFG") or "Zero" in name:
        assert (plain - results["theirs"]).norm() > 100 * distance


def test_a_batch_is_its_samples() -> None:
    """Elementwise network: guidance alone could mix the samples."""
    noise = torch.randn(3, 4, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    model = client.patcher("flow")
    for chain in (
        ["FastcfgAPG"],
        ["FastcfgTCFG", "FastcfgRescale"],
        ["FastcfgMaMBOG", "FastcfgNormCap"],
        ["FastcfgFDG"],
    ):
        patched = model
        for node in chain:
            patched = ours(node, model=patched, **defaults(node))
        together = client.sample(patched, noise.clone(), 5.0)
        for i in range(3):
            assert torch.equal(client.sample(patched, noise[i : i + 1].clone(), 5.0), together[i : i + 1]), chain


def defaults(node: str) -> dict[str, Any]:
    """A node's widgets as they stand."""
    required = pack.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]
    return {name: options["default"] for name, (kind, options) in required.items() if "default" in options}


def test_momentum_begins_anew_with_each_run() -> None:
    noise = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    model = client.patcher("eps")
    patched = ours("FastcfgAPG", model=model, **{**defaults("FastcfgAPG"), "momentum": -0.7})
    first = client.sample(patched, noise.clone(), 5.0)
    # A run that ends early leaves its sigma above those of the next.
    client.sample(patched, noise.clone(), 5.0, start_step=0, last_step=1)
    assert torch.equal(client.sample(patched, noise.clone(), 5.0), first)
    assert torch.equal(client.sample(patched.clone(), noise.clone(), 5.0), first)
    # One step has no momentum yet, whatever was run before.
    one = client.sample(patched, noise.clone(), 5.0, steps=1)
    still = ours("FastcfgAPG", model=model, **{**defaults("FastcfgAPG"), "momentum": 0.0})
    assert torch.equal(client.sample(still, noise.clone(), 5.0, steps=1), one)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "euler_cfg_pp", "dpmpp_2m_sde", "uni_pc"])
def test_samplers_of_every_kind(sampler: str) -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model = client.patcher("eps")
    for node in ("FastcfgCFG", "FastcfgAPG"):
        patched = ours(node, model=model, **{**defaults(node), **({"momentum": -0.5} if "APG" in node else {})})
        patched = ours("FastcfgSchedule", model=patched, curve="linear", start=2.0, end=5.0)
        result = client.sample(patched, noise.clone(), 4.0, sampler=sampler)
        assert result.isfinite().all()
        assert torch.equal(client.sample(patched, noise.clone(), 9.0, sampler=sampler), result), "schedule, not cfg"


def passes(model: Any) -> list[int]:
    """Samples in each call of the network since the last look."""
    calls: list[int] = model.model.diffusion_model.calls
    seen, calls[:] = list(calls), []
    return seen


def test_passes_that_are_not_needed_are_not_run() -> None:
    noise = torch.randn(1, 4, 8, 8)
    model = client.patcher("eps")
    client.sample(ours("FastcfgCFG", model=model), noise.clone(), 5.0)
    assert passes(model) == [2, 2, 2, 2]
    client.sample(ours("FastcfgCFG", model=model), noise.clone(), 1.0)
    assert passes(model) == [1, 1, 1, 1]
    client.sample(ours("FastcfgInterval", model=model, start_percent=0.2, end_percent=0.6), noise.clone(), 5.0)
    assert sorted(passes(model)) == [1, 1, 1, 2] or sum(passes(model)) < 8
    client.sample(ours("FastcfgSchedule", model=model, curve="linear", start=1.0, end=4.0), noise.clone(), 5.0)
    assert passes(model) == [1, 2, 2, 2]
    perp = {"model": model, "empty_conditioning": client.conditioning(EMPTY)}
    client.sample(ours("FastcfgPerpNeg", **perp, **defaults("FastcfgPerpNeg")), noise.clone(), 5.0)
    assert passes(model) == [3, 3, 3, 3], "one batch"


def test_perp_neg_patch_is_the_guider() -> None:
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model = client.patcher("v")
    empty = client.conditioning(EMPTY)
    patch = ours("FastcfgPerpNeg", model=model, empty_conditioning=empty, neg_scale=0.8, scale_negative=True)
    assert torch.equal(
        run(patch, noise, sampler="euler"), run(perp_neg_guider(None, model, "ours"), noise, sampler="euler")
    )


def test_autoguidance_uses_the_weak_model() -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model, weak = client.unet(), client.patcher("eps")
    conds = {"positive": client.conditioning(1), "negative": client.conditioning(2)}
    inputs = {"model": model, "weak_model": weak, **conds}
    off = run(ours("FastcfgAutoguidanceGuider", **inputs, cfg=SCALE, weak_scale=1.0), noise)
    assert weak.model.diffusion_model.calls == []
    plain = run(ours("FastcfgCFG", model=model), noise)
    assert (off - plain).norm() <= (run(model, noise, 24 * UNIT) - plain).norm()
    on = run(ours("FastcfgAutoguidanceGuider", **inputs, cfg=1.0, weak_scale=2.0), noise)
    assert weak.model.diffusion_model.calls == [2] * 4
    assert on.isfinite().all() and not torch.equal(on, off)
    with pytest.raises(ValueError, match="weak_model"):
        ours("FastcfgAutoguidanceGuider", **{**inputs, "weak_model": model.clone()}, cfg=1.0, weak_scale=2.0)
