"""Mixtures of eight experts from small configs, two layers each, and what tests ask of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "vocab_size": 17,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 8},
    "Qwen3Moe": {"num_experts": 8, "moe_intermediate_size": 24, "norm_topk_prob": False},
    "Olmoe": {"num_experts": 8, "num_key_value_heads": 4},
    "DeepseekV3": {"n_routed_experts": 8, "moe_intermediate_size": 24, "n_group": 2}
    | {"topk_group": 1, "first_k_dense_replace": 0, "num_key_value_heads": 4, "v_head_dim": 4}
    | _LATENT,
    "GptOss": {"num_local_experts": 8},
    "GraniteMoe": {"num_local_experts": 8},
}


def mixture(family: str, **settings: Any) -> Any:
    """A language model in evaluation, with weights that are all different from zero."""
    torch.manual_seed(0)
    config = {**_TEXT, **SETTINGS[family], **settings}
    if family == "Olmoe":
        config.pop("head_dim")
    built = getattr(transformers, f"{family}Config")(**config)
    model = getattr(transformers, f"{family}ForCausalLM")(built).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "inv_freq" not in name:
                tensor.copy_(0.3 * torch.randn_like(tensor) + 0.1)
    return model


def tokens() -> Tensor:
    """A batch of two."""
    return torch.randint(3, 17, (2, 6), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """The output for that batch, in evaluation."""
    return model.eval()(tokens()).logits


def routers(model: nn.Module) -> list[nn.Module]:
    """The routers of all layers."""
    return [module for module in model.modules() if type(module).__name__.endswith("Router")]


def picked(model: nn.Module) -> list[set[int]]:
    """The experts that each layer's router picks for many tokens."""
    found = []
    for router in routers(model):
        with torch.no_grad():
            states = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
            found.append(set(router(states)[2].flatten().tolist()))
    return found


def train(model: Any, scheduler: Any, steps: int, lr: float = 1e-2) -> Any:
    """Train with a scheduler for some steps; the optimizer."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return optimizer
