"""The table of architectures says what can be pruned and cut, and what it says is so."""

from __future__ import annotations

import re

import pytest
import torch
from pages import ROOT
from tiny_shrink import mask

import platon_prune
from platon_prune import cli
from platon_prune.commands.architectures.configs import TINY
from platon_prune.commands.architectures.rows import HEADER, half_of, markdown, row_of, tried
from platon_prune.example_inputs import guessed_inputs
from platon_prune.export.inspection import inspect_path
from platon_prune.groups.experts import pass_over_pruned_experts_
from platon_prune.groups.layouts import layout_groups
from platon_prune.groups.places import find_places
from platon_prune.shrinking.twin import difference, outputs_of

transformers = pytest.importorskip("transformers")
PAGE = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
LINES = {line.split("|")[1].strip(): line for line in re.findall(r"^\| .* \|$", PAGE, re.M)}


def halves(places):
    """Half of the groups of each place, other ones in each."""
    first = {place.name: i for i, place in enumerate(places)}
    return lambda place: half_of(first[place.name], place)


def trained(model, inputs):
    """Outputs in training, in which there is no dropout."""
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model.train()(**inputs)
    model.eval()
    return [value for value in outputs.values() if isinstance(value, torch.Tensor)]


def test_the_page_has_a_row_for_each_architecture():
    assert list(LINES) == [HEADER[0], "---", *TINY]


@pytest.mark.parametrize("name", TINY)
def test_a_row_of_the_page_is_what_the_command_makes(name):
    assert markdown([row_of(name, TINY[name])]).splitlines()[-1] == LINES[name]


@pytest.mark.parametrize("name", TINY)
def test_what_can_be_cut_is_cut_and_computes_the_same(name, tmp_path):
    model = TINY[name].build()
    inputs = guessed_inputs(model)
    _, proof = tried(model)
    groups = [place for place in proof.groups if place.size > 1]
    cells = [cell.strip() for cell in LINES[name].split("|")[4:8]]
    assert bool(groups) == any(cell in ("yes", "in part") for cell in cells)
    if not groups:
        return
    mask(model, groups, halves(groups))
    pass_over_pruned_experts_(model, groups)
    # In this order: batch norms learn from what they see in training.
    in_training, expected = trained(model, inputs), outputs_of(model, inputs)
    report = platon_prune.shrink(model, example_inputs=inputs)
    assert {row.kind for row in report.places if row.after < row.before} == {
        place.kind for place in groups
    }
    assert not [row.note for row in report.places if "without it" in row.note]
    assert difference(outputs_of(model, inputs), expected) is None
    assert difference(trained(model, inputs), in_training) is None
    platon_prune.save(model, tmp_path / "shrunk")
    again = platon_prune.load(tmp_path / "shrunk")
    assert difference(outputs_of(again, inputs), outputs_of(model, inputs)) is None


def content(places):
    found = [
        (place.kind, sorted((m.name, m.dim, m.group_of.tolist()) for m in place.members))
        for place in places
        if place.kind != "channels"
    ]
    return sorted(found)


@pytest.mark.parametrize("name", TINY)
def test_a_file_has_the_groups_of_its_model(name):
    model = TINY[name].build()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    in_file = find_places(shapes, model.config.to_dict())
    assert content(in_file) == content(layout_groups(model))


# In files as transformers writes them, layers may be called as they were when these came out.
RENAMED = ("Swin", "SegFormer", "ModernBERT", "Bloom", "DeBERTa v1")


@pytest.mark.parametrize("name", RENAMED)
def test_a_saved_file_has_as_many_groups_of_each_kind_as_its_model(name, tmp_path):
    model = TINY[name].build()
    model.save_pretrained(tmp_path)
    rows = inspect_path(tmp_path).places
    in_file = [(row.kind, row.size) for row in rows if row.kind != "channels"]
    assert sorted(in_file) == sorted((place.kind, place.size) for place in layout_groups(model))


def test_the_command_prints_rows_of_the_page_and_writes_them(tmp_path, capsys):
    assert cli.main(["architectures", "BERT", "--output", str(tmp_path / "table.md")]) == 0
    assert LINES["BERT"] in capsys.readouterr().out
    assert LINES["BERT"] in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_the_command_refuses_an_architecture_that_it_does_not_have(capsys):
    assert cli.main(["architectures", "BERTT"]) == 2
    assert "NAME must be one of" in capsys.readouterr().err
