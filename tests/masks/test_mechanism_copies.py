"""Copies, moves and stateless calls: a pruned tensor reads right before any forward, and after."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from tiny import CASES, MASKINGS, Case, dense_twin, go_on, masked, num_pruned, sample, sites, train
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel

import platon_prune

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
both_maskings = pytest.mark.parametrize("masking", MASKINGS)


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def assert_reads_right(model: nn.Module, masking: str) -> None:
    """Read every pruned tensor in both modes, as attributes and without a forward."""
    assert list(sites(model))
    for module, name in sites(model):
        orig, mask = getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask")
        assert mask.dtype == torch.bool and mask.is_contiguous()
        module.train()
        assert getattr(module, name) is orig
        module.eval()
        assert torch.equal(getattr(module, name), masked(module, name))
        if masking == "step":
            assert not orig[~mask].any()


@both_maskings
@all_cases
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
def test_a_copy_after_a_forward_equals_the_original_and_shares_nothing_with_it(
    duplicate: Callable[[nn.Module], nn.Module], training: bool, case: Case, masking: str
) -> None:
    model = case.trained(masking).train(training)
    expected = case.run(model)
    twin = duplicate(model)
    assert torch.equal(case.run(twin), expected)
    assert_reads_right(twin.train(training), masking)
    assert [type(module) for module in twin.modules()] == [type(m) for m in model.modules()]

    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(1)
    platon_prune.remove(twin)

    assert torch.equal(case.run(model.train(training)), expected)
    assert num_pruned(model) > 0 and not list(sites(twin))


@both_maskings
def test_a_copy_keeps_tied_weights_and_their_mask_tied(masking: str) -> None:
    for duplicate in (copy.deepcopy, by_pickle):
        model = duplicate(CASES["tied linears"].trained(masking))
        assert model[0].weight_orig is model[2].weight_orig
        assert model[0].weight_mask is model[2].weight_mask


@both_maskings
@all_cases
def test_another_dtype_rounds_the_weights_and_leaves_the_masks_alone(
    case: Case, masking: str
) -> None:
    model = case.trained(masking)
    before = [masked(module, name) for module, name in sites(model)]
    for convert in (
        lambda: model.to(torch.float64),
        lambda: model.type(torch.float32),
        lambda: model.to(torch.bfloat16),
    ):
        convert()
        assert_reads_right(model, masking)
        dtype = next(model.parameters()).dtype
        for (module, name), value in zip(sites(model), before, strict=True):
            assert torch.equal(getattr(module, name), value.to(dtype))
        twin = dense_twin(model, case.build)
        assert torch.equal(case.run(model.eval()), case.run(twin))


@both_maskings
@pytest.mark.parametrize("name", ["linear", "LSTM", "tied linears", "conv2d"])
def test_pruning_goes_on_after_another_dtype(name: str, masking: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    model = case.build()
    scheduler = train(model, case.run, masking, include=case.include)
    before = scheduler.masks()
    go_on(model.double(), case.run, scheduler, 5)
    after = scheduler.masks()
    total = sum(mask.numel() for mask in after.values())
    assert sum(int((~mask).sum()) for mask in after.values()) == round(0.6 * total)
    assert any(not torch.equal(before[key], after[key]) for key in after)
    assert_reads_right(model, "step")  # after the last choice both maskings have zeros
    if name == "tied linears":
        assert torch.equal(model[0].weight_mask, model[2].weight_mask)
        assert total == 16


def _with_masks_apart(masking: str) -> tuple[nn.Module, platon_prune.PlatonScheduler]:
    """Two modules that share a weight, but no longer a mask: torch copies each one's buffers."""
    torch.manual_seed(1)
    model = CASES["tied linears"].build()
    scheduler = train(model, CASES["tied linears"].run, masking)
    model.type(torch.float64)
    assert model[0].weight_orig is model[2].weight_orig
    assert model[0].weight_mask is not model[2].weight_mask
    return model, scheduler


@both_maskings
def test_a_choice_reaches_the_masks_of_all_modules_that_share_a_weight(masking: str) -> None:
    model, scheduler = _with_masks_apart(masking)
    before = model[2].weight_mask.clone()
    go_on(model, CASES["tied linears"].run, scheduler, 5)
    assert not torch.equal(model[2].weight_mask, before)
    assert torch.equal(model[2].weight_mask, model[0].weight_mask)
    assert int((~model[2].weight_mask).sum()) == round(0.6 * 16)
    assert_reads_right(model, "step")


@both_maskings
def test_a_loaded_state_reaches_the_masks_of_all_modules_that_share_a_weight(masking: str) -> None:
    model, scheduler = _with_masks_apart(masking)
    state = scheduler.state_dict()
    mask = state["tensors"]["0.weight"]["mask"]
    state["tensors"]["0.weight"]["mask"] = other = mask.roll(1, 0)
    assert not torch.equal(mask, other)
    scheduler.load_state_dict(state)
    assert torch.equal(model[0].weight_mask, other)
    assert torch.equal(model[2].weight_mask, other)
    assert_reads_right(model, masking)


@both_maskings
@all_cases
def test_masks_of_a_model_that_gets_memory_without_values_prune_nothing(
    case: Case, masking: str, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    model = case.trained(masking)
    shapes = [getattr(module, f"{name}_mask").shape for module, name in sites(model)]
    # Memory that is not initialised may hold anything; here it holds zeros, as masks of False.
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    model.to("meta").to_empty(device=device)
    masks = [getattr(module, f"{name}_mask") for module, name in sites(model)]
    assert [mask.shape for mask in masks] == shapes
    assert all(mask.dtype == torch.bool and mask.is_contiguous() for mask in masks)
    assert all(mask.all() for mask in masks)


@both_maskings
def test_moving_a_model_that_has_values_leaves_its_masks_as_they_are(masking: str) -> None:
    model = CASES["linear"].trained(masking)
    before = [getattr(module, f"{name}_mask").clone() for module, name in sites(model)]
    assert not all(mask.all() for mask in before)
    model.type(torch.float64)
    after = [getattr(module, f"{name}_mask") for module, name in sites(model)]
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))


@pytest.mark.parametrize("own_keys", [True, False])
def test_named_buffers_are_the_masks_and_of_one_module_the_keys_that_it_loads(
    own_keys: bool,
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, own_keys=own_keys, warmup_steps=0, cooldown_steps=0
    )
    layer, norm = model[0], ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert [name for name, _ in model.named_buffers()] == ["0.weight_mask", *norm]
    assert [name for name, _ in layer.named_buffers()] == ["weight_mask"]
    assert next(layer.named_buffers())[1] is layer.weight_mask
    # torch.distributed.checkpoint looks each key of a state dict up in these.
    alone = dict(layer.named_buffers(recurse=False))
    assert list(alone) == ["weight_mask", *(["weight"] if own_keys else [])]
    assert alone.get("weight", layer.weight_orig) is layer.weight_orig
    below = [name for name, _ in layer.named_buffers("0", recurse=False)]
    assert below == ["0.weight_mask", *(["0.weight"] if own_keys else [])]


@both_maskings
@all_cases
@pytest.mark.parametrize("assign", [True, False])
def test_meta_then_empty_then_loaded_is_as_before(
    case: Case, masking: str, assign: bool, device: torch.device
) -> None:
    model = case.trained(masking).eval()
    expected = case.run(model)
    masks = [getattr(module, f"{name}_mask") for module, name in sites(model)]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.to("meta")
    assert all(getattr(module, name).is_meta for module, name in sites(model))
    if not assign:
        model.to_empty(device=device)
    missing, unexpected = model.load_state_dict(state, assign=assign)
    assert not missing and not unexpected
    for (module, name), mask in zip(sites(model), masks, strict=True):
        assert torch.equal(getattr(module, f"{name}_mask"), mask)
    assert_reads_right(model.eval(), masking)
    assert torch.equal(case.run(model), expected)


@both_maskings
@all_cases
def test_functional_call_uses_the_given_weights_and_leaves_the_model_right(
    case: Case, masking: str
) -> None:
    model = case.trained(masking).eval()
    expected = case.run(model)
    given = {name: value.detach() * 2 for name, value in model.named_parameters()}
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    twin = dense_twin(doubled, case.build)

    class Call(nn.Module):
        """Lets a case run a stateless call as if it were the model."""

        def forward(self, *args: Tensor) -> Tensor:
            return functional_call(model, given, args)

        def parameters(self, recurse: bool = True):  # noqa: ANN202
            return model.parameters()

    # Without gradients torch takes native paths that sum in another order.
    torch.testing.assert_close(case.run(Call()), case.run(twin), rtol=1e-5, atol=1e-5)
    assert_reads_right(model, masking)
    assert torch.equal(case.run(model.eval()), expected)


def test_functional_call_by_the_name_before_pruning_says_which_name_to_use() -> None:
    layer = nn.Linear(4, 2)
    train(layer, lambda m: m(sample(3, 4)))
    with pytest.raises(RuntimeError, match="write to weight_orig"):
        functional_call(layer, {"weight": torch.ones(2, 4)}, sample(3, 4))
    assert_reads_right(layer, "step")


@both_maskings
@pytest.mark.parametrize("training", [True, False])
def test_functional_gradient_is_dense_in_training(training: bool, masking: str) -> None:
    layer = nn.Linear(4, 2)
    train(layer, lambda m: m(sample(3, 4)), masking)
    layer.train(training)
    x = sample(4)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, x).sum()

    gradient = grad(loss)({key: value.detach() for key, value in layer.named_parameters()})
    expected = x.expand(2, 4)  # d/dW of sum(Wx + b), for pruned entries too
    if masking == "window" and not training:
        expected = expected.masked_fill(~layer.weight_mask, 0)  # evaluation reads a masked weight
    assert not layer.weight_mask.all()
    assert torch.equal(gradient["weight_orig"], expected)


@both_maskings
@pytest.mark.parametrize("training", [True, False])
def test_vmap_over_an_ensemble_of_pruned_models_equals_each_of_them(
    training: bool, masking: str
) -> None:
    case = CASES["linear with biases"]
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = case.build()
        train(model, case.run, masking, include=case.include)
        models.append(model.train(training))
    assert not torch.equal(models[0][0].weight_mask, models[1][0].weight_mask)
    x = sample(3, 4)
    base = copy.deepcopy(models[0]).to("meta")
    parameters, buffers = stack_module_state(models)

    outputs = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)

    expected = torch.stack([model(x) for model in models])
    torch.testing.assert_close(outputs, expected)


@both_maskings
def test_averaged_model_is_sparse_once_its_masks_are_applied(masking: str) -> None:
    torch.manual_seed(1)
    model = CASES["linear"].build()
    run = CASES["linear"].run
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = train(model, run, masking, steps=0)
    averaged, snapshots = AveragedModel(model), []
    for _ in range(7):
        go_on(model, run, scheduler, 1, optimizer)
        averaged.update_parameters(model)
        snapshots.append(model[0].weight_orig.detach().clone())
    mean, mask = torch.stack(snapshots).mean(0), model[0].weight_mask
    assert mean[~mask].any()  # averaging has filled zeros in
    assert torch.equal(averaged.module[0].weight_mask, mask)

    assert platon_prune.apply_masks(averaged) is averaged

    pruned = averaged.module[0]
    torch.testing.assert_close(pruned.weight_orig.detach(), mean.masked_fill(~mask, 0))
    assert not pruned.weight_orig[~mask].any()
    assert_reads_right(averaged, "step")
    output = run(averaged.eval().module)
    platon_prune.remove(averaged)
    assert torch.equal(run(averaged.module), output)
    assert num_pruned(model) > 0  # the model that trains is not touched


def test_applying_masks_to_a_model_without_any_says_so() -> None:
    with pytest.raises(ValueError, match="must carry masks of platon_prune, got a Linear without"):
        platon_prune.apply_masks(nn.Linear(2, 2))
