"""A run with ``max_drop``: it goes back where the metric fell too far, and holds what held."""

import copy
import io
import math

import pytest
import torch
from goal_run import (
    COOLDOWN,
    TOTAL,
    everything,
    linear_amount,
    net,
    run,
    set_up,
    sgd,
    take_step,
)

import platon_prune
from platon_prune.warning import PruningWarning


def _made(**changes):
    model = net()
    return model, sgd(model), set_up(model, **changes)


def _falls_at(most):
    """1.0 up to an amount, 0.5 beyond it."""
    return lambda scheduler: 1.0 if scheduler.sparsity() <= most + 0.01 else 0.5


def test_a_metric_that_holds_gives_the_amount_that_was_asked_for():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0)
    assert scheduler.last_step == TOTAL and scheduler.goal.is_over and scheduler.goal.is_held
    assert scheduler.sparsity() == pytest.approx(0.9, abs=0.002)
    assert str(scheduler.goal) == "90 % pruned, metric 1 (dense 1)"


def test_the_masks_are_those_of_a_run_without_a_goal_while_the_metric_holds():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0)
    plain = net()
    without, plain_optimizer = set_up(plain, max_drop=None), sgd(plain)
    while without.last_step < TOTAL:
        take_step(plain, plain_optimizer, without)
    for mine, other in zip(everything(model, optimizer), everything(plain, plain_optimizer),
                           strict=True):  # fmt: skip
        assert torch.equal(mine, other)


def test_it_goes_back_to_the_last_state_that_held_and_holds_its_amount():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, _falls_at(0.5), until=25)
    assert scheduler.last_step == 25
    kept = everything(model, optimizer)  # 45 % at step 25, which held
    run(model, optimizer, scheduler, _falls_at(0.5), until=29)
    take_step(model, optimizer, scheduler)
    assert scheduler.sparsity() == pytest.approx(linear_amount(30), abs=0.003)
    assert not scheduler.report(0.5, optimizer)
    for mine, before in zip(everything(model, optimizer), kept, strict=True):
        assert torch.equal(mine, before)
    assert scheduler.amount == linear_amount(25)
    told = run(model, optimizer, scheduler, lambda _: 0.95)
    assert scheduler.last_step == told[-1] == 30 + COOLDOWN
    assert scheduler.sparsity() == pytest.approx(linear_amount(25), abs=0.003)
    assert str(scheduler.goal) == "45 % pruned, metric 0.95 (dense 1); 60 % gave 0.5"


def test_a_run_that_goes_back_has_the_scores_of_the_state_that_held():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0, until=25)
    scores = scheduler.score("0.weight")
    run(model, optimizer, scheduler, lambda _: 0.0, until=30)
    assert torch.equal(scheduler.score("0.weight"), scores)


def test_after_a_failed_cooldown_the_next_smaller_amount_gets_one_while_steps_remain():
    # Fails at 15, goes back to the dense state: 45 steps remain, two cool-downs of 20.
    values = {10: 1.0, 15: 1.0, 20: 0.0, 40: 0.0, 60: 1.0}
    model, optimizer, scheduler = _made()
    told = run(model, optimizer, scheduler, lambda s: values.get(s.last_step, 0.0))
    assert told == list(range(5, 61, 5))
    assert scheduler.amount == 0.0 and scheduler.sparsity() == 0.0
    expected = "0 % pruned, metric 1 (dense 1); 15 % gave 0 after its cool-down"
    assert str(scheduler.goal) == expected


def test_without_steps_for_another_cooldown_it_ends_with_the_last_state_that_held():
    values = {10: 1.0, 30: 0.0, 50: 0.0}
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0, until=25)
    kept = everything(model, optimizer)
    run(model, optimizer, scheduler, lambda s: values.get(s.last_step, 1.0))
    assert scheduler.last_step == 50 and scheduler.goal.is_over and scheduler.goal.is_held
    for mine, before in zip(everything(model, optimizer), kept, strict=True):
        assert torch.equal(mine, before)
    expected = "45 % pruned, metric 1 (dense 1); 45 % gave 0 after its cool-down"
    assert str(scheduler.goal) == expected


def test_a_result_that_fails_at_the_planned_end_gives_the_last_state_that_held():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda s: 0.0 if s.last_step == TOTAL else 1.0)
    assert scheduler.goal.is_over and scheduler.last_step == TOTAL
    assert scheduler.goal.value == 1.0 and scheduler.amount == 0.9


def test_without_a_cooldown_it_ends_at_once_with_what_held():
    model, optimizer, scheduler = _made(cooldown_steps=0)
    told = run(model, optimizer, scheduler, _falls_at(0.5))
    assert told[-1] == 40 and scheduler.goal.is_over
    assert scheduler.sparsity() == pytest.approx(0.9 * 25 / 50, abs=0.003)


def test_values_within_a_cooldown_decide_nothing():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda s: 1.0 if s.last_step <= 40 or s.last_step == 60 else 0)
    assert scheduler.goal.is_held and scheduler.amount == 0.9


def test_a_drop_of_exactly_max_drop_holds():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda s: 0.876 if s.last_step <= 10 else 0.776)
    assert scheduler.goal.is_held and scheduler.amount == 0.9


def test_smaller_can_be_better():
    model, optimizer, scheduler = _made(greater_is_better=False)
    run(model, optimizer, scheduler, lambda s: 2.0 if s.sparsity() < 0.5 else 2.2)
    assert scheduler.amount == linear_amount(25)


def test_a_value_that_is_nan_does_not_hold():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda s: math.nan if s.sparsity() > 0.5 else 1.0)
    assert scheduler.amount == linear_amount(25)


def test_patience_is_how_many_in_a_row_must_fail():
    bad = {20: 0.0, 30: 0.0, 35: 0.0}
    model, optimizer, scheduler = _made(patience=2)
    run(model, optimizer, scheduler, lambda s: bad.get(s.last_step, 1.0))
    assert scheduler.amount == linear_amount(25)  # 20 alone did not count
    assert str(scheduler.goal) == "45 % pruned, metric 1 (dense 1); 60 % gave 0"


def test_a_given_baseline_is_what_values_are_compared_with():
    model, optimizer, scheduler = _made(baseline=0.9)
    run(model, optimizer, scheduler, lambda s: 0.95 if s.sparsity() < 0.5 else 0.81)
    assert scheduler.goal.baseline == 0.9 and scheduler.amount == 0.9  # 0.81 is within 0.1 of 0.9


def test_a_dense_model_below_the_given_baseline_is_warned_about():
    model, optimizer, scheduler = _made(baseline=0.9)
    with pytest.warns(PruningWarning, match="gave 0.5 at step 10, further from baseline=0.9"):
        run(model, optimizer, scheduler, lambda _: 0.5, until=10)


def test_never_are_more_states_kept_than_cooldowns_fit_into_the_rest():
    model, optimizer, scheduler = _made()
    most = []
    run(model, optimizer, scheduler, lambda s: most.append(len(s.goal.kept)) or 1.0)
    assert max(most) == (TOTAL - 15) // COOLDOWN == 2


@pytest.mark.parametrize("stop", [12, 27, 30, 33, 50, 52])
def test_it_resumes_bit_by_bit_at_any_moment(stop):
    values = {30: 0.0, 50: 0.0}

    def metric(scheduler):
        return values.get(scheduler.last_step, 1.0)

    settings = {"total_steps": 80, "cooldown_steps": 20}
    straight = _made(**settings)
    run(*straight, metric, until=80)
    model, optimizer, scheduler = _made(**settings)
    run(model, optimizer, scheduler, metric, until=stop)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    model, optimizer, scheduler = _made(**settings)
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    scheduler.load_state_dict(state)
    run(model, optimizer, scheduler, metric, until=80)
    assert scheduler.goal.is_over and str(scheduler.goal) == str(straight[2].goal)
    assert scheduler.last_step == straight[2].last_step == 70
    for mine, other in zip(everything(model, optimizer), everything(*straight[:2]), strict=True):
        assert torch.equal(mine, other)


def test_a_cooldown_has_the_learning_rates_that_were_planned_for_it():
    model, optimizer, scheduler = _made(total_steps=80)  # ramp of 10 to 60, cool-down of 20
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 80)
    seen = {}

    def metric(scheduler):
        seen[scheduler.last_step] = optimizer.param_groups[0]["lr"]
        return {30: 0.0, 50: 0.0}.get(scheduler.last_step, 1.0)

    run(model, optimizer, scheduler, metric, until=80, lr_scheduler=rates)
    # Back at 30, then at 50: both cool-downs end where the planned one would, at a rate of 0.
    for step, planned in ((25, 25), (30, 30), (35, 65), (45, 75), (50, 80), (55, 65), (70, 80)):
        assert seen[step] == pytest.approx(0.01 * (1 - planned / 80)), step


def test_the_options_of_the_optimizer_stay_as_they_are():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, _falls_at(0.5), until=29)
    optimizer.param_groups[0]["lr"] = 0.123
    run(model, optimizer, scheduler, _falls_at(0.5), until=30)
    assert scheduler.goal.kept[-1].step == 25
    assert optimizer.param_groups[0]["lr"] == 0.123


@pytest.mark.parametrize("masking", ["step", "window"])
def test_both_maskings_and_n_of_m_hold_what_held(masking):
    model = net()
    scheduler = platon_prune.semi_structured(
        model, n=1, m=2, total_steps=TOTAL, warmup_steps=10, cooldown_steps=20, window=5,
        masking=masking, max_drop=0.1, schedule="linear",
    )  # fmt: skip
    run(model, sgd(model), scheduler, lambda s: 1.0 if s.amount < 0.6 else 0.0, until=30)
    assert scheduler.amount == pytest.approx(0.5)  # of the groups, at step 25
    run(model, sgd(model), scheduler, lambda s: 1.0)
    assert scheduler.sparsity() == pytest.approx(0.25, abs=0.01)


def test_whole_neurons_come_back_too():
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 20), torch.nn.ReLU(), torch.nn.Linear(20, 20), torch.nn.ReLU(),
        torch.nn.Linear(20, 4),
    )  # fmt: skip
    pytest.importorskip("torch_pruning")
    scheduler = platon_prune.global_structured(
        model, torch.randn(2, 6), amount=0.6, total_steps=TOTAL, warmup_steps=10,
        cooldown_steps=20, window=5, max_drop=0.1,
    )  # fmt: skip
    optimizer, seen = sgd(model), {}
    with pytest.raises(
        RuntimeError, match="a run with max_drop can go back to states of the whole"
    ):
        scheduler.cut(optimizer)

    def metric(scheduler):
        seen[scheduler.last_step] = scheduler.sparsity()
        return 0.0 if scheduler.last_step == 30 else 1.0

    run(model, optimizer, scheduler, metric)
    assert scheduler.last_step == 50
    assert scheduler.sparsity() == seen[25] < seen[30]


def test_an_optimizer_that_is_followed_need_not_be_named():
    model, optimizer, scheduler = _made()
    scheduler.step_with(optimizer)
    for step in range(1, 11):
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
        assert scheduler.goal.is_due == (step == 10)
    assert not scheduler.report(torch.tensor(0.8))
    assert scheduler.goal.baseline == pytest.approx(0.8)


def test_recorded_masks_are_those_that_it_went_back_to(tmp_path):
    model, optimizer, scheduler = _made(mask_history=tmp_path / "masks.bin")
    run(model, optimizer, scheduler, _falls_at(0.5), until=31)
    at_25, at_31 = scheduler.masks(25), scheduler.masks(31)
    assert all(torch.equal(at_25[name], at_31[name]) for name in at_25)


def test_steps_that_were_skipped_stay_counted():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0, until=28)
    scheduler.step(skipped=True)
    take_step(model, optimizer, scheduler)
    scheduler.report(0.0, optimizer)
    assert scheduler.goal.kept[-1].step == 25 and scheduler.skipped_steps == 1


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"max_drop": -0.01}, ValueError, "max_drop must be at least 0"),
        ({"max_drop": math.nan}, ValueError, "max_drop must be finite"),
        ({"max_drop": "1"}, TypeError, "max_drop must be a number"),
        ({"baseline": math.inf}, ValueError, "baseline must be finite"),
        ({"patience": 0}, ValueError, "patience must be a count of at least 1"),
        ({"greater_is_better": "yes"}, TypeError, "greater_is_better must be a bool"),
        ({"capturable": True}, ValueError, "capturable must be False for max_drop"),
        ({"max_drop": None, "patience": 2}, ValueError, "max_drop must be given for patience=2"),
        ({"max_drop": None, "baseline": 0.9}, ValueError, "max_drop must be given for baseline"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_changed(settings, error, says):
    model = net()
    with pytest.raises(error, match=says):
        set_up(model, **settings)
    assert not torch.nn.utils.prune.is_pruned(model)


def test_cutting_by_itself_is_refused_with_it():
    with pytest.raises(ValueError, match="cut_after must be None with max_drop, got both"):
        platon_prune.global_structured(
            net(), torch.randn(2, 6), amount=0.5, total_steps=TOTAL, cut_after=2, max_drop=0.1
        )


def test_pairs_are_refused_since_what_else_is_trained_is_not_known():
    model = net()
    with pytest.raises(ValueError, match="model must be an nn.Module for max_drop, got pairs"):
        set_up([(model[0], "weight")])


def test_nothing_is_pruned_before_the_dense_model_is_known():
    model, optimizer, scheduler = _made()
    for _ in range(14):
        take_step(model, optimizer, scheduler)
    assert scheduler.goal.is_due
    with pytest.raises(RuntimeError, match="must be reported before the first choice"):
        take_step(model, optimizer, scheduler)
    assert scheduler.last_step == 14 and scheduler.sparsity() == 0


def test_a_report_without_a_goal_or_an_optimizer_is_refused():
    model, _, scheduler = _made()
    with pytest.raises(RuntimeError, match="must be given the optimizer"):
        scheduler.report(1.0)
    platon_prune.remove(model)
    with pytest.raises(RuntimeError, match="max_drop must be given"):
        set_up(net(), max_drop=None).report(1.0)


def test_a_state_with_another_goal_is_refused_by_name():
    state = set_up(net()).state_dict()
    with pytest.raises(ValueError, match="max_drop is 0.2 here and 0.1 in the state"):
        set_up(net(), max_drop=0.2).load_state_dict(state)
    damaged = copy.copy(state) | {"goal": {"course": {"kept": 3}, "states": []}}
    with pytest.raises(ValueError, match="goal in the state must be what"):
        set_up(net()).load_state_dict(damaged)


def test_masks_that_are_removed_before_the_result_is_known_are_warned_about():
    model, optimizer, scheduler = _made()
    run(model, optimizer, scheduler, lambda _: 1.0, until=59)
    take_step(model, optimizer, scheduler)
    with pytest.warns(PruningWarning, match="metric at step 60 must be reported"):
        scheduler.remove()
