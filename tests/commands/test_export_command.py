"""`platon-prune export`: the same tensors in another file, and the same outputs elsewhere."""

import json

import pytest
import torch

pytest.importorskip("transformers")
import tiny_transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import platon_prune  # noqa: E402
from platon_prune import cli  # noqa: E402
from platon_prune.deploy.models import read_model  # noqa: E402


def export(model, to, output, *options):
    return cli.main(["export", str(model), "--to", to, "--output", str(output), *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT with zeros and something like a tokenizer."""
    path = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    model = tiny_transformers.bert()
    model.bert.encoder.layer[0].intermediate.dense.weight.data[:, 1:] = 0
    model.bert.encoder.layer[0].output.dense.weight.data.unflatten(1, (-1, 4))[..., 1:3] = 0
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")
    return path


def logits_of(folder):
    with torch.no_grad():
        return tiny_transformers.logits(read_model(folder))


@pytest.mark.parametrize("options", [[], ["--compression", "zstd"]])
def test_dense_to_sparse_and_back_is_the_same_file(folder, tmp_path, options, capsys):
    assert export(folder, "sparse", tmp_path / "sparse", *options) == 0
    assert "platon_prune.safetensors" in capsys.readouterr().out
    assert export(tmp_path / "sparse", "dense", tmp_path / "dense") == 0
    one, other = (path / "model.safetensors" for path in (folder, tmp_path / "dense"))
    assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "dense" / "tokenizer.json").read_text() == "{}"
    assert torch.equal(logits_of(tmp_path / "dense"), logits_of(folder))


@pytest.mark.parametrize("to", ["dense", "sparse"])
def test_a_folder_with_other_files_is_not_written_into(folder, tmp_path, capsys, to):
    (tmp_path / "notes.txt").write_text("mine")
    assert export(folder, to, tmp_path) == 2
    assert "a new or an empty folder, got" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").unlink()
    assert export(folder, to, tmp_path) == 0


def test_files_become_sparse_and_dense_without_a_model(folder, tmp_path):
    source = folder / "model.safetensors"
    assert export(source, "sparse", tmp_path / "sparse") == 0
    assert export(tmp_path / "sparse", "dense", tmp_path / "dense") == 0
    one, other = load_file(source), load_file(tmp_path / "dense")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_tied_tensors_of_a_sparse_file_are_there_under_each_name(tmp_path):
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    model[1].weight = model[0].weight
    platon_prune.save(model, tmp_path / "sparse")
    assert export(tmp_path / "sparse", "dense", tmp_path / "dense") == 0
    assert load_file(tmp_path / "dense").keys() == model.state_dict().keys()


def test_a_sparse_file_written_anew_keeps_ties_versions_and_sizes(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
    )
    model[1].weight = model[0].weight
    source = tmp_path / "sparse"
    platon_prune.save(model, source)
    assert export(source, "sparse", tmp_path / "again", "--compression", "zstd") == 0
    one, other = platon_prune.load(source), platon_prune.load(tmp_path / "again")
    assert other["0.weight"] is other["1.weight"]
    assert other.index.order == one.index.order
    assert other.index.versions == one.index.versions and one.index.versions["2"] == 2
    assert other.sizes == one.sizes


def test_what_stood_in_a_file_stays_where_the_new_one_cannot_be_written(tmp_path):
    save_file({"w": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    bad = tmp_path / "bad"
    bad.write_bytes(b"nothing")
    target = tmp_path / "target"
    target.write_text("kept")
    assert export(bad, "sparse", target) == 2
    assert target.read_text() == "kept"


@pytest.mark.parametrize(
    ("model", "to", "output", "options", "said"),
    [
        ("nothing", "dense", "new", [], "does not exist"),
        ("bert", "dense", "bert", [], "must not be MODEL itself"),
        ("bert", "dense", "bert/config.json", [], "must be a folder"),
        ("bert/model.safetensors", "sparse", "bert", [], "must be a file"),
        ("bert/model.safetensors", "onnx", "new", [], "what to do with them"),
        ("bert", "dense", "new", ["--compression", "zstd"], "--to sparse"),
        ("bert/config.json", "sparse", "new", [], "safetensors"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_nothing_is_written(
    folder, capsys, model, to, output, options, said
):
    parent = folder.parent
    assert export(parent / model, to, parent / output, *options) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (parent / "new").exists()


def test_a_missing_package_is_named_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert export(folder, "onnx", tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()


# --- ONNX and OpenVINO --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """The model for both runtimes, by the command; one export takes seconds."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    path = tmp_path_factory.mktemp("exported")
    assert export(folder, "onnx", path / "onnx") == 0
    return path


def inputs_of(batch_size, num_tokens):
    generator = torch.Generator().manual_seed(batch_size)
    tokens = torch.randint(16, (batch_size, num_tokens), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@pytest.mark.parametrize("shape", [(1, 4), (2, 9), (5, 16)], ids=str)
def test_onnx_runtime_gives_the_models_outputs_for_any_size(exported, folder, shape):
    import onnxruntime

    path = exported / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = inputs_of(*shape)
    outputs = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        expected = read_model(folder)(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(outputs[0]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4), (5, 16)], ids=str)
def test_openvino_gives_the_models_outputs_for_any_size(exported, folder, shape):
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from platon_prune.runtimes.openvino_file import write_openvino

    path = exported / "model.xml"
    if not path.exists():
        write_openvino(exported / "onnx" / "model.onnx", path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = inputs_of(*shape)
    outputs = compiled({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
    with torch.no_grad():
        expected = read_model(folder)(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(outputs), expected, rtol=1e-4, atol=1e-5)


def test_the_onnx_file_is_one_that_tensorrt_documents(exported):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    path = exported / "onnx" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    # Operators of ONNX itself, none of them a function of the exporter's own.
    assert {(each.domain, each.version) for each in model.opset_import} == {("", 20)}
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    shapes = {
        each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim]
        for each in (*model.graph.input, *model.graph.output)
    }
    # A name is a dimension of any size; there are two in each input, and the batch in the outputs.
    free = {name: [type(dim) is str for dim in dims] for name, dims in shapes.items()}
    assert free == {
        "input_ids": [True, True], "attention_mask": [True, True], "logits": [True, False],
    }  # fmt: skip
    assert shapes["logits"] == [shapes["input_ids"][0], 3]


def test_the_onnx_file_keeps_2_of_4_along_what_a_product_adds_up_over(exported, folder):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    graph = onnx.load(exported / "onnx" / "model.onnx").graph
    weight = read_model(folder).bert.encoder.layer[0].output.dense.weight.detach()
    values = {
        each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in graph.initializer
    }
    # A Gemm has the weight as torch has it and transposes it, a MatMul has inputs by outputs.
    ways = (weight, weight.t())
    (name,) = (name for name, each in values.items() if any(torch.equal(each, w) for w in ways))
    (node,) = [node for node in graph.node if name in node.input]
    inputs_first = node.op_type == "MatMul"
    assert inputs_first or [a.i for a in node.attribute if a.name == "transB"] == [1]
    kept = values[name].ne(0)
    groups = (kept.t() if inputs_first else kept).unflatten(1, (-1, 4)).sum(-1)
    assert groups.max() == 2


def test_the_config_goes_along(exported, folder):
    config = json.loads((exported / "onnx" / "config.json").read_text())
    assert config == json.loads((folder / "config.json").read_text())


def test_a_model_that_only_takes_one_size_is_exported_for_the_largest(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from platon_prune.runtimes.onnx_file import write_onnx

    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x[:, :2] * 2 if x.shape[1] == 3 else x

    path = tmp_path / "fixed.onnx"
    assert write_onnx(Fixed().eval(), [torch.ones(2, 3), torch.ones(2, 2)], path) is False
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: torch.ones(2, 3).numpy()})
    assert output.tolist() == [[2.0, 2.0]] * 2


def test_a_model_that_torch_cannot_export_is_refused_in_one_line(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    from platon_prune.runtimes.onnx_file import write_onnx

    class Branching(torch.nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ValueError, match="a Branching, of which it says") as error:
        write_onnx(Branching().eval(), [torch.ones(2)], tmp_path / "never.onnx")
    assert "\n" not in str(error.value)
