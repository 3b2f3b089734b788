"""A run with ``max_drop`` that is stopped at any step goes on bit by bit."""

import copy
import io

import pytest
import torch
from goal_run import everything, net, run, set_up, sgd, take_step

# Ramp of 4 to 22 by windows of 3, cool-down of 8: back at 12 after two bad values, and again at 20.
LENGTHS = dict(total_steps=30, warmup_steps=4, cooldown_steps=8, window=3, patience=2)
VALUES = {9: 0.5, 12: 0.5, 20: 0.4}
LAST = 28


def _metric(scheduler):
    return VALUES.get(scheduler.last_step, 1.0)


def _made(**settings):
    model = net()
    optimizer = sgd(model)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 40)
    return model, optimizer, set_up(model, **LENGTHS | settings), rates


def _saved(model, optimizer, scheduler, rates):
    file = io.BytesIO()
    parts = [each.state_dict() for each in (model, optimizer, scheduler, rates)]
    torch.save(parts, file)
    return file


def _is_evaluated(scheduler):
    return scheduler.goal.is_due or scheduler.last_step % 3 == 0


@pytest.fixture(scope="module", params=["step", "window"])
def straight(request):
    """A whole run, with what it saved at each step, before its evaluation and after."""
    made, files = _made(masking=request.param), []
    model, optimizer, scheduler, rates = made
    while not scheduler.goal.is_over:
        take_step(model, optimizer, scheduler, rates)
        if _is_evaluated(scheduler):
            files.append(_saved(*made))
            scheduler.report(_metric(scheduler), optimizer, rates)
        files.append(_saved(*made))
    return request.param, made, files


def test_the_run_goes_back_twice_and_ends_with_what_held(straight):
    _, (_, _, scheduler, rates), _ = straight
    assert scheduler.last_step == LAST and scheduler.goal.is_held
    said = "0 % pruned, metric 1 (dense 1); 10 % gave 0.4 after its cool-down"
    assert str(scheduler.goal) == said  # 0.9 * 2 / 18 at step 6


def test_it_resumes_bit_by_bit_from_every_step(straight):
    masking, (model, optimizer, scheduler, rates), files = straight
    assert len(files) > LAST
    expected = [*everything(model, optimizer), *scheduler.masks().values()]
    for file in files:
        file.seek(0)
        parts = torch.load(file, weights_only=True)
        made = _made(masking=masking)
        for each, state in zip(made, parts, strict=True):
            each.load_state_dict(state)
        resumed, again, steps, lr = made
        if steps.goal.would_decide and _is_evaluated(steps):  # saved before its evaluation
            steps.report(_metric(steps), again, lr)
        if not steps.goal.is_over:
            run(resumed, again, steps, _metric, every=3, until=30, lr_scheduler=lr)
        assert str(steps.goal) == str(scheduler.goal) and steps.last_step == LAST
        assert lr.get_last_lr() == rates.get_last_lr()
        found = [*everything(resumed, again), *steps.masks().values()]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_state_that_is_loaded_is_not_changed_by_the_run(straight):
    masking, _, files = straight
    file = files[18]
    file.seek(0)
    parts = torch.load(file, weights_only=True)
    before = copy.deepcopy(parts[2]["goal"]["states"])
    made = _made(masking=masking)
    for each, state in zip(made, parts, strict=True):
        each.load_state_dict(state)
    run(*made[:3], _metric, every=3, until=30, lr_scheduler=made[3])
    for one, other in zip(before, parts[2]["goal"]["states"], strict=True):
        assert all(
            torch.equal(each, other["weights"][name]) for name, each in one["weights"].items()
        )
