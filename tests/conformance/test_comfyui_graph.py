"""A whole prompt in ComfyUI: its validation, its executor and its KSampler, with our nodes of either interface."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg.adapters import comfyui as pack

from .clients import comfyui as client

pytestmark = pytest.mark.skipif(client.WHY is not None, reason=str(client.WHY))

RESULTS: list[Tensor] = []


class Load:
    """A tiny model and three conditionings."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "CONDITIONING")
    FUNCTION, CATEGORY = "run", ""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[Any, ...]:
        return client.patcher("eps"), *(client.conditioning(i) for i in (1, 2, 3))


class Keep:
    """An output node."""

    RETURN_TYPES = ()
    FUNCTION, CATEGORY, OUTPUT_NODE = "run", "", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",)}}

    def run(self, latent: dict[str, Tensor]) -> dict[str, Any]:
        RESULTS.append(latent["samples"])
        return {}


def graph(chain: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A prompt: a model through ``chain``, then KSampler."""
    prompt: dict[str, Any] = {
        "load": {"class_type": "Load", "inputs": {}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "keep": {"class_type": "Keep", "inputs": {"latent": ["sampler", 0]}},
    }
    model = ["load", 0]
    for node, inputs in chain.items():
        prompt[node] = {"class_type": node, "inputs": {"model": model, **inputs}}
        model = [node, 0]
    run = {"seed": 1, "steps": 3, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": model, "positive": ["load", 1], "negative": ["load", 2], "latent_image": ["empty", 0]}
    return {**prompt, "sampler": {"class_type": "KSampler", "inputs": {**run, **links}}}


def execute(prompt: dict[str, Any]) -> Tensor:
    """The latents that the prompt's output node was given."""
    execution = client.load().execution
    assert asyncio.run(execution.validate_prompt("prompt", prompt, None))[0]
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_, **__: None)
    executor = execution.PromptExecutor(server)
    executor.execute(prompt, "prompt", {}, ["keep"])
    assert executor.success, executor.status_messages
    return RESULTS.pop()


def defaults(node: str) -> dict[str, Any]:
    """A node's widgets as they stand."""
    required = pack.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]
    return {name: options["default"] for name, (_, options) in required.items() if "default" in options}


CHAINS: dict[str, dict[str, dict[str, Any]]] = {
    "APG, rescale": {"FastcfgAPG": {"momentum": -0.5}, "FastcfgRescale": {}},
    "perp-neg, cap, schedule": {
        "FastcfgPerpNeg": {"empty_conditioning": ["load", 3]}, "FastcfgNormCap": {}, "FastcfgSchedule": {}
    },
    "everything after": {
        "FastcfgTCFG": {}, "FastcfgInterval": {"start_percent": 0.1}, "FastcfgEpsilonScaling": {},
        "FastcfgDynamicThreshold": {"bound": 8.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_prompts_run_with_either_interface(chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def third() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()  # type: ignore[no-any-return]

    prompt = graph({node: {**defaults(node), **inputs} for node, inputs in CHAINS[chain].items()})
    known = client.load().nodes.NODE_CLASS_MAPPINGS
    schemas: dict[str, Any] = {node.GET_SCHEMA().node_id: node for node in asyncio.run(third())}
    results = []
    for interface in (pack.NODE_CLASS_MAPPINGS, schemas):
        for name, node in {"Load": Load, "Keep": Keep, **interface}.items():
            monkeypatch.setitem(known, name, node)
        results.append(execute(prompt))
    assert torch.equal(*results)
    assert results[0].shape == (2, 4, 8, 8) and results[0].isfinite().all()
    assert not torch.equal(results[0], execute(graph({})))
