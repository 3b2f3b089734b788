"""The settings that all doors share: each hands them on, schedules among them."""

import inspect
import warnings
from dataclasses import dataclass, fields
from typing import ClassVar, get_args, get_type_hints

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.criteria import CriterionName
from platon_prune.groups.costs import BUDGETS, Budget
from platon_prune.groups.group_scores import AGGREGATES, Aggregate
from platon_prune.masks.method import MASKINGS, Masking
from platon_prune.pruning.settings import Settings
from platon_prune.schedule import ScheduleName

DOORS = [
    platon_prune.global_unstructured,
    platon_prune.semi_structured,
    platon_prune.global_structured,
]


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def _set_up(door, model, **settings):
    settings = dict(amount=0.5, total_steps=20, window=4) | settings
    if door is platon_prune.global_structured:
        settings["example_inputs"] = torch.ones(2, 8)
    return door(model, **settings)


def _train(model, scheduler, steps, seed=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(torch.randn(4, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("door", DOORS)
def test_every_door_spells_out_every_setting(door):
    parameters = inspect.signature(door).parameters
    assert {field.name for field in fields(Settings)} <= parameters.keys()
    assert parameters["schedule"].default == "cubic"
    hints = get_type_hints(door)
    # As literals, so that a type checker sees a typo.
    assert hints["criterion"] == CriterionName | platon_prune.Criterion
    assert hints["schedule"] == ScheduleName | type[platon_prune.RampSchedule]
    assert hints["masking"] == Masking


def test_the_names_of_choices_are_those_of_their_types():
    assert tuple(map(get_args, (Masking, Aggregate, Budget))) == (MASKINGS, AGGREGATES, BUDGETS)


@pytest.mark.parametrize("schedule", ["cubic", "linear", "exponential", "once"])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_prunes_by_every_schedule(door, schedule):
    model = _model()
    scheduler = _set_up(door, model, schedule=schedule, warmup_steps=3, cooldown_steps=7)
    assert scheduler.schedule.name == schedule
    _train(model, scheduler, 20)
    assert scheduler.amount == scheduler.history[-1].amount == 0.5
    steps = [choice.step for choice in scheduler.history]
    assert steps == ([4] if schedule == "once" else [4, 8, 12, 13, 16, 20])


@dataclass(frozen=True)
class Square(platon_prune.RampSchedule):
    """From the initial amount to the final one by the square of the time."""

    name: ClassVar[str] = "square"

    def on_ramp(self, share):
        return self.initial_amount + (self.amount - self.initial_amount) * share**2


@pytest.mark.parametrize("door", DOORS)
def test_a_schedule_of_a_few_lines_works_through_every_door(door):
    model = _model()
    scheduler = _set_up(door, model, schedule=Square, warmup_steps=0, cooldown_steps=0)
    _train(model, scheduler, 20)
    due = [0.5 * (step / 20) ** 2 for step in (4, 8, 12, 16, 20)]
    assert [choice.amount for choice in scheduler.history] == pytest.approx(due)
    with pytest.raises(ValueError, match="schedule is 'cubic' here and 'square' in the state"):
        other = _set_up(door, _model(), warmup_steps=0, cooldown_steps=0)
        other.load_state_dict(scheduler.state_dict())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(schedule="cosine"), ValueError, "one of cubic, linear, exponential, once; got"),
        (dict(schedule=Square(0.5, 20)), TypeError, "got an instance of Square: pass the class"),
        (dict(schedule="once", initial_amount=0.2), ValueError, "initial_amount must be 0 for"),
        (dict(schedule="once", window=30), ValueError, "choice at step 20 with window=30"),
        (dict(schedule="once", window=1), ValueError, "choice at step 1 with window=1"),
    ],
)
@pytest.mark.parametrize("door", DOORS)
def test_a_schedule_that_can_not_be_is_refused_and_the_model_untouched(
    door, settings, error, message
):
    model = _model()
    with pytest.raises(error, match=message):
        _set_up(door, model, **dict(warmup_steps=0, cooldown_steps=0) | settings)
    assert list(model.state_dict()) == list(_model().state_dict())


def _remembered(scheduler):
    return {
        (name, key): value.clone()
        for name, tensor in scheduler.state_dict()["tensors"].items()
        for key, value in tensor.items()
        if key in ("mask", "window", "sensitivity", "uncertainty")
    }


@pytest.mark.parametrize("masking", ["step", "window"])
def test_once_takes_no_sample_after_its_choice_and_needs_no_gradient(masking):
    model = _model()
    scheduler = _set_up(
        platon_prune.global_unstructured, model, schedule="once", warmup_steps=6, masking=masking
    )
    _train(model, scheduler, 8)
    after = _remembered(scheduler)
    assert [choice.step for choice in scheduler.history] == [8]
    assert scheduler.sparsity() == 0.5
    _train(model, scheduler, 4)
    with torch.no_grad():
        model[0].weight_orig.add_(1)
    scheduler.step()  # without gradients
    assert int((model[0].weight_orig == 0).sum()) == int((~scheduler.masks()["0.weight"]).sum())
    now = _remembered(scheduler)
    assert all(torch.equal(after[key], now[key]) for key in after)
    assert (len(scheduler.history), scheduler.last_step) == (1, 13)


def test_zeros_that_are_adopted_are_pruned_further_once():
    model = _model()
    with torch.no_grad():
        model[0].weight[:4] = 0  # 32 of 256
    scheduler = _set_up(
        platon_prune.global_unstructured, model, schedule="once", initial_amount="zeros"
    )
    assert scheduler.amount == scheduler.sparsity() == 0.125
    _train(model, scheduler, 20)
    assert scheduler.sparsity() == 0.5


@pytest.mark.parametrize("schedule", ["linear", "exponential", "once"])
def test_a_run_can_be_given_its_length_before_its_first_step(schedule):
    model = _model()
    scheduler = _set_up(platon_prune.global_unstructured, model, schedule=schedule)
    scheduler.reschedule(total_steps=40, warmup_steps=0.25, cooldown_steps=8)
    assert (scheduler.schedule.name, scheduler.schedule.warmup_steps) == (schedule, 10)
    _train(model, scheduler, 40)
    assert scheduler.history[0].step == 12
    assert scheduler.sparsity() == 0.5


def test_a_state_from_before_there_were_schedules_loads_for_the_cubic_one_only():
    model = _model()
    scheduler = _set_up(platon_prune.global_unstructured, model)
    _train(model, scheduler, 10)
    state = scheduler.state_dict()
    assert state["version"] == 3
    assert set(state["settings"]) == {
        "criterion", "beta1", "beta2", "masking", "amount", "initial_amount", "total_steps",
        "warmup_steps", "cooldown_steps", "window", "granularity",
    }  # fmt: skip
    _set_up(platon_prune.global_unstructured, _model()).load_state_dict(state)
    other = _set_up(platon_prune.global_unstructured, _model(), schedule="linear")
    with pytest.raises(ValueError, match="schedule is 'linear' here and 'cubic' in the state"):
        other.load_state_dict(state)


def test_a_warning_that_is_an_error_leaves_no_masks_of_n_m():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", platon_prune.PruningWarning)
        with pytest.raises(platon_prune.PruningWarning, match="left out of 2:4 pruning: 1.weight"):
            platon_prune.semi_structured(model, total_steps=20, warmup_steps=0, cooldown_steps=0)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
