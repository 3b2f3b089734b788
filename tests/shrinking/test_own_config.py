"""Attention that reads its heads from a config of its own, beside the model's."""

import copy
import pickle

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.commands.architectures.configs import TINY
from platon_prune.shrinking.own_config import counts_in_config, set_in_own_config_

pytest.importorskip("transformers")
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8]])


@torch.no_grad()
def output(model):
    return model(TOKENS).last_hidden_state


@pytest.fixture(scope="module")
def made():
    model = TINY["Phi-3"].build()
    model.set_attn_implementation("eager")
    scheduler = platon_prune.global_structured(
        model, amount=0.5, kinds="heads", criterion="magnitude", total_steps=2, window=1
    )
    for _ in range(2):
        scheduler.step(skipped=True)
    platon_prune.shrink(platon_prune.remove(model))
    assert model.layers[0].self_attn.config.num_attention_heads == 2
    return model


@pytest.fixture
def shrunk(made):
    return copy.deepcopy(made)


def test_another_kernel_of_attention_computes_the_same_once_heads_are_cut(shrunk):
    before = output(shrunk)
    # The mask of this kernel is none at all; eager attention would take it for "all may be seen".
    shrunk.set_attn_implementation("sdpa")
    assert torch.allclose(output(shrunk), before, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_its_heads_and_follows_its_own_model(shrunk, copied):
    other = copied(shrunk)
    assert torch.equal(output(other), output(shrunk))
    other.set_attn_implementation("sdpa")
    own = [model.layers[0].self_attn.config for model in (shrunk, other)]
    assert [config._attn_implementation for config in own] == ["eager", "sdpa"]
    assert [config.num_attention_heads for config in own] == [2, 2]


def test_heads_that_are_cut_twice_leave_the_models_config_alone(shrunk):
    attention = shrunk.layers[0].self_attn
    set_in_own_config_(attention, {"num_attention_heads": 1})
    assert counts_in_config(attention) == {"num_attention_heads": 1}
    assert shrunk.config.num_attention_heads == 2


class Counted:
    """A config that is none of transformers."""

    num_heads = 4


def test_a_config_of_another_kind_is_copied():
    module = nn.Linear(2, 2)
    module.config = config = Counted()
    set_in_own_config_(module, {"num_heads": 3})
    assert (module.config.num_heads, config.num_heads) == (3, 4)
