"""A layer of which nothing is left goes as a whole, and the model does what it did."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_blocks
import torch
import transformers
from tiny_blocks import FAMILIES, built, inputs_of, layers_of, output
from torch import Tensor, nn

import platon_prune

# OLMo 2 is tried below, with a layer that is merely empty.
every_family = pytest.mark.parametrize("name", [name for name in FAMILIES if name != "OLMo 2"])


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and expected.isfinite().all()
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@torch.no_grad()
def empty(model: nn.Module, *paths: str) -> None:
    """Layers as if they had been pruned."""
    for path in paths:
        for parameter in model.get_submodule(path).parameters():
            parameter.zero_()


def tokens_of(model: nn.Module) -> Tensor:
    inputs = {key: inputs_of(model)[key] for key in ("input_ids", "attention_mask")}
    return model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)


# --- the whole way --------------------------------------------------------------------------------


# T5's first layers and ModernBERT's stay, which a warning says.
@pytest.mark.filterwarnings("ignore:left out of pruning")
@every_family
def test_a_model_is_trained_loses_layers_and_comes_back_from_a_folder(
    name: str, tmp_path: Path
) -> None:
    model = built(name)
    before = {path: len(layers) for path, layers in layers_of(model).items()}
    scheduler, optimizer = tiny_blocks.trained(model, kinds="blocks", amount=0.5)
    assert len(scheduler.history) >= 3
    expected = output(model)
    written = tokens_of(model) if model.can_generate() else None
    report = platon_prune.shrink(model, optimizer)
    after = {path: len(layers) for path, layers in layers_of(model).items()}
    lost = {path: before[path] - after[path] for path in before}
    assert sum(lost.values()) >= 1
    assert {row.name: row.before - row.after for row in report.places} == {
        path: count for path, count in lost.items() if path in {r.name for r in report.places}
    }
    assert report.in_config == ("blocks",)
    assert_close(output(model), expected)
    # As transformers loads it, and as we do.
    model.save_pretrained(tmp_path / "plain")
    platon_prune.save(model, tmp_path / "ours")
    for again in (
        type(model).from_pretrained(tmp_path / "plain").eval(),
        platon_prune.load(tmp_path / "ours"),
    ):
        assert torch.equal(output(again), output(model))
        assert {path: len(layers) for path, layers in layers_of(again).items()} == after
        if written is not None:
            assert torch.equal(tokens_of(again), written)
    if written is not None:
        assert torch.equal(tokens_of(model), written)
    tiny_blocks.go_on(model, None, optimizer, 2)  # and it goes on training
    assert output(model).isfinite().all()


def test_a_cache_has_an_entry_for_each_layer_that_is_left() -> None:
    model = built("Gemma 2")
    stack = list(layers_of(model))[-1]
    empty(model, f"{stack}.1")
    expected = tokens_of(model)
    platon_prune.shrink(model)
    assert [len(layers) for layers in layers_of(model).values()][-1] == 3
    with torch.no_grad():
        cache = model(**inputs_of(model), use_cache=True).past_key_values
    assert len(cache.layers) == 3
    assert torch.equal(tokens_of(model), expected)
    numbers = {
        module.layer_idx
        for layer in layers_of(model)[stack]
        for module in layer.modules()
        if getattr(module, "layer_idx", None) is not None
    }
    assert numbers == {0, 1, 2}


# --- what goes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "OLMo 2", "ModernBERT"])
def test_a_layer_whose_heads_and_neurons_are_all_gone_goes(name: str) -> None:
    model = built(name)
    stack = list(layers_of(model))[-1]
    inside = [p for p in platon_prune.find_groups(model) if p.name.startswith(f"{stack}.2")]
    with torch.no_grad():
        for member in (member for place in inside for member in place.members):
            model.get_parameter(member.name).zero_()
    expected = output(model)
    report = platon_prune.shrink(model)
    assert len(layers_of(model)[stack]) == 3
    assert_close(output(model), expected)
    rows = {(row.name, row.kind): row for row in report.places}
    assert rows[stack, "blocks"].after == rows[stack, "blocks"].before - 1
    for place in inside:
        assert rows[place.name, place.kind].after == 0
        assert rows[place.name, place.kind].note == "its block is gone"


def test_a_layer_that_still_adds_a_bias_stays() -> None:
    model = built("GPT-2")
    inside = [p for p in platon_prune.find_groups(model) if p.name.startswith("transformer.h.2")]
    with torch.no_grad():
        for member in (member for place in inside for member in place.members):
            model.get_parameter(member.name).zero_()
    expected = output(model)
    report = platon_prune.shrink(model)
    assert len(model.transformer.h) == 4
    assert_close(output(model), expected)
    assert {row.after for row in report.places if row.name.startswith("transformer.h.2")} == {1}


def test_layers_around_those_that_go_get_the_counts_that_they_need(tmp_path: Path) -> None:
    model = built("Llama")
    empty(model, "model.layers.1")
    places = [p for p in platon_prune.find_groups(model) if p.name.startswith("model.layers.3")]
    with torch.no_grad():
        for place in places:
            for member in place.members:
                index = place.indices(member, [0])
                model.get_parameter(member.name).index_fill_(member.dim, index, 0)
    expected = output(model)
    platon_prune.shrink(model)
    assert model.model.layers[2].mlp.up_proj.out_features == 11
    assert model.model.layers[1].mlp.up_proj.out_features == 12
    assert_close(output(model), expected)
    platon_prune.save(model, tmp_path / "folder")
    again = platon_prune.load(tmp_path / "folder")
    assert torch.equal(output(again), output(model))
    # What is left is known by its new names.
    rows = [(row.name, row.kept) for row in platon_prune.structure(model)]
    assert ("model.layers.2.mlp", 11) in rows and len(rows) == 6 + 0


def test_uniform_counts_and_fewer_layers_are_told_by_one_config(tmp_path: Path) -> None:
    model = built("Llama")
    empty(model, "model.layers.0")
    places = [p for p in platon_prune.find_groups(model) if p.kind == "neurons"]
    with torch.no_grad():
        for place in places[1:]:
            for member in place.members:
                index = place.indices(member, [4, 5])
                model.get_parameter(member.name).index_fill_(member.dim, index, 0)
    expected = output(model)
    report = platon_prune.shrink(model, uniform=True)
    assert set(report.in_config) == {"blocks", "neurons"}
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (3, 10)
    model.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert_close(output(again), expected)


def test_kinds_of_attention_stay_with_their_layers() -> None:
    model = built("Gemma 2")
    kinds = model.config.layer_types
    assert len(set(kinds)) == 2
    empty(model, "model.layers.0", "model.layers.2")
    expected = output(model)
    platon_prune.shrink(model)
    assert model.config.layer_types == [kinds[1], kinds[3]]
    assert_close(output(model), expected)


def test_one_layer_of_a_list_stays_though_nothing_is_left_of_any() -> None:
    model = built("Llama")
    empty(model, *(f"model.layers.{i}" for i in range(4)))
    expected = output(model)
    platon_prune.shrink(model)
    assert len(model.model.layers) == 1
    assert_close(output(model), expected)


def test_t5_keeps_the_layers_that_have_the_table_of_positions() -> None:
    model = built("T5")
    empty(model, "encoder.block.0.layer", "encoder.block.1.layer")
    expected, written = output(model), tokens_of(model)
    platon_prune.shrink(model)
    assert len(model.encoder.block) == 3
    assert hasattr(model.encoder.block[0].layer[0].SelfAttention, "relative_attention_bias")
    assert len(model.decoder.block) == model.config.num_decoder_layers == 4
    assert model.config.num_layers == model.encoder.config.num_layers == 3
    assert_close(output(model), expected)
    assert torch.equal(tokens_of(model), written)  # with caches for four


def test_a_layer_that_is_scaled_by_its_number_stays() -> None:
    model = built("GPT-2", scale_attn_by_inverse_layer_idx=True)
    empty(model, "transformer.h.1")
    expected = output(model)
    platon_prune.shrink(model)
    assert len(model.transformer.h) == 4
    assert_close(output(model), expected)


# --- optimizers, copies, other models -------------------------------------------------------------


def test_the_optimizer_forgets_what_is_gone_and_keeps_the_rest() -> None:
    model = built("Llama")
    scheduler, optimizer = tiny_blocks.trained(model, kinds="blocks", amount=0.5)
    remembered = {id(p): state["exp_avg"] for p, state in optimizer.state.items()}
    platon_prune.shrink(model, optimizer)
    (group,) = optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))
    assert set(map(id, optimizer.state)) == set(map(id, model.parameters()))
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"] is remembered[id(parameter)]


def test_a_copy_of_a_model_without_some_layers_does_the_same() -> None:
    model = built("Gemma 2")
    empty(model, "model.layers.1")
    platon_prune.shrink(model)
    assert torch.equal(output(copy.deepcopy(model)), output(model))


class _Residual(nn.Module):
    def __init__(self, position: int) -> None:
        super().__init__()
        self.block_id = position
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).relu()


def test_layers_of_any_model_go_and_are_numbered_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Sequential(*map(_Residual, range(4)))).eval()
    empty(model, "1.0", "1.2")
    x = torch.randn(5, 3)
    expected = model(x)
    platon_prune.shrink(model, example_inputs=x)
    assert [block.block_id for block in model[1]] == [0, 1]
    assert torch.equal(model(x), expected)
