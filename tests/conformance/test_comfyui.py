"""Our nodes beside ComfyUI's own, driven by ComfyUI's sampling code from the checkout in ``COMFYUI_PATH``.

The reference is ComfyUI's node on float64 tensors, where it is right; ours runs in float32, as in ComfyUI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg.adapters import comfyui as pack
from fastcfg.adapters.comfyui.install import install

from .clients import comfyui as client
from .oracles.projection import tcfg

pytestmark = pytest.mark.skipif(client.WHY is not None, reason=str(client.WHY))

UNIT = 2.0**-24
SCALE = 6.0
SHAPES = {"image": (4, 6, 8), "video": (4, 3, 6, 8)}


def ours(node: str, **inputs: Any) -> Any:
    """What a node of the pack returns."""
    return pack.NODE_CLASS_MAPPINGS[node]().execute(**inputs)[0]


def draw(batch: int, shape: tuple[int, ...], sigma: float) -> dict[str, Tensor]:
    """A call's tensors in float64, float32 values: predictions share most of what they are, as a model's do."""
    generator = torch.Generator().manual_seed(7 * batch + len(shape))
    normal = [torch.randn(batch, *shape, generator=generator).double() for _ in range(4)]
    base = normal[0]
    x = base + sigma * normal[1]
    tensors = {"x": x, "cond": base + 0.3 * normal[2], "uncond": base + 0.3 * normal[3] - 0.1}
    return {name: tensor.float().double() for name, tensor in tensors.items()}


def call(model: Any, t: dict[str, Tensor], dtype: torch.dtype, sigma: float, scale: float = SCALE) -> Tensor:
    """ComfyUI's ``sampling_function`` on given predictions, with the model's hooks."""
    given = {name: tensor.to(dtype) for name, tensor in t.items()}
    options = dict(model.model_options)
    options["sampler_calc_cond_batch_function"] = lambda args: [given["cond"], given["uncond"]]
    level = torch.full((given["x"].shape[0],), sigma, dtype=dtype)
    run = client.load().samplers.sampling_function
    return run(model.model, given["x"], level, [{}], [{}], scale, model_options=options)  # type: ignore[no-any-return]


def bound(t: dict[str, Tensor], scale: float) -> Tensor:
    """Of our float32 result's error, for each element.

    Conversions to a space and back, K = 3 terms, ``x - y`` and ComfyUI's ``x - r`` are some 24 roundings of at most
    ``|x| + (2 scale + 1) |p|``; the weights' own error is that of sums over N elements in 16 chains (see
    tolerances.py), and acts on what they weigh.
    """
    count = t["x"][0].numel()
    size = t["x"].abs() + (2 * scale + 1) * torch.maximum(t["cond"].abs(), t["uncond"].abs())
    largest = size.flatten(1).amax(1).view(-1, *[1] * (size.dim() - 1))
    return UNIT * (24 * size + (4 * (count / 16) ** 0.5 + 8) * largest)


@dataclass(frozen=True)
class Pair:
    """A node of ours and ComfyUI's.

    Attributes:
        right: whether ComfyUI's is right for video, and for a batch; else it is given images of one sample.
    """

    name: str
    ours: Callable[[Any], Any]
    theirs: Callable[[Any, Any], Any]
    video: bool = True
    batch: bool = True

    def __str__(self) -> str:
        return self.name


PAIRS = [
    Pair("CFG", lambda m: ours("FastcfgCFG", model=m), lambda k, m: m.clone()),
    Pair(
        "RescaleCFG",
        lambda m: ours("FastcfgRescale", model=m, multiplier=0.7, norm="std", space="v"),
        lambda k, m: k.model_advanced.RescaleCFG().patch(m, 0.7)[0],
        video=False,
    ),
    Pair(
        "APG",
        lambda m: ours("FastcfgAPG", model=m, eta=0.3, norm_threshold=3.0, momentum=0.0, base="cond", space="x0"),
        lambda k, m: k.apg.APG.execute(m, 0.3, 3.0, 0.0)[0],
        video=False,
    ),
    Pair(
        "CFGZeroStar",
        lambda m: ours("FastcfgCFGZeroStar", model=m, variant="comfyui", zero_init_steps=0, space="noise"),
        lambda k, m: k.cfg.CFGZeroStar.execute(m)[0],
    ),
    Pair(
        "TCFG", lambda m: ours("FastcfgTCFG", model=m, space="noise"), lambda k, m: k.tcfg.TCFG.execute(m)[0]
    ),
    Pair(
        "CFGNorm",
        lambda m: ours("FastcfgNormCap", model=m, cap=1.0, mode="cap", over="channel", space="x0"),
        lambda k, m: k.cfg.CFGNorm.execute(m, 1.0)[0],
    ),
    Pair(
        "RenormCFG",
        lambda m: ours("FastcfgNormCap", model=m, cap=0.9, mode="cap", over="sample", space="x0"),
        lambda k, m: k.lumina2.RenormCFG.execute(m, 100.0, 0.9)[0],
        batch=False,
    ),
]  # fmt: skip
SIGMAS = {"eps": 3.7, "v": 0.8, "flow": 0.6}


def reference(pair: Pair, model: Any, t: dict[str, Tensor], sigma: float) -> Tensor:
    """ComfyUI's node in float64, on images of one sample where it is wrong for others."""
    theirs = pair.theirs(client.load(), model)
    if pair.name == "TCFG":
        # Their SVD is in float32 whatever it is given: the oracle's is not.
        noise = {name: (t["x"] - t[name]).numpy() for name in ("uncond", "cond")}
        exact = t["x"] - torch.from_numpy(tcfg(**noise, scale=SCALE))
        assert torch.allclose(call(theirs, t, torch.float64, sigma), exact, atol=1e-3)
        return exact

    def alone(part: dict[str, Tensor]) -> Tensor:
        flat = {name: p.flatten(2, -2) if not pair.video else p for name, p in part.items()}
        return call(theirs, flat, torch.float64, sigma).view_as(part["x"])

    if pair.batch:
        return alone(t)
    count = t["x"].shape[0]
    return torch.cat([alone({name: p[i : i + 1] for name, p in t.items()}) for i in range(count)])


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_same_as_comfyui(pair: Pair, batch: int, shape: str, kind: str) -> None:
    if pair.name == "RescaleCFG" and kind == "flow":
        pytest.skip("ComfyUI's RescaleCFG takes a flow model for one of v-prediction; ours rescales its velocity")
    model, sigma = client.patcher(kind), SIGMAS[kind]
    t = draw(batch, SHAPES[shape], sigma)
    expected = reference(pair, model, t, sigma)
    got = call(pair.ours(model), t, torch.float32, sigma)
    assert got.dtype == torch.float32
    error = (got.double() - expected).abs()
    assert (error <= bound(t, SCALE)).all(), (error / bound(t, SCALE)).max()


def test_flow_models_are_rescaled_in_velocity() -> None:
    model, sigma = client.patcher("flow"), 0.6
    t = draw(2, SHAPES["video"], sigma)
    got = call(ours("FastcfgRescale", model=model, multiplier=1.0, norm="std", space="v"), t, torch.float32, sigma)
    velocity = [(t["x"] - p) / sigma for p in (got.double(), t["cond"])]
    assert torch.allclose(*(v.flatten(1).std(1) for v in velocity), rtol=1e-5)


# --- ComfyUI's defects -------------------------------------------------------------------------------------------


def test_rescale_of_video_is_by_sample_and_not_by_column() -> None:
    pair, model, sigma = PAIRS[1], client.patcher("eps"), 3.7
    t = draw(2, SHAPES["video"], sigma)
    theirs = call(pair.theirs(client.load(), model), t, torch.float64, sigma)
    right = reference(pair, model, t, sigma)
    assert (theirs - right).abs().max() > 1e3 * bound(t, SCALE).max()
    assert (call(pair.ours(model), t, torch.float32, sigma).double() - right).abs().max() <= bound(t, SCALE).max()


def test_renorm_takes_a_batch() -> None:
    pair, model = PAIRS[-1], client.patcher("flow")
    t = draw(2, SHAPES["image"], 0.6)
    with pytest.raises(RuntimeError, match="ambiguous"):
        call(pair.theirs(client.load(), model), t, torch.float32, 0.6)
    assert call(pair.ours(model), t, torch.float32, 0.6).isfinite().all()


def test_perp_neg_of_a_sample_does_not_depend_on_its_batch() -> None:
    comfy, cases = client.load(), {}
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    # The first sample's batch mates start elsewhere.
    noise[1:] *= 3
    model = client.patcher("eps")
    cases["theirs"] = comfy.perpneg.PerpNeg.execute(model, client.conditioning(3), 1.0)[0]
    cases["ours"] = ours(
        "FastcfgPerpNeg", model=model, empty_conditioning=client.conditioning(3), neg_scale=1.0, scale_negative=True
    )
    apart = {}
    for name, patched in cases.items():
        together, alone = (client.sample(patched, n.clone(), 5.0) for n in (noise, noise[:1]))
        apart[name] = float((together[:1] - alone).norm() / alone.norm())
    assert apart["ours"] == 0.0
    assert apart["theirs"] > 0.01


# --- Whole runs --------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("batch", [1, 4])
def test_runs_of_real_models(name: str, batch: int) -> None:
    """A network amplifies roundings: ComfyUI's own node, shaken by the call's bound at each step, is the control."""
    if name == "PerpNegGuider" and batch > 1:
        pytest.skip("ComfyUI's perp-neg mixes the samples of a batch")
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


# --- The pack in ComfyUI's loader --------------------------------------------------------------------------------


def test_comfyui_loads_the_installed_pack(tmp_path: Path) -> None:
    k = client.load()
    (tmp_path / "custom_nodes").mkdir()
    target = install(tmp_path)
    assert asyncio.run(k.nodes.load_custom_node(str(target)))
    for name in pack.NODE_CLASS_MAPPINGS:
        assert name in k.nodes.NODE_CLASS_MAPPINGS
        assert k.nodes.NODE_DISPLAY_NAME_MAPPINGS[name].endswith("(fastcfg)")


def test_both_interfaces_say_the_same() -> None:
    async def third() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()  # type: ignore[no-any-return]

    nodes = asyncio.run(third())
    assert len(nodes) == len(pack.NODES)
    for node in nodes:
        schema = node.GET_SCHEMA()
        first = pack.NODE_CLASS_MAPPINGS[schema.node_id]
        wanted = first.INPUT_TYPES()["required"]
        info = schema.get_v1_info(node)
        assert list(info.input["required"]) == list(wanted)
        for name, (kind, options) in wanted.items():
            theirs = info.input["required"][name]
            assert theirs[0] == ("COMBO" if isinstance(kind, list) else kind)
            assert theirs[1]["tooltip"] == options["tooltip"]
            assert theirs[1].get("default") == options.get("default")
        assert tuple(info.output) == first.RETURN_TYPES
        assert (info.category, info.display_name) == (first.CATEGORY, pack.NODE_DISPLAY_NAME_MAPPINGS[schema.node_id])
    model = client.patcher("eps")
    by_id = {node.GET_SCHEMA().node_id: node for node in nodes}
    assert by_id["FastcfgCFG"].execute(model=model)[0].model_options["sampler_cfg_function"]
