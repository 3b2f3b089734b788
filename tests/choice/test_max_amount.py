"""`max_amount`: no tensor loses more than its limit, and the total stays exact."""

import math

import pytest
import rank_jobs
import ranks
import torch
from test_selection import LIMITS, SCORES, SIZES, N, _limit, _scored, _sorted_positions
from torch import nn

import platon_prune
from platon_prune.choice.limits import caps_of, prune_smallest_within_


def plain_choice(order, scores, sizes, count, caps):
    """The definition: from the smallest entry on, take each whose tensor is not full."""
    tensor_of = [i for i, size in enumerate(sizes) for _ in range(size)]
    lost, pruned = [0] * len(sizes), []
    for position in order:
        if len(pruned) < count and lost[tensor_of[position]] < caps[tensor_of[position]]:
            lost[tensor_of[position]] += 1
            pruned.append(position)
    assert len(pruned) == count
    kept = torch.ones(len(scores), dtype=torch.bool)
    kept[pruned] = False
    return kept, max((scores[i].item() for i in pruned), default=None)


CAPS = {
    "no limits": SIZES,
    "large tensors": (1, 200, 8, 700, 64, 3, 420),
    "some kept whole": (0, 257, 0, 1031, 0, 3, 0),
    "no slack": tuple(size - size // 2 for size in SIZES),
    "one tensor has to give way": (1, 40, 8, 1031, 10, 3, 30),
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", SCORES)
def test_the_choice_within_caps_equals_taking_the_smallest_whose_tensor_is_not_full(
    kind, limits, monkeypatch
):
    torch.manual_seed(0)
    scores = SCORES[kind](N)
    scores[1:258] *= 0.01  # a tensor that the global threshold would nearly empty
    before = torch.rand(N) < 0.7
    order = _sorted_positions(scores, before)
    _limit(monkeypatch, limits)
    for caps in CAPS.values():
        room = sum(caps)
        for count in sorted({0, 1, 17, room // 2, room - 5, room}):
            mask = before.clone()
            threshold = prune_smallest_within_(_scored(scores, mask, SIZES), count, caps)
            expected, largest = plain_choice(order, scores, SIZES, count, caps)
            assert torch.equal(mask, expected), (caps, count)
            assert threshold == largest


def test_caps_are_the_decimal_fractions_that_were_typed():
    # 0.29 * 100 and 0.57 * 100 are just below 29 and 57 in binary.
    sizes = [("a", 100), ("b", 3), ("c", 0)]
    assert caps_of(0.29, sizes) == [29, 0, 0]
    assert caps_of(0.57, sizes) == [57, 1, 0]
    assert caps_of(1.0, sizes) == [100, 3, 0]
    assert caps_of(0.0, sizes) == [0, 0, 0]


def test_where_several_patterns_match_all_limits_hold():
    sizes = [("layer.0.query", 10), ("layer.1.query", 10), ("layer.1.key", 10)]
    assert caps_of({"layer.1": 0.8, "query": 0.5}, sizes) == [5, 5, 8]
    assert caps_of({"layer.0": 0.9, "query": 0.3}, sizes) == [3, 3, 10]


# --- in training --------------------------------------------------------------------------------


def _model():
    """Its first layer has by far the smallest weights: magnitude would empty it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.Linear(20, 5))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    return model  # 200, 400 and 100 weights


def _pruned(**settings):
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model,
        criterion="magnitude",
        total_steps=4,
        window=1,
        **dict(warmup_steps=0, cooldown_steps=0) | settings,
    )
    for _ in range(4):
        scheduler.step()
    return [int((~mask).sum()) for mask in scheduler.masks().values()]


def test_without_limits_the_layer_of_small_weights_loses_all():
    assert _pruned(amount=0.5)[0] == 200


def test_with_one_limit_for_all_the_total_stays_exact_and_the_others_give_more():
    lost = _pruned(amount=0.5, max_amount=0.6)
    assert lost[0] == 120 and sum(lost) == 350
    assert lost[1] <= 240 and lost[2] <= 60


def test_with_a_limit_for_a_pattern_only_its_tensors_are_held_back():
    lost = _pruned(amount=0.5, max_amount={"0.weight": 0.25, "3.": 0})
    assert lost == [50, 300, 0]


def test_a_limit_of_the_amount_itself_prunes_every_tensor_alike():
    assert _pruned(amount=0.5, max_amount=0.5) == [100, 200, 50]


def test_a_count_of_weights_is_limited_too():
    assert _pruned(amount=175, max_amount=0.25) == [50, 100, 25]


def test_limits_that_leave_too_little_to_prune_are_refused_with_the_numbers():
    model = _model()
    with pytest.raises(ValueError, match=r"350 of 700 weights.*allows 349 \(0.498571"):
        # 99 + 200 + 50
        platon_prune.global_unstructured(
            model,
            amount=0.5,
            total_steps=20,
            max_amount={"0.": 0.499, "2.": 0.5, "3.": 0.5},
            warmup_steps=0,
            cooldown_steps=0,
        )
    assert list(model.state_dict()) == list(_model().state_dict())


@pytest.mark.parametrize(
    ("max_amount", "error", "message"),
    [
        (1.5, ValueError, r"must be in \[0, 1\], got 1.5"),
        (-0.1, ValueError, r"must be in \[0, 1\]"),
        (math.nan, ValueError, r"must be in \[0, 1\], got nan"),
        (True, TypeError, "must be a fraction"),
        ("0.5", TypeError, "must be a fraction"),
        ({}, ValueError, "at least one pattern"),
        ({"classifier": 0.5}, ValueError, "'classifier' matches none; they look like 0.weight"),
        ({"0.": 2}, ValueError, r"max_amount of '0.' must be in \[0, 1\], got 2"),
        ({0: 0.5}, TypeError, "substrings of names"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(max_amount, error, message):
    with pytest.raises(error, match=message):
        platon_prune.global_unstructured(
            _model(),
            amount=0.1,
            total_steps=20,
            max_amount=max_amount,
            warmup_steps=0,
            cooldown_steps=0,
        )


def test_the_limits_are_in_the_state_and_another_limit_does_not_load(tmp_path):
    def scheduler(max_amount):
        return platon_prune.global_unstructured(
            _model(),
            amount=0.5,
            total_steps=99,
            max_amount=max_amount,
            warmup_steps=0,
            cooldown_steps=0,
        )

    torch.save(scheduler({"0.": 0.5, "2.": 0.9}).state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["settings"]["max_amount"] == {"0.": 0.5, "2.": 0.9}
    scheduler({"2.": 0.9, "0.": 0.5}).load_state_dict(state)
    for other in (0.9, None, {"0.": 0.5}):
        with pytest.raises(ValueError, match="max_amount is"):
            scheduler(other).load_state_dict(state)


# --- over processes -----------------------------------------------------------------------------

AT = (8, 13, 18, 24)
LIMITED = dict(max_amount={"first": 0.5, "one": 0.0})


@pytest.mark.parametrize("kind", ["random", "tied", "zero"])
@pytest.mark.parametrize(
    ("layout", "size"), [("copies", 2), ("fsdp", 3), ("hsdp", 4), ("tp", 2), ("several_meshes", 4)]
)
def test_the_limits_hold_over_processes_as_in_one(layout, size, kind):
    expected = rank_jobs.results(rank_jobs.alone, kind, AT, LIMITED)
    masks = expected[-1]["masks"]
    lost = {name: int((~mask).sum()) for name, mask in masks.items()}
    sizes = {name: mask.numel() for name, mask in masks.items()}
    assert sum(lost.values()) == round(rank_jobs.SETTINGS["amount"] * sum(sizes.values()))
    assert lost["first.weight"] == int(0.5 * sizes["first.weight"]) and lost["one.weight"] == 0
    function = getattr(rank_jobs, layout)
    for found in ranks.run(size, rank_jobs.results, function, kind, AT, LIMITED):
        for one, other in zip(found, expected, strict=True):
            assert not rank_jobs.differences(one, other)
