"""Floors, kinds, include, exclude and errors are the same for each way to lay out a layer."""

from __future__ import annotations

import pytest

import platon_prune
from platon_prune.commands.architectures.configs import TINY
from platon_prune.groups.layouts import layout_groups

pytest.importorskip("transformers")
# One of each layout: fused by blocks and by head, gated in one matrix, with grouped queries, with
# one key-value head, with a handed bias, stored inputs by outputs, with matrices of the module's
# own, with experts, of images with stages, of sound.
NAMES = (
    *("ModernBERT", "DeBERTa v1", "Phi-3", "OLMo 2", "Falcon with one key-value head", "Bloom"),
    *("GPT-2", "XLNet", "GPT-OSS", "Swin", "wav2vec 2.0"),
)
HALF = {"heads": 2, "neurons": 0.5}


@pytest.fixture(params=NAMES)
def model(request):
    return TINY[request.param].build()


def prepared(model, **settings):
    return platon_prune.global_structured(
        model, **{"amount": 0.2, "total_steps": 20, "window": 5} | settings
    )


def test_floors_keep_as_much_of_each_place_and_patterns_and_kinds_choose_places(model):
    every = list(layout_groups(model))
    wanted = sorted(every, key=lambda place: place.name)[-2:]
    kinds = tuple({place.kind for place in wanted})
    include = [f"{place.name}." for place in wanted]
    scheduler = prepared(model, include=include, kinds=kinds, min_heads=2, min_neurons=0.5)
    granularity = scheduler.granularity
    assert {p.name for p in wanted} == {p.name for p in granularity.groups}
    assert list(granularity.floors) == [
        2 if place.kind == "heads" else -(-place.size // 2) for place in granularity.groups
    ]
    scheduler.remove()


ERRORS = {
    "a pattern of nothing": ({"include": "nowhere"}, r"include must match .*'nowhere'"),
    "no such kind": (
        {"kinds": "rows"},
        "kinds must be some of heads, .*; got 'rows'",
    ),
    "nothing left": (
        {"exclude": "."},
        "got none that include, exclude and kinds leave: change what",
    ),
    "no count": ({"min_heads": -1}, "min_heads must be a count of at least 0, got -1"),
    "a share above all": ({"min_neurons": 2}, r"min_neurons must be a share .* in \[0, 1\], got 2"),
    "no room": ({"amount": 0.9, "min_heads": 99, "min_neurons": 1.0}, "amount must be at most 0.0"),
}


def test_errors_read_alike(model):
    for settings, message in ERRORS.values():
        with pytest.raises(ValueError, match=message):
            prepared(model, **settings)
    assert not any("mask" in name for name, _ in model.named_buffers())
