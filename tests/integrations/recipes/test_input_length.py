"""How many tokens an input of a text recipe has where nobody says it."""

import types

import pytest
from torch import nn

pytest.importorskip("transformers")

from platon_prune.integrations.recipes.tokenizer_checks import fit_length, longest_input


@pytest.mark.parametrize(
    "config, longest",
    [({"max_position_embeddings": -1}, None), ({"max_seq_len": 32}, 32), ({}, None)],
    ids=["XLNet", "MPT", "no word of it"],
)
def test_a_model_tells_its_longest_input_in_several_ways(config, longest):
    model = nn.Identity()
    model.config = types.SimpleNamespace(**config)
    assert longest_input(types.SimpleNamespace(model_max_length=10**30), model) == longest


@pytest.mark.parametrize(
    "given, longest, expected",
    [((), 64, 64), ((), 512, 128), (("max_seq_length",), 64, 128)],
    ids=["lowered to the model", "the default is short enough", "what was given is left alone"],
)
def test_the_default_length_fits_the_model(given, longest, expected):
    data = types.SimpleNamespace(max_seq_length=128)
    arguments = types.SimpleNamespace(given=frozenset(given), data=data)
    model = nn.Identity()
    model.config = types.SimpleNamespace(max_position_embeddings=longest)
    fit_length(arguments, types.SimpleNamespace(model_max_length=10**30), model)
    assert data.max_seq_length == expected
