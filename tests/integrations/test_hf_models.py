"""Checkpoints that a trainer fails to load: other names are in them than the model has."""

import pytest
import torch
from tiny_trainer import small_bert
from transformers import BertForSequenceClassification, MixtralConfig, MixtralForCausalLM

import platon_prune
from platon_prune.integrations.hf_models import load_renamed

SETTINGS = dict(amount=0.5, total_steps=4, window=2, own_keys=True)


def _mixture(seed):
    """Saved with an entry for each expert, of which the model's parameters hold all at once."""
    torch.manual_seed(seed)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
        )
    )  # fmt: skip


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"])
def test_pruned_experts_come_back_in_a_pruned_model(tmp_path, max_shard_size):
    saved = _mixture(seed=0)
    scheduler = platon_prune.global_unstructured(
        saved, criterion="magnitude", **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for _ in range(4):
        scheduler.step()
    saved.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "10KB")
    loaded = _mixture(seed=1)
    other = platon_prune.global_unstructured(
        loaded, criterion="magnitude", **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    load_renamed(loaded, tmp_path)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    for name, mask in scheduler.masks().items():
        assert torch.equal(other.masks()[name], mask), name


def test_a_model_that_the_trainer_has_loaded_is_left_alone(tmp_path, monkeypatch):
    model = small_bert()
    model.save_pretrained(tmp_path)
    platon_prune.global_unstructured(model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS)
    monkeypatch.setattr(BertForSequenceClassification, "from_pretrained", None, raising=False)
    load_renamed(model, tmp_path)  # would call what is not there
    load_renamed(torch.nn.Linear(2, 2), tmp_path)
    load_renamed(model, tmp_path / "empty")
