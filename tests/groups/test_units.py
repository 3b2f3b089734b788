"""What goes at once in a choice: groups, or one of each set that must stay equal."""

import torch

from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.units import units_of


def test_each_group_is_its_own_unit_without_sets():
    scores, kept = torch.tensor([3.0, 1.0, 2.0]).double(), torch.tensor([True, False, True])
    units = units_of([CoupledGroups("a", "heads", 3, ())], scores, kept)
    assert units.unit_of.tolist() == [0, 1, 2]
    assert torch.equal(units.scores, scores) and torch.equal(units.kept, kept)


def test_the_worst_of_each_set_go_together_next_the_second_worst():
    places = [
        CoupledGroups("a", "heads", 2, ()),
        CoupledGroups("b", "experts", 6, (), num_sets=2),  # {0, 1, 2} and {3, 4, 5}
    ]
    scores = torch.tensor([9.0, 8.0, 3.0, 1.0, 2.0, 40.0, 60.0, 50.0]).double()
    units = units_of(places, scores, torch.tensor([True] * 3 + [False] + [True] * 4))
    assert units.unit_of.tolist() == [0, 1, 4, 2, 3, 2, 4, 3]
    assert units.scores.tolist() == [9.0, 8.0, (1 + 40) / 2, (2 + 50) / 2, (3 + 60) / 2]
    assert units.kept.all()
    gone = units.groups_of(torch.tensor([False, False, True, False, False]))
    assert gone.nonzero().flatten().tolist() == [3, 5]


def test_of_equal_scores_in_a_set_what_is_gone_goes_first():
    place = CoupledGroups("b", "experts", 4, (), num_sets=2)
    kept = torch.tensor([True, False, False, True])
    units = units_of([place], torch.zeros(4).double(), kept)
    assert units.unit_of.tolist() == [1, 0, 0, 1]
    assert units.kept.tolist() == [False, True]
