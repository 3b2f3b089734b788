"""`platon-prune deploy`: files are written, options are checked, BERT-base's figures are made."""

import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
import tiny_transformers  # noqa: E402
from transformers import BertConfig, BertModel  # noqa: E402

import platon_prune  # noqa: E402
from platon_prune import cli  # noqa: E402
from platon_prune.commands.benchmarks import bert_base as _bert_base  # noqa: E402
from platon_prune.deploy.models import read_model  # noqa: E402
from platon_prune.deploy.picture import save_picture  # noqa: E402
from platon_prune.deploy.report import DeployReport
from platon_prune.deploy.rows import FileSize, FormRow, Times  # noqa: E402
from platon_prune.export.inspection import inspect_path  # noqa: E402

QUICK = ["--forms", "masked", "CSR", "--no-memory", "--rounds", "1", "--threads", "1"]


def deploy(capsys, *options):
    status = cli.main(["deploy", *map(str, options)])
    return status, capsys.readouterr()


@pytest.fixture
def folder(tmp_path):
    tiny_transformers.bert().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_from_a_config_becomes_a_table_json_and_a_picture(folder, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    status, printed = deploy(capsys, folder, *QUICK, "--tokens", 2, 4, "--output-dir", out)
    assert status == 0
    assert "dense" in printed.out and "2 tokens" in printed.out and "Use dense" in printed.out
    content = json.loads((out / "deploy.json").read_text())
    assert content["sizes"] == ["2 tokens", "4 tokens"]
    assert [form["name"] for form in content["forms"]] == ["dense", "masked", "CSR"]
    assert content["machine"]["threads"] == 1
    assert content["versions"]["torch"] == torch.__version__
    assert (out / "deploy.md").read_text().startswith("# Forms of a model")
    assert (out / "deploy.png").read_bytes()[:4] == b"\x89PNG"


def test_a_sparse_folder_is_measured_too(folder, tmp_path, capsys):
    platon_prune.save(read_model(folder), tmp_path / "sparse")
    options = [*QUICK, "--tokens", 2, "--output-dir", tmp_path / "out"]
    status, printed = deploy(capsys, tmp_path / "sparse", *options)
    assert status == 0
    assert "BertForSequenceClassification" in printed.out


def test_the_number_of_threads_is_put_back(folder, tmp_path, capsys):
    before = torch.get_num_threads()
    deploy(capsys, folder, *QUICK[:-1], before + 1, "--tokens", 2, "--output-dir", tmp_path / "o")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "MODEL or --bert-base"),
        (["MODEL", "--bert-base"], "MODEL or --bert-base"),
        (["MODEL", "--tokens", "17"], "at most 16"),
        (["MODEL", "--tokens", "0"], "from 1"),
        (["MODEL", "--forms", "quick"], "got quick"),
        (["MODEL", "--threads", "0"], "--threads must be at least 1"),
        (["MODEL", "--rounds", "0"], "--rounds must be at least 1"),
        (["MODEL", "--output-dir", "MODEL/config.json"], "--output-dir must be a folder"),
        (["MODEL/nothing"], "does not exist"),
        (["MODEL/model.safetensors"], "deploy_report(model) from Python"),
        (["MODEL/.."], "without one"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(folder, capsys, options, said):
    status, printed = deploy(capsys, *(option.replace("MODEL", str(folder), 1)
                                       if option.startswith("MODEL") else option
                                       for option in options))  # fmt: skip
    assert status == 2
    assert said in printed.err
    assert printed.out == ""


def test_a_folder_that_lacks_weights_is_not_measured_with_random_ones(tmp_path, capsys):
    BertModel(tiny_transformers.bert().config).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, printed = deploy(capsys, tmp_path, *QUICK)
    assert status == 2
    assert "classifier" in printed.err


@pytest.mark.parametrize("change", [{"architectures": ["Nobody"]}, {"model_type": "nobody"}])
def test_a_model_that_transformers_does_not_know_is_refused(folder, change, capsys):
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    status, printed = deploy(capsys, folder)
    assert status == 2
    assert "obody" in printed.err


# --- BERT-base ----------------------------------------------------------------------------------


@pytest.fixture
def tiny_base(monkeypatch):
    def make_bert(num_layers):
        torch.manual_seed(0)
        sizes = dict(hidden_size=48, num_attention_heads=12, intermediate_size=64, vocab_size=64)
        return BertModel(BertConfig(num_hidden_layers=num_layers, **sizes)).eval()

    monkeypatch.setattr(_bert_base, "make_bert", make_bert)


def test_bert_base_prints_every_figure_that_is_aimed_at(tiny_base, tmp_path, capsys):
    options = [*QUICK, "--layers", 1, "--tokens", 4, "--output-dir", tmp_path]
    status, printed = deploy(capsys, "--bert-base", *options)
    assert status == 0
    figures = json.loads((tmp_path / "aims.json").read_text())
    assert [figure["aim"] for figure in figures] == [1.2, 2.0, 1.7, 1.7, 0.135, 0.105]
    # One bit for each of ten entries and one value: 1/32 + 1/10 of the dense matrices, and a bit.
    assert figures[4]["measured"] == pytest.approx(1 / 32 + 0.1, abs=0.002)
    assert "90 %, sparse: share" in printed.out
    for name in ("90-percent", "95-percent", "half-of-heads-and-neurons"):
        assert (tmp_path / name / "deploy.json").is_file()


@pytest.mark.parametrize("amount", [0.9, 0.95])
def test_the_share_of_zeros_of_bert_base_is_exact(tiny_base, amount):
    model = _bert_base.sparse(2, amount)
    total = platon_prune.summary(model).total
    assert total.kept == total.numel - round(amount * total.numel)


def test_every_second_head_and_neuron_of_bert_base_is_removable(tiny_base, tmp_path):
    _bert_base.halved(1).save_pretrained(tmp_path)
    found = {place.kind: place.removable for place in inspect_path(tmp_path).places}
    assert found == {"heads": tuple(range(1, 12, 2)), "neurons": tuple(range(1, 64, 2))}


def test_an_aim_is_reached_missed_or_not_measured():
    assert _bert_base.Aim("", 2.0, 2.0).verdict == "reached"
    assert _bert_base.Aim("", 2.0, 1.9).verdict == "missed"
    assert _bert_base.Aim("", 0.1, 0.09, at_most=True).verdict == "reached"
    assert _bert_base.Aim("", 0.1, 0.11, at_most=True).verdict == "missed"
    assert _bert_base.Aim("", 2.0, None).verdict == "not measured"


# --- the picture --------------------------------------------------------------------------------


def test_a_picture_can_show_forms_without_a_size_a_file_or_memory(tmp_path):
    rows = (
        FormRow("dense", None, 100, 80, {"8": Times(2, 1, 3)}, None, 0.0),
        FormRow("CSR", None, None, 80, {}, 1000, 0.0),
        FormRow("masked", "no masks"),
    )
    facts = {"class": "Net", "parameters": 1, "sparsity": 0.5}
    machine = {"device": "CPU", "threads": 1}
    files = (FileSize("dense", 100, 80),)
    report = DeployReport(rows, files, ("8", "16"), 1.0, facts, machine, {})
    save_picture(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
