"""Which groups a model has, by arithmetic, and that a masked group is seen nowhere."""

from __future__ import annotations

import threading
import time

import pytest
import resnet
import small_transformers
import torch
import transformers
from torch import nn
from torch.nn.utils import prune as torch_prune

import platon_prune
from platon_prune import find_groups

HEADS, HEAD, NEURONS = 4, 4, 10


def _layout(groups):
    """Each member as (name, dimension, group of each index)."""
    return [(m.name, m.dim, m.group_of.tolist()) for m in groups.members]


def _each(count, size):
    return [i for i in range(count) for _ in range(size)]


def _linear(name, group_of):
    return [(f"{name}.weight", 0, group_of), (f"{name}.bias", 0, group_of)]


def _places(name):
    return {
        (groups.name, groups.kind): groups for groups in find_groups(small_transformers.build(name))
    }


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "ELECTRA"])
def test_the_groups_of_bert_are_its_heads_and_neurons(family):
    places = _places(family)
    layers = [f"encoder.layer.{i}" for i in range(2)]
    assert list(places) == [
        (f"{layer}{part}", kind)
        for layer in layers
        for part, kind in ((".attention.self", "heads"), ("", "neurons"))
    ]
    heads = places["encoder.layer.1.attention.self", "heads"]
    of_head = _each(HEADS, HEAD)
    assert heads.size == HEADS
    assert _layout(heads) == [
        *_linear("encoder.layer.1.attention.self.query", of_head),
        *_linear("encoder.layer.1.attention.self.key", of_head),
        *_linear("encoder.layer.1.attention.self.value", of_head),
        ("encoder.layer.1.attention.output.dense.weight", 1, of_head),
    ]
    neurons = places["encoder.layer.0", "neurons"]
    assert neurons.size == NEURONS
    assert _layout(neurons) == [
        *_linear("encoder.layer.0.intermediate.dense", list(range(NEURONS))),
        ("encoder.layer.0.output.dense.weight", 1, list(range(NEURONS))),
    ]


def test_positions_with_projections_of_their_own_belong_to_debertas_heads():
    of_head = _each(HEADS, HEAD)
    shared = _places("DeBERTa-v3")["encoder.layer.0.attention.self", "heads"]
    own = _places("DeBERTa-v2")["encoder.layer.0.attention.self", "heads"]
    path = "encoder.layer.0.attention.self."
    assert _layout(shared) == [
        *_linear(f"{path}query_proj", of_head),
        *_linear(f"{path}key_proj", of_head),
        *_linear(f"{path}value_proj", of_head),
        ("encoder.layer.0.attention.output.dense.weight", 1, of_head),
    ]
    extra = [member for member in _layout(own) if member not in _layout(shared)]
    assert sorted(extra) == sorted(
        _linear(f"{path}pos_query_proj", of_head) + _linear(f"{path}pos_key_proj", of_head)
    )


def test_a_conv1d_is_cut_the_other_way_round_and_holds_query_key_and_value_side_by_side():
    places = _places("GPT-2")
    of_head = _each(HEADS, HEAD)
    assert _layout(places["h.0.attn", "heads"]) == [
        ("h.0.attn.c_attn.weight", 1, 3 * of_head),
        ("h.0.attn.c_attn.bias", 0, 3 * of_head),
        ("h.0.attn.c_proj.weight", 0, of_head),
    ]
    assert _layout(places["h.1.mlp", "neurons"]) == [
        ("h.1.mlp.c_fc.weight", 1, list(range(NEURONS))),
        ("h.1.mlp.c_fc.bias", 0, list(range(NEURONS))),
        ("h.1.mlp.c_proj.weight", 0, list(range(NEURONS))),
    ]


def test_the_cross_attention_of_gpt2_has_a_query_of_its_own():
    heads = _places("GPT-2 with cross-attention")["h.0.crossattention", "heads"]
    of_head = _each(HEADS, HEAD)
    assert [(name.split(".", 3)[-1], dim, index) for name, dim, index in _layout(heads)] == [
        ("c_attn.weight", 1, 2 * of_head),
        ("c_attn.bias", 0, 2 * of_head),
        ("q_attn.weight", 1, of_head),
        ("q_attn.bias", 0, of_head),
        ("c_proj.weight", 0, of_head),
    ]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen3"])
def test_a_key_value_head_goes_with_all_its_query_heads_and_a_neuron_with_its_gate(family):
    places = _places(family)
    heads = places["layers.0.self_attn", "heads"]
    of_query, of_key = _each(2, 2 * HEAD), _each(2, HEAD)
    assert heads.size == 2
    assert _layout(heads) == [
        ("layers.0.self_attn.q_proj.weight", 0, of_query),
        ("layers.0.self_attn.k_proj.weight", 0, of_key),
        ("layers.0.self_attn.v_proj.weight", 0, of_key),
        ("layers.0.self_attn.o_proj.weight", 1, of_query),
    ]
    neurons = list(range(NEURONS))
    assert _layout(places["layers.1.mlp", "neurons"]) == [
        ("layers.1.mlp.gate_proj.weight", 0, neurons),
        ("layers.1.mlp.up_proj.weight", 0, neurons),
        ("layers.1.mlp.down_proj.weight", 1, neurons),
    ]


def test_the_table_of_positions_that_all_layers_of_t5_share_is_in_no_group():
    places = _places("T5")
    assert [(name, kind) for name, kind in places if name.startswith("decoder.block.1")] == [
        ("decoder.block.1.layer.0.SelfAttention", "heads"),
        ("decoder.block.1.layer.1.EncDecAttention", "heads"),
        ("decoder.block.1.layer.2.DenseReluDense", "neurons"),
    ]
    assert len(places) == 2 * 2 + 2 * 3
    of_head, path = _each(HEADS, HEAD), "encoder.block.0.layer.0.SelfAttention."
    assert _layout(places[path[:-1], "heads"]) == [
        (f"{path}{part}.weight", dim, of_head)
        for part, dim in zip("qkvo", (0, 0, 0, 1), strict=True)
    ]


NUM_PLACES = {
    "ViT": 4,
    "DistilBERT": 4,
    "ALBERT": 2,
    "OPT": 4,
    "BART": 5,
    "T5 v1.1": 10,
    "Qwen2": 4,
}


@pytest.mark.parametrize("family", NUM_PLACES)
def test_other_families_have_a_place_for_each_attention_and_feed_forward_layer(family):
    places = _places(family)
    assert len(places) == NUM_PLACES[family]
    num_heads = 2 if family == "Qwen2" else HEADS
    assert {groups.size for groups in places.values()} == {num_heads, NEURONS}


@pytest.mark.parametrize("family", small_transformers.BUILD)
def test_with_the_output_of_a_group_at_zero_nothing_else_of_it_matters(family):
    model = small_transformers.build(family)
    before = small_transformers.outputs(model)
    for place in find_groups(model):
        results = []
        for value in (0.0, 0.7):
            twin = small_transformers.build(family)
            for member in place.members:
                index = place.indices(member, [1] if place.kind == "heads" else [1, 3, 8])
                is_output = member is place.members[-1]
                with torch.no_grad():
                    tensor = twin.get_parameter(member.name)
                    tensor.index_fill_(member.dim, index, 0.0 if is_output else value)
            results.append(small_transformers.outputs(twin))
        torch.testing.assert_close(*results, msg=f"{place.name} {place.kind}")
        assert not torch.allclose(results[0], before), f"{place.name} does nothing"


def test_torchs_own_encoder_layer_has_neurons_but_no_heads_that_it_could_lose():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    (neurons,) = find_groups(layer)
    assert _layout(neurons) == [
        *_linear("linear1", list(range(12))),
        ("linear2.weight", 1, list(range(12))),
    ]


def test_known_layers_beside_others_are_the_ones_that_are_found():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), layer)
    assert [groups.name for groups in find_groups(model, torch.ones(1, 2, 4))] == ["3"]


def test_a_norm_over_all_heads_that_subtracts_a_mean_leaves_heads_alone():
    config = transformers.Olmo2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=10,
        vocab_size=17, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.Olmo2Model(config)
    assert [groups.kind for groups in find_groups(model)] == ["heads", "neurons"]
    model.layers[0].self_attn.q_norm = torch.nn.LayerNorm(16)
    assert [groups.kind for groups in find_groups(model)] == ["neurons"]


def test_a_norm_between_two_feed_forward_layers_leaves_neurons_alone():
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.norm, self.fc2 = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4)

        def forward(self, x):
            return self.fc2(self.norm(self.fc1(x)))

    with pytest.raises(ValueError, match="example_inputs must be given"):
        find_groups(Mlp())
    assert find_groups(Mlp(), torch.randn(2, 4)) == []


def test_a_weight_that_another_layer_shares_is_in_no_group():
    model = small_transformers.build("BERT")
    model.encoder.layer[0].output.dense.weight = model.encoder.layer[1].output.dense.weight
    assert [groups.kind for groups in find_groups(model)] == ["heads", "heads"]


def test_masks_and_hooks_do_not_change_the_groups():
    model = small_transformers.build("Llama")
    plain = [(groups.name, _layout(groups)) for groups in find_groups(model)]
    platon_prune.global_unstructured(
        model, amount=0.5, total_steps=10, window=2, warmup_steps=0, cooldown_steps=0
    )
    model.layers[0].mlp.register_forward_hook(lambda *args: None)
    assert [(groups.name, _layout(groups)) for groups in find_groups(model)] == plain


def test_a_mask_of_torchs_own_prune_on_a_group_is_refused_and_elsewhere_it_is_not():
    model = small_transformers.build("BERT")
    plain = [(groups.name, _layout(groups)) for groups in find_groups(model)]
    torch_prune.l1_unstructured(model.pooler.dense, "weight", amount=0.5)
    assert [(groups.name, _layout(groups)) for groups in find_groups(model)] == plain
    dense = model.encoder.layer[0].intermediate.dense
    torch_prune.l1_unstructured(dense, "bias", amount=0.5)
    with pytest.raises(
        ValueError, match=r"got one on encoder\.layer\.0\.intermediate\.dense\.bias"
    ):
        find_groups(model)
    with pytest.raises(ValueError, match="no masks of other methods"):
        platon_prune.global_structured(
            model, amount=0.5, total_steps=10, warmup_steps=0, cooldown_steps=0
        )
    torch_prune.remove(dense, "bias")
    assert [(groups.name, _layout(groups)) for groups in find_groups(model)] == plain


def test_a_model_with_masks_of_torchs_own_prune_is_not_traced():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    torch_prune.l1_unstructured(model[2], "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"got one on 2\.weight: finalize it first"):
        find_groups(model, torch.ones(1, 4))


def test_kinds_are_chosen_and_checked():
    model = small_transformers.build("BERT")
    assert {groups.kind for groups in find_groups(model, kinds="heads")} == {"heads"}
    with pytest.raises(ValueError, match="kinds must be some of heads, neurons, channels"):
        find_groups(model, kinds=["layers"])


# --- traced networks ----------------------------------------------------------------------------


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _traced(*layers, inputs=IMAGES):
    torch.manual_seed(0)
    return {groups.name: groups for groups in find_groups(nn.Sequential(*layers), inputs)}


def _names(groups):
    return [(member.name, member.dim) for member in groups.members]


def test_channels_that_a_residual_adds_up_are_one_place_over_a_whole_stage():
    places = {groups.name: groups for groups in find_groups(resnet.ResNet(), IMAGES)}
    assert {name: (groups.kind, groups.size) for name, groups in places.items()} == {
        "conv1": ("channels", 8),
        "layer1.0.conv1": ("channels", 8),
        "layer1.1.conv1": ("channels", 8),
        "layer2.0.conv1": ("channels", 16),
        "layer2.0.conv2": ("channels", 16),
        "layer2.1.conv1": ("channels", 16),
    }
    assert sorted(_names(places["conv1"])) == sorted(
        [("conv1.weight", 0), ("bn1.weight", 0), ("bn1.bias", 0)]
        + [
            (f"layer1.{i}.{name}", 0)
            for i in range(2)
            for name in ("conv2.weight", "bn2.weight", "bn2.bias")
        ]
        + [("layer1.0.conv1.weight", 1), ("layer1.1.conv1.weight", 1)]
        + [("layer2.0.conv1.weight", 1), ("layer2.0.downsample.0.weight", 1)]
    )
    assert _names(places["layer2.1.conv1"]) == [
        ("layer2.1.conv1.weight", 0), ("layer2.1.bn1.weight", 0), ("layer2.1.bn1.bias", 0),
        ("layer2.1.conv2.weight", 1),
    ]  # fmt: skip
    for groups in places.values():
        assert all(m.group_of.tolist() == list(range(groups.size)) for m in groups.members)


def test_a_channel_has_all_the_columns_that_it_is_flattened_to():
    places = _traced(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    (groups,) = places.values()
    assert _layout(groups) == [
        ("0.weight", 0, [0, 1, 2, 3]),
        ("0.bias", 0, [0, 1, 2, 3]),
        ("3.weight", 1, _each(4, 9)),
    ]


def test_a_convolution_by_channel_goes_along_and_a_transposed_one_is_cut_the_other_way_round():
    places = _traced(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.ConvTranspose2d(4, 6, 2),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    assert _names(places["0"]) == [
        ("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("2.weight", 0),
    ]  # fmt: skip
    assert _names(places["2"]) == [("2.weight", 1), ("2.bias", 0), ("3.weight", 1)]


class _Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        return self.last(torch.cat([self.first(x).relu(), self.second(x).relu()], 1))


def test_concatenated_channels_are_found_where_they_lie():
    first, second = find_groups(_Concatenated(), IMAGES)
    assert _layout(first)[-1] == ("last.weight", 1, [0, 1, 2, 3, -1, -1])
    assert _layout(second)[-1] == ("last.weight", 1, [-1, -1, -1, -1, 0, 1])


class _Custom(nn.Module):
    def __init__(self, between, width=6):
        super().__init__()
        self.first, self.last, self.between = nn.Conv2d(3, 6, 1), nn.Conv2d(width, 5, 1), between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("between", "width"),
    [
        (nn.GroupNorm(2, 6), 6),
        (nn.BatchNorm2d(6, affine=False), 6),
        (lambda x: x.softmax(1), 6),
        (lambda x: x - x.mean(1, keepdim=True), 6),
        (lambda x: nn.functional.glu(x, 1), 3),
        (lambda x: x.cumsum(1), 6),
        (lambda x: x.flip(1), 6),
        (lambda x: x + x.roll(1, 1), 6),
    ],
    ids=["group norm", "norm without scale", "softmax", "mean", "glu", "cumsum", "flip", "roll"],
)
def test_channels_that_something_else_depends_on_are_left_alone(between, width):
    assert find_groups(_Custom(between, width), IMAGES) == []


def test_channels_that_the_model_returns_are_left_alone():
    class Both(_Custom):
        def forward(self, x):
            return {"features": self.first(x), "result": self.last(self.first(x))}

    assert find_groups(Both(nn.Identity()), IMAGES) == []


@pytest.mark.parametrize(
    "inputs", [IMAGES, (IMAGES,), {"input": IMAGES}], ids=["tensor", "tuple", "dict"]
)
def test_example_inputs_come_in_three_forms(inputs):
    assert list(_traced(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), inputs=inputs)) == ["0"]


def test_example_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must run on example_inputs"):
        _traced(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), inputs=torch.ones(2, 5, 8, 8))


def test_tracing_leaves_the_model_as_it_is():
    model = resnet.ResNet()
    model.layer1.eval()
    calls = []
    model.fc.register_forward_hook(lambda *args: calls.append(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    model.conv1.weight.requires_grad_(False)
    random = torch.get_rng_state()
    assert len(find_groups(model, IMAGES)) == 6
    assert not calls
    assert torch.equal(torch.get_rng_state(), random)
    assert modes == [module.training for module in model.modules()]
    assert not model.conv1.weight.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_tracing_that_hangs_is_ended(monkeypatch):
    import torch_pruning

    def hang(*args, **kwargs):
        while True:
            pass

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", hang)
    threads = threading.active_count()
    with pytest.raises(TimeoutError, match="within 0.2 seconds"):
        find_groups(resnet.ResNet(), IMAGES, time_limit=0.2)
    deadline = time.monotonic() + 30
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
