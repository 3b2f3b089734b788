"""A shrunk model is saved and comes back as it was; what a file says of sizes is not trusted."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sparse_forgery import Forgery
from tiny import assert_same_state
from tiny_shrink import FAMILIES, built, differing, images, mask, masked, output, resnet
from torch import nn

import platon_prune
from platon_prune.groups.find import find_groups

every_family = pytest.mark.parametrize("name", FAMILIES)


def shrunk(name: str) -> nn.Module:
    model = masked(name)
    platon_prune.shrink(model)
    return model


@every_family
def test_a_shrunk_model_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    model = shrunk(name)
    platon_prune.save(model, tmp_path)
    again = platon_prune.load(tmp_path)
    assert type(again) is type(model) and not again.training
    assert_same_state(again, model)
    assert torch.equal(output(again), output(model))
    assert [str(module) for module in again.modules()] == [str(m) for m in model.modules()]
    # And as well a second time, from what was loaded.
    platon_prune.save(again, tmp_path / "again", compression="zstd")
    assert torch.equal(output(platon_prune.load(tmp_path / "again")), output(model))


def test_the_folder_of_a_shrunk_model_says_how_to_load_it(tmp_path: Path) -> None:
    platon_prune.save(shrunk("BERT"), tmp_path)
    assert "platon_prune.load(" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    platon_prune.save(shrunk("BERT"), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["T5", "Llama"])
def test_a_loaded_model_is_trained_and_shrunk_again(name: str, tmp_path: Path) -> None:
    platon_prune.save(shrunk(name), tmp_path)
    model = platon_prune.load(tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    output(model).square().mean().backward()
    optimizer.step()
    groups = find_groups(model)
    mask(model, groups, lambda place: [0] if place.size > 1 else [])
    expected = output(model)
    platon_prune.shrink(model, optimizer)
    torch.testing.assert_close(output(model), expected, rtol=0, atol=1e-5)
    platon_prune.save(model, tmp_path)
    assert_same_state(platon_prune.load(tmp_path), model)
    output(model).square().mean().backward()
    optimizer.step()


def test_a_shrunk_model_with_masks_is_saved_with_its_zeros(tmp_path: Path) -> None:
    model = shrunk("T5")
    platon_prune.global_unstructured(
        model, amount=0.5, total_steps=1, criterion="magnitude", warmup_steps=0, cooldown_steps=0
    ).step()
    platon_prune.save(model, tmp_path)
    again = platon_prune.load(tmp_path)
    platon_prune.remove(model)
    assert_same_state(again, model)
    assert platon_prune.summary(again).total.sparsity == pytest.approx(0.5, abs=1e-3)


def test_uniform_counts_need_no_record_in_the_file(tmp_path: Path) -> None:
    for uniform in (True, False):
        model = masked("Llama")
        platon_prune.shrink(model, uniform=uniform)
        platon_prune.save(model, tmp_path)
        record = Forgery.of(tmp_path / "platon_prune.safetensors").metadata.get("sizes")
        assert (record is None) == uniform
        again = platon_prune.load(tmp_path)
        assert torch.equal(output(again), output(model))


@every_family
def test_from_pretrained_never_takes_other_counts_for_its_own(name: str, tmp_path: Path) -> None:
    model = shrunk(name)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch|mismatched"):
        type(model).from_pretrained(tmp_path)


def test_a_network_of_transformers_with_batch_norms_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "num_labels": 3}
    config = transformers.ResNetConfig(**sizes, layer_type="basic")
    model = transformers.ResNetForImageClassification(config).eval()
    groups = find_groups(model, {"pixel_values": images()})
    mask(model, groups, differing(groups))
    expected = model(pixel_values=images()).logits
    platon_prune.shrink(model, example_inputs={"pixel_values": images()})
    platon_prune.save(model, tmp_path)
    again = platon_prune.load(tmp_path)
    assert_same_state(again, model)
    torch.testing.assert_close(again(pixel_values=images()).logits, expected, rtol=0, atol=1e-5)


# --- files of other modules -----------------------------------------------------------------------


def shrunk_resnet(bottleneck: bool = False) -> nn.Module:
    torch.manual_seed(1)
    model = resnet(bottleneck)
    groups = find_groups(model, images())
    mask(model, groups, differing(groups))
    platon_prune.shrink(model, example_inputs=images())
    return model


@pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])
def test_a_file_is_loaded_into_a_model_of_the_original_size(
    bottleneck: bool, tmp_path: Path
) -> None:
    model = shrunk_resnet(bottleneck)
    path = tmp_path / "model.safetensors"
    platon_prune.save(model, path)
    fresh = resnet(bottleneck)
    parameters = list(fresh.parameters())
    again = platon_prune.load_into(fresh, path)
    assert again is fresh
    assert all(a is b for a, b in zip(fresh.parameters(), parameters, strict=True))
    assert_same_state(fresh, model)
    assert torch.equal(fresh(images()), model(images()))
    assert str(fresh) == str(model)
    platon_prune.load_into(fresh, path)  # it has the sizes now
    with pytest.raises(RuntimeError, match="size mismatch"):
        resnet(bottleneck).load_state_dict(platon_prune.load(path))


class OwnT5(transformers.T5ForConditionalGeneration):
    """A user's class, which is saved as a file."""


def test_which_heads_of_a_shared_bias_a_layer_has_is_in_the_file_too(tmp_path: Path) -> None:
    model = shrunk("T5")
    own = OwnT5(built("T5").config)
    platon_prune.save(model, tmp_path / "folder")
    path = tmp_path / "folder" / "platon_prune.safetensors"
    platon_prune.load_into(own, path)
    assert torch.equal(output(own.eval()), output(model))
    platon_prune.save(own, tmp_path / "file")
    again = platon_prune.load_into(OwnT5(built("T5").config), tmp_path / "file")
    assert torch.equal(output(again.eval()), output(model))


def test_what_a_model_cannot_be_loaded_from_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    small, large = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(4, 2))
    platon_prune.save(large, path)
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(ValueError, match=r"tensors that model describes, got 0\.weight"):
        platon_prune.load_into(small, path)
    with pytest.raises(ValueError, match="tensors that model describes"):
        platon_prune.load_into(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), path)
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        platon_prune.load_into(small, tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    wide = nn.Sequential(nn.Linear(6, 3))
    state = copy.deepcopy(wide.state_dict())
    with pytest.raises(ValueError, match="checksum"):
        platon_prune.load_into(wide, tmp_path / "damaged")
    assert_same_state(wide, _with(nn.Sequential(nn.Linear(6, 3)), state))
    assert_same_state(small, _with(nn.Sequential(nn.Linear(3, 2)), before))
    platon_prune.global_unstructured(
        large, amount=0.5, total_steps=1, criterion="magnitude", warmup_steps=0, cooldown_steps=0
    )
    with pytest.raises(ValueError, match="must be without masks"):
        platon_prune.load_into(large, path)


def _with(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    model.load_state_dict(state)
    return model


# --- forged sizes ----------------------------------------------------------------------------

QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
ATTENTION = "encoder.block.1.layer.0.SelfAttention"
CROSS = "decoder.block.0.layer.1.EncDecAttention"


def _shape(name: str, shape: Any) -> Any:
    return lambda record: record["shapes"].update({name: shape})


def _heads(name: str, heads: Any) -> Any:
    return lambda record: record["own_heads"].update({name: heads})


FORGED = {
    "an unknown tensor": _shape("encoder.nothing", [1]),
    "a tensor of no module": _shape("nothing.at.all.weight", [1]),
    "a method": _shape("forward", [1]),
    "larger": _shape(QUERY, [1 << 40, 16]),
    "slightly larger": _shape(QUERY, [17, 16]),
    "no rows": _shape(QUERY, [0, 16]),
    "negative": _shape(QUERY, [-4, 16]),
    "a fraction": _shape(QUERY, [4.0, 16]),
    "text": _shape(QUERY, ["4", 16]),
    "truth": _shape(QUERY, [True, 16]),
    "one dimension": _shape(QUERY, [4]),
    "three dimensions": _shape(QUERY, [4, 16, 1]),
    "no shape": _shape(QUERY, None),
    "half a head": _shape(QUERY, [6, 16]),
    "vocabulary": _shape("shared.weight", [8, 16]),
    "a norm": _shape("encoder.final_layer_norm.weight", [8]),
    "heads of nothing": _heads("encoder.nothing", [0]),
    "heads of the model": _heads("", [0]),
    "heads of a linear layer": _heads("encoder.block.0.layer.0.SelfAttention.q", [0]),
    "heads beyond the table": _heads(ATTENTION, [99]),
    "negative heads": _heads(ATTENTION, [-1]),
    "heads twice": _heads(ATTENTION, [0, 0]),
    "too many heads": _heads(ATTENTION, [0, 1, 2, 3]),
    "no heads": _heads(ATTENTION, []),
    "heads as text": _heads(ATTENTION, "01"),
    "no bias where there must be one": _heads(ATTENTION, None),
    "a bias where there is none": _heads(CROSS, [0]),
    "other parts": lambda record: record.update(code="import os"),
    "a part less": lambda record: record.pop("own_heads"),
    "a list": lambda record: record.update(shapes=[]),
}


@pytest.mark.parametrize("kind", FORGED)
def test_sizes_that_the_model_cannot_have_is_refused(kind: str, tmp_path: Path) -> None:
    platon_prune.save(shrunk("T5"), tmp_path)
    path = tmp_path / "platon_prune.safetensors"
    forgery = Forgery.of(path)
    record = json.loads(forgery.metadata["sizes"])
    assert ATTENTION in record["own_heads"] and QUERY in record["shapes"]
    FORGED[kind](record)
    forgery.metadata["sizes"] = json.dumps(record)
    forgery.write(path)
    with pytest.raises(ValueError, match="must be as platon_prune"):
        platon_prune.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"shapes": {}, "shapes": {}}', ""])
def test_sizes_that_are_none_is_refused(text: str, tmp_path: Path) -> None:
    platon_prune.save(shrunk("T5"), tmp_path)
    path = tmp_path / "platon_prune.safetensors"
    forgery = Forgery.of(path)
    forgery.metadata["sizes"] = text
    forgery.write(path)
    with pytest.raises(ValueError, match="must be as|must have the tensors"):
        platon_prune.load(tmp_path)
