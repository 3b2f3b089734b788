"""The schedule: amounts by the paper's formula, and at which steps a mask is chosen."""

from typing import get_args

import pytest

from platon_prune.schedule import (
    SCHEDULES,
    CubicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OnceSchedule,
    ScheduleName,
    find_schedule,
)


def test_amounts_follow_the_cubic_formula():
    schedule = CubicSchedule(amount=0.8, total_steps=100, warmup_steps=20, cooldown_steps=40)
    assert schedule.amount_at(1) == 0
    assert schedule.amount_at(20) == 0
    # Halfway up the ramp of 40 steps a share of 1 - (1/2)^3 = 7/8 of the amount is pruned.
    assert schedule.amount_at(40) == pytest.approx(0.8 * 7 / 8)
    assert schedule.amount_at(30) == pytest.approx(0.8 * (1 - 27 / 64))
    assert schedule.amount_at(60) == 0.8
    assert schedule.amount_at(100) == 0.8


def test_the_ramp_starts_at_the_initial_amount():
    schedule = CubicSchedule(amount=0.9, total_steps=10, initial_amount=0.5)
    assert schedule.amount_at(0) == 0.5
    assert schedule.amount_at(5) == pytest.approx(0.9 - 0.4 / 8)


def test_masks_are_chosen_after_windows_and_when_the_ramp_and_the_run_end():
    schedule = CubicSchedule(
        amount=0.5, total_steps=37, warmup_steps=10, cooldown_steps=12, window=5
    )
    choosing = [step for step in range(1, 50) if schedule.is_choosing_step(step)]
    assert choosing == [15, 20, 25, 30, 35, 37]
    schedule = CubicSchedule(
        amount=0.5, total_steps=37, warmup_steps=9, cooldown_steps=13, window=5
    )
    assert [s for s in range(50) if schedule.is_choosing_step(s)] == [
        10,
        15,
        20,
        24,
        25,
        30,
        35,
        37,
    ]
    assert schedule.first_choosing_step == 10


@pytest.mark.parametrize("window", [1, 2, 7, 10, 50, 300])
@pytest.mark.parametrize("cooldown_steps", [0, 1, 13])
def test_the_last_choice_has_the_final_amount(window, cooldown_steps):
    schedule = CubicSchedule(
        amount=0.9, total_steps=43, cooldown_steps=cooldown_steps, window=window
    )
    last = max(step for step in range(44) if schedule.is_choosing_step(step))
    assert last == 43
    assert schedule.amount_at(43 - cooldown_steps) == 0.9
    assert schedule.is_choosing_step(43 - cooldown_steps)


def test_amounts_never_fall():
    schedule = CubicSchedule(amount=0.99, total_steps=1000, warmup_steps=7, cooldown_steps=31)
    amounts = [schedule.amount_at(step) for step in range(1, 1100)]
    assert amounts == sorted(amounts)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(total_steps=0), ValueError, "total_steps must be at least 1, got 0"),
        (dict(warmup_steps=-1), ValueError, "warmup_steps must be at least 0, got -1"),
        (dict(cooldown_steps=-5), ValueError, "cooldown_steps must be at least 0, got -5"),
        (dict(window=0), ValueError, "window must be at least 1, got 0"),
        (dict(warmup_steps=50, cooldown_steps=50), ValueError, r"50 \+ 50 >= 100"),
        (dict(warmup_steps=100), ValueError, r"100 \+ 0 >= 100"),
        (dict(warmup_steps=0.1), TypeError, "warmup_steps must be a whole number.*got 0.1"),
        (dict(total_steps=True), TypeError, "total_steps must be a whole number.*got True"),
        (dict(initial_amount=0.6), ValueError, "initial_amount must not exceed.*0.6 > 0.5"),
    ],
)
def test_impossible_settings_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        CubicSchedule(**dict(amount=0.5, total_steps=100) | changes)


def test_linear_amounts_lie_on_a_line():
    schedule = LinearSchedule(0.8, 100, warmup_steps=20, cooldown_steps=40, initial_amount=0.2)
    amounts = [schedule.amount_at(step) for step in (1, 20, 30, 40, 60, 100)]
    # A quarter and a half of the way from 0.2 to 0.8.
    assert amounts == pytest.approx([0.2, 0.2, 0.35, 0.5, 0.8, 0.8])
    assert amounts[-2] == amounts[-1] == 0.8


def test_exponential_densities_decay_by_equal_factors():
    schedule = ExponentialSchedule(0.92, 60, warmup_steps=10, cooldown_steps=20, initial_amount=0.5)
    # From a density of 0.5 to 0.08 in 30 steps: 0.4 to the power of 1/15 at each.
    for step in range(10, 41):
        assert 1 - schedule.amount_at(step) == pytest.approx(0.5 * 0.4 ** ((step - 10) / 15))
    assert schedule.amount_at(40) == schedule.amount_at(60) == 0.92
    # Halfway the density is the geometric mean of both ends.
    assert 1 - schedule.amount_at(25) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("warmup_steps", "cooldown_steps", "step"),
    [(0, 0, 5), (4, 0, 5), (5, 0, 5), (6, 0, 10), (11, 22, 15), (11, 24, 13), (31, 0, 35),
     (36, 0, 37)],
)  # fmt: skip
def test_once_chooses_at_the_first_windows_end_from_the_warmup_on(
    warmup_steps, cooldown_steps, step
):
    schedule = OnceSchedule(
        0.7, 37, warmup_steps=warmup_steps, cooldown_steps=cooldown_steps, window=5
    )
    assert [s for s in range(50) if schedule.is_choosing_step(s)] == [step]
    assert schedule.first_choosing_step == schedule.last_choosing_step == schedule.ramp_end == step
    assert [schedule.amount_at(s) for s in (1, step - 1, step, 37)] == [0, 0, 0.7, 0.7]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("window", [1, 7, 300])
def test_every_schedule_reaches_its_amount_exactly_and_never_falls(name, window):
    schedule = SCHEDULES[name](
        0.9, 43, warmup_steps=3, cooldown_steps=6, initial_amount=0.1, window=window
    )
    choices = [step for step in range(44) if schedule.is_choosing_step(step)]
    assert schedule.amount_at(choices[-1]) == schedule.amount_at(43) == 0.9
    assert (choices[0], choices[-1]) == (schedule.first_choosing_step, schedule.last_choosing_step)
    assert all(step % window == 0 or step in (37, 43) for step in choices)
    amounts = [schedule.amount_at(step) for step in range(1, 44)]
    assert amounts == sorted(amounts)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_refuses_a_choice_before_the_first_window_has_ended(name):
    schedule = SCHEDULES[name](0.5, total_steps=20, cooldown_steps=11, window=10)
    with pytest.raises(ValueError, match="choice at step 9 with window=10"):
        schedule.require_scores()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_start_at_another_amount_and_last_for_another_time(name):
    schedule = SCHEDULES[name](0.5, total_steps=100).starting_at(0.25)
    assert (schedule.name, schedule.amount_at(0)) == (name, 0.25)
    with pytest.raises(ValueError, match=r"sparsity that the model has, got 0.5 < 0.75"):
        schedule.starting_at(0.75)
    longer = schedule.lasting(200, 0.1, 30)
    assert (longer.name, longer.amount, longer.initial_amount) == (name, 0.5, 0.25)
    assert (longer.total_steps, longer.warmup_steps, longer.cooldown_steps) == (200, 20, 30)


def test_a_density_of_zero_is_refused_for_the_exponential_schedule():
    with pytest.raises(ValueError, match="amount must be below 1 .* never is 0"):
        ExponentialSchedule(1.0, total_steps=10)


def test_the_names_of_schedules_are_those_of_the_table():
    assert tuple(SCHEDULES) == get_args(ScheduleName)
    assert all(SCHEDULES[name].name == name for name in SCHEDULES)
    assert find_schedule("once") is find_schedule(OnceSchedule) is OnceSchedule
