"""The examples run as they are, and the notebook shows what its code gives today."""

import math
import re
import runpy

import notebooks
import pytest
import torch
from pages import ROOT

accelerate = pytest.importorskip("accelerate")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

FOLDER = ROOT / "docs" / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# tests/scheduling/test_ranks.py has processes for it.
OF_RANKS = FOLDER / "two_processes.py"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def stem_of(path):
    return path.stem


@pytest.mark.parametrize("script", [each for each in SCRIPTS if each != OF_RANKS], ids=stem_of)
def test_an_example_runs_in_an_empty_folder_and_what_it_asserts_holds(
    script, tmp_path, monkeypatch
):
    if script.stem == "cnn_to_onnx":
        pytest.importorskip("torch_pruning")
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    random = torch.get_rng_state()
    runpy.run_path(str(script), run_name="__main__")
    # What a process of its own would have kept to itself.
    torch.set_rng_state(random)
    for state in (accelerate.state.AcceleratorState, accelerate.state.GradientState):
        state._reset_state()


@pytest.mark.parametrize("path", SCRIPTS + NOTEBOOKS, ids=stem_of)
def test_every_example_is_on_the_page_of_examples(path):
    page = (ROOT / "docs" / "examples.md").read_text()
    assert f"](examples/{path.name})" in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem_of)
def test_the_outputs_of_a_notebook_are_those_of_its_code(path, tmp_path):
    notebook = notebooks.read(path)
    fresh = notebooks.outputs_of(notebook, tmp_path)
    for cell, outputs in zip(notebooks.code_cells(notebook), fresh, strict=True):
        assert_alike(outputs, cell["outputs"])


def assert_alike(outputs, stored):
    """The same words and kinds; numbers may differ as they do between processors."""
    assert [kinds_of(each) for each in outputs] == [kinds_of(each) for each in stored]
    for one, other in zip(outputs, stored, strict=True):
        printed, expected = ("".join(each.get("text", "")) for each in (one, other))
        printed, expected = (re.sub(r"\(\d+ s\)", "", text) for text in (printed, expected))
        assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", expected).split()
        for number, before in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True):
            assert math.isclose(float(number), float(before), rel_tol=0.25, abs_tol=5)


def kinds_of(output):
    return output["output_type"], sorted(output.get("data", ()))


@pytest.mark.parametrize("stored", ["3 layers", "30 weights", "30"])
def test_a_notebook_whose_outputs_are_old_is_found(stored):
    def printed(text):
        return [{"name": "stdout", "output_type": "stream", "text": [text]}]

    assert_alike(printed("31 layers"), printed("30 layers"))
    with pytest.raises(AssertionError):
        assert_alike(printed("31 layers"), printed(stored))
