"""``fastcfg tune`` on the demo's model and on a pipeline of diffusers from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastcfg import CFG, Gate
from fastcfg.cli.app import app
from fastcfg.cli.tune import demo_job, metric_of

pytest.importorskip("diffusers")
pytest.importorskip("mlxtend")


def mean(latents: torch.Tensor) -> float:
    return float(latents.mean())


def test_the_demo_is_tuned_and_the_policy_is_a_gate(tmp_path: Path) -> None:
    arguments = ["tune", "--steps", "4", "--samples", "2", "--budget", "0.75", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    gate = Gate.load(tmp_path / "policy.json")
    assert gate.num_steps == 4 and gate.steps is not None and len(gate.steps) == 2
    data = json.loads((tmp_path / "tuning.json").read_text())
    by_name = {row["policy"]: row for row in data["policies"]}
    assert by_name["tuned"]["passes"] == 0.75 == by_name["every 2"]["passes"]
    assert by_name["tuned"]["error"] <= by_name["every 2"]["error"]
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
    job = demo_job(CFG(3.0), 4, 2, 0)
    full, gated = job.run(None), job.run(gate)
    assert float((gated - full).norm() / full.norm()) == pytest.approx(by_name["tuned"]["error"], rel=1e-4)
    before = (tmp_path / "policy.json").read_text()
    assert CliRunner().invoke(app, arguments).exit_code == 0, "goes on from its runs"
    assert (tmp_path / "policy.json").read_text() == before


def test_a_pipeline_in_a_folder_is_tuned(tmp_path: Path) -> None:
    import diffusers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = Tokenizer(
        models.WordLevel(
            {w: i for i, w in enumerate(("<pad>", "</s>", "<unk>", "<s>", "red", "cat"))}, unk_token="<unk>"
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>",
        model_max_length=8,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=6, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=8, pad_token_id=0, eos_token_id=1, bos_token_id=3,
    ))  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet, vae=vae, text_encoder=text, tokenizer=tokenizer, scheduler=diffusers.EulerDiscreteScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "pipe")
    (tmp_path / "prompts.txt").write_text("red cat\n\ncat\n")
    result = CliRunner().invoke(app, [
        "tune", str(tmp_path / "pipe"), "--prompts", str(tmp_path / "prompts.txt"), "--steps", "4",
        "--metric", f"{__name__}:mean", "-o", str(tmp_path / "out"),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert Gate.load(tmp_path / "out" / "policy.json").num_steps == 4
    data = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert all(isinstance(row["metric"], float) for row in data["policies"])


def test_errors_are_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        (["--budget", "0.4"], "budget: expected a share"), (["--rule", "{"], "rule"),
        ([str(tmp_path)], "prompts: expected"),
        (["--rule", '{"type": "PerpNeg"}'], "rule: the demo is tuned for rules of uncond and cond"),
        (["--metric", "math"], "metric: expected MODULE:FUNCTION, got 'math'"),
    ):  # fmt: skip
        result = CliRunner().invoke(app, ["tune", *arguments, "--steps", "2", "-o", str(tmp_path / "o")])
        assert result.exit_code == 1 and message in result.output, result.output
    assert metric_of("") is None
