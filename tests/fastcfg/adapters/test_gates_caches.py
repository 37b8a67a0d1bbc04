"""Left-out passes beside diffusers' caches: no call reads what was kept of another shape, or from before a gap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from conformance.tiny_pipelines import CASES, embeds, made
from torch import Tensor

from fastcfg import CFG, Gate, GuidedDenoiser, Rule, schedules
from fastcfg.adapters.diffusers import guided

STEPS = 12
POLICIES: dict[str, tuple[Rule, Gate | None]] = {
    "last half": (CFG(5.0), Gate(until=0.5)),
    "every 3": (CFG(5.0), Gate(every=3)),
    "interval": (CFG(schedules.Interval(5.0, 0.0, 0.5)), None),
}


def config(name: str) -> Any:
    if name == "FirstBlockCache":
        return diffusers.FirstBlockCacheConfig(threshold=0.2)
    ratios = torch.ones(STEPS)
    return diffusers.MagCacheConfig(threshold=0.06, num_inference_steps=STEPS, mag_ratios=ratios)


@contextmanager
def deeper(name: str) -> Iterator[Any]:
    """A tiny pipeline with four blocks, of which a cache can leave some out."""
    pipe = made(name)
    before = pipe.transformer
    torch.manual_seed(1)
    deep = type(before).from_config({**before.config, "num_layers": 4}).eval().requires_grad_(False)
    for parameter in deep.parameters():
        if not parameter.any():
            parameter.normal_(0.0, 0.05)
    pipe.transformer = deep
    try:
        yield pipe
    finally:
        pipe.transformer = before


def latents(pipe: Any, name: str, rule: Rule, gate: Gate | None, cache: Any) -> tuple[int, Tensor]:
    if cache is not None:
        pipe.transformer.enable_cache(cache)
    try:
        with guided(pipe, rule, gate=gate) as guidance:
            result = CASES[name].run(3.0, num_inference_steps=STEPS)
        return guidance.passes_run, result
    finally:
        if cache is not None:
            pipe.transformer.disable_cache()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("cache", ["FirstBlockCache", "MagCache"])
@pytest.mark.parametrize("name", ["ltx", "wan"])
def test_a_cache_costs_no_more_where_passes_are_left_out(name: str, cache: str) -> None:
    """LTX runs its passes as one batch, Wan in turn. At a batch of 2 half of one read what was kept of the whole."""
    with deeper(name) as pipe:
        _, full = latents(pipe, name, CFG(5.0), None, None)
        own = distance(latents(pipe, name, CFG(5.0), None, config(cache))[1], full)
        assert own > 0.005, "the cache leaves blocks out"
        for rule, gate in POLICIES.values():
            passes, plain = latents(pipe, name, rule, gate, None)
            again, cached = latents(pipe, name, rule, gate, config(cache))
            assert passes == again < 2 * STEPS
            assert distance(cached, plain) < 1.5 * own


def test_a_cache_of_one_state_keeps_every_pass() -> None:
    with deeper("ltx") as pipe:
        at = {"current_timestep_callback": lambda: 500, "spatial_attention_timestep_skip_range": (100, 900)}
        broadcast = diffusers.PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, **at)
        with pytest.raises(RuntimeError, match=r"gate: uncond can't be left out: PyramidAttentionBroadcast keeps one"):
            latents(pipe, "ltx", CFG(5.0), Gate(every=2), broadcast)
        rule, _ = POLICIES["interval"]
        passes, _ = latents(pipe, "ltx", rule, None, broadcast)
        assert passes == 2 * STEPS


def test_sequential_passes_have_a_context_each() -> None:
    """A model whose cache is enabled raises outside of a context; in one for both, each pass would read the other's."""
    model = diffusers.WanTransformer3DModel.from_config({**made("wan").transformer.config, "num_layers": 4}).eval()
    model.requires_grad_(False)
    given = {n: {"encoder_hidden_states": embeds(i), "return_dict": False} for i, n in enumerate(("uncond", "cond"), 1)}
    x = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    names: list[str] = []
    real = model.cache_context
    model.cache_context = lambda name, **kwargs: (names.append(name), real(name, **kwargs))[1]
    denoiser = GuidedDenoiser(model, CFG(3.0), mode="sequential")
    plain = denoiser(x, torch.full((2,), 500), conditions=given)
    assert not names
    model.enable_cache(config("FirstBlockCache"))
    torch.testing.assert_close(denoiser(x, torch.full((2,), 500), conditions=given), plain)
    GuidedDenoiser(model, CFG(3.0))(x, torch.full((2,), 500), conditions=given)
    assert names == ["uncond", "cond", "uncond_cond"]
