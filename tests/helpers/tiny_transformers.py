"""Transformers models from configs, with a few hundred parameters each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

_SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
_TEXT = {**_SIZES, "vocab_size": 16, "max_position_embeddings": 16}


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            **_TEXT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3
        )
    )


def vit() -> nn.Module:
    config = transformers.ViTConfig(**_SIZES, image_size=8, patch_size=4, num_labels=3)
    return transformers.ViTForImageClassification(config)


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=16,
            n_positions=16,
            n_embd=8,
            n_layer=1,
            n_head=2,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )


def t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=16,
            d_model=8,
            d_kv=4,
            d_ff=12,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def llama(tied: bool = False, **sizes: int) -> nn.Module:
    settings = _TEXT | {"num_key_value_heads": 1} | sizes
    config = transformers.LlamaConfig(**settings, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        **_TEXT, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2
    )
    return transformers.MixtralForCausalLM(config)


BUILD: dict[str, Callable[[], nn.Module]] = {
    "BERT": bert,
    "ViT": vit,
    "GPT-2": gpt2,
    "T5": t5,
    "Llama": llama,
    "Llama with a tied head": lambda: llama(tied=True),
    "Mixtral": mixtral,
}


def logits(model: nn.Module) -> Tensor:
    """The output for one fixed batch."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, transformers.ViTForImageClassification):
        return model(pixel_values=torch.randn(2, 3, 8, 8, generator=generator)).logits
    tokens = torch.randint(16, (2, 6), generator=generator)
    extra = {"labels": tokens} if isinstance(model, transformers.T5ForConditionalGeneration) else {}
    return model(input_ids=tokens, **extra).logits
