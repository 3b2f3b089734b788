"""Models of four layers each, and a run that prunes whole layers of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

import platon_prune

_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 12,
    "vocab_size": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(**settings: object) -> nn.Module:
    sizes = {**_SIZES, "num_key_value_heads": 2, **settings}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def gemma2() -> nn.Module:
    """Layers with sliding and full attention in turns, and norms on the branches."""
    config = transformers.Gemma2Config(
        **_SIZES, num_key_value_heads=2, head_dim=4, sliding_window=4
    )
    return transformers.Gemma2ForCausalLM(config)


def olmo2() -> nn.Module:
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**_SIZES))


def modernbert() -> nn.Module:
    config = transformers.ModernBertConfig(
        **_SIZES, global_attn_every_n_layers=3, cls_token_id=1, sep_token_id=2, local_attention=4
    )
    return transformers.ModernBertForMaskedLM(config)


def gpt2(**settings: object) -> nn.Module:
    no_dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=32, n_embd=16, n_layer=4, n_head=4, bos_token_id=1,
        eos_token_id=2, **no_dropout, **settings,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=16, d_model=16, d_kv=4, d_ff=12, num_layers=4, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**_SIZES))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "Llama": llama,
    "Gemma 2": gemma2,
    "OLMo 2": olmo2,
    "ModernBERT": modernbert,
    "GPT-2": gpt2,
    "T5": t5,
}


def built(name: str, **settings: object) -> nn.Module:
    """A model in evaluation, with weights that let every layer matter, and biases that are none."""
    torch.manual_seed(1)
    model = FAMILIES[name](**settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    tokens = torch.randint(3, 16, (2, 7), generator=torch.Generator().manual_seed(0))
    extra = {"decoder_input_ids": tokens.flip(1)} if model.config.is_encoder_decoder else {}
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} | extra


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model.eval()(**inputs_of(model)).logits


def trained(
    model: nn.Module, num_steps: int = 8, **settings: object
) -> tuple[platon_prune.PlatonScheduler, torch.optim.Optimizer]:
    """Three choices while it learns to repeat its tokens."""
    schedule = dict(total_steps=8, window=2, warmup_steps=2, cooldown_steps=2)
    scheduler = platon_prune.global_structured(model, **schedule, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    go_on(model, scheduler, optimizer, num_steps)
    return scheduler, optimizer


def go_on(
    model: nn.Module,
    scheduler: platon_prune.PlatonScheduler | None,
    optimizer: torch.optim.Optimizer,
    num_steps: int,
) -> None:
    model.train()
    for _ in range(num_steps):
        inputs = inputs_of(model)
        logits = model(**inputs).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), inputs["input_ids"].flatten()).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
    model.eval()


def layers_of(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of layers of a model, by their paths."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and name.rpartition(".")[2] in ("layers", "h")
        or name in ("encoder.block", "decoder.block")
    }
