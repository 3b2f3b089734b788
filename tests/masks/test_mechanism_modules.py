"""Every kind of module: what it reads and computes while it is pruned, and after."""

from __future__ import annotations

import pytest
import torch
from tiny import CASES, MASKINGS, Case, dense_twin, masked, num_pruned, sample, sites, train
from torch import nn
from torch.nn.utils import prune

import platon_prune

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
both_maskings = pytest.mark.parametrize("masking", MASKINGS)


@all_cases
def test_step_masking_keeps_pruned_entries_at_zero_in_the_parameter_itself(case: Case) -> None:
    model = case.trained("step")
    for module, name in sites(model):
        orig, mask = getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask")
        assert not orig[~mask].any()
        assert getattr(module, name) is orig


@all_cases
def test_window_masking_refills_the_parameter_and_masks_what_evaluation_reads(case: Case) -> None:
    model = case.trained("window")
    assert any(
        getattr(module, f"{name}_orig")[~getattr(module, f"{name}_mask")].any()
        for module, name in sites(model)
    )
    for module, name in sites(model):
        model.train()
        assert getattr(module, name) is getattr(module, f"{name}_orig")
        model.eval()
        torch.testing.assert_close(getattr(module, name), masked(module, name), rtol=0, atol=0)


@both_maskings
@all_cases
def test_evaluation_computes_what_a_dense_model_with_the_masked_weights_computes(
    case: Case, masking: str
) -> None:
    model = case.trained(masking).eval()
    twin = dense_twin(model, case.build)
    torch.testing.assert_close(case.run(model), case.run(twin), rtol=0, atol=0)
    with torch.no_grad():
        # The native fast path, which only the twin takes, sums in another order.
        torch.testing.assert_close(case.run(model), case.run(twin), rtol=1e-5, atol=1e-6)


@both_maskings
@all_cases
def test_removing_leaves_an_ordinary_model_with_the_same_parameters_and_outputs(
    case: Case, masking: str
) -> None:
    torch.manual_seed(1)
    model = case.build()
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    names, parameters = zip(*model.named_parameters(), strict=True)
    train(model, case.run, masking, include=case.include)
    values = [(module, name, masked(module, name)) for module, name in sites(model)]
    before = case.run(model.eval())
    assert prune.is_pruned(model)

    assert platon_prune.remove(model) is model

    assert torch.equal(case.run(model), before)
    assert [name for name, _ in model.named_parameters()] == list(names)
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == keys
    assert not list(sites(model)) and not prune.is_pruned(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(getattr(module, name), value) for module, name, value in values)
    assert any((value == 0).any() for *_, value in values)
    for module in model.modules():
        for key, parameter in module._parameters.items():
            assert parameter is None or getattr(module, key) is parameter
    # It trains as an ordinary model does, without masks.
    case.run(model.train()).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()


@both_maskings
def test_torch_remove_finalizes_one_tensor_and_leaves_the_others_pruned(masking: str) -> None:
    model = CASES["linear with biases"].trained(masking).eval()
    layer = model[0]
    weight, expected = layer.weight_orig, masked(layer, "weight")
    bias_mask = layer.bias_mask.clone()

    prune.remove(layer, "weight")

    assert layer.weight is weight and torch.equal(layer.weight, expected)
    assert list(layer._parameters) == ["weight", "bias_orig"]
    assert list(layer._buffers) == ["bias_mask"] and torch.equal(layer.bias_mask, bias_mask)
    assert prune.is_pruned(layer) and len(layer._forward_pre_hooks) == 1
    assert torch.equal(layer.bias, masked(layer, "bias"))
    prune.remove(layer, "bias")
    assert type(layer) is nn.Linear and not prune.is_pruned(layer)
    with pytest.raises(ValueError, match="has to be pruned"):
        prune.remove(layer, "bias")


@both_maskings
def test_recurrent_weights_can_be_finalized_in_any_order(masking: str) -> None:
    case = CASES["LSTM"]
    model = case.trained(masking).eval()
    expected = case.run(model)
    for name in reversed([name for _, name in sites(model)]):
        prune.remove(model, name)
        assert torch.equal(case.run(model), expected)
    assert type(model) is nn.LSTM
    assert all(
        flat is getattr(model, name)
        for flat, name in zip(model._flat_weights, model._flat_weights_names, strict=True)
    )


def test_recurrent_module_keeps_no_parameter_alive_that_was_replaced() -> None:
    model = CASES["LSTM"].trained("step")
    model.load_state_dict(
        {key: value * 2 for key, value in model.state_dict().items()}, assign=True
    )
    current = {id(parameter) for parameter in model.parameters()}
    assert {id(weight) for weight in model._flat_weights} == current
    assert "_flat_weights" not in vars(model)


@both_maskings
def test_encoder_stack_with_padding_gives_the_same_result_pruned_and_finalized(
    masking: str,
) -> None:
    # In evaluation torch turns padded batches into nested tensors for the native fast path.
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])

    def run(model: nn.Module) -> torch.Tensor:
        return model(sample(2, 5, 8), src_key_padding_mask=padding)[~padding]

    train(model, run, masking)
    model.eval()
    with torch.no_grad():
        before = run(model)
        platon_prune.remove(model)
        torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-6)


@both_maskings
def test_pruned_module_still_is_of_its_class_and_shows_its_name(masking: str) -> None:
    layer = nn.Linear(4, 2)
    shown = repr(layer)
    train(layer, lambda m: m(sample(3, 4)), masking)
    assert isinstance(layer, nn.Linear) and repr(layer) == shown
    assert type(layer).__name__ == "Linear" and type(layer).__module__ == nn.Linear.__module__


class Registry(nn.Linear):
    """A class that keeps account of its subclasses and wants an argument from each."""

    known: tuple[type, ...] = ()

    def __init_subclass__(cls, kind: str) -> None:
        Registry.known += (cls,)


def test_a_class_that_registers_its_subclasses_does_not_get_ours() -> None:
    layer = Registry(4, 2)
    train(layer, lambda m: m(sample(3, 4)))
    assert Registry.known == ()
    platon_prune.remove(layer)
    assert type(layer) is Registry


class Doubled(nn.Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return 2 * value


def test_finalizing_keeps_a_parametrization_of_another_tensor() -> None:
    layer = nn.Linear(4, 2)
    train(layer, lambda m: m(sample(3, 4)))
    nn.utils.parametrize.register_parametrization(layer, "bias", Doubled())
    expected = layer(sample(3, 4))
    platon_prune.remove(layer)
    assert torch.equal(layer(sample(3, 4)), expected)
    nn.utils.parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is nn.Linear


def test_assigning_to_a_pruned_tensor_says_what_to_do_and_changes_nothing() -> None:
    layer = nn.Linear(4, 2)
    train(layer, lambda m: m(sample(3, 4)))
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    for value in (torch.ones(2, 4), nn.Parameter(torch.ones(2, 4))):
        with pytest.raises(RuntimeError, match="can't be assigned: write to weight_orig"):
            layer.weight = value
    assert list(layer.state_dict()) == list(state)
    assert all(torch.equal(layer.state_dict()[key], state[key]) for key in state)


def test_a_second_scheduler_can_prune_other_tensors_of_the_same_modules() -> None:
    model = nn.Linear(4, 6)
    weights = train(model, lambda m: m(sample(3, 4)), include=("weight",))
    biases = platon_prune.global_unstructured(
        model,
        amount=2 / 6,
        total_steps=1,
        window=1,
        criterion="magnitude",
        include="bias",
        warmup_steps=0,
        cooldown_steps=0,
    )
    smallest = model.bias.abs().argsort()[:2]
    biases.step()
    assert not model.bias_orig[smallest].any() and int((~model.bias_mask).sum()) == 2
    biases.remove()
    weights.remove()
    assert type(model) is nn.Linear and list(model._parameters) == ["weight", "bias"]


def test_channels_last_masks_stay_contiguous_so_that_the_next_choice_works() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=4, window=1, warmup_steps=0, cooldown_steps=0
    )
    for step in range(4):
        if step == 2:
            model.to(memory_format=torch.channels_last)
        model(sample(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert model[2].weight_orig.is_contiguous(memory_format=torch.channels_last)
    assert num_pruned(model) == 126  # half of 4*3*9 + 4*4*9 = 252
    for module, name in sites(model):
        assert torch.equal(module.weight_orig == 0, ~getattr(module, f"{name}_mask"))
