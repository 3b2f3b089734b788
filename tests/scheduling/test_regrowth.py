"""A pruned weight whose loss needs it comes back."""

import pytest
import torch
from torch import nn

import platon_prune

STEPS, SWITCH = 120, 60


def _train(masking):
    """Regression on 8 inputs; halfway, the target switches from input 0 to input 7.

    Weight 7 has nothing to do in the first half, so it is pruned; then it is all that matters.
    Returns the history of masks of the one row of weights.
    """
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    scheduler = platon_prune.global_unstructured(
        model, amount=6 / 8, total_steps=STEPS, warmup_steps=10, cooldown_steps=5, window=5,
        beta1=0.5, beta2=0.5, masking=masking,
    )  # fmt: skip
    history = []
    for step in range(STEPS):
        inputs = torch.randn(64, 8)
        target = inputs[:, :1] if step < SWITCH else inputs[:, 7:]
        nn.functional.mse_loss(model(inputs), 2 * target).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        history.append(scheduler.masks()["weight"][0].tolist())
    return model, history


@pytest.mark.parametrize("masking", ["step", "window"])
def test_a_pruned_weight_that_the_loss_needs_comes_back(masking):
    model, history = _train(masking)
    weight_7 = [kept[7] for kept in history]
    assert weight_7[0], "kept before the first choice"
    assert not all(weight_7[:SWITCH]), "pruned while it had nothing to do"
    pruned_at = weight_7.index(False)
    assert any(weight_7[pruned_at:]), "came back"
    assert weight_7[-1], "and stayed"
    assert abs(model.weight[0, 7].item() - 2) < 0.2, "and does its work"
    assert sum(history[-1]) == 2


def test_the_gradient_of_a_pruned_weight_is_dense():
    model = nn.Linear(8, 3)
    platon_prune.PlatonUnstructured.apply(model, "weight", amount=0.5)
    model(torch.ones(2, 8)).sum().backward()
    # d(sum of outputs)/dw = the sum of the inputs, 2, for every weight, pruned or not.
    assert torch.equal(model.weight_orig.grad, torch.full((3, 8), 2.0))


@pytest.mark.parametrize("masking", ["step", "window"])
def test_zeros_between_choices_are_what_the_masking_promises(masking):
    torch.manual_seed(0)
    model = nn.Linear(20, 20, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.9,
        total_steps=40,
        cooldown_steps=15,
        window=10,
        masking=masking,
        warmup_steps=0,
    )
    refilled_steps = []
    for step in range(1, 41):
        nn.functional.mse_loss(model(torch.randn(8, 20)), torch.randn(8, 20)).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        pruned = model.weight_orig[~model.weight_mask]
        if pruned.count_nonzero():
            refilled_steps.append(step)
        model.eval()
        assert not model.weight[~model.weight_mask].count_nonzero(), "evaluation sees zeros"
        model.train()
    if masking == "step":
        assert refilled_steps == []
    else:
        # From the choice at 10 to those at 20 and 25 (T - t_f); then the final phase holds.
        assert refilled_steps == [*range(11, 20), *range(21, 25)]
