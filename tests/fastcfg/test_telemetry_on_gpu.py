"""What only a GPU can show of telemetry: no wait, replays that record, readers beside writers."""

import time
from typing import Any

import numpy as np
import pytest
import torch

import fastcfg
from fastcfg import APG, CFG, GuidedDenoiser, Rule
from fastcfg.telemetry import Telemetry

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

RULES = (CFG(3.0), CFG(3.0, rescale=0.7), APG(7.5, 0.3, 5.0))
SIZES = (16, 64, 512)
"""Sides of a latent: one program, several, and what loops."""


def pair(length: float, side: int = 64, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    u = torch.randn(2, 4, side, side, device="cuda", dtype=dtype)
    return {"uncond": u, "cond": u - length * u}


@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_same_bits_and_the_figures_of_the_torch_path(rule: Rule, side: int) -> None:
    named = pair(1.5, side)
    found = {}
    for backend in (None, "torch"):
        telemetry = Telemetry(sums="gram")
        guided = fastcfg.guide(rule, **named, backend=backend, telemetry=telemetry)
        assert torch.equal(guided, fastcfg.guide(rule, **named, backend=backend))
        found[backend] = telemetry.drain()
    for name, column in found[None].figures.items():
        np.testing.assert_allclose(column, found["torch"].figures[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_nothing_waits_for_the_device() -> None:
    telemetry = Telemetry(sums="gram", capacity=64)
    denoiser = GuidedDenoiser(lambda x, t, y: x * y, CFG(3.0, rescale=0.7), telemetry=telemetry)
    x = torch.randn(2, 4, 64, 64, device="cuda")
    given = {name: {"y": torch.full((2, 1, 1, 1), y, device="cuda")} for name, y in (("uncond", 1.0), ("cond", 2.0))}
    named = pair(1.0)
    for rule in RULES:
        fastcfg.guide(rule, **named, telemetry=telemetry)
    denoiser(x, 0.5, conditions=given)
    telemetry.drain()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(100):
            for rule in RULES:
                fastcfg.guide(rule, **named, telemetry=telemetry.at(step))
            denoiser(x, 0.5, conditions=given, step=step, num_steps=100)
            telemetry.read()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(telemetry.drain()) > 0


def test_a_reader_does_not_wait_for_work_that_is_queued() -> None:
    telemetry = Telemetry()
    named = pair(2.0)
    fastcfg.guide(RULES[1], **named, telemetry=telemetry)
    telemetry.drain()
    torch.cuda._sleep(2_000_000_000)
    fastcfg.guide(RULES[1], **named, telemetry=telemetry)
    busy = torch.cuda.Event()
    busy.record()
    telemetry.read()
    while not len(telemetry.read()):
        time.sleep(1e-3)
    assert not busy.query(), "it gave what was there before the queued work was done"
    assert len(telemetry.drain()) == 2


@pytest.mark.parametrize("side", SIZES)
def test_replays_record(side: int) -> None:
    telemetry = Telemetry(capacity=16)
    inputs = pair(1.0, side, torch.float32)

    def step() -> torch.Tensor:
        return fastcfg.guide(RULES[1], **inputs, telemetry=telemetry)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)
    telemetry.drain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for k in range(20):
        for name, tensor in pair(1.0 + k, side, torch.float32).items():
            inputs[name].copy_(tensor)
        telemetry.set_step(k, inputs["cond"].device)
        graph.replay()
        torch.testing.assert_close(out, fastcfg.guide(RULES[1], **inputs), rtol=0, atol=0)
    found = telemetry.drain()
    assert found.step.tolist() == [k for k in range(13, 20) for _ in range(2)], "less what a write may be replacing"
    np.testing.assert_allclose(found.figures["delta_ratio"], 1.0 + found.step, rtol=1e-4)


def test_a_captured_step_of_a_denoiser_notes_its_steps() -> None:
    telemetry = Telemetry()
    model: Any = lambda x, t, y: x * y  # noqa: E731
    captured = GuidedDenoiser(model, CFG(3.0, rescale=0.7), telemetry=telemetry).capture(backend="cudagraph")
    x = torch.randn(2, 4, 16, 16, device="cuda")
    given = {name: {"y": torch.full((2, 1, 1, 1), y, device="cuda")} for name, y in (("uncond", 1.0), ("cond", 2.5))}
    captured(x, 0.5, conditions=given, step=0, num_steps=9)
    telemetry.drain()
    for step in range(1, 9):
        captured(x, 0.5, conditions=given, step=step, num_steps=9)
    found = telemetry.drain()
    assert found.step.tolist() == [step for step in range(1, 9) for _ in range(2)]
    np.testing.assert_allclose(found.figures["delta_ratio"], 1.5, rtol=1e-4)


def test_records_are_whole_while_they_are_overwritten() -> None:
    """Every figure of a record comes of one call, whatever is written meanwhile."""
    telemetry = Telemetry(capacity=64)
    named = [pair(float(k), 16, torch.float32) for k in range(1, 9)]
    for step in range(2_000):
        fastcfg.guide(RULES[1], **named[step % 8], telemetry=telemetry.at(step))
        if step % 16 == 0:
            found = telemetry.read()
            np.testing.assert_allclose(found.figures["delta_ratio"], 1.0 + found.step % 8, rtol=1e-4)
    found = telemetry.drain()
    assert found.step[-1] == 1_999


def test_streams_have_rings_of_their_own() -> None:
    telemetry = Telemetry()
    streams = [torch.cuda.Stream() for _ in range(3)]
    named = [pair(1.0 + k, 16, torch.float32) for k in range(3)]
    torch.cuda.synchronize()
    for step in range(50):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                fastcfg.guide(RULES[1], **named[k], telemetry=telemetry.at(step, [k, k]))
    found = telemetry.drain()
    assert len(found) == 300
    np.testing.assert_allclose(found.figures["delta_ratio"], 1.0 + np.array(found.ids), rtol=1e-4)
