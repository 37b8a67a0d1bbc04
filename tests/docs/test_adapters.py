"""The examples of docs/adapters.md run, on tiny models, and its tables are complete."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fastcfg.adapters import comfyui
from fastcfg.cli.app import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adapters.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M))


def code(section: str) -> list[str]:
    """The section's Python blocks."""
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], re.S)


def run(section: str, names: dict[str, Any]) -> dict[str, Any]:
    """The section's code, in a namespace with what is the reader's own."""
    for block in code(section):
        exec(compile(block, f"docs/adapters.md, {section}", "exec"), names)
    return names


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("section", SECTIONS)
def test_examples_are_five_lines(section: str) -> None:
    blocks = code(section)
    assert blocks, "each section shows how"
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) <= 5


def test_modular_pipelines(capsys: pytest.CaptureFixture[str]) -> None:
    from conformance.tiny_modular import sdxl
    from diffusers.guiders import ClassifierFreeGuidance

    pipe = sdxl()
    before = pipe.guider
    pipe.update_components(guider=ClassifierFreeGuidance())
    try:
        names = run("diffusers, modular pipelines", {"modular_pipeline": pipe})
        assert "ClassifierFreeGuidance -> FusedClassifierFreeGuidance" in capsys.readouterr().out
        assert len(names["images"]) == 1
        assert pipe.guider is names["guider"]
    finally:
        pipe.update_components(guider=before)


def test_classic_pipelines() -> None:
    from conformance import tiny_pipelines as tiny

    prompts = {**tiny.prompts(), **tiny.square(), "num_inference_steps": 2, "output_type": "pt"}
    pipe = tiny.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    names = run("diffusers, classic pipelines", {"pipeline": pipe, "prompts": prompts})
    assert names["images"].isfinite().all()


def test_comfyui(tmp_path: Path) -> None:
    class Patcher:
        """What the nodes need of a MODEL to patch it."""

        def __init__(self) -> None:
            self.model_options: dict[str, Any] = {}

        def clone(self) -> Patcher:
            other = Patcher()
            other.model_options = dict(self.model_options)
            return other

        def set_model_sampler_cfg_function(self, function: Callable[..., Any], **_: Any) -> None:
            self.model_options["sampler_cfg_function"] = function

        def set_model_sampler_calc_cond_batch_function(self, function: Callable[..., Any]) -> None:
            self.model_options["sampler_calc_cond_batch_function"] = function

    model = Patcher()
    names = run("ComfyUI", {"model": model})
    assert names["model"] is not model
    recipe = names["model"].model_options["sampler_cfg_function"].__self__.recipe
    assert len(recipe.modifiers) == 1
    (tmp_path / "custom_nodes").mkdir()
    (command,) = re.findall(r"```\n(fastcfg .*?)\n```", SECTIONS["ComfyUI"])
    arguments = [str(tmp_path) if word == "DIR" else word for word in command.split()[1:]]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "custom_nodes" / "fastcfg" / "__init__.py").is_file()


def test_every_node_is_in_the_table() -> None:
    assert re.findall(r"^\| `(Fastcfg\w+)`", SECTIONS["ComfyUI"], re.M) == list(comfyui.NODE_CLASS_MAPPINGS)


def test_k_diffusion() -> None:
    def sample_euler(model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any]) -> torch.Tensor:
        for sigma, after in itertools.pairwise(sigmas):
            x = x + (x - model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)) / sigma * (after - sigma)
        return x

    def inner_model(x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + cond.view(-1, 1, 1, 1))

    names = run(
        "k-diffusion, and its kind",
        {
            "sample_euler": sample_euler, "inner_model": inner_model, "x": drawn(0, 2, 4, 8, 8),
            "sigmas": torch.tensor([5.0, 1.0, 0.0]), "uncond": torch.zeros(2), "cond": torch.ones(2),
        },
    )  # fmt: skip
    assert names["samples"].isfinite().all()


def test_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=None, pad_token_id=0
    )
    tokens = torch.arange(1, 5)[None]
    given = {"llm": GPT2LMHeadModel(config).eval(), "prompt_ids": tokens, "negative_ids": tokens.flip(1)}
    assert run("transformers", given)["text"].shape == (1, 12)


def test_vllm_omni(monkeypatch: pytest.MonkeyPatch) -> None:
    class CFGParallelMixin:
        """Theirs, as far as ``fuse`` looks."""

        combine_cfg_noise = cfg_normalize_function = combine_multi_branch_cfg_noise = None

    path = "vllm_omni.diffusion.distributed.cfg_parallel"
    for name in ("vllm_omni", "vllm_omni.diffusion", "vllm_omni.diffusion.distributed", path):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[path].CFGParallelMixin = CFGParallelMixin  # type: ignore[attr-defined]
    pipeline = type("OmniPipeline", (CFGParallelMixin,), {})
    given = {"OmniPipeline": pipeline, "positive": drawn(0, 2, 6, 8), "negative": drawn(1, 2, 6, 8)}
    assert run("vllm-omni", given)["noise"].shape == (2, 6, 8)


def test_any_other_loop() -> None:
    given = {f"{name}_pred": drawn(i, 2, 4, 8, 8) for i, name in enumerate(("uncond", "cond", "negative"))}
    assert run("Any other loop", given)["prediction"].shape == (2, 4, 8, 8)


def test_links_lead_somewhere() -> None:
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in SECTIONS}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert target[1:] in headings if target.startswith("#") else (ROOT / "docs" / target).exists(), target
