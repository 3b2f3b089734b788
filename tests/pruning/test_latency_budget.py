"""Time as the budget: what an amount and a speedup mean, with times that the test says."""

from __future__ import annotations

import pickle

import pytest
import small_transformers
import torch

import platon_prune
from platon_prune.groups.latency import LatencyTable, PlaceTime
from platon_prune.pruning import structured

SETTINGS = dict(total_steps=12, window=2, warmup_steps=0, cooldown_steps=2)
MS = 10**9  # picoseconds
# BERT of the tests: two layers of four heads and ten neurons. With floors of one group each a head
# saves 2 ms and a neuron 1 ms, so that 2 * (3 * 2 + 9 * 1) = 30 of 100 ms can go.
SAVED = {"heads": 2 * MS, "neurons": 1 * MS}


def _says(monkeypatch, saved=SAVED, forward=100 * MS):
    """Have set-up measure what is said here: a time for each kind, or for a place by its name."""

    def measure(model, groups, floors, inputs):
        rows = []
        for place, floor in zip(groups, floors, strict=True):
            each = saved.get(place.name, saved.get(place.kind, 0))
            full = each * (place.size - floor) + 5 * MS
            rows.append(PlaceTime(place.name, place.kind, place.size, floor, full, 5 * MS))
        return LatencyTable(forward, tuple(rows))

    monkeypatch.setattr(structured, "measure_latency", measure)


def _set_up(model=None, **settings):
    model = small_transformers.build("BERT") if model is None else model
    scheduler = platon_prune.global_structured(
        model, small_transformers.inputs(model), **dict(budget="latency") | SETTINGS | settings
    )
    return model, scheduler


def _train(model, scheduler, num_steps, seed=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        tokens = torch.randint(1, 17, (2, 6), generator=generator)
        model(input_ids=tokens).last_hidden_state.square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def _gone(scheduler):
    """How many heads and neurons are gone, over all layers."""
    granularity = scheduler.granularity
    gone = {"heads": 0, "neurons": 0}
    for place, kept in zip(granularity.groups, granularity.kept(scheduler.masks()), strict=True):
        gone[place.kind] += int((~kept).sum())
    return gone


@pytest.mark.parametrize(
    ("asked", "due"), [(dict(amount=0.1), 10), (dict(amount=0.2), 20), (dict(speedup=1.25), 20)]
)
def test_what_goes_saves_the_share_of_the_forwards_time(monkeypatch, asked, due):
    _says(monkeypatch)
    model, scheduler = _set_up(**asked)
    _train(model, scheduler, 12)
    gone = _gone(scheduler)
    # A last head of 2 ms goes if that is nearer, and neurons fill up to the millisecond.
    assert 2 * gone["heads"] + gone["neurons"] == due
    assert scheduler.schedule.amount == pytest.approx(due / 100)


def test_times_that_are_counts_of_parameters_choose_as_parameters_do(monkeypatch):
    # A head: 3 * (16 * 4 + 4) + 16 * 4; a neuron: 16 + 1 + 16.
    head, neuron = 268, 33
    total = 2 * (4 * head + 10 * neuron)
    _says(monkeypatch, dict(heads=head, neurons=neuron), forward=total)
    runs = []
    for budget in ("latency", "parameters"):
        model, scheduler = _set_up(budget=budget, amount=0.4)
        _train(model, scheduler, 12)
        runs.append(scheduler.masks())
    assert all(torch.equal(mask, runs[1][name]) for name, mask in runs[0].items())


@pytest.mark.parametrize(
    ("asked", "told"),
    [(dict(amount=0.41), "amount must be at most 0.3 with these floors"),
     (dict(speedup=1.7), "speedup must be at most 1.42 with these floors")],  # 1 / 0.7 = 1.428...
)  # fmt: skip
def test_what_can_not_be_reached_is_refused_with_the_largest_that_can(monkeypatch, asked, told):
    _says(monkeypatch)
    model = small_transformers.build("BERT")
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=told):
        _set_up(model, **asked)
    assert list(model.state_dict()) == keys and not hasattr(model, "_platon_groups")
    _set_up(model, speedup=1.42)


def test_what_is_nearly_reached_is_refused_before_the_first_step_unless_a_state_is_loaded(
    monkeypatch,
):
    _says(monkeypatch)
    straight, first = _set_up(speedup=1.42)
    _train(straight, first, 5)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    weights = {name: value.clone() for name, value in straight.state_dict().items()}
    _says(monkeypatch, forward=120 * MS)  # a slower moment: 30 of 120
    again, new = _set_up(speedup=1.42)
    with pytest.raises(ValueError, match="speedup must be at most 1.33 with these floors"):
        new.step()
    assert new.last_step == 0 and new.sparsity() == 0
    again.load_state_dict(weights)
    new.load_state_dict(state)
    for model, scheduler in ((straight, first), (again, new)):
        _train(model, scheduler, 7, seed=1)
    for (name, one), other in zip(
        straight.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_place_that_is_no_faster_at_its_floor_is_left_whole_and_named(monkeypatch):
    _says(monkeypatch, {"encoder.layer.0": MS, "heads": 0, "encoder.layer.1": 2 * MS})
    named = "left whole, for they were no faster at the floor: encoder.layer.0.attention.self, "
    with pytest.warns(platon_prune.PruningWarning, match=named):
        model, scheduler = _set_up(amount=0.27)  # all that is left to go: 9 * 1 + 9 * 2 of 100
    _train(model, scheduler, 12)
    assert _gone(scheduler) == {"heads": 0, "neurons": 18}


def test_a_resumed_run_goes_by_the_times_of_the_saved_one_bit_by_bit(monkeypatch):
    _says(monkeypatch)
    straight, first = _set_up(speedup=1.25)
    _train(straight, first, 5)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    weights = {name: value.clone() for name, value in straight.state_dict().items()}
    _says(monkeypatch, dict(heads=MS, neurons=3 * MS), 80 * MS)
    resumed, second = _set_up(speedup=1.25)
    resumed.load_state_dict(weights)
    second.load_state_dict(state)
    assert second.granularity.latency == first.granularity.latency
    for model, scheduler in ((straight, first), (resumed, second)):
        _train(model, scheduler, 7, seed=1)
    for (name, one), other in zip(
        straight.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


SPOILT = {
    "a table of measured times": lambda table: None,
    "times of 4 places": lambda table: table["places"].pop(),
    "times of encoder.layer.0.attention.self, 4 heads": lambda table: table["places"][0].insert(
        2, 5
    ),
}


@pytest.mark.parametrize("told", SPOILT)
def test_a_state_without_times_of_these_places_is_refused_and_changes_nothing(monkeypatch, told):
    _says(monkeypatch)
    _, scheduler = _set_up(amount=0.2)
    state = scheduler.state_dict()
    SPOILT[told](state["granularity"])
    if told.startswith("a table"):
        del state["granularity"]
    before = scheduler.granularity.latency
    with pytest.raises(ValueError, match=f"granularity in the state must be {told}"):
        scheduler.load_state_dict(state)
    assert scheduler.granularity.latency is before and scheduler.last_step == 0


def test_a_state_of_another_budget_has_no_times_and_is_refused(monkeypatch):
    _says(monkeypatch)
    _, of_time = _set_up(amount=0.2)
    _, of_parameters = _set_up(amount=0.2, budget="parameters")
    assert "granularity" not in of_parameters.state_dict()
    with pytest.raises(ValueError, match="same configuration: "):
        of_time.load_state_dict(of_parameters.state_dict())


REFUSED = {
    "speedup must stand instead of amount": (ValueError, dict(amount=0.2, speedup=1.5)),
    'speedup must go with budget="latency"': (ValueError, dict(speedup=1.5, budget="macs")),
    "speedup must be a number above 1": (ValueError, dict(speedup=1.0)),
    "speedup must be a number above 1, such as": (ValueError, dict(speedup="1.5")),
    "amount must be given, or speedup": (TypeError, dict()),
    'budget must be "parameters" or "macs" where groups are cut out': (
        ValueError,
        dict(amount=0.2, cut_after=1),
    ),
    "total_steps must": (TypeError, dict(amount=0.2, total_steps=12.5)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_wrong_is_refused_before_anything_is_measured(monkeypatch, message):
    def measure(*_):
        raise AssertionError("nothing may be measured")

    monkeypatch.setattr(structured, "measure_latency", measure)
    error, settings = REFUSED[message]
    with pytest.raises(error, match=message):
        _set_up(**settings)


def test_blocks_have_times_of_their_own_but_not_beside_their_heads(monkeypatch):
    _says(monkeypatch, dict(blocks=20 * MS))
    model, scheduler = _set_up(small_transformers.build("Llama"), amount=0.2, kinds="blocks")
    assert [(each.kind, each.per_group) for each in scheduler.granularity.latency.places] == [
        ("blocks", 20 * MS)
    ]
    with pytest.raises(ValueError, match='kinds must be "blocks" alone or without it'):
        _set_up(small_transformers.build("Llama"), amount=0.2, kinds=["heads", "blocks"])


def test_a_run_by_time_is_not_cut_by_hand_either(monkeypatch):
    _says(monkeypatch)
    model, scheduler = _set_up(amount=0.2)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match="whose times are of the model as it was"):
        scheduler.cut()
    assert list(model.state_dict()) == keys


def test_times_need_an_example_and_a_model_with_values():
    with pytest.raises(ValueError, match='example_inputs must be given for budget="latency"'):
        platon_prune.global_structured(
            small_transformers.build("BERT"), amount=0.1, budget="latency", **SETTINGS
        )
    model = small_transformers.build("BERT")
    inputs = small_transformers.inputs(model)
    with pytest.raises(ValueError, match="must have values for budget"):
        platon_prune.global_structured(
            model.to("meta"), inputs, amount=0.1, budget="latency", **SETTINGS
        )


def test_the_table_prints_a_row_for_each_place_and_what_would_be_left(monkeypatch):
    _says(monkeypatch)
    _, scheduler = _set_up(amount=0.2)
    lines = [line.split() for line in str(scheduler.granularity.latency).splitlines()]
    assert ["encoder.layer.0", "neurons", "10", "14.000", "1", "5.000"] in lines
    assert lines[-1] == ["total", "forward", "100.000", "70.000"]
