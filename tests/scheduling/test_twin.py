"""The fast path equals a plain twin, written from the formulas, at every step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from twin import PlainTwin

import platon_prune

SETTINGS = dict(amount=0.8, total_steps=47, warmup_steps=6, cooldown_steps=13, initial_amount=0.1)


def _model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 6, 20), nn.Tanh(),
        nn.Linear(20, 4),
    )  # fmt: skip


def _optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)


def _batches(num_steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        yield (
            torch.randn(16, 3, 8, generator=generator),
            torch.randint(0, 4, (16,), generator=generator),
        )


CRITERIA = ("platon", "sensitivity", "magnitude", "movement", "fisher", "scaled_magnitude")


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("window", [1, 7, 10])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_masks_weights_and_scores_equal_the_twin_at_every_step(criterion, window, masking):
    settings = dict(window=window, criterion=criterion, masking=masking, scope="global")
    _assert_equal(SETTINGS | settings)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_within_each_tensor_too_all_equals_the_twin_at_every_step(criterion):
    _assert_equal(SETTINGS | dict(window=7, criterion=criterion, scope="layer"))


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("criterion", ["platon", "fisher", "scaled_magnitude"])
@pytest.mark.parametrize("schedule", ["linear", "exponential", "once"])
def test_every_schedule_gives_the_masks_of_the_twin_at_every_step(schedule, criterion, masking):
    settings = SETTINGS | dict(schedule=schedule, criterion=criterion, masking=masking, window=7)
    _assert_equal(settings | ({"initial_amount": 0.0} if schedule == "once" else {}))


def _assert_equal(settings):
    ours, plain = _model(), _model()
    optimizers = [_optimizer(ours), _optimizer(plain)]
    names = ["0.weight", "3.weight", "5.weight"]
    twin = PlainTwin({name: plain.get_parameter(name) for name in names}, **settings)
    scheduler = platon_prune.global_unstructured(
        ours, **dict(warmup_steps=0, cooldown_steps=0) | settings
    )

    for t, (inputs, labels) in enumerate(_batches(settings["total_steps"]), 1):
        for model, optimizer in zip((ours, plain), optimizers, strict=True):
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        scheduler.step()
        twin.step()
        masks = scheduler.masks()
        for name in names:
            assert torch.equal(masks[name], twin.masks[name]), f"{name} at step {t}"
            layer = ours.get_submodule(name.split(".")[0])
            assert torch.equal(layer.weight_orig, plain.get_parameter(name)), f"{name}, step {t}"
            expected = twin.scores(name)
            # Relative to the largest: signed sums of float32 cancel.
            torch.testing.assert_close(
                scheduler.score(name).double(),
                expected,
                rtol=1e-4,
                atol=1e-6 * float(expected.abs().max()),
            )
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.8 * (72 + 960 + 80))


def test_random_masks_are_nested_and_cover_every_tensor_evenly():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, criterion="random", **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    previous = None
    for _ in range(SETTINGS["total_steps"]):
        scheduler.step()
        masks = torch.cat([mask.flatten() for mask in scheduler.masks().values()])
        if previous is not None:
            assert not (masks & ~previous).any()
        previous = masks
    assert int((~previous).sum()) == round(0.8 * 1112)
    assert all(0.7 < 1 - mask.float().mean() < 0.95 for mask in scheduler.masks().values())


def test_a_copy_of_the_model_goes_its_own_way():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    twin_model, twin_scheduler = copy.deepcopy((model, scheduler))
    for inputs, labels in _batches(47):
        F.cross_entropy(model(inputs), labels).backward()
        scheduler.step()
    assert scheduler.sparsity() > 0.79
    assert twin_scheduler.sparsity() == 0
    assert twin_model[0].weight_mask.all()
