"""Beside torch's own prune: its contract, its functions on top of ours, and ours on top of its."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import MASKINGS, go_on, masked, sample, sites, train
from torch import nn
from torch.nn.utils import prune

import platon_prune
from platon_prune import PlatonUnstructured

both_maskings = pytest.mark.parametrize("masking", MASKINGS)


def two_layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))


def run(model: nn.Module) -> torch.Tensor:
    return model(sample(5, 3))


def shuffled(*shape: int) -> torch.Tensor:
    """The numbers 0, 1, 2, ... in a fixed random order."""
    numel = torch.Size(shape).numel()
    order = torch.randperm(numel, generator=torch.Generator().manual_seed(numel))
    return order.float().view(shape)


@both_maskings
def test_is_pruned_from_set_up_until_removed(masking: str) -> None:
    model = two_layers()
    assert not prune.is_pruned(model)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, masking=masking, warmup_steps=0, cooldown_steps=0
    )
    assert prune.is_pruned(model) and prune.is_pruned(model[0])
    assert not prune.is_pruned(model[1])
    scheduler.remove()
    assert not prune.is_pruned(model)


@both_maskings
def test_setting_up_changes_no_value(masking: str) -> None:
    model = two_layers()
    before, weight = run(model), model[0].weight
    platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, masking=masking, warmup_steps=0, cooldown_steps=0
    )
    assert torch.equal(run(model), before) and torch.equal(run(model.eval()), before)
    assert model[0].weight_orig is weight
    assert all(getattr(module, f"{name}_mask").all() for module, name in sites(model))


def test_torch_global_unstructured_computes_its_masks_by_our_scores() -> None:
    model = two_layers()
    pairs = [(model[0], "weight"), (model[2], "weight")]
    scores = shuffled(20)
    importance = {pairs[0]: scores[:12].view(4, 3), pairs[1]: scores[12:].view(2, 4)}

    prune.global_unstructured(
        pairs, pruning_method=PlatonUnstructured, importance_scores=importance, amount=0.8
    )

    # 16 of 20 go: the scores are 0 to 19, so those from 16 on stay.
    assert torch.equal(model[0].weight_mask, (scores[:12].view(4, 3) >= 16).float())
    assert torch.equal(model[2].weight_mask, (scores[12:].view(2, 4) >= 16).float())
    for module, _ in pairs:
        assert [type(hook) for hook in module._forward_pre_hooks.values()] == [prune.CustomFromMask]


def test_torch_global_unstructured_prunes_further_what_is_pruned() -> None:
    layer = nn.Linear(5, 2)
    scores = shuffled(2, 5)
    already = scores >= 7  # the three highest are gone
    prune.custom_from_mask(layer, "weight", (~already).float())
    prune.global_unstructured(
        [(layer, "weight")],
        pruning_method=PlatonUnstructured,
        importance_scores={(layer, "weight"): scores},
        amount=4,
    )
    assert torch.equal(layer.weight_mask, ((scores >= 4) & (scores < 7)).float())


def test_torch_prunes_exactly_the_count_when_all_scores_are_equal() -> None:
    layer = nn.Linear(5, 4)
    prune.global_unstructured(
        [(layer, "weight")],
        pruning_method=PlatonUnstructured,
        importance_scores={(layer, "weight"): torch.zeros(4, 5)},
        amount=0.25,
    )
    assert int(layer.weight_mask.sum()) == 15


def test_apply_alone_prunes_the_smallest_magnitudes() -> None:
    layer = nn.Linear(4, 3)
    parameter = layer.weight
    values = shuffled(3, 4) - 5.5  # magnitudes 0.5, 0.5, 1.5, 1.5, ... 5.5, 5.5, 6.5 less one
    with torch.no_grad():
        parameter.copy_(values)

    method = PlatonUnstructured.apply(layer, "weight", amount=0.5)

    assert list(layer._forward_pre_hooks.values()) == [method]
    assert layer.weight is layer.weight_orig is parameter
    assert torch.equal(layer.weight_mask, values.abs() > 3)  # the six of 0.5, 1.5 and 2.5 go
    assert torch.equal(layer.weight, values.masked_fill(values.abs() < 3, 0))
    prune.remove(layer, "weight")
    assert type(layer) is nn.Linear and layer.weight is parameter


def test_apply_alone_takes_scores_and_a_count() -> None:
    layer = nn.Linear(4, 3)
    scores = shuffled(3, 4)
    PlatonUnstructured.apply(layer, "weight", amount=5, importance_scores=scores)
    assert torch.equal(layer.weight_mask, scores >= 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": 13}, "amount=13 should be smaller than the number of parameters"),
        ({"amount": -0.5}, "amount=-0.5 should either be a float in the range"),
        ({"amount": 1, "importance_scores": torch.ones(3)}, r"got \(3,\) for \(3, 4\)"),
    ],
)
def test_apply_alone_with_bad_arguments_leaves_the_module_untouched(
    arguments: dict, message: str
) -> None:
    layer = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=message):
        PlatonUnstructured.apply(layer, "weight", **arguments)
    assert type(layer) is nn.Linear and list(layer.state_dict()) == ["weight", "bias"]
    assert not layer._forward_pre_hooks


TORCH_METHODS: dict[str, Callable[[nn.Module], object]] = {
    "l1_unstructured": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "random_unstructured": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "ln_structured": lambda layer: prune.ln_structured(layer, "weight", 1, n=2, dim=0),
    "identity": lambda layer: prune.identity(layer, "weight"),
    "custom_from_mask": lambda layer: prune.custom_from_mask(layer, "weight", torch.ones(4, 3)),
    "global_unstructured": lambda layer: prune.global_unstructured(
        [(layer, "weight")], pruning_method=prune.L1Unstructured, amount=0.5
    ),
}


@both_maskings
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", TORCH_METHODS.values(), ids=list(TORCH_METHODS))
def test_a_torch_method_on_top_of_ours_is_refused_and_pruning_goes_on(
    method: Callable[[nn.Module], object], training: bool, masking: str
) -> None:
    model = two_layers()
    scheduler = train(model, run, masking)
    model.train(training)
    before = run(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}

    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"finalize it first with .*remove\(module, .weight"):
            method(model[0])

    now = model.state_dict()
    assert list(now) == list(state) and all(torch.equal(now[key], state[key]) for key in state)
    assert torch.equal(run(model), before)
    assert len(model[0]._forward_pre_hooks) == 1
    go_on(model, run, scheduler, steps=5)
    assert sum(int((~model[i].weight_mask).sum()) for i in (0, 2)) == 12  # 0.6 * 20
    platon_prune.remove(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("method", TORCH_METHODS.values(), ids=list(TORCH_METHODS))
def test_ours_on_top_of_a_torch_method_is_refused_and_changes_nothing(
    method: Callable[[nn.Module], object],
) -> None:
    model = two_layers()
    method(model[0])
    hooks = list(model[0]._forward_pre_hooks.values())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for target in (model, [(model[0], "weight")]):
        with pytest.raises(ValueError, match="must not be pruned already"):
            platon_prune.global_unstructured(
                target, amount=0.5, total_steps=20, warmup_steps=0, cooldown_steps=0
            )
    with pytest.raises(ValueError, match="must not be pruned already"):
        PlatonUnstructured.apply(model[0], "weight", amount=0.5)
    now = model.state_dict()
    assert list(now) == list(state) and all(torch.equal(now[key], state[key]) for key in state)
    assert list(model[0]._forward_pre_hooks.values()) == hooks and type(model[2]) is nn.Linear


def test_a_torch_method_may_prune_another_tensor_of_the_same_module() -> None:
    model = two_layers()
    train(model, run)
    prune.l1_unstructured(model[0], "bias", 2)
    expected, output = masked(model[0], "weight"), run(model)
    platon_prune.remove(model)
    assert torch.equal(model[0].weight, expected) and torch.equal(run(model), output)
    assert type(model[0]) is nn.Linear
    assert int((model[0].bias == 0).sum()) == 2 and prune.is_pruned(model[0])


@both_maskings
def test_an_optimizer_made_before_pruning_trains_as_one_made_after(masking: str) -> None:
    def trained(optimizer_first: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = two_layers()
        before = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = platon_prune.global_unstructured(
            model,
            amount=0.6,
            total_steps=12,
            window=2,
            masking=masking,
            include=("",),
            warmup_steps=0,
            cooldown_steps=0,
        )
        after = torch.optim.AdamW(model.parameters(), lr=0.01)
        optimizer = before if optimizer_first else after
        go_on(model, run, scheduler, 7, optimizer)
        other = after if optimizer_first else before
        other.load_state_dict(optimizer.state_dict())
        go_on(model, run, scheduler, 2, other)
        return model, other

    (first, first_state), (second, second_state) = trained(True), trained(False)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other) and not torch.equal(one, torch.zeros_like(one))
        for key, value in first_state.state[one].items():
            assert torch.equal(value, second_state.state[other][key])


def test_names_that_pruning_needs_and_a_module_has_are_refused() -> None:
    layer = nn.Linear(4, 3)
    layer.register_buffer("weight_mask", torch.arange(3))
    with pytest.raises(ValueError, match="Linear has weight_mask: rename that"):
        platon_prune.global_unstructured(
            layer, amount=0.5, total_steps=20, warmup_steps=0, cooldown_steps=0
        )
    assert torch.equal(layer.weight_mask, torch.arange(3)) and type(layer) is nn.Linear


class Scaled(nn.Module):
    """Holds a parameter at its root."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("convert", [torch.jit.script, torch.fx.symbolic_trace])
def test_a_tensor_of_a_scripted_or_traced_root_is_refused(convert: Callable) -> None:
    model = convert(Scaled())
    with pytest.raises(ValueError, match="prune the model before it is scripted or traced"):
        platon_prune.global_unstructured(
            [(model, "scale")], amount=0.5, total_steps=20, warmup_steps=0, cooldown_steps=0
        )
    assert torch.equal(model.scale, torch.ones(3)) and "scale" in model.state_dict()


def test_layers_called_by_a_traced_model_can_be_pruned() -> None:
    model = torch.fx.symbolic_trace(two_layers())
    train(model, run)
    assert not model.get_submodule("0").weight_mask.all()
    expected = run(model)
    platon_prune.remove(model)
    assert torch.equal(run(model), expected)
