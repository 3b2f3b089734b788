"""The global choice equals sorting everything by (score, already kept, tie key)."""

import math

import pytest
import torch

from platon_prune.choice import bracket
from platon_prune.choice.scored import ScoredTensor
from platon_prune.choice.selection import prune_smallest_
from platon_prune.tensors import ranking
from platon_prune.tensors.blocks import count_true
from platon_prune.tensors.ordering import tie_keys
from platon_prune.tensors.ranking import kth_smallest

SIZES = (1, 257, 8, 1031, 64, 3, 500)
N = sum(SIZES)  # 1864

SCORES = {
    "random": lambda n: torch.rand(n),
    "negative": lambda n: torch.randn(n),
    "many ties": lambda n: torch.randint(-3, 4, (n,)).float(),
    "all equal": lambda n: torch.full((n,), 0.25),
    "all zero": lambda n: torch.zeros(n),
    "both zeros": lambda n: torch.where(torch.rand(n) < 0.5, 0.0, -0.0),
    "infinities": lambda n: torch.where(torch.rand(n) < 0.6, torch.randn(n), torch.inf),
    "both infinities": lambda n: torch.randn(n).sign() * torch.inf,
    "denormal": lambda n: torch.rand(n) * 1e-42,
    "huge": lambda n: torch.randn(n) * 1e38,
    "two far apart": lambda n: torch.where(torch.rand(n) < 0.5, 1e-38, 1e38),
}
# What is limited: small enough for brackets that are wrong, that hold too much and that are
# narrowed, and tie keys that are bracketed too.
LIMITED = (
    (ranking, "MAX_CANDIDATES"),
    (bracket, "SAMPLE_SIZE"),
    (bracket, "_BRACKET_SIGMAS"),
)
LIMITS = {
    "as shipped": tuple(getattr(module, name) for module, name in LIMITED),
    "few candidates": (40, 300, 5.0),
    "poor sample": (40, 5, 0.0),
    "no sample": (10, 0, 5.0),
}


def _limit(monkeypatch, limits):
    for (module, name), value in zip(LIMITED, LIMITS[limits], strict=True):
        monkeypatch.setattr(module, name, value)


def _scored(scores, mask, sizes):
    """The tensors of a choice, which share their memory with ``mask``."""
    tensors, offset = [], 0
    for part, part_mask in zip(scores.split(sizes), mask.split(sizes), strict=True):
        tensors.append(ScoredTensor(part.__getitem__, part_mask, offset))
        offset += part.numel()
    return tensors


def _splitmix(position):
    """The tie key of a position in exact integers, as a signed 64-bit number."""
    key = (position + 0x9E3779B97F4A7C15) % 2**64
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB % 2**64
    key ^= key >> 31
    return key - 2**64 if key >= 2**63 else key


def _sorted_positions(scores, mask):
    return sorted(
        range(len(scores)), key=lambda i: (scores[i].item(), mask[i].item(), _splitmix(i))
    )


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", SCORES)
def test_the_choice_equals_a_sort_by_score_then_pruned_first_then_tie_key(
    kind, limits, monkeypatch
):
    torch.manual_seed(0)
    scores = SCORES[kind](N)
    before = torch.rand(N) < 0.7
    order = _sorted_positions(scores, before)
    _limit(monkeypatch, limits)
    for count in (0, 1, 17, N // 2, N - 400, N - 1, N):
        mask = before.clone()
        threshold = prune_smallest_(_scored(scores, mask, SIZES), count)
        expected = torch.ones(N, dtype=torch.bool)
        expected[order[:count]] = False
        assert torch.equal(mask, expected), count
        assert threshold == (scores[order[count - 1]].item() if count else None)


def _sorted_positions_of_many(scores, mask):
    """As `_sorted_positions`; its tie keys are those that a test below computes in integers."""
    order = torch.argsort(tie_keys(torch.arange(len(scores))))
    for values in (mask, scores):
        order = order[torch.argsort(values[order], stable=True)]
    return order


@pytest.mark.parametrize("kind", SCORES)
def test_with_the_limits_as_shipped_a_choice_that_samples_its_bracket_equals_a_sort(
    kind, monkeypatch
):
    torch.manual_seed(0)
    sizes = (40_000, 3, 30_000, 771)
    total = sum(sizes)
    scores, before = SCORES[kind](total), torch.rand(total) < 0.7
    order = _sorted_positions_of_many(scores, before)
    sampled = []
    samples = bracket._samples

    def watched(*arguments):
        for sample in samples(*arguments):
            sampled.append(sample.numel())
            yield sample

    monkeypatch.setattr(bracket, "_samples", watched)
    for count in (1, 17, total // 2, total - 400, total):
        sampled.clear()
        mask = before.clone()
        threshold = prune_smallest_(_scored(scores, mask, sizes), count)
        assert sum(sampled) == total // 8
        expected = torch.ones(total, dtype=torch.bool)
        expected[order[:count]] = False
        assert torch.equal(mask, expected), count
        assert threshold == scores[order[count - 1]].item()


def test_a_choice_of_few_scores_samples_nothing():
    assert bracket.sample_size(N) == 0


def test_a_single_entry_is_kept_or_pruned():
    for count in (0, 1):
        mask = torch.ones(1, dtype=torch.bool)
        prune_smallest_(_scored(torch.tensor([0.5]), mask, (1,)), count)
        assert mask.tolist() == [count == 0]


BRACKETS = {
    "everything": (-math.inf, math.inf),
    "far below": (-7.0, -6.0),
    "far above": (6.0, 7.0),
    "empty": (0.0, 0.0),
    "upside down": (1.0, -1.0),
    "ends on values": (-1.0, 1.0),
    "below": (-math.inf, -0.5),
    "above": (0.5, math.inf),
}


@pytest.mark.parametrize("max_candidates", [0, 30, 1 << 21])
@pytest.mark.parametrize("bracket", BRACKETS)
@pytest.mark.parametrize("kind", ["negative", "many ties", "all zero", "infinities", "denormal"])
def test_the_kth_smallest_is_exact_whatever_the_bracket(kind, bracket, max_candidates, monkeypatch):
    torch.manual_seed(1)
    scores = SCORES[kind](N)
    ordered = sorted(scores.tolist())
    monkeypatch.setattr(ranking, "MAX_CANDIDATES", max_candidates)
    for k in (1, 2, N // 3, N // 2, N - 1, N):
        found = kth_smallest(lambda: iter(scores.split(SIZES)), k, BRACKETS[bracket])
        value = ordered[k - 1]
        below = sum(other < value for other in ordered)
        assert found == (value, below, ordered.count(value)), k


@pytest.mark.parametrize("bracket", [(-math.inf, math.inf), (-(1 << 62), 0), (5, 5)])
@pytest.mark.parametrize("max_candidates", [0, 30, 1 << 21])
def test_the_kth_smallest_of_64_bit_keys_is_exact(bracket, max_candidates, monkeypatch):
    keys = tie_keys(torch.arange(N))
    ordered = sorted(keys.tolist())
    monkeypatch.setattr(ranking, "MAX_CANDIDATES", max_candidates)
    for k in (1, N // 3, N - 1, N):
        found = kth_smallest(lambda: iter(keys.split(SIZES)), k, bracket, dtype=torch.int64)
        assert found == (ordered[k - 1], k - 1, 1), k


@pytest.mark.parametrize("k", [1, 5, 777, N])
def test_a_value_that_need_not_be_exact_separates_the_k_smallest_from_the_rest(k):
    keys = tie_keys(torch.arange(N))
    found = kth_smallest(
        lambda: iter(keys.split(SIZES)), k, (-math.inf, math.inf), dtype=torch.int64, exact=False
    )
    assert int((keys <= found.value).sum()) == k


def test_tie_keys_are_splitmix64_and_never_alike():
    positions = [0, 1, 2, 12345, 2**31, 2**40 + 7, 2**62]
    assert tie_keys(torch.tensor(positions)).tolist() == [_splitmix(p) for p in positions]
    assert tie_keys(torch.arange(100_000)).unique().numel() == 100_000


@pytest.mark.parametrize("size", [1, 7, 8, 1023, 1024, 1025, 4099])
def test_true_entries_are_counted_at_any_size(size):
    for share in (0.0, 0.3, 1.0):
        flags = torch.rand(size) < share
        assert count_true(flags) == sum(flags.tolist())


def test_true_entries_of_a_transposed_tensor_are_counted():
    flags = torch.rand(70, 50) < 0.4
    assert count_true(flags.t()) == sum(flags.view(-1).tolist())


def test_the_count_is_exact_above_2_to_the_24_with_ties():
    size = 17_000_003
    assert size > 1 << 24
    scores = (
        torch.arange(size).remainder_(5).float()
    )  # 3,400,001 of each of 0, 1, 2; one less of 3, 4
    sizes = (9_000_000, 768, size - 9_000_768)
    mask = torch.ones(size, dtype=torch.bool)
    count = 9_000_001
    assert prune_smallest_(_scored(scores, mask, sizes), count) == 2.0
    by_score = [int((~mask[scores == value]).sum(dtype=torch.int64)) for value in range(5)]
    assert by_score == [3_400_001, 3_400_001, count - 2 * 3_400_001, 0, 0]


def test_ties_empty_no_tensor_whatever_its_size():
    sizes = (100_000, 60, 3_000, 200, 50_000)
    mask = torch.ones(sum(sizes), dtype=torch.bool)
    count = round(0.5 * sum(sizes))
    prune_smallest_(_scored(torch.zeros(sum(sizes)), mask, sizes), count)
    assert int((~mask).sum()) == count
    for part in mask.split(sizes):
        # Six standard deviations of a fair coin around one half.
        assert abs(part.float().mean() - 0.5) < 6 * 0.5 / math.sqrt(part.numel())


@pytest.mark.parametrize("kind", ["random", "many ties", "all zero"])
def test_the_choice_does_not_depend_on_how_entries_are_divided_into_tensors(kind, monkeypatch):
    torch.manual_seed(2)
    scores = SCORES[kind](N)
    before = torch.rand(N) < 0.7
    _limit(monkeypatch, "few candidates")
    results = []
    for sizes in (SIZES, (N,), (N - 5, 5), (1,) * 64 + (N - 64,)):
        mask = before.clone()
        prune_smallest_(_scored(scores, mask, sizes), N // 2)
        results.append(mask)
    for mask in results[1:]:
        assert torch.equal(mask, results[0])


def test_the_choice_does_not_depend_on_the_size_of_blocks(monkeypatch):
    torch.manual_seed(3)
    scores, before = torch.randint(0, 9, (N,)).float(), torch.rand(N) < 0.5
    results = []
    for block in (1 << 19, 100, 64, 1):
        monkeypatch.setattr("platon_prune.tensors.blocks.CPU_BLOCK", block)
        mask = before.clone()
        prune_smallest_(_scored(scores, mask, SIZES), N // 2)
        results.append(mask)
    for mask in results[1:]:
        assert torch.equal(mask, results[0])


def test_the_choice_does_not_touch_torchs_random_state(monkeypatch):
    _limit(monkeypatch, "few candidates")
    scores = torch.rand(N)
    state = torch.get_rng_state()
    prune_smallest_(_scored(scores, torch.ones(N, dtype=torch.bool), SIZES), N // 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_choice_leaves_the_scores_as_they_are():
    scores = torch.rand(N)
    before = scores.clone()
    prune_smallest_(_scored(scores, torch.ones(N, dtype=torch.bool), SIZES), N // 2)
    assert torch.equal(scores, before)
