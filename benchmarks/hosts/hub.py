"""Tiny stand-ins for what the fast tests load from a model hub, where there is none."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["without_hub"]

_CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")

_SMALL: dict[str, Any] = {
    "hidden_size": 32, "d_model": 32, "intermediate_size": 37, "d_ff": 37, "d_kv": 8, "num_hidden_layers": 2,
    "num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_heads": 4, "vocab_size": 1103,
    "projection_dim": 32, "image_size": 32, "patch_size": 8, "max_position_embeddings": 512, "head_dim": 8,
    "num_decoder_layers": 2,
}  # fmt: skip


def _tokenizer(length: int) -> transformers.PreTrainedTokenizerFast:
    """Bytes as tokens, behind a few special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*_SPECIALS, *alphabet))}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=length, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", mask_token="<mask>", extra_special_tokens=list(_SPECIALS[5:]), padding_side="right",
    )  # fmt: skip
    made.chat_template = _CHAT
    made.image_token, made.image_token_id = _SPECIALS[5], 5
    return made


def _config(cls: type, name: str) -> Any:
    """A config of a class with whatever of it is small."""
    made = cls()
    for part in (made, *(getattr(made, n, None) for n in ("text_config", "vision_config"))):
        if part is not None:
            for key, value in _SMALL.items():
                if isinstance(getattr(part, key, None), int):
                    setattr(part, key, value)
    return made


def without_hub() -> None:
    """Let ``from_pretrained`` of transformers make a stand-in of the class that is asked for."""

    def tokenizer(cls: type, name: str, *_: Any, **kwargs: Any) -> Any:
        return _tokenizer(kwargs.get("model_max_length", 77 if "clip" in name.lower() else 512))

    def config(cls: type, name: str, *_: Any, **kwargs: Any) -> Any:
        kind = cls if cls is not transformers.AutoConfig else transformers.T5Config
        return _config(kind, name)

    def model(cls: Any, name: str, *_: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        kind = {"AutoModel": transformers.BertModel, "AutoModelForCausalLM": transformers.LlamaForCausalLM}
        made = kind.get(cls.__name__, cls)
        return made(_config(made.config_class, name)).eval().to(kwargs.get("torch_dtype", kwargs.get("dtype")))

    def processor(cls: Any, *_: Any, **kwargs: Any) -> Any:
        return cls()

    patches = (
        (transformers.PreTrainedTokenizerBase, tokenizer),
        (transformers.AutoTokenizer, tokenizer),
        (transformers.PretrainedConfig, config),
        (transformers.AutoConfig, config),
        (transformers.PreTrainedModel, model),
        (transformers.AutoModel, model),
        (transformers.FeatureExtractionMixin, processor),
        (transformers.ImageProcessingMixin, processor),
    )
    for owner, replacement in patches:
        owner.from_pretrained = classmethod(copy.copy(replacement))  # type: ignore[union-attr]
