"""A transformers model saved as a folder comes back as the model itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from sparse_forgery import Forgery
from tiny import MASKINGS, assert_same_state, num_pruned, train
from tiny_transformers import BUILD, bert, gpt2, llama, logits
from torch import nn
from torch.nn.utils import prune

import platon_prune

FILES = {"config.json", "platon_prune.safetensors"}
both_maskings = pytest.mark.parametrize("masking", MASKINGS)


@both_maskings
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("name", BUILD)
def test_a_model_that_is_being_pruned_comes_back_sparse_exact_and_in_evaluation_mode(
    name: str, compression: str, masking: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = BUILD[name]()
    train(model, logits, masking)
    assert num_pruned(model) > 0
    expected = logits(model.eval())
    model.train()
    platon_prune.save(model, tmp_path / "model", compression=compression)
    assert model.training and num_pruned(model) > 0

    again = platon_prune.load(tmp_path / "model")
    assert type(again) is type(BUILD[name]()) and not again.training
    assert torch.equal(logits(again), expected)
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    platon_prune.remove(model)
    assert_same_state(again, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("build", [bert, llama])
def test_dtype_and_buffers_outside_the_state_dict_come_back(
    build: object, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = build().to(dtype).eval()  # rotary frequencies are rounded, too
    if build is bert:
        model.bert.embeddings.LayerNorm.float()
    platon_prune.save(model, tmp_path / "model")
    again = platon_prune.load(tmp_path / "model")
    assert_same_state(again, model)
    assert again.dtype == model.dtype and again.config.dtype == dtype
    buffers = dict(again.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffers[name].dtype == buffer.dtype and torch.equal(buffers[name], buffer)
    if build is llama:
        assert torch.equal(logits(again), logits(model))


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    model = llama(tied=True)
    platon_prune.save(model, tmp_path / "model")
    again = platon_prune.load(tmp_path / "model")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    stored = safetensors.torch.load_file(tmp_path / "model" / "platon_prune.safetensors")
    assert "model.embed_tokens.weight" in stored and "lm_head.weight" not in stored
    assert len(list(again.parameters())) == len(list(model.parameters()))


def test_a_head_that_was_untied_stays_so(tmp_path: Path) -> None:
    model = llama(tied=True)
    model.lm_head.weight = nn.Parameter(torch.randn(16, 8))
    platon_prune.save(model, tmp_path / "model")
    assert_same_state(platon_prune.load(tmp_path / "model"), model)


def test_the_folder_holds_configs_and_the_sparse_file_and_nothing_else(tmp_path: Path) -> None:
    platon_prune.save(bert(), tmp_path / "bert")
    assert set(os.listdir(tmp_path / "bert")) == FILES
    model = gpt2()
    model.generation_config.max_new_tokens = 7
    platon_prune.save(model, tmp_path / "gpt2")
    assert set(os.listdir(tmp_path / "gpt2")) == FILES | {"generation_config.json"}
    assert platon_prune.load(tmp_path / "gpt2").generation_config.max_new_tokens == 7
    assert model.config.architectures is None  # saving changes nothing


def test_other_files_in_the_folder_stay_and_the_model_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    models = [bert(), bert()]
    for model in models:
        platon_prune.save(model, tmp_path)
    assert set(os.listdir(tmp_path)) == FILES | {"tokenizer.json"}
    assert_same_state(platon_prune.load(tmp_path), models[1])


def test_from_pretrained_does_not_take_the_folder_for_one_of_its_own(tmp_path: Path) -> None:
    platon_prune.save(bert(), tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path)


def test_the_file_in_the_folder_is_a_state_dict_of_its_own(tmp_path: Path) -> None:
    model, other = llama(), llama()
    platon_prune.save(model, tmp_path)
    other.load_state_dict(platon_prune.load(tmp_path / "platon_prune.safetensors"))
    assert_same_state(other, model)


def test_masks_of_torchs_methods_are_applied(tmp_path: Path) -> None:
    model = bert().eval()
    dense = model.bert.encoder.layer[0].output.dense
    prune.l1_unstructured(dense, "weight", amount=0.9)
    platon_prune.save(model, tmp_path)
    again = platon_prune.load(tmp_path)
    assert torch.equal(again.bert.encoder.layer[0].output.dense.weight, dense.weight)
    assert torch.equal(logits(again), logits(model))


def test_building_initialises_nothing(tmp_path: Path) -> None:
    platon_prune.save(llama(), tmp_path)
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    platon_prune.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_buffer_that_the_file_does_not_have_is_built_from_the_config(tmp_path: Path) -> None:
    # As when another version of transformers wrote it.
    model = llama().eval()
    platon_prune.save(model, tmp_path)
    forgery = Forgery.of(tmp_path / "platon_prune.safetensors")
    name = "model.rotary_emb.inv_freq"
    other = "model.rotary_emb.other"
    assert name in forgery.index["non_persistent"]
    for key in ("order", "non_persistent"):
        forgery.index[key] = [other if n == name else n for n in forgery.index[key]]
    for names in (forgery.index["records"], forgery.entries):
        renamed = {other if n == name else n: value for n, value in names.items()}
        names.clear()
        names.update(renamed)
    forgery.index["tied"] = {n: other if t == name else t for n, t in forgery.index["tied"].items()}
    forgery.write(tmp_path / "platon_prune.safetensors")
    assert torch.equal(logits(platon_prune.load(tmp_path)), logits(model))


class OwnModel(transformers.BertForSequenceClassification):
    """A user's class, which transformers can't build by name."""


def test_a_class_that_is_not_in_transformers_is_saved_as_a_file(tmp_path: Path) -> None:
    model = OwnModel(bert().config)
    platon_prune.save(model, tmp_path / "model")
    other = OwnModel(model.config)
    other.load_state_dict(platon_prune.load(tmp_path / "model"))
    assert_same_state(other, model)
    with pytest.raises(ValueError, match="path must be a file for a OwnModel"):
        platon_prune.save(model, tmp_path)


# --- what is refused ----------------------------------------------------------------------------


def test_a_folder_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got one without config\.json"):
        platon_prune.load(tmp_path)
    bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"without platon_prune\.safetensors.*from_pretrained"):
        platon_prune.load(tmp_path)


BAD_CONFIGS = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "no type": '{"architectures": ["BertForSequenceClassification"]}',
    "unknown type": '{"model_type": "none", "architectures": ["BertForSequenceClassification"]}',
    "no class": {"architectures": None},
    "unknown class": {"architectures": ["NoSuchModel"]},
    "no name": {"architectures": [3]},
    "not a model": {"architectures": ["AutoModel"]},
    "a module": {"architectures": ["os"]},
    "a method": {"architectures": ["BertModel.forward"]},
    "class of another config": {"architectures": ["GPT2LMHeadModel"]},
    "smaller": {"hidden_size": 4},
    "larger than memory": {"vocab_size": 1 << 40},
    "another class": {"architectures": ["BertForMaskedLM"]},
    "negative": {"hidden_size": -8},
    "text": {"hidden_size": "eight"},
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_config_that_does_not_describe_the_model_is_refused(kind: str, tmp_path: Path) -> None:
    platon_prune.save(bert(), tmp_path)
    config, change = tmp_path / "config.json", BAD_CONFIGS[kind]
    if isinstance(change, dict):
        change = json.dumps(json.loads(config.read_text()) | change)
    config.write_text(change)
    with pytest.raises(ValueError, match="must"):
        platon_prune.load(tmp_path)


def test_code_that_a_folder_brings_is_not_run(tmp_path: Path) -> None:
    platon_prune.save(bert(), tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.Config",
        "AutoModelForSequenceClassification": "evil.Model",
    }
    for model_type in ("bert", "evil"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        if model_type == "bert":
            platon_prune.load(tmp_path)
        else:
            with pytest.raises(ValueError, match="must be the config of a model in transformers"):
                platon_prune.load(tmp_path)
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


def test_a_model_that_its_config_does_not_describe_is_refused_when_saved(tmp_path: Path) -> None:
    model = bert()
    model.bert.extra = nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match="tensors that its config describes, got bert.extra.weight"
    ):
        platon_prune.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_file_where_the_folder_belongs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ValueError, match="path must be a folder for a BertForSequence"):
        platon_prune.save(bert(), tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.case
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
def test_the_name_of_a_file_is_refused_for_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"name of a folder for a Bert.*ModuleDict") as refused:
        platon_prune.save(bert(), tmp_path / name)
    assert name in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["os.fsync", "platon_prune.export.codec.pack_bits"])
def test_a_save_that_fails_leaves_the_old_folder(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert()
    platon_prune.save(model, tmp_path / "model")

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(where, fail)
    other = bert()
    for folder in ("model", "new/model"):
        with pytest.raises(OSError, match="no space left"):
            platon_prune.save(other, tmp_path / folder)
    monkeypatch.undo()
    assert set(os.listdir(tmp_path / "model")) == FILES and not (tmp_path / "new/model").exists()
    assert_same_state(platon_prune.load(tmp_path / "model"), model)


def test_a_damaged_generation_config_is_refused(tmp_path: Path) -> None:
    platon_prune.save(gpt2(), tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match="must be a generation config"):
        platon_prune.load(tmp_path)


def test_a_damaged_weight_file_is_refused(tmp_path: Path) -> None:
    platon_prune.save(bert(), tmp_path)
    path = tmp_path / "platon_prune.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        platon_prune.load(tmp_path)


def test_a_folder_without_transformers_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platon_prune.save(bert(), tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'platon-prune\[transformers\]'"):
        platon_prune.load(tmp_path)
