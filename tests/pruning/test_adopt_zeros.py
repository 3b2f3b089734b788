"""`adopt_zeros`: what is zero stays zero, bit by bit, while a model is fine-tuned."""

import pytest
import rank_jobs
import ranks
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import prune

import platon_prune


def _sparse_model(scale=1.0):
    """Two layers of 96 and 24 weights, of which torch's prune has zeroed half of each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 2))
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", 0.5)
        prune.remove(layer, "weight")
    with torch.no_grad():
        model[0].weight.mul_(scale)
    return model


def _zeros(model):
    return {n: p == 0 for n, p in model.named_parameters() if n.endswith("weight")}


def _tune(model, optimizer, scheduler, steps):
    generator = torch.Generator().manual_seed(scheduler.last_step)
    for _ in range(steps):
        x = torch.randn(16, 8, generator=generator)
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_stay_positive_zeros_and_the_rest_trains(optimizer):
    model, before = _sparse_model(), _sparse_model()
    zeros = _zeros(model)
    scheduler = platon_prune.adopt_zeros(model)
    assert scheduler.sparsity() == scheduler.amount == 0.5
    _tune(model, OPTIMIZERS[optimizer](model.parameters()), scheduler, 50)
    platon_prune.remove(model)
    assert type(model[0]) is nn.Linear
    for name, zero in zeros.items():
        bits = model.get_parameter(name).detach().view(torch.int32)
        assert torch.equal(bits == 0, zero)  # +0, and no others
        assert not torch.equal(model.get_parameter(name), before.get_parameter(name))


def test_no_gradient_is_needed_and_nothing_but_masks_is_kept():
    scheduler = platon_prune.adopt_zeros(_sparse_model())
    scheduler.step()
    scheduler.step(skipped=True)
    assert (scheduler.last_step, scheduler.threshold, len(scheduler.history)) == (2, None, 0)
    assert scheduler.memory().per_weight == 1
    with pytest.raises(RuntimeError, match="fixed masks"):
        scheduler.score("0.weight")


def test_it_steps_with_an_optimizer_by_itself():
    model = _sparse_model()
    zeros = _zeros(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    platon_prune.adopt_zeros(model).step_with(optimizer)
    for _ in range(5):
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    assert torch.equal(model[0].weight == 0, zeros["0.weight"])


def test_stopped_and_resumed_it_ends_as_if_it_had_not_been(tmp_path):
    model = _sparse_model()
    whole = platon_prune.adopt_zeros(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    _tune(model, optimizer, whole, 3)
    parts = {"model": model, "optimizer": optimizer, "scheduler": whole}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "c.pt")
    _tune(model, optimizer, whole, 4)

    again = _sparse_model()
    scheduler = platon_prune.adopt_zeros(again)
    optimizer = torch.optim.AdamW(again.parameters(), lr=0.01)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    parts = {"model": again, "optimizer": optimizer, "scheduler": scheduler}
    for name, part in parts.items():
        part.load_state_dict(state[name])
    assert scheduler.last_step == 3
    _tune(again, optimizer, scheduler, 4)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_a_negative_zero_counts_and_nan_does_not():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.0, 1.0, torch.nan, 0.0]]))
    scheduler = platon_prune.adopt_zeros(model)
    assert scheduler.masks()["weight"].tolist() == [[False, True, True, False]]
    assert not model.weight.signbit().any()


def test_a_shared_tensor_is_masked_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.fill_diagonal_(0)
    scheduler = platon_prune.adopt_zeros(model)
    assert list(scheduler.masks()) == ["0.weight"] and scheduler.sparsity() == 4 / 16
    with torch.no_grad():
        model[1].weight_orig.fill_(1)
    scheduler.step()
    assert int((model[1].weight == 0).sum()) == 4


# --- pruned further -----------------------------------------------------------------------------


def _further(model, **settings):
    settings = dict(amount=0.9, total_steps=40, warmup_steps=10, window=5) | settings
    return platon_prune.global_unstructured(
        model, initial_amount="zeros", **dict(warmup_steps=0, cooldown_steps=0) | settings
    )


def test_pruning_goes_on_from_the_zeros_that_are_there():
    model = _sparse_model()
    zeros = _zeros(model)
    scheduler = _further(model)
    assert scheduler.schedule.initial_amount == scheduler.amount == scheduler.sparsity() == 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    _tune(model, optimizer, scheduler, 10)
    for name, zero in zeros.items():  # the warm-up keeps them
        assert torch.equal(~scheduler.masks()[name], zero)
    _tune(model, optimizer, scheduler, 30)
    assert scheduler.sparsity() == 108 / 120  # round(0.9 * 120)
    # The first choice: 0.5 grows to 0.9 - 0.4 * (5 / 6)^3 after 5 of 30 steps of the ramp.
    first = scheduler.history[0]
    assert first.step == 15 and first.sparsity == round(120 * (0.9 - 0.4 * (5 / 6) ** 3)) / 120
    assert first.left - first.came_back == pytest.approx(first.sparsity - 0.5)


def test_as_many_zeros_as_there_are_may_move():
    model = _sparse_model(scale=0.01)
    scheduler = _further(model, amount=0.5, criterion="magnitude")
    _tune(model, torch.optim.SGD(model.parameters(), lr=0.01), scheduler, 40)
    assert scheduler.sparsity() == 0.5
    assert all(choice.sparsity == 0.5 for choice in scheduler.history)


def test_a_resumed_run_keeps_the_amount_it_began_with():
    model = _sparse_model()
    scheduler = _further(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    _tune(model, optimizer, scheduler, 25)
    saved, sparsity = scheduler.state_dict(), scheduler.sparsity()
    platon_prune.remove(model)
    sparser = _further(model)  # 73.1 % of which are zero by now
    assert sparser.schedule.initial_amount == sparsity > 0.5
    sparser.load_state_dict(saved)
    assert sparser.schedule == scheduler.schedule


def test_a_state_without_adopted_zeros_does_not_load_into_a_run_with():
    saved = platon_prune.global_unstructured(
        _sparse_model(),
        amount=0.9,
        total_steps=40,
        warmup_steps=10,
        window=5,
        initial_amount=0.5,
        cooldown_steps=0,
    ).state_dict()
    with pytest.raises(ValueError, match="initial_amount is 'zeros' here and 0.5 in the state"):
        _further(_sparse_model()).load_state_dict(saved)


# --- what is refused ----------------------------------------------------------------------------


def _is_untouched(model):
    return sorted(model.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_a_dense_model_is_refused():
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="must have zeros.*got none in 120 weights of 2 tensors"):
        platon_prune.adopt_zeros(model)
    assert _is_untouched(model)


def test_less_than_there_is_is_refused():
    model = _sparse_model()
    with pytest.raises(ValueError, match="amount must be at least.*got 0.4 < 0.5"):
        _further(model, amount=0.4)
    assert _is_untouched(model)


def test_zeros_that_would_train_until_the_first_choice_are_refused():
    with pytest.raises(ValueError, match='masking must be "step"'):
        _further(_sparse_model(), masking="window")
    with pytest.raises(TypeError, match="initial_amount must be"):
        platon_prune.global_unstructured(
            _sparse_model(),
            amount=0.9,
            total_steps=40,
            initial_amount="zero",
            warmup_steps=0,
            cooldown_steps=0,
        )


def test_a_mask_of_torch_has_to_be_finalized_first():
    model = nn.Linear(4, 4)
    prune.l1_unstructured(model, "weight", 0.5)
    with pytest.raises(ValueError, match="finalize it"):
        platon_prune.adopt_zeros(model)


def test_zeros_that_may_be_no_pruning_are_named():
    model = _sparse_model()
    nn.init.zeros_(model[2].weight)
    with pytest.warns(platon_prune.PruningWarning, match="2.weight has nothing but zeros"):
        platon_prune.adopt_zeros(model)
    with pytest.warns(platon_prune.PruningWarning, match="2.weight has 50.0% zeros and is not"):
        platon_prune.adopt_zeros(_sparse_model(), include=["0.weight"])


@pytest.mark.parametrize("exclude", ["2.", ["2.weight"]])
def test_what_was_excluded_on_purpose_is_not_named(exclude):
    platon_prune.adopt_zeros(_sparse_model(), exclude=exclude)  # a warning would be an error
    _further(_sparse_model(), exclude=exclude)


def test_a_warning_that_is_an_error_leaves_the_model_untouched():
    model = _sparse_model()
    with pytest.raises(platon_prune.PruningWarning):
        platon_prune.adopt_zeros(model, include=["0.weight"])
    assert _is_untouched(model)


def test_the_warning_is_of_the_line_that_set_pruning_up():
    for set_up in (platon_prune.adopt_zeros, _further):
        with pytest.warns(platon_prune.PruningWarning) as caught:
            set_up(_sparse_model(), include=["0.weight"])
        assert caught[0].filename == __file__


# --- over processes -----------------------------------------------------------------------------


def _sparse_net(kind="random"):
    model = rank_jobs.net(kind)
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight[layer.weight.abs() < 0.1] = 0
    return model


def _adopt_sharded(layout, prune_first):
    model = _sparse_net()
    expected = {n: p == 0 for n, p in model.named_parameters() if n.endswith("d.weight")}
    if not prune_first:
        model = layout(model)
    scheduler = platon_prune.adopt_zeros(model)
    if prune_first:
        model = layout(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(3):
        rank_jobs.feed(model, step)
        optimizer.step()
        scheduler.step()
    masks = {name: rank_jobs.full(mask) for name, mask in scheduler.masks().items()}
    weights = {n: rank_jobs.full(p) for n, p in model.named_parameters()}
    same = [torch.equal(~masks[n], zero) for n, zero in expected.items()]
    same += [torch.equal(weights[f"{n}_orig"] == 0, zero) for n, zero in expected.items()]
    return same, scheduler.amount, scheduler.sparsity()


@pytest.mark.parametrize("prune_first", [True, False])
@pytest.mark.parametrize(("layout", "size"), [("copies", 2), ("fsdp", 3), ("hsdp", 4)])
def test_the_zeros_of_a_sharded_model_are_adopted(layout, size, prune_first):
    weights = [p for n, p in _sparse_net().named_parameters() if n.endswith("weight")]
    share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    function = getattr(rank_jobs, layout)
    for same, amount, sparsity in ranks.run(size, _adopt_sharded, function, prune_first):
        assert all(same) and amount == sparsity == share


def _adopt_different():
    model = _sparse_net()
    with torch.no_grad():
        model.first.weight[0, 0] = dist.get_rank()
    platon_prune.adopt_zeros(model)


def test_copies_with_different_zeros_are_refused_in_every_process():
    for error in ranks.errors_of(2, _adopt_different):
        assert error is not None and error[0] == "ValueError"
        assert "same shard of first.weight must have the same zeros" in error[1]
