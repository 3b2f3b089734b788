"""`platon-prune inspect`: what it says of a file is what was put into it; no model is built."""

import json

import pytest
import torch

pytest.importorskip("transformers")
import tiny_transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import platon_prune  # noqa: E402
from platon_prune import cli  # noqa: E402
from platon_prune.export.inspection import inspect_path  # noqa: E402

LAYER, ATTENTION = "bert.encoder.layer.0", "bert.encoder.layer.0.attention"


def rows_of(path):
    return {row.name: row for row in inspect_path(path)}


def places_of(path):
    return {(place.name, place.kind): place for place in inspect_path(path).places}


def file_with(tmp_path, **tensors):
    path = tmp_path / "some.safetensors"
    save_file(tensors, path)
    return path


# --- tensors ------------------------------------------------------------------------------------


def test_zeros_are_counted_in_every_type(tmp_path):
    path = file_with(
        tmp_path,
        float=torch.tensor([[0.0, -0.0], [1.0, float("nan")]]),
        half=torch.tensor([0, 1, 0, 0], dtype=torch.bfloat16),
        whole=torch.tensor([0, 5]),
        truth=torch.tensor([True, False, False, False]),
        tiny=torch.tensor([0.0, 1.0]).to(torch.float8_e4m3fn),
        scalar=torch.tensor(0.0),
        empty=torch.empty(0, 3),
    )
    zeros = {name: (row.zeros, row.numel) for name, row in rows_of(path).items()}
    assert zeros == {
        "float": (2, 4),
        "half": (3, 4),
        "whole": (1, 2),
        "truth": (3, 4),
        "tiny": (1, 2),
        "scalar": (1, 1),
        "empty": (0, 0),
    }


@pytest.mark.parametrize(
    ("kept_of_32", "pattern"),
    [
        ("1100" * 8, "2:4"),
        ("1000" * 8, "1:4"),
        ("1110" * 8, "3:4"),
        ("11110000" * 4, "4:8"),  # four neighbours that are all kept: not 2:4
        ("1" * 8 + "0" * 24, "8:32"),
        ("1" * 32, "-"),
        ("0" * 32, "-"),  # no weights, no pattern
        ("1" + "0" * 31, "1:4"),
    ],
)
def test_the_pattern_is_the_one_that_was_made(tmp_path, kept_of_32, pattern):
    row = torch.tensor([float(bit) for bit in kept_of_32])
    path = file_with(tmp_path, weight=row.repeat(3, 2))
    assert rows_of(path)["weight"].pattern == pattern


def test_one_entry_too_many_breaks_a_pattern(tmp_path):
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(8, 4)
    weight[5, 2] = 1.0
    assert rows_of(file_with(tmp_path, weight=weight))["weight"].pattern != "2:4"


def test_zeros_at_random_are_no_pattern(tmp_path):
    weight = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    path = file_with(tmp_path, weight=weight.masked_fill(weight < 0.9, 0))
    assert rows_of(path)["weight"].pattern == "-"


def test_a_pattern_lies_along_the_input_channels_of_a_convolution(tmp_path):
    weight = torch.zeros(3, 8, 2, 2)
    weight[:, ::2] = 1
    assert rows_of(file_with(tmp_path, weight=weight))["weight"].pattern == "2:4"


def test_a_pattern_lies_along_the_rows_of_conv1d(tmp_path):
    model = tiny_transformers.gpt2()
    model.transformer.h[0].mlp.c_fc.weight.data[::2] = 0  # inputs by outputs
    model.save_pretrained(tmp_path)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert rows_of(tmp_path)[name].pattern == "2:4"


# --- groups -------------------------------------------------------------------------------------


def zero(layer, rows=None, columns=None):
    """Zero outputs or inputs of a linear layer."""
    if rows is not None:
        layer.weight.data[rows] = 0
        if layer.bias is not None:
            layer.bias.data[rows] = 0
    if columns is not None:
        layer.weight.data[:, columns] = 0


def filled(model):
    """Without a zero: biases start as such."""
    for index, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(index))
    return model


def bert():
    model = filled(tiny_transformers.bert())
    layer = model.bert.encoder.layer[0]
    inner = layer.attention.self
    for part in (inner.query, inner.key, inner.value):
        zero(part, rows=slice(4, 8))
    zero(layer.attention.output.dense, columns=slice(4, 8))
    zero(layer.intermediate.dense, rows=[1, 5, 11])
    zero(layer.output.dense, columns=[1, 5, 11])
    return model


def vit():
    model = filled(tiny_transformers.vit())
    layer = model.vit.layers[0]
    inner = layer.attention
    for part in (inner.q_proj, inner.k_proj, inner.v_proj):
        zero(part, rows=slice(4, 8))
    zero(inner.o_proj, columns=slice(4, 8))
    zero(layer.mlp.fc1, rows=[1, 5, 11])
    zero(layer.mlp.fc2, columns=[1, 5, 11])
    return model


def gpt2():
    model = filled(tiny_transformers.gpt2())
    layer = model.transformer.h[0]
    for start in (4, 12, 20):  # of queries, keys and values
        layer.attn.c_attn.weight.data[:, start : start + 4] = 0
        layer.attn.c_attn.bias.data[start : start + 4] = 0
    layer.attn.c_proj.weight.data[4:8] = 0
    layer.mlp.c_fc.weight.data[:, [1, 5, 11]] = 0
    layer.mlp.c_fc.bias.data[[1, 5, 11]] = 0
    layer.mlp.c_proj.weight.data[[1, 5, 11]] = 0
    return model


def t5():
    model = filled(tiny_transformers.t5())
    layer = model.encoder.block[0].layer
    inner = layer[0].SelfAttention
    for part in (inner.q, inner.k, inner.v):
        zero(part, rows=slice(4, 8))
    zero(inner.o, columns=slice(4, 8))
    zero(layer[1].DenseReluDense.wi, rows=[1, 5, 11])
    zero(layer[1].DenseReluDense.wo, columns=[1, 5, 11])
    return model


def llama():
    model = filled(tiny_transformers.llama())
    layer = model.model.layers[0].mlp
    zero(layer.gate_proj, rows=[1, 5, 11])
    zero(layer.up_proj, rows=[1, 5, 11])
    zero(layer.down_proj, columns=[1, 5, 11])
    return model


@pytest.mark.parametrize("form", ["save_pretrained", "platon_prune.save"])  # names may differ
@pytest.mark.parametrize("build", [bert, vit, gpt2, t5, llama])
def test_heads_and_neurons_of_which_nothing_is_left_are_found(tmp_path, build, form):
    model = build()
    model.save_pretrained(tmp_path) if form == "save_pretrained" else platon_prune.save(
        model, tmp_path
    )
    places = [place for place in inspect_path(tmp_path).places if place.removable]
    found = {place.kind: (place.size, place.removable) for place in places}
    heads = {} if build is llama else {"heads": (2, (1,))}
    neurons = 32 if build is gpt2 else 12
    assert found == heads | {"neurons": (neurons, (1, 5, 11))}
    assert len(places) == len(found)


@pytest.mark.parametrize(
    ("num_query", "num_value", "num_groups"),
    [(4, 2, 2), (2, 1, 2)],
    ids=["each value head with its own", "one by one where all share one"],
)
def test_query_heads_that_share_a_value_head_are_one_group(
    num_query, num_value, num_groups, tmp_path
):
    model = filled(
        tiny_transformers.llama(num_attention_heads=num_query, num_key_value_heads=num_value)
    )
    model.save_pretrained(tmp_path)
    assert places_of(tmp_path)["model.layers.0.self_attn", "heads"].size == num_groups


@pytest.mark.parametrize(
    "name",
    [
        "attention.self.query.weight",
        "attention.self.key.bias",
        "attention.self.value.bias",
        "attention.output.dense.weight",
        "intermediate.dense.bias",
        "output.dense.weight",
    ],
)
def test_a_group_with_one_entry_left_stays(tmp_path, name):
    model = bert()
    tensor = model.bert.encoder.layer[0].get_parameter(name).data
    tensor[(0, 5) if "output" in name else 5] = 1
    model.save_pretrained(tmp_path)
    places = places_of(tmp_path)
    if "attention" in name:
        assert places[ATTENTION, "heads"].removable == ()
    else:
        assert places[LAYER, "neurons"].removable == (1, 11)


def test_a_zero_filter_is_a_removable_channel_unless_its_bias_is_left(tmp_path):
    weight, bias = torch.ones(4, 3, 2, 2), torch.zeros(4)
    weight[1] = weight[2] = 0
    bias[2] = 1
    save_file({"conv.weight": weight, "conv.bias": bias}, tmp_path / "model.safetensors")
    assert places_of(tmp_path)["conv", "channels"].removable == (1,)


def test_without_a_config_neurons_are_found_and_heads_are_not(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path)
    places = places_of(tmp_path / "model.safetensors")
    assert {kind for _, kind in places} == {"neurons"}
    assert places[LAYER, "neurons"].removable == (1, 5, 11)


def test_nothing_of_the_model_is_built(tmp_path):
    bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "nobody-knows", "architectures": ["Nobody"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (ATTENTION, "heads") in places_of(tmp_path)


# --- where tensors come from --------------------------------------------------------------------


def test_shards_sparse_folders_and_sparse_files_say_the_same(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    platon_prune.save(model, tmp_path / "sparse")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    expected = inspect_path(tmp_path / "one")
    for name in ("shards", "sparse"):
        found = inspect_path(tmp_path / name)
        assert found.places == expected.places
        rows = {row.name: row for row in found}
        assert all(rows[row.name] == row for row in expected)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_sparse_file_of_any_module(tmp_path, compression):
    layer = torch.nn.Linear(8, 4)
    layer.weight.data[:, ::2] = 0
    platon_prune.save(layer, tmp_path / "file", compression=compression)
    row = rows_of(tmp_path / "file")["weight"]
    assert (row.zeros, row.pattern) == (16, "2:4")


def index_naming(name):
    def write(folder):
        content = json.dumps({"weight_map": {"weight": name}})
        (folder / "model.safetensors.index.json").write_text(content)

    return write


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: None, "got"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"PK"), "a pickle"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"), "safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "safetensors"),
        (index_naming("../elsewhere.safetensors"), "beside it"),
        (index_naming(7), "beside it"),
        (index_naming("missing.safetensors"), "missing.safetensors"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
            "must be JSON",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, capsys, write, said):
    write(tmp_path)
    assert cli.main(["inspect", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_a_path_that_does_not_exist_is_named(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_json(tmp_path, capsys):
    bert().save_pretrained(tmp_path)
    assert cli.main(["inspect", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "bert.encoder.layer.0.output.dense.weight" in printed
    assert "LayerNorm" not in printed and "--all" in printed
    line = next(line for line in printed.splitlines() if line.endswith("12          3"))
    assert line.split() == [LAYER, "neurons", "12", "3"]
    content = json.loads((tmp_path / "out.json").read_text())
    groups = {(group["name"], group["kind"]): group for group in content["groups"]}
    assert groups[ATTENTION, "heads"]["removable"] == [1]
    assert len(content["tensors"]) == len(list(bert().state_dict()))

    assert cli.main(["inspect", str(tmp_path), "--all"]) == 0
    assert "LayerNorm" in capsys.readouterr().out
