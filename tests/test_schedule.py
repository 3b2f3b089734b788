"""The schedule: amounts by the paper's formula, and at which steps a mask is chosen."""

import pytest

from platon_prune.schedule import CubicSchedule


def test_amounts_follow_the_cubic_formula():
    schedule = CubicSchedule(amount=0.8, total_steps=100, warmup_steps=20, cooldown_steps=40)
    assert schedule.amount_at(1) == 0
    assert schedule.amount_at(20) == 0
    # Halfway up the ramp of 40 steps a share of 1 - (1/2)^3 = 7/8 of the amount is pruned.
    assert schedule.amount_at(40) == pytest.approx(0.8 * 7 / 8)
    assert schedule.amount_at(30) == pytest.approx(0.8 * (1 - 27 / 64))
    assert schedule.amount_at(60) == 0.8
    assert schedule.amount_at(100) == 0.8
    assert schedule.density_at(60) == pytest.approx(0.2)


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
