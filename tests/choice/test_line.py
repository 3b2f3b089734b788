"""Tensors in one line, and digits on a device: the choice of a sort, and counts of changes."""

import pytest
import torch
from test_selection import SCORES, SIZES, N, _scored, _sorted_positions

from platon_prune.choice import scored as scored_module
from platon_prune.choice.n_of_m import SemiStructured
from platon_prune.choice.scored import Line, ScoredLine, ScoredTensor
from platon_prune.choice.selection import prune_smallest_, prune_smallest_of_line_
from platon_prune.tensors import digits
from platon_prune.tensors.collectives import ALONE
from platon_prune.tensors.segments import ROW

COUNTS = (0, 1, 17, N // 2, N - 400, N - 1, N)


@pytest.fixture(params=["as on a CPU", "by digits"])
def _ranking(request, monkeypatch):
    if request.param == "by digits":  # what an accelerator does, here on the CPU
        monkeypatch.setattr(digits, "serves", lambda devices, processes: True)


def _line(scores, mask, sizes, slab_size, signed=True):
    """All tensors in a line, which share their memory with ``mask``."""
    line = Line(sizes, scores.device, slab_size)
    shapes = {str(i): torch.Size((size,)) for i, size in enumerate(sizes)}
    return ScoredLine(line, scores.__getitem__, line.cut(mask.split(sizes)), shapes, signed)


@pytest.mark.usefixtures("_ranking")
@pytest.mark.parametrize("slab_size", [ROW, 512, 4096])
@pytest.mark.parametrize("kind", SCORES)
def test_a_line_of_tensors_is_chosen_over_as_by_a_sort(kind, slab_size):
    torch.manual_seed(0)
    scores = SCORES[kind](N)
    before = torch.rand(N) < 0.7
    order = _sorted_positions(scores, before)
    for count in COUNTS:
        mask = before.clone()
        chosen = prune_smallest_of_line_(_line(scores, mask, SIZES, slab_size), count)
        expected = torch.ones(N, dtype=torch.bool)
        expected[order[:count]] = False
        assert torch.equal(mask, expected), count
        assert chosen.threshold == (scores[order[count - 1]].item() if count else None)
        rows = zip(expected.split(SIZES), before.split(SIZES), strict=True)
        assert chosen.counts.tolist() == [
            [int(now.sum()), int((now & then).sum()), int(then.sum())] for now, then in rows
        ]


@pytest.mark.parametrize("kind", SCORES)
def test_digits_on_a_device_find_what_a_sort_does_tensor_by_tensor(kind, monkeypatch):
    monkeypatch.setattr(digits, "serves", lambda devices, processes: True)
    torch.manual_seed(0)
    scores = SCORES[kind](N)
    before = torch.rand(N) < 0.7
    order = _sorted_positions(scores, before)
    for count in COUNTS:
        mask = before.clone()
        prune_smallest_(_scored(scores, mask, SIZES), count)
        expected = torch.ones(N, dtype=torch.bool)
        expected[order[:count]] = False
        assert torch.equal(mask, expected), count


@pytest.mark.parametrize("kind", ["random", "all zero", "infinities", "denormal"])
def test_scores_without_a_sign_need_no_look_at_it(kind, monkeypatch):
    monkeypatch.setattr(digits, "serves", lambda devices, processes: True)
    torch.manual_seed(1)
    scores = SCORES[kind](N).abs()
    order = _sorted_positions(scores, torch.ones(N))
    mask = torch.ones(N, dtype=torch.bool)
    prune_smallest_of_line_(_line(scores, mask, SIZES, 512, signed=False), 900)
    assert sorted(order[:900]) == (~mask).nonzero().flatten().tolist()


@pytest.mark.usefixtures("_ranking")
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 2), (1, 16)])
@pytest.mark.parametrize("kind", ["random", "many ties", "all zero", "negative"])
def test_n_of_m_is_the_same_in_a_line_as_tensor_by_tensor(kind, n, m):
    torch.manual_seed(0)
    shapes = {"a": torch.Size((3, 32)), "b": torch.Size((48,)), "c": torch.Size((2, 5, 64))}
    sizes = [shape.numel() for shape in shapes.values()]
    scores = SCORES[kind](sum(sizes))
    # What an earlier choice left: groups that are whole, and others.
    whole = (torch.rand(sum(sizes) // m) < 0.5).repeat_interleave(m)
    before = whole | (torch.rand(sum(sizes)) < 0.5)
    granularity = SemiStructured(n, m, {name: len(shape) - 1 for name, shape in shapes.items()})
    for amount in (0.0, 0.3, 1.0):
        mask, expected = before.clone(), before.clone()
        tensors, offset = [], 0
        for (name, shape), part, kept in zip(
            shapes.items(), scores.split(sizes), expected.split(sizes), strict=True
        ):
            tensors.append(ScoredTensor(part.__getitem__, kept.view(shape), offset, None, name))
            offset += part.numel()
        threshold = granularity.choose_(tensors, amount, ALONE)
        line = Line(sizes, scores.device, ROW)
        scored = ScoredLine(line, scores.__getitem__, line.cut(mask.split(sizes)), shapes)
        assert granularity.chooses_in_line(scored)
        chosen = granularity.choose_in_line_(scored, amount)
        assert chosen.threshold == threshold
        assert torch.equal(mask, expected)
        rows = zip(expected.split(sizes), before.split(sizes), strict=True)
        assert chosen.counts.tolist() == [
            [int(now.sum()), int((now & then).sum()), int(then.sum())] for now, then in rows
        ]


def test_n_of_m_is_chosen_tensor_by_tensor_where_groups_do_not_lie_side_by_side():
    shapes = {"conv": torch.Size((2, 4, 3, 3))}
    line = Line([72], torch.device("cpu"), ROW)
    scored = ScoredLine(line, torch.zeros(72).__getitem__, line.cut([torch.ones(72) > 0]), shapes)
    assert not SemiStructured(2, 4, {"conv": 1}).chooses_in_line(scored)
    assert not SemiStructured(1, 3, {"conv": 3}).chooses_in_line(scored)  # 128 is no multiple


@pytest.mark.parametrize("sizes", [(1,), (ROW,), (ROW - 1, 1, ROW + 1), (0, 5, 0, 700, 0), (3000,)])
@pytest.mark.parametrize("slab_size", [ROW, 3 * ROW, 4096])
def test_flags_are_counted_tensor_by_tensor_whatever_the_slabs(sizes, slab_size):
    torch.manual_seed(0)
    line = Line(sizes, torch.device("cpu"), slab_size)
    flags = torch.rand(line.numel) < 0.3
    counter = line.segments.counts()
    for number, slab in enumerate(line.slabs):
        size = slab.stop - slab.start
        rows = torch.zeros(-(-size // ROW) * ROW, dtype=torch.bool)
        rows[:size] = flags[slab]
        counter.add(number, slab.start, rows)
    assert counter.totals().tolist() == [int(part.sum()) for part in flags.split(sizes)]


def test_entries_at_positions_of_a_line_are_those_of_its_tensors():
    sizes = (3, 0, 5, 2)
    values = torch.arange(10.0)
    line = Line(sizes, torch.device("cpu"))
    positions = torch.tensor([0, 2, 3, 3, 7, 8, 9])
    found = line.pick(values.split(sizes), positions, torch.empty(7))
    assert found.tolist() == positions.tolist()
    assert scored_module.gather(
        [part for part in values.split(sizes)], torch.empty(10)
    ).tolist() == (values.tolist())
