"""The logits processor in ``generate``: what transformers' own gets wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from fastcfg.adapters.transformers import FusedClassifierFreeGuidanceLogitsProcessor as Fused

PROMPT = torch.tensor([[5, 9, 33, 2], [7, 7, 41, 60]])
NEGATIVE = torch.tensor([[11, 3, 25], [50, 8, 31]])


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    """Absolute positions, which padding would shift."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=67, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=None,
        pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def generate(model: Any, processor: Any, prompt: Tensor = PROMPT, **options: Any) -> Tensor:
    options = {"do_sample": False, "max_new_tokens": 8, **options}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), logits_processor=[processor], **options)  # type: ignore[no-any-return]


def by_hand(model: Any, scale: float, prompt: Tensor, negative: Tensor, steps: int = 8) -> Tensor:
    """Greedy guided text of one prompt, without a cache."""
    tokens = prompt.clone()
    for _ in range(steps):
        new = tokens[:, prompt.shape[1] :]
        c = model(tokens).logits[:, -1].double().log_softmax(-1)
        u = model(torch.cat([negative, new], 1)).logits[:, -1].double().log_softmax(-1)
        tokens = torch.cat([tokens, (u + scale * (c - u)).argmax(-1, keepdim=True)], 1)
    return tokens


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_processor_serves_more_than_one_generation(model: Any, use_cache: bool) -> None:
    processor = Fused(2.5, model, NEGATIVE, use_cache=use_cache)
    for prompt in (PROMPT, PROMPT.flip(1), PROMPT[:, :2], PROMPT):
        got = generate(model, processor, prompt)
        for i in range(2):
            assert torch.equal(got[i], by_hand(model, 2.5, prompt[i : i + 1], NEGATIVE[i : i + 1])[0])
    processor.reset()
    assert torch.equal(generate(model, processor), got)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("negative", [True, False])
def test_beams_have_the_branch_of_their_own_text(model: Any, negative: bool, use_cache: bool) -> None:
    """Each beam's score is the guided log-probability of its own text, whatever place it had before."""
    processor = Fused(2.0, model, NEGATIVE if negative else None, use_cache=use_cache)
    out = generate(
        model, processor, num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True,
        length_penalty=0.0, use_cache=use_cache,
    )  # fmt: skip
    moved = out.beam_indices[:, 1:8] != out.beam_indices[:, :7]
    assert moved.any(), "no beam changed its place: the test shows nothing"
    for i, (tokens, score) in enumerate(zip(out.sequences, out.sequences_scores, strict=True)):
        prompt = PROMPT[i // 3]
        branch = NEGATIVE[i // 3] if negative else prompt[-1:]
        total = 0.0
        for k in range(8):
            new = tokens[4 : 4 + k]
            c = model(torch.cat([prompt, new])[None]).logits[0, -1].double().log_softmax(-1)
            u = model(torch.cat([branch, new])[None]).logits[0, -1].double().log_softmax(-1)
            total += float((u + 2.0 * (c - u))[tokens[4 + k]])
        assert abs(total - float(score)) < 1e-3


def test_padded_negative_prompts_are_as_if_alone(model: Any) -> None:
    ids = torch.tensor([[0, 0, 11], [50, 8, 31]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    got = generate(model, Fused(2.5, model, ids, mask))
    assert torch.equal(got[0], by_hand(model, 2.5, PROMPT[:1], torch.tensor([[11]]))[0])
    assert torch.equal(got[1], by_hand(model, 2.5, PROMPT[1:], NEGATIVE[1:])[0])


def test_a_scale_for_each_prompt_of_several_sequences(model: Any) -> None:
    options = {"num_beams": 2, "num_return_sequences": 2}
    both = generate(model, Fused(torch.tensor([1.5, 4.0]), model, NEGATIVE), **options)
    for i, scale in enumerate((1.5, 4.0)):
        alone = generate(model, Fused(scale, model, NEGATIVE[i : i + 1]), PROMPT[i : i + 1], **options)
        assert torch.equal(both[2 * i : 2 * i + 2], alone)
    with pytest.raises(ValueError, match="unconditional_ids: expected a row for each prompt"):
        generate(model, Fused(1.5, model, torch.tensor([[1], [2], [3]])))
