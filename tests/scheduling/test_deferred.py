"""Whether gradients were finite may stay on the device for a window; nothing else comes of it."""

import copy
import warnings

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.scheduling import selected

WINDOW, TOTAL = 4, 30


@pytest.fixture
def deferring(monkeypatch):
    """Makes schedulers leave flags on the device, as they do on an accelerator."""

    def defer(answer=True):
        monkeypatch.setattr(
            selected.SelectedTensors, "_may_wait", lambda self, flag: answer and flag is not None
        )

    return defer


def _run(steps=TOTAL, **settings):
    """A run in which steps are skipped for all reasons, and one tensor lacks gradients at times."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    scheduler = platon_prune.global_unstructured(
        model, amount=0.6, total_steps=TOTAL, warmup_steps=5, cooldown_steps=7, window=WINDOW,
        **settings,
    )  # fmt: skip
    told = []
    for step in range(1, steps + 1):
        for i, layer in enumerate((model[0], model[2])):
            generator = torch.Generator().manual_seed(100 * step + i)
            weight = layer.weight_orig
            weight.grad = torch.randn(weight.shape, generator=generator)
            weight.data.add_(weight.grad, alpha=-0.01)
            if step in (3, 9, 10, 11, 12, 21) and i == step % 2:
                weight.grad[0, 0] = (torch.nan, torch.inf, -torch.inf)[step % 3]
            if i == 1 and 13 <= step <= 15:
                weight.grad = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scheduler.step(skipped=step == 18)
        told += [(step, str(each.message)) for each in caught]
    return model, scheduler, told


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(masking="window"),
        dict(state_dtype=torch.bfloat16),
        dict(criterion="movement"),
        dict(criterion="magnitude"),
        dict(criterion="fisher"),
        dict(offload_averages=True),
    ],
)
@pytest.mark.parametrize("steps", [2, 3, 9, 12, 13, 16, 19, TOTAL, TOTAL + 2])
def test_a_run_that_reads_flags_late_is_the_run_that_reads_them_at_once(settings, steps, deferring):
    _, expected, expected_told = _run(steps, **settings)
    deferring()
    _, scheduler, told = _run(steps, **settings)
    assert told == expected_told
    state, other = scheduler.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    for key in state.keys() - {"tensors"}:
        assert state[key] == other[key], key
    for name, tensor in state["tensors"].items():
        for key, value in tensor.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["tensors"][name][key]))
    assert scheduler.skipped_steps == expected.skipped_steps


def test_steps_that_nobody_has_asked_about_yet_are_counted_when_somebody_does(deferring):
    deferring()
    _, scheduler, _ = _run(3)
    assert scheduler._counters.skipped_steps == 0  # not read yet
    assert scheduler.skipped_steps == 1


def test_a_window_longer_than_the_flags_that_lie_ready_is_counted_too(deferring):
    deferring()
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=700, window=600, warmup_steps=0, cooldown_steps=0
    )
    for step in range(1, 601):
        model[0].weight_orig.grad = torch.full((2, 2), torch.nan if step % 3 == 0 else 1.0)
        scheduler.step()
    assert scheduler.skipped_steps == 200


def test_a_copy_made_within_a_window_goes_on_as_the_original(deferring):
    deferring()
    model, scheduler, _ = _run(10)
    twin, twin_scheduler = copy.deepcopy((model, scheduler))
    for each, its_scheduler in ((model, scheduler), (twin, twin_scheduler)):
        for layer in (each[0], each[2]):
            layer.weight_orig.grad = torch.ones_like(layer.weight_orig)
        its_scheduler.step()
    assert scheduler.skipped_steps == twin_scheduler.skipped_steps == 3
    for name, score in ((n, scheduler.score(n)) for n in ("0.weight", "2.weight")):
        assert torch.equal(score, twin_scheduler.score(name))
