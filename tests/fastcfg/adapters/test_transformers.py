"""The logits processor in ``generate``: what transformers' own gets wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.logits_process import (
    ClassifierFreeGuidanceLogitsProcessor,
    DiaClassifierFreeGuidanceLogitsProcessor,
)

from fastcfg.adapters.transformers import BatchedGuidanceLogitsProcessor
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


# --- Speculative decoding ---------------------------------------------------------------------------------------------


def repeating(seed: int) -> Tensor:
    """A prompt that prompt lookup finds its candidates in."""
    part = torch.randint(2, 20, (1, 4), generator=torch.Generator().manual_seed(seed))
    return torch.cat([part, part, part], 1)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("negative", [True, False])
def test_prompt_lookup_gives_the_greedy_text(model: Any, negative: bool, use_cache: bool) -> None:
    given = NEGATIVE[:1] if negative else None
    speculative, taken_back = 0, []

    class Watched(Fused):
        def get_unconditional_logits(self, input_ids: Tensor) -> Tensor:
            taken_back.append(input_ids.shape[1])
            return super().get_unconditional_logits(input_ids)

    for seed in range(12):
        prompt = repeating(seed)
        greedy = by_hand(model, 1.5, prompt, NEGATIVE[:1] if negative else prompt[:, -1:], 12)
        processor = Watched(1.5, model, given, use_cache=use_cache)
        taken_back.clear()
        got = generate(model, processor, prompt, max_new_tokens=12, prompt_lookup_num_tokens=3)
        assert torch.equal(got, greedy)
        speculative += any(b < a for a, b in pairwise(taken_back))
    assert speculative, "nothing was taken back: the test shows nothing"


@pytest.mark.parametrize("negative", [True, False])
def test_an_assistant_gives_the_greedy_text(model: Any, negative: bool) -> None:
    torch.manual_seed(1)
    assistant = GPT2LMHeadModel(model.config).eval()
    given = NEGATIVE[:1] if negative else None
    for seed in range(4):
        prompt = repeating(seed)
        greedy = by_hand(model, 1.5, prompt, NEGATIVE[:1] if negative else prompt[:, -1:], 10)
        got = generate(model, Fused(1.5, model, given), prompt, max_new_tokens=10, assistant_model=assistant)
        assert torch.equal(got, greedy)


def test_a_cache_with_a_window_is_made_again_where_it_cannot_go_back() -> None:
    torch.manual_seed(0)
    from transformers import MistralConfig, MistralForCausalLM

    small = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4, "initializer_range": 0.4}
    window = MistralForCausalLM(MistralConfig(**small, **heads, eos_token_id=None)).eval()
    for seed in range(3):
        prompt = repeating(seed)
        greedy = by_hand(window, 1.5, prompt, NEGATIVE[:1], 12)
        got = generate(window, Fused(1.5, window, NEGATIVE[:1]), prompt, max_new_tokens=12, prompt_lookup_num_tokens=3)
        assert torch.equal(got, greedy)


@pytest.mark.filterwarnings("error")
def test_nothing_is_deprecated(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    generate(model, Fused(1.5, model, NEGATIVE))
    assert "deprecat" not in caplog.text


# --- Encoder-decoders -------------------------------------------------------------------------------------------------


def bart() -> Any:
    config = BartConfig(
        vocab_size=67, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.4,
        forced_eos_token_id=None, eos_token_id=None, pad_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def t5() -> Any:
    config = T5Config(
        vocab_size=67, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4,
        decoder_start_token_id=1, eos_token_id=None, pad_token_id=0, initializer_factor=3.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("build", [bart, t5])
def test_an_encoder_decoder_encodes_the_negative_prompt_once(build: Any, use_cache: bool) -> None:
    torch.manual_seed(0)
    made = build().eval().requires_grad_(False)
    calls: list[Tensor] = []
    made.get_encoder().register_forward_pre_hook(lambda _, args, kw: calls.append(kw["input_ids"]), with_kwargs=True)
    got = generate(made, Fused(2.0, made, NEGATIVE, use_cache=use_cache))
    assert len(calls) == 2 and torch.equal(calls[1], NEGATIVE), "one for the prompt, one for the negative prompt"
    for row in range(2):
        text = torch.tensor([[1]])
        for _ in range(8):
            c, u = (
                made(input_ids=ids[row : row + 1], decoder_input_ids=text).logits[:, -1].double().log_softmax(-1)
                for ids in (PROMPT, NEGATIVE)
            )
            text = torch.cat([text, (u + 2.0 * (c - u)).argmax(-1, keepdim=True)], 1)
        assert torch.equal(got[row], text[0])
    with pytest.raises(ValueError, match=r"unconditional_ids: .* is an encoder-decoder"):
        Fused(2.0, made)


# --- Models that double their batch -----------------------------------------------------------------------------------


def halves() -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.randn(8, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.zeros(4, 3, dtype=torch.long), scores, scores.chunk(2)[0]


@pytest.mark.parametrize("base", ["uncond", "cond"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_batched_guidance_is_the_model_s_own(base: Any, top_k: int | None) -> None:
    ids, scores, _ = halves()
    if base == "cond":
        theirs = DiaClassifierFreeGuidanceLogitsProcessor(3.0, guidance_top_k=top_k)(ids, scores)
    elif top_k is None:
        theirs = ClassifierFreeGuidanceLogitsProcessor(3.0)(ids, scores)
    else:
        return
    ours = BatchedGuidanceLogitsProcessor(3.0, base, top_k)(ids, scores)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-12, atol=1e-12)


def test_a_scale_for_each_prompt_counts_for_its_codebooks() -> None:
    ids, scores, _ = halves()
    got = BatchedGuidanceLogitsProcessor(torch.tensor([2.0, 5.0]))(ids, scores)
    for rows, scale in ((slice(0, 2), 2.0), (slice(2, 4), 5.0)):
        assert torch.equal(got[rows], BatchedGuidanceLogitsProcessor(scale)(ids, scores)[rows])
    with pytest.raises(ValueError, match="guidance_scale: expected a row for each prompt"):
        BatchedGuidanceLogitsProcessor(torch.tensor([2.0, 5.0, 1.0]))(ids, scores)
    with pytest.raises(ValueError, match=r"scores: .*FusedClassifierFreeGuidance"):
        BatchedGuidanceLogitsProcessor(2.0)(ids, scores[:4])


def musicgen() -> Any:
    from transformers import EncodecConfig, MusicgenConfig, MusicgenDecoderConfig, MusicgenForConditionalGeneration

    text = T5Config(vocab_size=67, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    audio = EncodecConfig(
        num_filters=2, num_residual_layers=1, upsampling_ratios=[2], codebook_size=32, hidden_size=8, num_lstm_layers=1,
        target_bandwidths=[1.5], sampling_rate=200,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, num_codebooks=2,
        pad_token_id=32, bos_token_id=32, decoder_start_token_id=32, initializer_factor=0.5,
    )  # fmt: skip
    parts = {"text_encoder": text, "audio_encoder": audio, "decoder": decoder}
    config = MusicgenConfig(**{name: part.to_dict() for name, part in parts.items()})
    made = MusicgenForConditionalGeneration(config).eval()
    for part in (made.generation_config, made.config.decoder):
        part.pad_token_id = part.decoder_start_token_id = part.bos_token_id = 32
    return made


def test_musicgen_takes_it_in_the_place_of_its_own() -> None:
    torch.manual_seed(0)
    made = musicgen()
    options = {"do_sample": False, "max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    own = made.generate(**inputs, guidance_scale=3.0, **options, output_scores=True)
    with BatchedGuidanceLogitsProcessor(3.0).in_place(made):
        ours = made.generate(**inputs, guidance_scale=9.0, **options, output_scores=True)
        with pytest.raises(ValueError, match=r"guidance_scale: Musicgen.*above 1"):
            made.generate(**inputs, guidance_scale=1.0, **options)
    assert "_get_logits_processor" not in vars(made)
    assert torch.equal(ours.sequences, own.sequences)
    for a, b in zip(ours.scores, own.scores, strict=True):
        torch.testing.assert_close(a.softmax(-1), b.softmax(-1), rtol=1e-4, atol=1e-6)
    with BatchedGuidanceLogitsProcessor(torch.tensor([3.0, 1.5])).in_place(made):
        mixed = made.generate(**inputs, guidance_scale=3.0, **options, output_scores=True)
    torch.testing.assert_close(mixed.scores[0][:2].softmax(-1), own.scores[0][:2].softmax(-1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(mixed.scores[0][2:].softmax(-1), own.scores[0][2:].softmax(-1), atol=1e-4)


def test_a_doubled_batch_and_continuous_batching_are_named(model: Any) -> None:
    ids, scores, _ = halves()
    processor = Fused(2.0, model, NEGATIVE)
    with pytest.raises(ValueError, match="doubles its batch; use BatchedGuidanceLogitsProcessor"):
        processor(ids, scores)
    with pytest.raises(ValueError, match="continuous batching"):
        processor(ids[:1], scores)
    assert processor.supports_continuous_batching is False
