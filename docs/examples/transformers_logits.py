"""Guided generation of text: a logits processor with a negative prompt."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fastcfg.adapters.transformers import FusedClassifierFreeGuidanceLogitsProcessor

torch.manual_seed(0)  # A tiny model of random weights; yours comes from ``from_pretrained``.
tokens = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
config = GPT2Config(**tokens, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
llm = GPT2LMHeadModel(config).eval()
prompts, negatives = torch.randint(1, 50, (2, 2, 4), generator=torch.Generator().manual_seed(0))


def generate(scale: float | torch.Tensor) -> torch.Tensor:
    """Eight tokens after each prompt, greedily."""
    processor = FusedClassifierFreeGuidanceLogitsProcessor(scale, llm, unconditional_ids=negatives)
    return llm.generate(prompts, max_new_tokens=8, do_sample=False, logits_processor=[processor])[:, 4:]


plain = llm.generate(prompts, max_new_tokens=8, do_sample=False)[:, 4:]
print("scale 1 is the model's own:", torch.equal(generate(1.0), plain))
guided = generate(3.0)
print("scale 3 gives other tokens:", not torch.equal(guided, plain))
each = generate(torch.tensor([1.0, 3.0]))
print("a scale for each prompt:", torch.equal(each[0], plain[0]) and torch.equal(each[1], guided[1]))
