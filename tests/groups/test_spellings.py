"""Each row of the table of spellings is found alike in a model and in a file, and can be cut."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from torch import nn

import platon_prune
from platon_prune import find_groups, spellings
from platon_prune.export.inspection import inspect_path
from platon_prune.groups.places import find_places

HIDDEN, HEADS, SIZE, NEURONS = 8, 3, 4, 10


def _put(root, path, module):
    """Make a module the submodule at a path, with plain modules on the way."""
    *way, last = path.split(".")
    for name in way:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    root.add_module(last, module)


def _linear(num_in, num_out, is_conv1d=False):
    if is_conv1d:
        return transformers.pytorch_utils.Conv1D(num_out, num_in)
    return nn.Linear(num_in, num_out)


def _network(spelling, fewer_key_heads=1, extra=(), heads=HEADS):
    """The layers of a spelling in a block beside a head, and nothing else."""
    is_attention = isinstance(spelling, spellings.Attention)
    is_conv1d = is_attention and spelling.is_conv1d
    heads = heads * (spelling.blocks if is_attention else 1)
    width = {"query": heads * SIZE, "gate": heads * SIZE, "neurons": NEURONS}
    width["key"] = width["value"] = heads * SIZE // fewer_key_heads
    holder = nn.Module()
    if is_attention:
        holder.num_heads = heads
    root = nn.Module()
    root.block = nn.ModuleList([nn.Module()])
    root.block[0].layer = holder
    for projection in (*spelling.reads, *extra):
        num_out = sum(width[part] for part in projection.parts)
        _put(holder, projection.name, _linear(HIDDEN, num_out, is_conv1d))
    num_in = width["query" if is_attention else "neurons"]
    outer = spelling.writes.startswith("../")
    writes = _linear(num_in, HIDDEN, is_conv1d)
    _put(root.block[0] if outer else holder, spelling.writes.removeprefix("../"), writes)
    return root


def _content(places):
    return [
        (place.kind, place.size, [(m.name, m.dim, m.group_of.tolist()) for m in place.members])
        for place in places
    ]


def _shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _num_heads(model):
    return getattr(model.block[0].layer, "num_heads", HEADS)


def _in_file(model):
    return find_places(_shapes(model), {"num_attention_heads": _num_heads(model)})


EVERY = [*spellings.ATTENTION, *spellings.FEED_FORWARD]
# Grouped queries are not among what Conv1D and matrices in blocks are used for, nor latents.
GROUPED = [
    spelling for spelling in spellings.ATTENTION
    if not spelling.is_conv1d and not spelling.is_latent and spelling.blocks == 1
]  # fmt: skip
READ_MORE = [spelling for spelling in spellings.ATTENTION if spelling.may_read]


def _spelled(spelling):
    parts = ["-".join(p.parts) for p in spelling.reads if len(p.parts) > 1]
    return " ".join([p.name for p in spelling.reads] + parts + [spelling.writes])


@pytest.mark.parametrize("spelling", EVERY, ids=_spelled)
def test_a_model_and_its_file_have_the_same_groups(spelling):
    model = _network(spelling)
    is_attention = isinstance(spelling, spellings.Attention)
    found = find_groups(model)
    assert _content(found) == _content(_in_file(model))
    ((kind, size, members),) = _content(found)
    assert (kind, size) == (("heads", HEADS) if is_attention else ("neurons", NEURONS))
    # All but the bias of the layer that reads the groups.
    written = f"block.0.layer.{spelling.writes}.bias".replace("layer.../", "")
    assert {name for name, _, _ in members} == _shapes(model).keys() - {written}


@pytest.mark.parametrize("spelling", EVERY, ids=_spelled)
def test_what_is_zero_is_removable_in_the_file_and_is_removed_from_the_model(spelling, tmp_path):
    model = _network(spelling)
    (place,) = find_groups(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.0)
        for member in place.members:
            index = place.indices(member, [1, 2])
            model.get_parameter(member.name).index_fill_(member.dim, index, 0.0)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"num_attention_heads": _num_heads(model)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (row,) = inspect_path(tmp_path).places
    assert (row.size, row.removable) == (place.size, (1, 2))
    (shrunk,) = platon_prune.shrink(model).places
    assert (shrunk.before, shrunk.after) == (place.size, place.size - 2)


@pytest.mark.parametrize("spelling", GROUPED, ids=_spelled)
def test_query_heads_that_share_a_key_head_are_one_group_in_both(spelling):
    model = _network(spelling, fewer_key_heads=3, heads=6)
    assert _content(find_groups(model)) == _content(_in_file(model))
    assert find_groups(model)[0].size == 2


@pytest.mark.parametrize("spelling", GROUPED, ids=_spelled)
def test_query_heads_go_one_by_one_where_all_share_one_key_head_which_stays_in_both(spelling):
    model = _network(spelling, fewer_key_heads=HEADS)
    assert _content(find_groups(model)) == _content(_in_file(model))
    (place,) = find_groups(model)
    assert place.size == HEADS
    width = _network(spelling).block[0].layer.num_heads * SIZE
    for member in place.members:
        in_groups = member.group_of[member.group_of >= 0]
        # A query's entries, and with Qwen3-Next those of its gate.
        assert in_groups.bincount().tolist() in ([SIZE] * HEADS, [2 * SIZE] * HEADS)
        if in_groups.numel() < member.group_of.numel():  # fused: behind the queries
            assert member.group_of[width:].eq(-1).all() and in_groups.numel() == width


@pytest.mark.parametrize("spelling", READ_MORE, ids=_spelled)
def test_projections_of_positions_belong_to_the_heads_in_both(spelling):
    model = _network(spelling, extra=spelling.may_read)
    (place,) = find_groups(model)
    assert len(place.members) == 2 * len((*spelling.reads, *spelling.may_read)) + 1
    assert _content([place]) == _content(_in_file(model))


@pytest.mark.parametrize("spelling", EVERY, ids=_spelled)
def test_a_parameter_that_no_row_knows_leaves_the_layer_alone_in_both(spelling):
    model = _network(spelling)
    width = NEURONS if isinstance(spelling, spellings.FeedForward) else HEADS * SIZE
    model.block[0].layer.norm = nn.LayerNorm(width)
    assert _in_file(model) == []
    with pytest.raises(ValueError, match="example_inputs must be given"):
        find_groups(model)


def test_a_norm_over_one_head_leaves_it_its_heads_in_both():
    model = _network(spellings.ATTENTION[0])
    model.block[0].layer.q_norm = nn.LayerNorm(SIZE)
    assert [place.size for place in find_groups(model)] == [HEADS]
    assert _content(find_groups(model)) == _content(_in_file(model))


def test_of_two_rows_that_fit_the_one_with_more_layers_stands_first():
    for rows in (spellings.ATTENTION, spellings.FEED_FORWARD):
        names = [({p.name for p in row.reads}, row.writes) for row in rows]
        for i, (reads, writes) in enumerate(names):
            assert not any(
                before <= reads and last == writes and before != reads for before, last in names[:i]
            ), f"{writes} is taken for another"


# --- where the finders had drifted apart --------------------------------------------------------


def _saved(model, folder):
    model.save_pretrained(folder)
    return {(row.name, row.kind): row for row in inspect_path(folder).places}


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (
            lambda: transformers.GPTNeoXModel(
                transformers.GPTNeoXConfig(
                    hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=10, vocab_size=16,
                )
            ),
            ("layers.0.mlp", "neurons"),
        ),
        (
            lambda: transformers.AlbertModel(
                transformers.AlbertConfig(
                    hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=10, vocab_size=16, embedding_size=8,
                )
            ),
            ("encoder.albert_layer_groups.0.albert_layers.0", "neurons"),
        ),
        (
            lambda: transformers.NemotronModel(
                transformers.NemotronConfig(
                    hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=10, vocab_size=16, num_key_value_heads=2,
                )
            ),
            ("layers.0.mlp", "neurons"),
        ),
        (
            lambda: transformers.GPT2Model(
                transformers.GPT2Config(
                    n_embd=8, n_layer=1, n_head=2, n_inner=10, vocab_size=16,
                    add_cross_attention=True,
                )
            ),
            ("h.0.crossattention", "heads"),
        ),
        (
            lambda: transformers.XGLMModel(
                transformers.XGLMConfig(
                    d_model=8, num_layers=1, attention_heads=2, ffn_dim=10, vocab_size=16,
                )
            ),
            ("layers.0.self_attn", "heads"),
        ),
        (
            lambda: transformers.T5Model(
                transformers.T5Config(
                    d_model=8, d_kv=4, d_ff=10, num_layers=1, num_heads=2, vocab_size=16,
                )
            ),
            ("decoder.block.0.layer.1.EncDecAttention", "heads"),
        ),
    ],
    ids=["GPT-NeoX", "ALBERT", "Nemotron", "GPT-2's cross-attention", "XGLM", "T5"],
)  # fmt: skip
def test_inspect_lists_what_find_groups_finds(build, place, tmp_path):
    model = build()
    groups = {(groups.name, groups.kind): groups.size for groups in find_groups(model)}
    rows = {name: row.size for name, row in _saved(model, tmp_path).items()}
    assert groups == {name: size for name, size in rows.items() if name[1] != "channels"}
    assert place in rows


def test_inspect_lists_no_heads_behind_a_norm_over_all_of_them_that_subtracts_a_mean(tmp_path):
    config = transformers.Olmo2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=10,
        vocab_size=17, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.Olmo2Model(config)
    assert {kind for _, kind in _saved(model, tmp_path / "rms")} == {"heads", "neurons"}
    model.layers[0].self_attn.q_norm = nn.LayerNorm(16)
    assert {kind for _, kind in _saved(model, tmp_path / "mean")} == {"neurons"}


def test_inspect_lists_no_heads_of_attention_over_blocks_drawn_per_head(tmp_path):
    config = transformers.AutoformerConfig(
        prediction_length=4, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=10,
        decoder_ffn_dim=10, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    model = transformers.AutoformerModel(config)
    assert {groups.kind for groups in find_groups(model)} == {"neurons"}
    assert {kind for _, kind in _saved(model, tmp_path)} == {"neurons"}


def test_each_tower_has_the_heads_of_its_own_config(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config=sizes | {"num_attention_heads": 2, "vocab_size": 16},
        vision_config=sizes | {"num_attention_heads": 4, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    rows = _saved(transformers.CLIPModel(config), tmp_path)
    heads = {name.split(".")[0]: row.size for (name, kind), row in rows.items() if kind == "heads"}
    assert heads == {"text_model": 2, "vision_model": 4}


def test_buffers_of_older_files_hide_no_heads():
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_inner=10, vocab_size=16)
    shapes = _shapes(transformers.GPT2Model(config))
    old = shapes | {"h.0.attn.bias": (1, 1, 1024, 1024), "h.0.attn.masked_bias": ()}
    assert _content(find_places(old, config.to_dict())) == _content(
        find_places(shapes, config.to_dict())
    )
    assert {place.kind for place in find_places(old, config.to_dict())} == {"heads", "neurons"}


def test_a_pattern_of_experts_lies_along_their_inputs(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    kept = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(2)
    weights = {  # experts, outputs, inputs; and the other way round
        "mixtral": kept.expand(3, 5, 8),
        "gpt_oss": kept[:, None].expand(3, 8, 5),
    }
    for model_type, weight in weights.items():
        folder = tmp_path / model_type
        folder.mkdir()
        tensors = {"layers.0.mlp.experts.gate_up_proj": weight.contiguous()}
        safetensors.save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        (row,) = inspect_path(folder)
        assert row.pattern == "2:4", model_type


def test_the_main_feed_forward_layer_of_mobilebert_is_found_beside_its_small_ones():
    """Its bottleneck has the size of the neurons, as in the published models (512)."""
    sizes = dict(hidden_size=24, intermediate_size=24, true_hidden_size=8, embedding_size=8)
    config = transformers.MobileBertConfig(
        **sizes, intra_bottleneck_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=16
    )
    torch.manual_seed(0)
    model = transformers.MobileBertModel(config).eval()
    neurons = [place for place in find_groups(model) if place.kind == "neurons"]
    small = [f"encoder.layer.0.ffn.{i}" for i in range(3)]
    assert {place.name: place.size for place in neurons} == dict.fromkeys(
        ["encoder.layer.0", *small], 24
    )
    tokens = torch.randint(16, (2, 5))
    with torch.no_grad():
        for place in neurons:
            for member in place.members:
                gone = place.indices(member, range(7))
                model.get_parameter(member.name).index_fill_(member.dim, gone, 0)
        expected = model(tokens).last_hidden_state
        platon_prune.shrink(model)
        assert model.encoder.layer[0].intermediate.dense.out_features == 17
        torch.testing.assert_close(model(tokens).last_hidden_state, expected)
