"""Runs with ``max_drop`` under odd circumstances: calls out of order, odd values, odd schedules."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from goal_run import everything, linear_amount, net, run, set_up, sgd, take_step
from torch import nn

import platon_prune
from platon_prune.warning import PruningWarning


def _made(**changes):
    model = net()
    return model, sgd(model), set_up(model, **changes)


# --- what is reported -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(0.5),
        torch.tensor([[0.5]], requires_grad=True),
        torch.tensor(0.5, dtype=torch.bfloat16),
        np.float32(0.5),
        np.array(0.5),
        np.array([0.5]),
    ],
    ids=["scalar", "matrix", "bfloat16", "numpy", "array", "vector"],
)
def test_a_value_may_be_a_tensor_or_an_array_of_one_entry(value):
    model, optimizer, scheduler = _made(warmup_steps=0)
    scheduler.report(value, optimizer)
    assert scheduler.goal.baseline == 0.5 and type(scheduler.goal.baseline) is float


@pytest.mark.parametrize("value", [None, "0.9", True, torch.ones(2), [0.5], {"accuracy": 0.5}])
def test_what_is_no_number_is_refused_and_changes_nothing(value):
    model, optimizer, scheduler = _made(warmup_steps=0)
    with pytest.raises(TypeError, match="value must be a number in the metric's unit, got"):
        scheduler.report(value, optimizer)
    assert scheduler.goal.is_due and scheduler.goal.baseline is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("greater", [True, False])
def test_a_value_that_is_not_finite_does_not_hold_whatever_is_better(value, greater):
    # An exponential that overflows, as of a perplexity, is no good one.
    model, optimizer, scheduler = _made(greater_is_better=greater)
    run(model, optimizer, scheduler, lambda s: value if s.sparsity() > 0.5 else 1.0)
    assert scheduler.amount == linear_amount(25)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_dense_value_that_is_not_finite_is_refused_and_may_be_reported_anew(value):
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0, until=9, every=100)
    take_step(model, optimizer, scheduler)
    with pytest.raises(ValueError, match=f"value must be finite, got {value} at step 10"):
        scheduler.report(value, optimizer)
    assert scheduler.goal.is_due
    scheduler.report(0.9, optimizer)
    assert scheduler.goal.baseline == 0.9 and not scheduler.goal.is_due


@pytest.mark.parametrize(("greater", "worse"), [(True, -105.5), (False, -94.5)])
def test_a_baseline_may_be_negative(greater, worse):
    model, optimizer, scheduler = _made(greater_is_better=greater, max_drop=5)
    run(model, optimizer, scheduler, lambda s: worse if s.sparsity() > 0.5 else -100.0)
    assert scheduler.amount == linear_amount(25)
    model, optimizer, scheduler = _made(greater_is_better=greater, max_drop=5.5)
    run(model, optimizer, scheduler, lambda s: worse if s.sparsity() > 0.5 else -100.0)
    assert scheduler.amount == 0.9


def test_the_first_of_two_values_of_a_step_counts():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0, until=29)
    take_step(model, optimizer, scheduler)
    assert scheduler.goal.would_decide
    scheduler.report(1.0, optimizer)
    assert not scheduler.goal.would_decide
    scheduler.report(0.0, optimizer)
    assert scheduler.goal.held_since is None and scheduler.goal.kept[-1].step == 30
    run(model, optimizer, scheduler, lambda _: 0.0, until=35)
    assert scheduler.goal.held_since == 35
    before = everything(model, optimizer)
    scheduler.report(1.0, optimizer)
    for mine, other in zip(everything(model, optimizer), before, strict=True):
        assert torch.equal(mine, other)


def test_values_before_the_ramp_and_after_the_result_change_nothing():
    model, optimizer, scheduler = _made()
    assert not scheduler.report(0.1, optimizer)  # step 0 of a warm-up of 10
    run(model, optimizer, scheduler, lambda _: 1.0)
    said, before = str(scheduler.goal), everything(model, optimizer)
    assert scheduler.report(0.0, optimizer) and str(scheduler.goal) == said
    take_step(model, optimizer, scheduler)  # without a warning: the run is as long as it had to be
    assert scheduler.report(0.0, optimizer) and str(scheduler.goal) == said
    assert len(before) == len(everything(model, optimizer))


def test_a_dense_model_may_be_measured_late_until_the_first_choice():
    model, optimizer, scheduler = _made(window=15)  # ramp from 10, the first choice at 15
    for _ in range(13):
        take_step(model, optimizer, scheduler)
    assert scheduler.goal.is_due
    scheduler.report(0.8, optimizer)
    assert scheduler.goal.baseline == 0.8 and scheduler.goal.kept[0].step == 13
    kept = everything(model, optimizer)
    run(model, optimizer, scheduler, lambda _: 0.0, every=15, until=15)
    for mine, other in zip(everything(model, optimizer), kept, strict=True):
        assert torch.equal(mine, other)


def test_without_a_warm_up_the_dense_model_is_that_before_the_first_step():
    model, optimizer, scheduler = _made(warmup_steps=0)
    before = [each.clone() for each in model.state_dict().values()]
    assert scheduler.goal.is_due
    scheduler.report(1.0, optimizer)
    run(model, optimizer, scheduler, lambda _: 0.0, until=5)
    for mine, other in zip(model.state_dict().values(), before, strict=True):
        assert torch.equal(mine, other)
    assert not optimizer.state_dict()["state"]
    run(model, optimizer, scheduler, lambda _: 0.0)
    assert scheduler.goal.is_over and scheduler.sparsity() == 0


def test_reports_work_in_the_modes_that_an_evaluation_is_run_in():
    model, optimizer, scheduler = _made()
    with torch.inference_mode(), torch.device("cpu"):
        run_in = [0.0 if step == 30 else 1.0 for step in range(61)]
    while not scheduler.goal.is_over:
        take_step(model, optimizer, scheduler)
        if scheduler.goal.is_due or scheduler.last_step % 5 == 0:
            with torch.inference_mode():
                scheduler.report(torch.tensor(run_in[scheduler.last_step]), optimizer)
    assert scheduler.last_step == 50 and scheduler.amount == linear_amount(25)


# --- what is trained ------------------------------------------------------------------------


def test_an_optimizer_that_is_none_is_refused():
    model, optimizer, scheduler = _made(warmup_steps=0)
    with pytest.raises(TypeError, match=r"must be one torch.optim.Optimizer.*got list"):
        scheduler.report(1.0, [optimizer, optimizer])


def test_what_is_frozen_for_a_while_goes_back_too():
    model, optimizer, scheduler = _made()
    model[1].weight.requires_grad_(False)  # given to the optimizer, and unfrozen on the ramp
    run(model, optimizer, scheduler, lambda _: 1.0, until=25)
    kept = model[1].weight.clone()
    model[1].weight.requires_grad_(True)
    model[3].bias.requires_grad_(False)
    bias = model[3].bias.clone()
    run(model, optimizer, scheduler, lambda _: 1.0, until=29)
    assert not torch.equal(model[1].weight, kept)
    run(model, optimizer, scheduler, lambda _: 0.0, until=30)
    assert torch.equal(model[1].weight, kept) and torch.equal(model[3].bias, bias)


def test_what_comes_to_be_trained_only_on_the_ramp_is_refused_by_name():
    model = net()
    optimizer = torch.optim.AdamW([*model[0].parameters(), *model[3].parameters()], lr=0.01)
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    scheduler = set_up(model)
    run(model, optimizer, scheduler, lambda _: 1.0, until=25)
    for parameter in model[1].parameters():
        parameter.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"1\.weight must be trained since the ramp began"):
        run(model, optimizer, scheduler, lambda _: 0.0, until=30)


def test_an_optimizer_that_trains_more_than_the_model_is_refused():
    # A head outside would keep its weights where the rest goes back.
    model, head = net(), nn.Linear(10, 3)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=0.01)
    scheduler = set_up(model)
    with pytest.raises(ValueError, match=r"got 2 parameters outside, the first of shape \(3, 10\)"):
        run(model, optimizer, scheduler, lambda _: 1.0)
    assert scheduler.last_step == 5 and scheduler.goal.baseline is None
    # What stays as it is needs not go back.
    head.requires_grad_(False)
    run(model, optimizer, scheduler, lambda _: 1.0)
    assert scheduler.goal.is_held


def test_caches_that_a_model_is_not_saved_with_are_left_alone():
    model, optimizer, scheduler = _made()
    model[2].register_buffer("cache", torch.zeros(3), persistent=False)
    run(model, optimizer, scheduler, lambda _: 1.0, until=29)
    model[2].cache = torch.ones(5)
    run(model, optimizer, scheduler, lambda _: 0.0, until=30)
    assert torch.equal(model[2].cache, torch.ones(5)) and scheduler.goal.held_since == 30


def test_learning_rates_that_wait_for_a_metric_are_left_alone_wrapped_or_not():
    class Wrapper:  # as accelerate's
        def __init__(self, scheduler):
            self.scheduler = scheduler

        def step(self, *args, **kwargs):
            self.scheduler.step(*args, **kwargs)

    for wrap in (lambda rates: rates, Wrapper):
        model, optimizer, scheduler = _made()
        rates = wrap(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
        run(model, optimizer, scheduler, lambda _: 1.0, until=29)
        take_step(model, optimizer, scheduler)
        scheduler.report(0.0, optimizer, rates)
        assert scheduler.goal.held_since == 30
        assert optimizer.param_groups[0]["lr"] == 0.01


# --- how it is set up -----------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["sensitivity", "magnitude", "movement", "random"])
def test_every_criterion_goes_back_to_the_masks_that_held(criterion):
    model, optimizer, scheduler = _made(criterion=criterion)
    run(model, optimizer, scheduler, lambda _: 1.0, until=25)
    masks = scheduler.masks()
    run(model, optimizer, scheduler, lambda _: 0.0, until=30)
    assert all(torch.equal(mask, masks[name]) for name, mask in scheduler.masks().items())
    run(model, optimizer, scheduler, lambda _: 1.0)
    assert scheduler.sparsity() == pytest.approx(linear_amount(25), abs=0.003)


@pytest.mark.parametrize("window", [1, 7, 13])
def test_a_window_that_does_not_divide_the_ramp_ends_with_the_amount_that_held(window):
    model, optimizer, scheduler = _made(window=window)
    run(model, optimizer, scheduler, lambda s: 1.0 if s.sparsity() < 0.6 else 0.0, every=1)
    chosen = [t for t in range(11, 41) if t % window == 0 or t == 40]
    held = max((t for t in chosen if linear_amount(t) < 0.6), default=10)
    assert scheduler.amount == pytest.approx(linear_amount(held))
    assert scheduler.goal.is_held and scheduler.sparsity() == pytest.approx(
        linear_amount(held), abs=0.004
    )


def test_one_choice_that_fails_leaves_the_dense_model():
    # "once": a choice at step 10, of all; then 50 steps of cool-down.
    model, optimizer, scheduler = _made(schedule="once", cooldown_steps=0)
    run(model, optimizer, scheduler, lambda s: 0.5 if s.last_step == 10 else 1.0)
    assert scheduler.last_step == 60 and scheduler.sparsity() == 0
    assert str(scheduler.goal) == "0 % pruned, metric 1 (dense 1); 90 % gave 0.5"
    model, optimizer, scheduler = _made(schedule="once", cooldown_steps=0, patience=2)
    run(model, optimizer, scheduler, lambda s: 1.0 if s.last_step in (9, 60) else 0.5)
    assert scheduler.goal.is_as_asked and scheduler.sparsity() == pytest.approx(0.9, abs=0.003)


@pytest.mark.parametrize("initial", [0.4, "zeros", 128])
def test_a_run_goes_back_to_what_was_pruned_before_the_first_choice(initial):
    model = net()
    selected = 6 * 20 + 20 * 10
    if initial == "zeros":
        with torch.no_grad():
            model[0].weight[:, :3] = 0
    # Zeros are masks from the start on, an amount is pruned by the first choice.
    start = 60 / selected if initial == "zeros" else 0.0
    optimizer, scheduler = sgd(model), set_up(model, initial_amount=initial)
    run(model, optimizer, scheduler, lambda s: 1.0 if s.last_step <= 10 else 0.0, until=30)
    assert scheduler.amount == pytest.approx(start) == scheduler.goal.kept[0].amount
    fresh = net()
    if initial == "zeros":
        with torch.no_grad():
            fresh[0].weight[:, :3] = 0
    again = set_up(fresh, initial_amount=initial)
    again.load_state_dict(scheduler.state_dict())
    assert again.amount == scheduler.amount
    run(model, optimizer, scheduler, lambda _: 1.0)
    assert scheduler.sparsity() == pytest.approx(start, abs=0.002)


@pytest.mark.parametrize("patience", [1, 2])
def test_a_run_that_was_told_nothing_on_its_ramp_says_why_it_prunes_nothing(patience):
    model, optimizer, scheduler = _made(patience=patience)
    with pytest.warns(PruningWarning, match="at steps from 15 to 39, got its first value at its"):
        told = run(model, optimizer, scheduler, _fails_once_pruned, every=100)
    assert told == [10, 40, 60] and scheduler.amount == 0.0
    # Told once on the ramp, or of a ramp that is one choice, it has nothing to say.
    for every, schedule in ((30, "linear"), (100, "once")):
        model, optimizer, scheduler = _made(schedule=schedule)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(model, optimizer, scheduler, _fails_once_pruned, every=every)
        assert scheduler.amount == 0.0


def _fails_once_pruned(scheduler):
    return 0.0 if scheduler.sparsity() else 1.0


def test_an_amount_may_be_a_count():
    model, optimizer, scheduler = _made(amount=288)  # of 320
    run(model, optimizer, scheduler, lambda s: 1.0 if s.sparsity() < 0.5 else 0.0)
    assert scheduler.sparsity() == pytest.approx(linear_amount(25), abs=0.003)


# --- the end, and states --------------------------------------------------------------------


def test_states_are_freed_once_the_run_has_its_result():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0, until=45)
    assert len(scheduler.state_dict()["goal"]["states"]) == len(scheduler.goal.kept) == 1
    run(model, optimizer, scheduler, lambda _: 1.0)
    state = scheduler.state_dict()
    assert "states" not in state["goal"] and scheduler.goal.kept
    other = set_up(net())
    other.load_state_dict(state)
    assert other.goal.is_over and str(other.goal) == str(scheduler.goal)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda goal: goal["states"].pop(), "must hold 2 states, got 1"),
        (lambda goal: goal.pop("rates"), "goal in the state must be what"),
        (lambda goal: goal.update(course=()), "goal in the state must be what"),
        (lambda goal: goal["states"][0].pop("weights"), "weights, optimizer and scores of each"),
        (lambda goal: goal["states"][1]["weights"].pop("3.bias"), r"hold 3\.bias with shape \(10,"),
        (lambda goal: goal["states"][1]["weights"].update(x=torch.ones(1)), "hold x with shape"),
        (lambda goal: goal["states"][0]["optimizer"].update(x={}), "numbers of parameters, got x"),
        (lambda goal: goal["states"][0]["scores"].pop("tensors"), "it lacks tensors"),
        (lambda goal: goal["states"][0]["scores"]["tensors"].pop("0.weight"), "same model"),
    ],
    ids=["a state less", "rates", "course", "weights", "a weight", "one more", "optimizer",
         "tensors", "a tensor"],
)  # fmt: skip
def test_a_damaged_state_is_refused_before_anything_is_changed(damage, says):
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0, until=20)
    state = copy.deepcopy(scheduler.state_dict())
    damage(state["goal"])
    same = net()
    other = set_up(same)
    with pytest.raises(ValueError, match=says):
        other.load_state_dict(state)
    assert other.last_step == 0 and other.goal.baseline is None


def test_what_was_cut_after_the_result_is_resumed():
    pytest.importorskip("torch_pruning")

    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10))
        scheduler = platon_prune.global_structured(
            model, torch.randn(2, 6), amount=0.5, total_steps=40, warmup_steps=5,
            cooldown_steps=10, window=5, max_drop=0.1,
        )  # fmt: skip
        return model, sgd(model), scheduler

    model, optimizer, scheduler = made()
    run(model, optimizer, scheduler, lambda _: 1.0)
    scheduler.cut(optimizer)
    other, other_optimizer, again = made()
    again.cut_like(scheduler.state_dict(), other_optimizer)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(scheduler.state_dict())
    assert again.goal.is_over and other[0].out_features == model[0].out_features < 20
