"""TRL's trainers prune with the callback, by the functions on the page of language models."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import pytest
import torch
from pages import ROOT, blocks_of
from recipe_models import save_llama

import platon_prune

pytest.importorskip("trl", reason="trl is not installed: pip install trl")

QUESTION = {"role": "user", "content": "hello"}
ANSWERS = [{"role": "assistant", "content": text} for text in ("i am a cat", "a dog")]
SETTINGS = dict(
    max_steps=8, per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[],
    disable_tqdm=True, save_strategy="no", max_length=40, gradient_checkpointing=False,
)  # fmt: skip


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The page's functions, and a small model with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    functions: dict = {}
    for _, code in blocks_of(ROOT / "docs" / "language_models.md", "python"):
        exec(code, functions)
    folder = save_llama(tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return functions, AutoModelForCausalLM.from_pretrained(folder), tokenizer


def test_supervised_fine_tuning_prunes(shown):
    functions, model, tokenizer = shown
    chats = datasets.Dataset.from_list([{"messages": [QUESTION, ANSWERS[0]]}] * 16)
    functions["fine_tune"](model, tokenizer, chats, **SETTINGS)
    assert platon_prune.summary(model).total.sparsity == 0.5


def test_preferences_prune_the_model_and_leave_the_reference_alone(shown):
    functions, model, tokenizer = shown
    pair = {"prompt": [QUESTION], "chosen": [ANSWERS[0]], "rejected": [ANSWERS[1]]}
    pairs = datasets.Dataset.from_list([pair] * 16)
    trainer = functions["prefer"](model, tokenizer, pairs, **SETTINGS)
    assert platon_prune.summary(model).total.sparsity == 0.5
    assert all(bool(torch.all(p != 0)) for p in trainer.ref_model.parameters() if p.ndim > 1)
