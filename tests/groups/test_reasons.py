"""What has no groups is named, place by place, with the cause."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.groups.find import find

HIDDEN, WIDTH = 8, 12


class Attention(nn.Module):
    """Three heads of four entries, spelled as ModernBERT's, and what else is asked for."""

    num_heads = 3

    def __init__(self, fused=3 * WIDTH, **beside):
        super().__init__()
        self.Wqkv, self.Wo = nn.Linear(HIDDEN, fused), nn.Linear(WIDTH, HIDDEN)
        for name, module in beside.items():
            setattr(self, name, module)


def headless():
    attention = Attention()
    attention.num_heads = None
    return attention


def feed_forward(**beside):
    module = nn.Module()
    module.fc1, module.fc2 = nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, HIDDEN)
    for name, layer in beside.items():
        setattr(module, name, layer)
    return module


# By names: what is beside the layer, and the reason of the place.
BY_NAMES = {
    "fused matrices of other sizes": (
        Attention(fused=30),
        "heads: its projections are not of whole heads",
    ),
    "no number of heads": (headless(), "heads: the size of a head can't be told"),
    "a norm over all heads": (
        Attention(norm=nn.LayerNorm(WIDTH)),
        "heads: what norm.weight does to its heads is not known",
    ),
    "something between": (
        Attention(mix=nn.Linear(3, 3)),
        "heads: what mix.weight does to its heads is not known",
    ),
    "a norm over neurons": (
        feed_forward(norm=nn.LayerNorm(WIDTH)),
        "neurons: what norm.weight does to its neurons is not known",
    ),
}


@pytest.mark.parametrize("kind", BY_NAMES)
def test_a_layer_of_known_names_says_what_of_it_is_not_understood(kind):
    layer, reason = BY_NAMES[kind]
    model = nn.ModuleDict({"layer": layer, "other": feed_forward()})
    found = find(model)
    assert [place.name for place in found.groups] == ["other"]
    assert found.reasons() == f"layer ({reason})"


def network(*between, last=4):
    return nn.Sequential(nn.Conv2d(3, 8, 3), *between, nn.Conv2d(8, last, 3))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SEEN = "channels: what computes them is seen though they are masked, as where a norm"
TRACED = {
    "a norm over channels": (network(nn.GroupNorm(2, 8)), "0", "channels: how to cut a GroupNorm"),
    "a softmax over channels": (network(nn.Softmax(1)), "0", SEEN),
    "a grouped convolution": (
        network(nn.Conv2d(8, 8, 3, groups=2)),
        "0",
        "channels: how to cut a grouped Conv2d such as 1 is not known",
    ),
    "outputs": (network(), "1", "channels: no layer reads them, as of an output of the model"),
}


@pytest.mark.parametrize("kind", TRACED)
def test_a_traced_place_says_what_ties_its_channels_together(kind):
    pytest.importorskip("torch_pruning")
    model, place, reason = TRACED[kind]
    missed = {missed.name: str(missed) for missed in find(model, IMAGES).missed}
    assert missed[place].startswith(f"{place} ({reason}")


def test_an_error_of_nothing_found_has_each_place_and_its_cause():
    pytest.importorskip("torch_pruning")
    model = network(nn.Softmax(1))
    with pytest.raises(ValueError, match="must have heads, neurons, channels, ") as caught:
        platon_prune.global_structured(model, IMAGES, amount=0.5, total_steps=10)
    assert f"0 ({SEEN}" in str(caught.value)
    assert "2 (channels: no layer reads them, as of an output of the model)" in str(caught.value)
    assert "change what the reasons name, or prune single weights" in str(caught.value)


def test_an_attention_whose_matrix_is_shared_says_with_what():
    model = nn.ModuleDict({"layer": Attention(), "other": feed_forward()})
    model["copy"] = nn.Linear(WIDTH, HIDDEN)
    model["copy"].weight = model["layer"].Wo.weight
    assert find(model).reasons() == "layer (heads: layer.Wo.weight is shared)"
