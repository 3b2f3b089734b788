"""A choice over a line in one walk: what it leaves to others, and masks that are put back."""

import math

import pytest
import torch
from test_line import _line
from test_selection import SCORES, SIZES, N, _sorted_positions

from platon_prune.choice import one_walk
from platon_prune.choice.one_walk import prune_in_one_walk_
from platon_prune.tensors import ranking
from platon_prune.tensors.ranking import positions_of


@pytest.mark.parametrize("kind", ["random", "many ties", "all zero", "infinities"])
@pytest.mark.parametrize("bracket", ["around it", "ends at it", "open"])
def test_a_bracket_that_holds_the_threshold_is_enough(kind, bracket, monkeypatch):
    torch.manual_seed(0)
    scores = SCORES[kind](N)
    before = torch.rand(N) < 0.7
    order = _sorted_positions(scores, before)
    for count in (1, N // 3, N):
        mask, at = before.clone(), scores[order[count - 1]].item()
        low, high = {
            "around it": (at - 0.1, at + 0.1), "ends at it": (at, at), "open": (-math.inf, math.inf)
        }[bracket]  # fmt: skip
        monkeypatch.setattr(one_walk, "sampled_bracket", lambda *_, low=low, high=high: (low, high))
        chosen = prune_in_one_walk_(_line(scores, mask, SIZES, 512), count)
        assert chosen is not None and chosen.threshold == at
        expected = torch.ones(N, dtype=torch.bool)
        expected[order[:count]] = False
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("bracket", [(2.0, 3.0), (-3.0, -2.0), (0.2, 0.1)])
def test_a_bracket_that_missed_leaves_the_masks_as_they_were(bracket, monkeypatch):
    scores = torch.rand(N, generator=torch.Generator().manual_seed(0))
    before = torch.rand(N) < 0.7
    mask = before.clone()
    monkeypatch.setattr(one_walk, "sampled_bracket", lambda *_: bracket)
    assert prune_in_one_walk_(_line(scores, mask, SIZES, 512), N // 2) is None
    assert torch.equal(mask, before)


def test_a_bracket_with_too_many_entries_leaves_the_masks_as_they_were(monkeypatch):
    scores = torch.zeros(N)
    before = torch.rand(N) < 0.7
    mask = before.clone()
    monkeypatch.setattr(ranking, "MAX_CANDIDATES", 600)
    assert prune_in_one_walk_(_line(scores, mask, SIZES, 512), N // 2) is None
    assert torch.equal(mask, before)


def test_a_choice_that_is_interrupted_leaves_the_masks_as_they_were(monkeypatch):
    scores = torch.rand(N)
    before = torch.rand(N) < 0.7
    mask = before.clone()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(one_walk, "kth_of_few", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune_in_one_walk_(_line(scores, mask, SIZES, 512), N // 2)
    assert torch.equal(mask, before)


@pytest.mark.parametrize("few", [0, 1 << 14])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 64, 1001])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_positions_of_flags_ascend_and_are_all(size, density, few, monkeypatch):
    monkeypatch.setattr(ranking, "FEW", few)
    flags = torch.rand(size, generator=torch.Generator().manual_seed(size)) < density
    assert positions_of(flags).tolist() == [i for i in range(size) if flags[i]]
