"""A SentenceTransformer as a sparse file, and back into one that its own library builds."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn

import platon_prune

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="needs sentence-transformers: platon-prune[test]"
    )

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(11))]
SENTENCES = ["w1 w2 w3", "w4"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def _pruned(built) -> nn.Module:
    model = copy.deepcopy(built)
    platon_prune.global_unstructured(model, amount=0.8, total_steps=1, criterion="magnitude").step()
    return platon_prune.remove(model)


def _encoded(model) -> torch.Tensor:
    return torch.as_tensor(model.encode(SENTENCES))


def test_a_saved_file_goes_into_one_that_its_library_builds(built, tmp_path):
    model = _pruned(built)
    platon_prune.save(model, tmp_path / "model.safetensors")
    other = copy.deepcopy(built)
    assert platon_prune.load_into(other, tmp_path / "model.safetensors") is other
    assert torch.equal(_encoded(other), _encoded(model))
    other = copy.deepcopy(built)
    other.load_state_dict(platon_prune.load(tmp_path / "model.safetensors"))
    assert torch.equal(_encoded(other), _encoded(model))


def test_a_shrunk_one_comes_back_by_load_into(built, tmp_path):
    torch.manual_seed(0)  # of dropout; some draws would end at a floor, which is warned about
    model = copy.deepcopy(built)
    body = model[0].auto_model
    ids = torch.tensor([[2, 6, 7, 3]])
    scheduler = platon_prune.global_structured(
        body, example_inputs={"input_ids": ids}, amount=0.3, total_steps=2, warmup_steps=0,
        cooldown_steps=0, window=1,
    )  # fmt: skip
    for _ in range(2):
        body(input_ids=ids).last_hidden_state.square().mean().backward()
        scheduler.step()
    platon_prune.shrink(platon_prune.remove(body))
    platon_prune.save(model, tmp_path / "model.safetensors")
    other = platon_prune.load_into(copy.deepcopy(built), tmp_path / "model.safetensors")
    assert torch.equal(_encoded(other), _encoded(model))
    assert sum(p.numel() for p in other.parameters()) < sum(p.numel() for p in built.parameters())


def test_its_own_folder_of_a_model_with_masks_is_an_ordinary_sparse_one(built, tmp_path):
    model = copy.deepcopy(built)
    platon_prune.global_unstructured(model, amount=0.8, total_steps=1, criterion="magnitude").step()
    model.save_pretrained(str(tmp_path))
    platon_prune.remove(model)
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.equal(_encoded(again), _encoded(model))
    assert platon_prune.summary(again).total.kept == platon_prune.summary(model).total.kept


def test_its_own_folder_leads_to_its_own_class(built, tmp_path):
    built.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"SentenceTransformer\(path\)"):
        platon_prune.load(tmp_path)
    with pytest.raises(ValueError, match=r"path must be a file, got the folder.*SentenceTransf"):
        platon_prune.load_into(copy.deepcopy(built), tmp_path)
