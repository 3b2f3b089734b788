"""Exactly round(amount * N) mask entries are False after each choice."""

import pytest
import torch
from torch import nn

import platon_prune

CRITERIA = [
    "platon", "sensitivity", "magnitude", "movement", "random", "fisher", "scaled_magnitude",
]  # fmt: skip


def _num_pruned(scheduler):
    return sum(int((~mask).sum()) for mask in scheduler.masks().values())


def _run(model, scheduler, make_gradient, check=None):
    """Step through the schedule with given gradients and a little descent."""
    schedule = scheduler.schedule
    for step in range(1, schedule.total_steps + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.grad = make_gradient(parameter)
                parameter -= 0.01 * parameter.grad
        scheduler.step()
        if schedule.is_choosing_step(step) and check is not None:
            check(step)


GRADIENTS = {
    "random": torch.randn_like,
    "all equal": torch.ones_like,
    "all zero": torch.zeros_like,
    "few values": lambda p: torch.randint(0, 2, p.shape).to(p),
    "huge": lambda p: torch.randn_like(p) * 1e38,
    "denormal": lambda p: torch.randn_like(p) * 1e-41,
}


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_choice_prunes_exactly_the_count_of_the_schedule(criterion, gradients, masking):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 13), nn.Conv1d(13, 5, 3), nn.Linear(1, 1))
    num_weights = 7 * 13 + 13 * 5 * 3 + 1
    scheduler = platon_prune.global_unstructured(
        model, amount=0.83, total_steps=23, warmup_steps=3, cooldown_steps=6, window=4,
        criterion=criterion, masking=masking,
    )  # fmt: skip
    counts = []

    def check(step):
        left = 1 - (step - 3) / 14 if step < 17 else 0
        expected = round((0.83 - 0.83 * left**3) * num_weights)
        assert _num_pruned(scheduler) == expected, step
        counts.append(expected)

    _run(model, scheduler, GRADIENTS[gradients], check)
    assert counts[-1] == round(0.83 * num_weights) == 238
    assert len(counts) == 7  # steps 4, 8, 12, 16, 17, 20, 23


def test_all_equal_scores_empty_no_layer():
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 5), nn.Linear(5, 2))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.5,
        total_steps=10,
        window=5,
        criterion="magnitude",
        warmup_steps=0,
        cooldown_steps=0,
    )
    for _ in range(10):
        scheduler.step()
    assert _num_pruned(scheduler) == round(0.5 * 1410)
    # 10 entries: all of them on one side of a fair coin happens in 2 of 1024 orders.
    assert all(0 < mask.sum() < mask.numel() for mask in scheduler.masks().values())


@pytest.mark.parametrize(("amount", "expected"), [(0.0, 0), (0.4, 0), (0.6, 1), (1, 1), (0, 0)])
def test_a_single_weight(amount, expected):
    model = nn.Linear(1, 1)
    scheduler = platon_prune.global_unstructured(
        model, amount=amount, total_steps=4, window=2, warmup_steps=0, cooldown_steps=0
    )
    _run(model, scheduler, torch.ones_like)
    assert _num_pruned(scheduler) == expected
    assert (model.weight == 0).sum() == expected


def test_amount_zero_prunes_nothing_and_has_no_threshold():
    model = nn.Linear(10, 10)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.0, total_steps=20, window=5, warmup_steps=0, cooldown_steps=0
    )
    _run(model, scheduler, torch.randn_like)
    assert _num_pruned(scheduler) == 0
    assert scheduler.threshold is None
    assert scheduler.sparsity() == 0


def test_an_amount_may_be_a_count():
    model = nn.Linear(10, 10)
    scheduler = platon_prune.global_unstructured(
        model,
        amount=37,
        initial_amount=3,
        total_steps=20,
        warmup_steps=4,
        window=5,
        cooldown_steps=0,
    )
    _run(model, scheduler, torch.randn_like)
    assert _num_pruned(scheduler) == 37
    assert scheduler.amount == pytest.approx(0.37)


@pytest.mark.parametrize("criterion", ["platon", "magnitude"])
@pytest.mark.parametrize("cooldown_steps", [0, 1, 8])
@pytest.mark.parametrize("window", [1, 3, 7, 11])
def test_final_amount_is_reached_when_the_window_does_not_divide_anything(
    window, cooldown_steps, criterion
):
    torch.manual_seed(0)
    model = nn.Linear(10, 11)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.77, total_steps=25, warmup_steps=4, cooldown_steps=cooldown_steps,
        window=window, criterion=criterion,
    )  # fmt: skip
    reached = []
    _run(model, scheduler, torch.randn_like, lambda step: reached.append(_num_pruned(scheduler)))
    assert reached[-1] == round(0.77 * 110)
    assert int((model.weight_orig == 0).sum()) == round(0.77 * 110)
    assert scheduler.sparsity() == pytest.approx(round(0.77 * 110) / 110)


def test_more_than_two_to_the_24_entries_are_counted_exactly():
    model = nn.Linear(4099, 4099, bias=False)  # 16,801,801 entries; float32 counts to 16,777,216
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.999,
        total_steps=2,
        window=1,
        criterion="magnitude",
        warmup_steps=0,
        cooldown_steps=0,
    )
    scheduler.step()
    scheduler.step()
    assert int(torch.count_nonzero(~model.weight_mask)) == round(0.999 * 4099 * 4099) == 16784999
    assert int(torch.count_nonzero(model.weight_orig)) == 4099 * 4099 - 16784999


def test_nothing_is_chosen_during_the_warm_up():
    model = nn.Linear(10, 10)
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.9,
        initial_amount=0.5,
        total_steps=20,
        warmup_steps=12,
        window=2,
        cooldown_steps=0,
    )
    before = model.weight.detach().clone()
    for _ in range(12):
        model.weight_orig.grad = torch.randn(10, 10)
        scheduler.step()
    assert torch.equal(model.weight, before)
    for _ in range(2):
        model.weight_orig.grad = torch.randn(10, 10)
        scheduler.step()
    assert _num_pruned(scheduler) == round((0.9 - 0.4 * (1 - 2 / 8) ** 3) * 100)


def test_steps_after_the_last_keep_the_final_amount():
    model = nn.Linear(10, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.9, total_steps=20, window=5, warmup_steps=0, cooldown_steps=0
    )
    _run(model, scheduler, torch.randn_like)
    mask = model.weight_mask.clone()
    for _ in range(30):
        model.weight_orig.grad = torch.randn(10, 10)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # not even gradients are needed
        assert torch.equal(model.weight_mask, mask)
        assert torch.equal(model.weight_orig == 0, ~mask)
    assert scheduler.last_step == 50
    assert scheduler.amount == 0.9


def test_a_window_of_one_step_chooses_nothing_before_it_has_seen_a_gradient():
    """At step 1 the first window, of length 1, ends with the phantom zero alone."""
    torch.manual_seed(0)
    model = nn.Linear(10, 10)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.9, total_steps=20, window=1, warmup_steps=0, cooldown_steps=0
    )
    model.weight_orig.grad = torch.randn(10, 10)
    scheduler.step()
    assert _num_pruned(scheduler) == 0
    sample = (model.weight_orig * model.weight_orig.grad).abs()
    model.weight_orig.grad = torch.randn(10, 10)
    scheduler.step()
    count = round(0.9 * (1 - (18 / 20) ** 3) * 100)
    # From here the score is a function of the one sample: its square, times constants.
    expected = sample.flatten().argsort()[:count]
    assert set((~model.weight_mask).flatten().nonzero().flatten().tolist()) == set(
        expected.tolist()
    )


def test_a_final_amount_that_is_due_before_a_gradient_was_seen_is_refused():
    with pytest.raises(ValueError, match="first window must end before the first mask"):
        platon_prune.global_unstructured(
            nn.Linear(4, 4), amount=0.9, total_steps=50, cooldown_steps=49, window=1, warmup_steps=0
        )


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_steps_whose_gradients_are_not_finite_are_counted_for_every_criterion(criterion):
    model = nn.Linear(4, 4)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=10, criterion=criterion, warmup_steps=0, cooldown_steps=0
    )
    model.weight_orig.grad = torch.full((4, 4), torch.nan)
    scheduler.step()
    assert scheduler.skipped_steps == 1
