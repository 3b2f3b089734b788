"""Folders that mean harm: one line, nothing fetched, nothing built or read that is not theirs."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
import transformers.integrations.hub_kernels as hub_kernels
import transformers.modeling_utils as modeling_utils
from sparse_forgery import MAGIC, Forgery, write_with_checksum
from tiny_transformers import bert, gpt2
from torch import nn

import platon_prune
from platon_prune import cli
from platon_prune.deploy.models import read_model
from platon_prune.export.inspection import inspect_path

SPARSE = "platon_prune.safetensors"


@pytest.fixture(params=["sparse", "ordinary"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of a model of one layer, as each of the two kinds of folders."""
    path = tmp_path / "model"
    if request.param == "sparse":
        platon_prune.save(bert(), path)
    else:
        bert().save_pretrained(path)
    return path


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """What is asked of the Hub, as if the package ``kernels`` were there."""
    calls: list = []

    def get_kernel(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise RuntimeError("would download and import it")

    for module in (hub_kernels, modeling_utils):
        monkeypatch.setattr(module, "is_kernels_available", lambda *a, **k: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    return calls


# --- code and weights from elsewhere --------------------------------------------------------------

ELSEWHERE = {
    "a kernel": {"attn_implementation": "somebody/anything@main"},
    "a kernel, in the older spelling": {"_attn_implementation": "somebody/anything"},
    "a kernel of a part": {"attn_implementation": {"": "eager", "text_config": "somebody/it"}},
    "a kernel that transformers knows": {"attn_implementation": "flash_attention_2"},
    "experts": {"experts_implementation": "somebody/anything"},
    "a part": {"text_config": {"attn_implementation": "somebody/anything"}},
    "a backbone": {"use_pretrained_backbone": True, "backbone": "somebody/anything"},
}


@pytest.mark.case
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_config_that_asks_for_code_or_weights_of_the_hub_is_refused(
    kind: str, folder: Path, asked: list
) -> None:
    change(folder / "config.json", **ELSEWHERE[kind])
    with pytest.raises(ValueError, match="config.json must be .* delete it"):
        read_model(folder)
    assert not asked


def test_a_config_that_asks_for_an_attention_of_torch_is_read(folder: Path, asked: list) -> None:
    change(folder / "config.json", attn_implementation="sdpa")
    assert read_model(folder).config._attn_implementation == "sdpa"
    assert not asked


def test_code_in_the_folder_is_not_imported(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(folder / "config.json", trust_remote_code=True, auto_map={
        name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    })  # fmt: skip
    read_model(folder)
    assert not (tmp_path / "ran").exists()


def test_the_base_of_an_adapter_and_quantised_weights_are_not_looked_for(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    change(tmp_path / "config.json", quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(ValueError, match="dequantise the model"):
        read_model(tmp_path)
    bert().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/it"}')
    with pytest.raises(ValueError, match="merge it"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", ["pipeline", "Trainer", "AutoModel", "os", "BertConfig", 7, []])
def test_what_a_config_names_as_class_must_be_a_model(name: object, folder: Path) -> None:
    change(folder / "config.json", architectures=[name])
    with pytest.raises(ValueError):
        read_model(folder)


@pytest.mark.parametrize("names", [0.5, True, "BertModel", {"a": 1}, [[]]], ids=repr)
def test_the_classes_that_a_config_names_must_be_a_list_of_names(
    names: object, folder: Path
) -> None:
    change(folder / "config.json", architectures=names)
    with pytest.raises(ValueError, match="must"):
        read_model(folder)


# --- modules, memory and time ---------------------------------------------------------------------


@pytest.mark.parametrize("layers", [3_000_000, 1 << 62, 9_000, 2.0**80, "9" * 100, [9**9]])
def test_a_config_of_more_layers_than_the_file_has_builds_none_of_them(
    layers: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    initialise = nn.Linear.__init__

    def counted(self: nn.Linear, *args: object, **kwargs: object) -> None:
        built.append(1)
        initialise(self, *args, **kwargs)

    monkeypatch.setattr(nn.Linear, "__init__", counted)
    change(folder / "config.json", num_hidden_layers=layers)
    with pytest.raises(ValueError):
        read_model(folder)
    assert len(built) < 1_200  # 25 tensors are in the file; 4 * 25 + 1000 parameters may come


@pytest.mark.parametrize("key", ["num_labels", "vocab_size", "max_position_embeddings"])
@pytest.mark.parametrize("value", [1 << 40, -(1 << 62), 1e300])
def test_a_number_that_no_tensor_bears_out_is_refused(key: str, value: float, folder: Path) -> None:
    change(folder / "config.json", **{key: value})
    with pytest.raises(ValueError):
        read_model(folder)


def test_a_model_of_as_many_layers_as_the_file_has_is_built(tmp_path: Path) -> None:
    config = bert().config
    config.num_hidden_layers = 40
    platon_prune.save(type(bert())(config), tmp_path)
    assert platon_prune.load(tmp_path).config.num_hidden_layers == 40


def entries(number: int, start: int) -> bytes:
    return b"".join(
        b',"%07d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (i, i, i + 1)
        for i in range(start, start + number)
    )


@pytest.mark.parametrize("magic", [MAGIC + b"00000000" + b'"}', b'{"__metadata__":{}'])
def test_very_many_tiny_entries_are_refused_in_four_times_the_files_memory(
    magic: bytes, tmp_path: Path
) -> None:
    header, path = magic + entries(150_000, 0) + b"}", tmp_path / "file"
    if magic.startswith(MAGIC):
        write_with_checksum(path, header, bytes(150_000))
    else:
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(150_000))
    tracemalloc.start()
    with pytest.raises(ValueError):
        inspect_path(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * path.stat().st_size + (16 << 20)


@pytest.mark.parametrize("filler", [b"{},", b"[[[[[[[[", b'"' + b"a" * 997 + b'",'])
def test_a_header_of_85_megabytes_is_refused_without_being_read_as_json(
    filler: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    start = MAGIC + b"00000000" + b'"},"a":['
    header = start + filler * ((85_000_000 - len(start)) // len(filler))
    write_with_checksum(path, header, b"")
    begin = time.process_time()
    with pytest.raises(ValueError, match="got a header that is not what save wrote"):
        platon_prune.load(path)
    assert time.process_time() - begin < 30  # a guard against minutes, no measurement


# --- JSON of every kind ---------------------------------------------------------------------------

JSON = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "a list": "[]",
    "a number": "7",
    "nothing": "",
    "a name twice": '{"model_type": "bert", "model_type": "bert"}',
    "no text": "\udcff",
    "half": '{"model_type": "be',
    "a long number": '{"num_hidden_layers": ' + "9" * 10_000 + "}",
    "very many entries": '{"a": [' + "{}," * 2_000_000 + "{}]}",
    "not a number": '{"model_type": "bert", "num_hidden_layers": NaN}',
}
COMMANDS = {
    "inspect": lambda folder, out: ["inspect", folder],
    "deploy": lambda folder, out: ["deploy", folder, "--output-dir", out],
    "export": lambda folder, out: ["export", folder, "--to", "sparse", "--output", out],
}


# To inspect a file, a config is only asked for the number of heads.
CASES = [(kind, command) for kind in JSON for command in COMMANDS]
CASES.remove(("not a number", "inspect"))


@pytest.mark.case
@pytest.mark.parametrize(("kind", "command"), CASES)
def test_a_config_of_another_kind_is_one_line_and_status_2(
    kind: str, command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.json").write_bytes(JSON[kind].encode("utf-8", "surrogateescape"))
    assert cli.main(COMMANDS[command](str(folder), str(tmp_path / "out"))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"platon-prune {command}: ")
    assert not (tmp_path / "out").exists()


INDICES = {
    **{kind: text for kind, text in JSON.items() if kind not in ("a name twice", "not a number")},
    "a list as file": '{"weight_map": {"w": ["x"]}}',
    "an object as file": '{"weight_map": {"w": {"x": 1}}}',
    "a list as map": '{"weight_map": ["x"]}',
    "a way up": '{"weight_map": {"w": "../model.safetensors"}}',
    "a place of its own": '{"weight_map": {"w": "/etc/passwd"}}',
    "the folder": '{"weight_map": {"w": "."}}',
    "a long name": '{"weight_map": {"w": "' + "x" * 5_000 + '"}}',
    "no name": '{"weight_map": {"w": "\\u0000"}}',
}


@pytest.mark.case
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", INDICES)
def test_an_index_of_another_kind_is_one_line_and_status_2(
    kind: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    bert().save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "other")
    text = INDICES[kind].encode("utf-8", "surrogateescape")
    (folder / "model.safetensors.index.json").write_bytes(text)
    capsys.readouterr()
    assert cli.main(COMMANDS[command](str(folder), str(tmp_path / "out"))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and len(lines[0]) < 1_000


def test_a_generation_config_of_another_kind_is_refused(tmp_path: Path) -> None:
    platon_prune.save(gpt2(), tmp_path)
    for text in ("[" * 100_000, "[]", '{"a": 1, "a": 2}'):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(ValueError, match="must be a generation config"):
            platon_prune.load(tmp_path)


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["config.json", "weights", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused(
    name: str, command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = SPARSE if (folder / SPARSE).exists() else "model.safetensors"
    name = weights if name == "weights" else name
    secret = tmp_path / "secret"
    secret.write_text("of somebody else")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    assert cli.main(COMMANDS[command](str(folder), str(tmp_path / "out"))) == 2
    assert "got a link out of it" in capsys.readouterr().err


def test_the_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(folder.iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    assert isinstance(read_model(snapshot), nn.Module)
    assert len(inspect_path(snapshot).tensors) > 10


def test_a_link_in_the_target_of_an_export_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    other, out = tmp_path / "other", tmp_path / "out"
    other.write_text("of somebody else")
    out.mkdir()
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (out / name).symlink_to(other)
    assert cli.main(["export", str(folder), "--to", "dense", "--output", str(out)]) == 2
    assert other.read_text() == "of somebody else"


# --- a save that was cut off between two renames --------------------------------------------------


def test_the_config_of_one_save_and_the_weights_of_another_are_refused(tmp_path: Path) -> None:
    model = bert()
    platon_prune.save(model, tmp_path)
    old = (tmp_path / SPARSE).read_bytes()
    model.config.hidden_act = "relu"  # changes no shape
    platon_prune.save(model, tmp_path)
    assert platon_prune.load(tmp_path).config.hidden_act == "relu"
    (tmp_path / SPARSE).write_bytes(old)  # as a kill before the last rename leaves it
    with pytest.raises(ValueError, match="config and weights of one save.*save the model again"):
        platon_prune.load(tmp_path)


def test_a_config_that_was_corrected_by_hand_or_is_of_an_earlier_release_is_taken(
    tmp_path: Path,
) -> None:
    platon_prune.save(bert(), tmp_path)
    change(tmp_path / "config.json", id2label={"0": "a", "1": "b", "2": "c"})
    model = platon_prune.load(tmp_path)
    assert model.config.id2label[1] == "b" and not hasattr(model.config, "platon_prune_saved")
    content = json.loads((tmp_path / "config.json").read_text())
    del content["platon_prune_saved"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    platon_prune.load(tmp_path)
    forgery = Forgery.of(tmp_path / SPARSE)
    del forgery.metadata["saved"]
    forgery.write(tmp_path / SPARSE)
    platon_prune.load(tmp_path)


def test_an_empty_tensor_with_a_long_dimension_costs_nothing(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shape = (0, 1 << 40)
    save_file({f"fc{i}.weight": torch.empty(shape if i == 1 else shape[::-1]) for i in (1, 2)},
              tmp_path / "file.safetensors")  # fmt: skip
    assert inspect_path(tmp_path / "file.safetensors").num_entries == 0
