"""Mixed precision, accumulation, clipping, and steps whose gradients are not finite."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import platon_prune

SETTINGS = dict(amount=0.75, total_steps=30, warmup_steps=4, cooldown_steps=8, window=5)


def _model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)


def _set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.to(parameter.dtype)


def _averages(scheduler):
    return {
        name: {key: state[key] for key in ("window", "sensitivity", "uncertainty")}
        for name, state in scheduler.state_dict()["tensors"].items()
    }


def test_bfloat16_parameters_have_float32_scores_of_the_unrounded_product():
    model = _model(torch.bfloat16)
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    _set_gradients(model, seed=1)
    scheduler.step()
    weight, gradient = model[0].weight_orig, model[0].weight_orig.grad
    window = _averages(scheduler)["0.weight"]["window"]
    assert window.dtype == torch.float32
    assert torch.equal(window, (weight.float() * gradient.float()).abs())
    assert scheduler.score("0.weight").dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_dtype_is_pruned_to_the_exact_count(dtype):
    model = _model(dtype)
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(30):
        _set_gradients(model, step)
        optimizer.step()
        scheduler.step()
    zeros = sum(int((layer.weight_orig == 0).sum()) for layer in (model[0], model[2]))
    assert zeros == round(0.75 * 208)
    assert model[0].weight.dtype == dtype


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", [0, 2])
def test_one_gradient_that_is_not_finite_changes_no_score_and_is_counted(bad, where):
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for step in range(7):
        _set_gradients(model, step)
        scheduler.step()
    before = copy.deepcopy(_averages(scheduler))
    scores = {name: scheduler.score(name) for name in before}
    _set_gradients(model, 7)
    model[where].weight_orig.grad[1, 2] = bad
    scheduler.step()
    for name, kept in _averages(scheduler).items():
        for key, value in kept.items():
            assert torch.equal(value, before[name][key]), (name, key)
        assert torch.equal(scheduler.score(name), scores[name])
    assert scheduler.skipped_steps == 1
    assert scheduler.last_step == 8


def test_finite_gradients_whose_sum_overflows_count():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    scheduler.step()
    assert scheduler.skipped_steps == 0
    assert _averages(scheduler)["0.weight"]["window"].any()


def test_a_skipped_step_advances_the_schedule_and_keeps_the_zeros():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for step in range(12):
        _set_gradients(model, step)
        scheduler.step()
    pruned = ~model[0].weight_mask
    with torch.no_grad():
        model[0].weight_orig += 1
    model.zero_grad()
    scheduler.step(skipped=True)
    assert scheduler.last_step == 13
    assert scheduler.skipped_steps == 1
    assert pruned.any()
    assert not model[0].weight_orig[pruned].any()


def test_the_mean_of_a_window_is_over_the_steps_that_count():
    """Skipped steps are as if they had not been: no zero samples."""
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=40, warmup_steps=15, window=5, cooldown_steps=0
    )
    weight = model[0].weight_orig
    for step in range(1, 11):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        scheduler.step(skipped=step in (6, 8, 9))
    # First window: zero and steps 1 to 4. Second: steps 5 and 7, mean |w|, not 2/5 of it.
    expected = 0.85 * (0.15 * weight.abs() * 4 / 5) + 0.15 * weight.abs()
    torch.testing.assert_close(_averages(scheduler)["0.weight"]["sensitivity"], expected.detach())


def test_a_window_of_only_skipped_steps_leaves_the_averages():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=40, warmup_steps=15, window=5, cooldown_steps=0
    )
    for step in range(1, 11):
        _set_gradients(model, step)
        scheduler.step(skipped=step >= 5)
        if step == 5:
            before = _averages(scheduler)
    after = _averages(scheduler)
    for name in before:
        assert torch.equal(after[name]["sensitivity"], before[name]["sensitivity"])
        assert torch.equal(after[name]["uncertainty"], before[name]["uncertainty"])


def test_no_mask_is_chosen_while_every_step_was_skipped():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, window=5, warmup_steps=0, cooldown_steps=0
    )
    for _ in range(4):
        scheduler.step(skipped=True)
    with pytest.warns(
        platon_prune.PruningWarning, match="no mask is chosen at step 5: 5 steps were skipped"
    ):
        scheduler.step(skipped=True)
    assert scheduler.sparsity() == 0
    for step in range(15):
        _set_gradients(model, step)
        scheduler.step()
    assert sum(int((~mask).sum()) for mask in scheduler.masks().values()) == 104


def test_huge_products_do_not_poison_the_scores():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for step in range(30):
        _set_gradients(model, step)
        if step == 3:
            with torch.no_grad():
                model[0].weight_orig[0, 0] = 1e30
            model[0].weight_orig.grad[0, 0] = 1e30
        scheduler.step()
        with torch.no_grad():
            model[0].weight_orig[0, 0] = 0.1
    assert not scheduler.score("0.weight").isnan().any()
    assert sum(int((~mask).sum()) for mask in scheduler.masks().values()) == round(0.75 * 208)


def test_autocast_with_a_grad_scaler_that_skips_steps(device):
    """The scaler's first scale overflows float16 gradients, so it skips and lowers it."""
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**18, growth_interval=1000)
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS | {"warmup_steps": 10}
    )
    skipped = 0
    for step in range(30):
        inputs = torch.randn(8, 10, generator=torch.Generator().manual_seed(step)) * 50
        with torch.autocast(device.type, dtype=torch.float16):
            loss = F.cross_entropy(model(inputs), torch.arange(8) % 3)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        was_skipped = scaler.get_scale() < scale
        skipped += was_skipped
        scheduler.step(skipped=was_skipped)
        optimizer.zero_grad()
    assert 0 < skipped < 10
    assert scheduler.skipped_steps == skipped
    assert scheduler.last_step == 30
    assert sum(int((~mask).sum()) for mask in scheduler.masks().values()) == round(0.75 * 208)
    assert all(scheduler.score(name).isfinite().all() for name in scheduler.masks())


def test_step_with_an_optimizer_steps_by_itself_but_not_when_the_scaler_skips(device):
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    handle = scheduler.step_with(optimizer)
    scaler = torch.amp.GradScaler(device.type, init_scale=1.0)
    for step in range(5):
        _set_gradients(model, step)
        if step == 2:
            model[0].weight_orig.grad[0, 0] = torch.inf
        scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert scheduler.last_step == 4
    handle.remove()
    _set_gradients(model, 9)
    optimizer.step()
    assert scheduler.last_step == 4


def test_a_fused_optimizer_with_scaled_gradients_is_refused_with_the_remedy(device):
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    scheduler.step_with(optimizer)
    scaler = torch.amp.GradScaler(device.type, init_scale=8.0)
    scaler.scale(model(torch.randn(4, 10)).sum()).backward()
    with pytest.raises(RuntimeError, match=r"call scaler.unscale_\(optimizer\) before"):
        scaler.step(optimizer)


def test_a_schedule_free_optimizer_is_refused_by_name():
    model = _model()
    kind = type("AdamWScheduleFree", (torch.optim.SGD,), {"__module__": "schedulefree.adamw"})
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    with pytest.raises(ValueError, match="AdamWScheduleFree"):
        scheduler.step_with(kind(model.parameters(), lr=0.1))


def test_gradients_accumulated_over_micro_batches_score_as_one_batch():
    """The sensitivity is of the summed gradient, not the sum of the parts' sensitivities."""
    torch.manual_seed(1)
    inputs, labels = torch.randn(12, 10), torch.randint(0, 3, (12,))
    windows = []
    for num_parts in (1, 4):
        model = _model().double()
        scheduler = platon_prune.global_unstructured(
            model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        )
        for part in range(num_parts):
            size = 12 // num_parts
            chosen = slice(part * size, (part + 1) * size)
            outputs = model(inputs[chosen].double())
            (F.cross_entropy(outputs, labels[chosen]) / num_parts).backward()
        scheduler.step()
        windows.append(_averages(scheduler)["0.weight"]["window"])
    torch.testing.assert_close(windows[0], windows[1])


def test_a_clipped_gradient_is_what_is_scored():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    _set_gradients(model, 0)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert norm > 2
    scheduler.step()
    weight = model[0].weight_orig
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(weight.shape, generator=generator)
    torch.testing.assert_close(
        _averages(scheduler)["0.weight"]["window"], (weight * raw / norm).abs().detach()
    )


def test_sparse_gradients_are_scored_like_dense_ones():
    torch.manual_seed(0)
    embedding = nn.Embedding(6, 4, sparse=True)
    scheduler = platon_prune.global_unstructured(
        embedding,
        include=["weight"],
        amount=0.5,
        total_steps=10,
        window=5,
        warmup_steps=0,
        cooldown_steps=0,
    )
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    scheduler.step()
    counts = torch.tensor([0.0, 2, 0, 1, 0, 0]).unsqueeze(1)
    expected = (embedding.weight_orig * counts).abs()
    assert torch.equal(_averages(scheduler)["weight"]["window"], expected.detach())
