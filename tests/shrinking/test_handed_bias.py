"""Attention that is handed a bias of all heads of the model takes those of its own."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sparse_forgery import Forgery
from tiny_shrink import mask

import platon_prune
from platon_prune.commands.architectures.configs import TINY
from platon_prune.example_inputs import guessed_inputs
from platon_prune.groups.find import find_groups
from platon_prune.shrinking.attention.own_heads import own_heads
from platon_prune.shrinking.even import with_zeros_back

NAMES = ("Bloom", "MPT", "Falcon with ALiBi", "MPNet")
DECODERS = {"Bloom": "ForCausalLM", "MPT": "ForCausalLM", "Falcon with ALiBi": "ForCausalLM"}


def pruned(name, model="Model", gone=((1,), (0, 2))):
    """A model whose layers lack other heads, and as many outputs as with them."""
    model = replace(TINY[name], model=model).build()
    places = [place for place in find_groups(model) if place.kind == "heads"]
    of = {place.name: heads for place, heads in zip(places, gone, strict=True)}
    mask(model, places, lambda place: of[place.name])
    return model


def outputs(model):
    with torch.no_grad():
        return model(**guessed_inputs(model))[0]


def assert_close(one, other):
    assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def heads_of(model):
    return [heads for _, heads in sorted(own_heads(model).items())]


@pytest.mark.parametrize("name", NAMES)
def test_layers_take_their_own_heads_of_the_bias_after_each_cut_and_in_each_copy(name):
    model = pruned(name)
    expected = outputs(model)
    platon_prune.shrink(model)
    assert heads_of(model) == [[0, 2, 3], [1, 3]]
    assert_close(outputs(model), expected)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert heads_of(again) == heads_of(model)
        assert torch.equal(outputs(again), outputs(model))
    mask(model, find_groups(model)[::2], lambda place: [0])  # the heads; neurons lie between
    expected = outputs(model)
    platon_prune.shrink(model)
    assert heads_of(model) == [[2, 3], [3]]
    assert_close(outputs(model), expected)


@pytest.mark.parametrize("name", NAMES)
def test_with_zeros_put_back_it_is_a_model_for_from_pretrained(name, tmp_path):
    model = pruned(name)
    platon_prune.shrink(model)
    with_zeros_back(model).save_pretrained(tmp_path)
    assert_close(outputs(type(model).from_pretrained(tmp_path).eval()), outputs(model))


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_generates_from_its_cache_as_with_the_heads_as_zeros(name):
    model = pruned(name, DECODERS[name])
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    expected = model.generate(tokens, max_new_tokens=4, do_sample=False)
    report = platon_prune.shrink(model)
    assert [row.after for row in report.places if row.kind == "heads"] == [3, 2]
    assert torch.equal(model.generate(tokens, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.parametrize("heads", [[0, 1], [1, 0, 2], [0, 1, 4], [0, 0, 1], [], None])
def test_heads_that_the_bias_does_not_have_are_refused(heads, tmp_path: Path):
    model = pruned("Bloom")
    platon_prune.shrink(model)
    platon_prune.save(model, tmp_path)
    path = tmp_path / "platon_prune.safetensors"
    forgery = Forgery.of(path)
    record = json.loads(forgery.metadata["sizes"])
    record["own_heads"]["h.0.self_attention"] = heads
    forgery.metadata["sizes"] = json.dumps(record)
    forgery.write(path)
    with pytest.raises(ValueError, match="heads of h.0.self_attention that it can't have"):
        platon_prune.load(tmp_path)
