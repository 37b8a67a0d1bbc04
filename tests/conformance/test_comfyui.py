"""Our nodes beside ComfyUI's own, driven by ComfyUI's sampling code from the checkout in ``COMFYUI_PATH``.

The reference is ComfyUI's node on float64 tensors, where it is right; ours runs in float32, as in ComfyUI.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg.adapters import comfyui as pack
from fastcfg.adapters.comfyui.install import install

from .clients import comfyui as client
from .comfyui_pairs import PAIRS, SCALE, SHAPES, SIGMAS, Pair, bound, call, draw, ours
from .oracles.projection import tcfg

pytestmark = pytest.mark.skipif(client.WHY is not None, reason=str(client.WHY))


def reference(pair: Pair, model: Any, t: dict[str, Tensor], sigma: float) -> Tensor:
    """ComfyUI's node in float64, on images of one sample where it is wrong for others."""
    theirs = pair.theirs(client.load(), model)
    if pair.name == "TCFG":
        # Their SVD is in float32 whatever it is given: the oracle's is not.
        noise = {name: (t["x"] - t[name]).numpy() for name in ("uncond", "cond")}
        exact = t["x"] - torch.from_numpy(tcfg(**noise, scale=SCALE))
        assert torch.allclose(call(theirs, t, torch.float64, sigma), exact, atol=1e-3)
        return exact

    if pair.frames and t["x"].dim() == 5:
        shape = t["x"].transpose(1, 2).shape
        frames = {name: p.transpose(1, 2).flatten(0, 1) for name, p in t.items()}
        return call(theirs, frames, torch.float64, sigma).view(shape).transpose(1, 2)

    def alone(part: dict[str, Tensor]) -> Tensor:
        flat = {name: p.flatten(2, -2) if not pair.video else p for name, p in part.items()}
        return call(theirs, flat, torch.float64, sigma).view_as(part["x"])

    if pair.batch:
        return alone(t)
    count = t["x"].shape[0]
    return torch.cat([alone({name: p[i : i + 1] for name, p in t.items()}) for i in range(count)])


# ComfyUI's RescaleCFG takes a flow model for one of v-prediction; ours rescales its velocity.
SAME = [(pair, kind) for pair in PAIRS for kind in SIGMAS if (pair.name, kind) != ("RescaleCFG", "flow")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("pair", "kind"), SAME, ids=str)
def test_same_as_comfyui(pair: Pair, kind: str, batch: int, shape: str) -> None:
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
    pair, model = PAIRS[6], client.patcher("flow")
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
    for node in nodes:
        node.VALIDATE_CLASS()
    # What the executor calls.
    clone = by_id["FastcfgCFG"].PREPARE_CLASS_CLONE(None)
    result = getattr(clone, by_id["FastcfgCFG"].FUNCTION)(model=model)
    assert result.args[0].model_options["sampler_cfg_function"]


@pytest.mark.parametrize("steps", [8, 30])
@pytest.mark.parametrize("kind", ["unet", "wan"])
def test_a_gate_leaves_passes_out_in_comfyui_itself(kind: str, steps: int) -> None:
    """Rows of the network's own batches under KSampler, and a gate that leaves nothing out beside plain guidance."""
    model = client.unet() if kind == "unet" else client.wan()
    noise = torch.randn(
        (1, 4, 8, 8) if kind == "unet" else (1, 16, 2, 8, 8), generator=torch.Generator().manual_seed(0)
    )
    rows: list[int] = []
    model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))

    def run(patched: Any, **options: Any) -> tuple[int, Tensor]:
        rows.clear()
        result = client.sample(patched, noise, 5.0, steps=steps, **options)
        return sum(rows), result

    def gated(**widgets: Any) -> Any:
        given = {"every": 0, "until": 1.0, "drift": 0.0, "stop": 0.0, "cosine": 1.0, "policy": "", **widgets}
        return pack.NODE_CLASS_MAPPINGS["FastcfgGate"]().execute(model=model, **given)[0]

    full, stock = run(model)
    assert full == 2 * steps
    (plain,) = pack.NODE_CLASS_MAPPINGS["FastcfgCFG"]().execute(model=model)
    whole, same = run(gated(every=1))
    assert whole == full and torch.equal(same, run(plain)[1])
    assert run(gated(every=2))[0] == steps + -(-steps // 2)
    count, half = run(gated(until=0.5))
    assert count == steps + steps // 2 and not torch.equal(half, stock)
    rule = '{"type": "GatedCFG", "every": 2}'
    (shorthand,) = pack.NODE_CLASS_MAPPINGS["FastcfgRule"]().execute(model=model, rule=rule, space="x0")
    assert run(shorthand)[0] == steps + -(-steps // 2)
    assert run(gated(every=2), sampler="dpmpp_2m")[0] == steps + -(-steps // 2)
