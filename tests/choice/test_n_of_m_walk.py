"""n:m chosen in one walk: what it does by a bracket, and masks that are put back."""

import math

import pytest
import torch
from test_line import _line
from test_selection import SCORES

from platon_prune.choice import n_of_m_walk, one_walk
from platon_prune.choice.n_of_m import SemiStructured
from platon_prune.choice.n_of_m_walk import constrain_in_one_walk_
from platon_prune.choice.scored import ScoredTensor
from platon_prune.tensors import ranking
from platon_prune.tensors.collectives import ALONE

SIZES = (8, 512, 64, 1000, 24, 480)  # whole groups of eight
N = sum(SIZES)


def _bracketed(monkeypatch, low, high):
    monkeypatch.setattr(n_of_m_walk, "sampled_bracket", lambda *_: (low, high))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize("bracket", ["around it", "ends at it", "open"])
def test_the_groups_that_lose_least_keep_their_n_largest(n, m, bracket, monkeypatch):
    torch.manual_seed(0)
    scores, before = torch.rand(N), torch.rand(N) < 0.7
    ordered = scores.view(-1, m).sort(1)
    costs = ordered.values[:, : m - n].double().sum(1)
    for count in (1, len(costs) // 3, len(costs)):
        mask, at = before.clone(), costs.sort().values[count - 1].item()
        width = {"around it": 0.1, "ends at it": 1e-6, "open": math.inf}[bracket]
        _bracketed(monkeypatch, at - width, at + width)
        chosen = constrain_in_one_walk_(_line(scores, mask, SIZES, 512), n, m, count)
        expected = torch.ones(N, dtype=torch.bool)
        constrained = costs.sort().indices[:count]
        expected.view(-1, m)[constrained[:, None], ordered.indices[constrained, : m - n]] = False
        assert torch.equal(mask, expected)
        assert chosen.threshold == pytest.approx(at)
        rows = zip(expected.split(SIZES), before.split(SIZES), strict=True)
        assert chosen.counts.tolist() == [
            [int(now.sum()), int((now & then).sum()), int(then.sum())] for now, then in rows
        ]


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("few", [0, 1 << 14])
def test_one_walk_chooses_as_tensor_by_tensor_where_groups_tie(kind, few, monkeypatch):
    torch.manual_seed(0)
    scores, before = SCORES[kind](N), torch.rand(N) < 0.9
    monkeypatch.setattr(ranking, "FEW", few)
    names = {str(i): 0 for i in range(len(SIZES))}
    for amount in (0.1, 0.5, 1.0):
        mask, other = before.clone(), before.clone()
        offsets = torch.tensor([0, *SIZES]).cumsum(0).tolist()
        tensors = [
            ScoredTensor(own.__getitem__, part, at, name=str(i))
            for i, (own, part, at) in enumerate(
                zip(scores.split(SIZES), other.split(SIZES), offsets, strict=False)
            )
        ]
        count = round(amount * (N // 4))
        chosen = constrain_in_one_walk_(_line(scores, mask, SIZES, 512), 2, 4, count)
        threshold = SemiStructured(2, 4, names).choose_(tensors, amount, ALONE)
        assert chosen is not None and chosen.threshold == threshold
        assert torch.equal(mask, other)


@pytest.mark.parametrize("bracket", [(2.0, 3.0), (-3.0, -2.0), (0.2, 0.1)])
def test_a_bracket_that_missed_leaves_the_masks_as_they_were(bracket, monkeypatch):
    scores, before = torch.rand(N), torch.rand(N) < 0.7
    mask = before.clone()
    _bracketed(monkeypatch, *bracket)
    assert constrain_in_one_walk_(_line(scores, mask, SIZES, 512), 2, 4, N // 8) is None
    assert torch.equal(mask, before)


def test_a_bracket_with_too_many_groups_leaves_the_masks_as_they_were(monkeypatch):
    scores, before = torch.rand(N), torch.rand(N) < 0.7
    mask = before.clone()
    monkeypatch.setattr(ranking, "MAX_CANDIDATES", 200)
    _bracketed(monkeypatch, -math.inf, math.inf)
    assert constrain_in_one_walk_(_line(scores, mask, SIZES, 512), 2, 4, N // 8) is None
    assert torch.equal(mask, before)


def test_a_choice_that_is_interrupted_leaves_the_masks_as_they_were(monkeypatch):
    scores, before = torch.rand(N), torch.rand(N) < 0.7
    mask = before.clone()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(one_walk, "kth_of_few", interrupted)
    with pytest.raises(KeyboardInterrupt):
        constrain_in_one_walk_(_line(scores, mask, SIZES, 512), 2, 4, N // 8)
    assert torch.equal(mask, before)


def test_costs_of_a_sample_bracket_the_threshold_of_a_large_line():
    torch.manual_seed(0)
    sizes = (120_000, 80_000)
    scores, mask = torch.rand(sum(sizes)), torch.ones(sum(sizes), dtype=torch.bool)
    chosen = constrain_in_one_walk_(_line(scores, mask, sizes, 1 << 14), 2, 4, 20_000)
    costs = scores.view(-1, 4).sort(1).values[:, :2].sum(1).sort().values
    assert chosen is not None and chosen.threshold == costs[19_999].item()
    assert int((~mask).sum()) == 40_000
