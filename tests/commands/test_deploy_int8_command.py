"""`platon-prune deploy` with int8, an unpruned model and a function of the user's own."""

import json
import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
import tiny_transformers  # noqa: E402
import torch  # noqa: E402

from platon_prune import cli  # noqa: E402
from platon_prune.commands._function import load_function  # noqa: E402
from platon_prune.deploy.models import read_model  # noqa: E402

QUICK = ["--no-memory", "--rounds", "1", "--threads", "1", "--tokens", "2"]
FUNCTION = """
import torch
from beside import SHAPE

tokens = torch.ones(SHAPE, dtype=torch.int64)

def spread(model):
    return float(model(input_ids=tokens).logits.std())

def evaluate(model):
    return 0.5

def both(model, data):
    return 0.0

constant = 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, another, and a file with functions that imports one beside it."""
    tiny_transformers.bert().save_pretrained(tmp_path / "model")
    torch.manual_seed(1)
    tiny_transformers.bert().save_pretrained(tmp_path / "before")
    (tmp_path / "score.py").write_text(FUNCTION)
    (tmp_path / "beside.py").write_text("SHAPE = (3, 4)\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("beside", "score"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def deploy(capsys, *options):
    status = cli.main(["deploy", *map(str, options)])
    return status, capsys.readouterr()


def test_a_function_of_a_file_scores_each_form_and_a_second_picture_is_drawn(place, capsys):
    pytest.importorskip("torchao", reason="torchao is not installed: platon-prune[test]")
    status, printed = deploy(
        capsys, place / "model", *QUICK, "--unpruned", place / "before", "--output-dir",
        place / "out", "--evaluate", f"{place / 'score.py'}:spread",
        "--forms", "masked", "unpruned int8 weights", "--processor-time",
    )  # fmt: skip
    assert status == 0, printed.err
    content = json.loads((place / "out" / "deploy.json").read_text())
    tokens = torch.ones(3, 4, dtype=torch.int64)
    expected = {
        name: float(read_model(place / folder)(input_ids=tokens).logits.detach().std())
        for name, folder in (("dense", "model"), ("unpruned", "before"))
    }
    found = {form["name"]: form["metric"] for form in content["forms"]}
    assert list(found) == ["dense", "masked", "unpruned", "unpruned int8 weights"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4)
    assert found["unpruned int8 weights"] == pytest.approx(expected["unpruned"], rel=0.1)
    assert content["metric"] == "spread" and content["machine"]["clock"] == "processor time"
    assert "in ms of processor time" in " ".join(printed.out.split())
    assert "No form beats these in both spread and time at 2 tokens" in printed.out
    assert "deploy.png and deploy_metric.png in" in printed.out
    assert (place / "out" / "deploy_metric.png").read_bytes()[:4] == b"\x89PNG"


def test_without_a_function_there_is_one_picture_and_int8_adds_forms(place, capsys, monkeypatch):
    from platon_prune.deploy import measure

    monkeypatch.setattr(measure, "FORMS", {**measure.FORMS})
    asked = []
    for name in measure.int8_forms(with_unpruned=True):
        # Building them all takes long; that they are asked for is what matters here.
        measure.FORMS[name] = lambda source, name=name: asked.append(name) or 1 / 0
    options = [place / "model", *QUICK, "--int8", "--forms", "masked", "--output-dir", place / "o"]
    assert deploy(capsys, *options)[0] == 0
    assert asked == list(measure.int8_forms(with_unpruned=False))
    assert not (place / "o" / "deploy_metric.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--evaluate", "PLACE/none.py"], "must name a file that is there, got PLACE/none.py"),
        (["--evaluate", "PLACE/score.py:f1"], "it has spread, evaluate, both: write"),
        (["--evaluate", "PLACE/score.py:constant"], "must name a function of"),
        (["--evaluate", "PLACE/score.py:both"], "one argument, the model, got both(model, data)"),
        (["--evaluate", "PLACE/broken.py"], "which ends in ZeroDivisionError"),
        (["--evaluate", "no_such_module:score"], "got no_such_module, which ends in Module"),
        (["--metric", "f1"], "--metric needs --evaluate"),
        (["--smaller-is-better"], "--smaller-is-better needs --evaluate"),
        (["--unpruned", "PLACE/nothing"], "--unpruned must be a folder on this machine"),
        (["--processor-time", "--threads", "2"], "one thread, got --threads 2"),
        (["--processor-time", "--device", "cuda"], "--processor-time needs --device cpu"),
        (["--forms", "unpruned"], "unpruned must be given"),
    ],
)
def test_what_cannot_be_used_is_said_before_any_work(place, capsys, monkeypatch, options, said):
    import platon_prune.deploy.measure as measure

    monkeypatch.setattr(measure, "make_examples", pytest.fail)
    (place / "broken.py").write_text("1 / 0")
    options = [option.replace("PLACE", str(place)) for option in options]
    status, printed = deploy(capsys, place / "model", "--output-dir", place / "out", *options)
    assert status == 2 and printed.out == ""
    assert said.replace("PLACE", str(place)) in printed.err


@pytest.mark.parametrize("options", [["--evaluate", "a.py"], ["--unpruned", "folder"]])
def test_random_weights_are_neither_evaluated_nor_compared_with_others(capsys, tmp_path, options):
    status, printed = deploy(capsys, "--bert-base", "--output-dir", tmp_path / "out", *options)
    assert status == 2 and f"{options[0]} must be left out with --bert-base" in printed.err


def test_a_function_is_found_in_a_file_or_a_module_and_has_a_usual_name(place, monkeypatch):
    assert load_function("--evaluate", str(place / "score.py"), "evaluate")(None) == 0.5
    assert load_function("--evaluate", "math:sqrt", "evaluate")(4.0) == 2.0
    monkeypatch.chdir(place)
    assert load_function("--evaluate", "score:", "evaluate")(None) == 0.5
