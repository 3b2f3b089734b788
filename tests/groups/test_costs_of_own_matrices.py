"""What an entry costs of matrices that a module holds itself."""

import pytest
import torch

import platon_prune
from platon_prune.commands.architectures.configs import TINY
from platon_prune.example_inputs import guessed_inputs
from platon_prune.groups.costs import mac_prices
from platon_prune.groups.find import find_groups

pytest.importorskip("transformers")
TOKENS = 2 * 6  # of the guessed inputs


def prices(name):
    model = TINY[name].build()
    return mac_prices(model, find_groups(model), guessed_inputs(model)).of_entry


@pytest.mark.parametrize(
    ("name", "place"), [("Mixtral", "layers.0.mlp"), ("GPT-OSS", "layers.1.mlp")]
)
def test_an_entry_of_an_expert_costs_the_rows_of_the_mean_expert(name, place):
    found = prices(name)
    # Each token goes to two of three experts.
    assert found[f"{place}.experts.gate_up_proj"] == TOKENS * 2 // 3
    assert found[f"{place}.experts.down_proj"] == TOKENS * 2 // 3
    layer = place.removesuffix("mlp")
    assert found[f"{layer}self_attn.q_proj.weight"] == TOKENS


def test_an_entry_of_xlnets_attention_costs_one_product_a_token():
    found = prices("XLNet")
    assert found["layer.0.rel_attn.q"] == found["layer.0.rel_attn.o"] == TOKENS
    assert found["layer.0.rel_attn.r_w_bias"] == 0


@pytest.mark.parametrize("name", ["DeBERTa v1", "Funnel", "Swin", "Swin v2", "OLMo 2", "GPT-OSS"])
def test_parameters_beside_matrices_cost_nothing(name):
    model = TINY[name].build()
    scheduler = platon_prune.global_structured(
        model, guessed_inputs(model), amount=0.3, total_steps=40, budget="macs"
    )
    assert scheduler.granularity.largest_amount > 0.3
    of_entry = mac_prices(model, scheduler.granularity.groups, guessed_inputs(model)).of_entry
    for key in ("sinks", "q_bias", "logit_scale", "relative_position_bias_table", "q_norm.weight"):
        assert not any(price for name, price in of_entry.items() if name.endswith(key))
    assert torch.tensor(list(of_entry.values())).gt(0).any()
