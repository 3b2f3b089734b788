"""Transformers of every family whose groups are known, each from a small config, and a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

# Two layers, four heads of four, ten neurons.
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 10,
}
_TEXT = {**_SIZES, "vocab_size": 17, "max_position_embeddings": 16, "pad_token_id": 0}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def _bart() -> nn.Module:
    return transformers.BartModel(
        transformers.BartConfig(
            vocab_size=17, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=10,
            decoder_ffn_dim=10, encoder_attention_heads=4, decoder_attention_heads=4, **_ENDS,
        )
    )  # fmt: skip


def _deberta(**settings: Any) -> nn.Module:
    config = transformers.DebertaV2Config(
        **_TEXT, relative_attention=True, position_buckets=4, type_vocab_size=0,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", **settings,
    )  # fmt: skip
    return transformers.DebertaV2Model(config)


def _gpt2(cross: bool = False) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=16, n_embd=16, n_layer=2, n_head=4, n_inner=10,
        add_cross_attention=cross, **_ENDS,
    )  # fmt: skip
    return transformers.GPT2Model(config)


def _t5(gated: bool) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=17, d_model=16, d_kv=4, d_ff=10, num_layers=2, num_heads=4,
        decoder_start_token_id=0, feed_forward_proj="gated-gelu" if gated else "relu",
    )  # fmt: skip
    return transformers.T5Model(config)


def _grouped(kind: str, **settings: Any) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(**_TEXT, num_key_value_heads=2, **settings)
    return getattr(transformers, f"{kind}Model")(config)


def _vit() -> nn.Module:
    config = transformers.ViTConfig(**_SIZES, image_size=8, patch_size=4)
    return transformers.ViTModel(config)


def _distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=17, dim=16, n_layers=2, n_heads=4, hidden_dim=10, max_position_embeddings=16
    )
    return transformers.DistilBertModel(config)


def _albert() -> nn.Module:
    return transformers.AlbertModel(transformers.AlbertConfig(**_TEXT, embedding_size=6, **_ENDS))


def _opt() -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=17, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=10,
        word_embed_proj_dim=16, max_position_embeddings=16, **_ENDS,
    )  # fmt: skip
    return transformers.OPTModel(config)


BUILD: dict[str, Callable[[], nn.Module]] = {
    "BERT": lambda: transformers.BertModel(transformers.BertConfig(**_TEXT)),
    "RoBERTa": lambda: transformers.RobertaModel(transformers.RobertaConfig(**_TEXT, **_ENDS)),
    "ELECTRA": lambda: transformers.ElectraModel(transformers.ElectraConfig(**_TEXT)),
    "DeBERTa-v3": lambda: _deberta(share_att_key=True),
    "DeBERTa-v2": lambda: _deberta(share_att_key=False),
    "DistilBERT": _distilbert,
    "ALBERT": _albert,
    "ViT": _vit,
    "GPT-2": _gpt2,
    "GPT-2 with cross-attention": lambda: _gpt2(cross=True),
    "OPT": _opt,
    "BART": _bart,
    "T5": lambda: _t5(gated=False),
    "T5 v1.1": lambda: _t5(gated=True),
    "Llama": lambda: _grouped("Llama", **_ENDS),
    "Mistral": lambda: _grouped("Mistral", **_ENDS),
    "Qwen2": lambda: _grouped("Qwen2", **_ENDS),
    "Qwen3": lambda: _grouped("Qwen3", head_dim=4, **_ENDS),
}


def build(name: str) -> nn.Module:
    """The model in evaluation, with weights that are all different from zero."""
    torch.manual_seed(0)
    model = BUILD[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + 0.1)
    return model


def inputs(model: nn.Module) -> dict[str, Tensor]:
    """A batch of two as the model takes it."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, transformers.ViTModel):
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    tokens = torch.randint(3, 17, (2, 6), generator=generator)
    batch = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = tokens.flip(1)[:, :5]
    if getattr(model.config, "add_cross_attention", False):
        batch["encoder_hidden_states"] = torch.randn(2, 4, 16, generator=generator)
    return batch


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    """The last hidden state for that batch."""
    return model(**inputs(model)).last_hidden_state
