"""torch-pruning's own pruners cut by our scores; what we cut is what its functions cut."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch
from tiny_shrink import images, masked
from torch import Tensor, nn

import platon_prune
from platon_prune.shrinking.resize import cut_, refresh_sizes_

tp = pytest.importorskip("torch_pruning")
from platon_prune.integrations.torch_pruning_importance import PlatonImportance  # noqa: E402


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.last(x.mean(dim=(2, 3)))


def scored(amount: float = 0.0) -> tuple[nn.Module, platon_prune.PlatonScheduler]:
    torch.manual_seed(0)
    model = Network()
    scheduler = platon_prune.global_unstructured(
        model, amount=amount, total_steps=6, window=2, warmup_steps=0, cooldown_steps=0
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return model, scheduler


def by_hand(scheduler: platon_prune.PlatonScheduler) -> dict[str, Tensor]:
    first, second, last = (scheduler.score(f"{n}.weight") for n in ("first", "second", "last"))
    return {
        "first": torch.stack(
            [torch.cat([first[i].flatten(), second[:, i].flatten()]).mean() for i in range(8)]
        ),
        "second": torch.stack(
            [torch.cat([second[i].flatten(), last[:, i].flatten()]).mean() for i in range(6)]
        ),
    }


def pruner_of(model: nn.Module, importance: object, **settings: object) -> object:
    return tp.pruner.MagnitudePruner(
        model, images(), importance=importance, ignored_layers=[model.last], **settings
    )


@pytest.mark.parametrize("amount", [0.0, 0.5])
def test_the_channels_with_the_smallest_mean_scores_go(amount: float) -> None:
    model, scheduler = scored(amount)
    expected = by_hand(scheduler)
    before = copy.deepcopy(model)
    pruner_of(model, PlatonImportance(scheduler, model), pruning_ratio=0.5).step()
    kept = {
        name: scores.argsort(descending=True)[: len(scores) // 2].sort().values
        for name, scores in expected.items()
    }
    platon_prune.remove(before)
    assert torch.equal(model.first.weight, before.first.weight[kept["first"]])
    assert torch.equal(model.norm.bias, before.norm.bias[kept["first"]])
    second = before.second.weight[kept["second"]][:, kept["first"]]
    assert torch.equal(model.second.weight, second)
    assert model(images()).shape == (2, 4)


def test_a_pruner_may_take_several_steps() -> None:
    model, scheduler = scored()
    once = copy.deepcopy(by_hand(scheduler)["first"])
    pruner = pruner_of(
        model, PlatonImportance(scheduler, model), pruning_ratio=0.5, iterative_steps=2
    )
    first = model.first.weight.detach().clone()
    pruner.step()
    assert model.first.out_channels == 6
    pruner.step()
    assert model.first.out_channels == 4
    # After the first step two channels of the second layer are gone from each mean; the largest
    # one by far stays in any case.
    top = first[once.argmax()]
    assert any(torch.equal(row, top[: row.shape[0]]) for row in model.first.weight)


def test_all_layers_compete_globally() -> None:
    model, scheduler = scored()
    scores = by_hand(scheduler)
    joined = torch.cat([scores["first"], scores["second"]]).sort().values
    importance = PlatonImportance(scheduler, model)
    pruner_of(model, importance, pruning_ratio=0.3, global_pruning=True).step()
    gone = 14 - int(14 * 0.7)
    threshold = joined[gone - 1]
    for name, layer in (("first", model.first), ("second", model.second)):
        assert layer.out_channels == max(1, int((scores[name] > threshold).sum()))


def test_scores_that_are_gone_are_noticed() -> None:
    model, scheduler = scored()
    importance = PlatonImportance(scheduler, model)
    model(images()).sum().backward()
    with pytest.raises(RuntimeError, match="must be its score, got another one"):
        pruner_of(model, importance, pruning_ratio=0.5).step()
    model.zero_grad()
    with pytest.raises(RuntimeError, match="must be its score, got none"):
        pruner_of(model, importance, pruning_ratio=0.5).step()


def test_a_group_without_scores_is_left_alone() -> None:
    torch.manual_seed(0)
    model = Network()
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.0,
        total_steps=1,
        criterion="magnitude",
        include="last",
        warmup_steps=0,
        cooldown_steps=0,
    )
    scheduler.step()
    pruner_of(model, PlatonImportance(scheduler, model), pruning_ratio=0.5).step()
    assert (model.first.out_channels, model.second.out_channels) == (8, 3)


def test_grouped_queries_and_other_models_are_refused_at_once() -> None:
    llama = masked("Llama")
    _, scheduler = scored()
    with pytest.raises(ValueError, match=r"without grouped-query attention.*global_structured"):
        PlatonImportance(scheduler, llama)
    with pytest.raises(ValueError, match=r"got one without first\.weight"):
        PlatonImportance(scheduler, nn.Sequential(nn.Linear(2, 2)))


def test_without_torch_pruning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "platon_prune.integrations.torch_pruning_importance"
    monkeypatch.delitem(sys.modules, name)
    for package in ("torch_pruning", "torch_pruning.pruner"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'platon-prune\[structured\]'"):
        importlib.import_module(name)


# --- what shrink cuts -----------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), tp.prune_linear_out_channels, {"weight": 0, "bias": 0}),
    "linear inputs": (lambda: nn.Linear(5, 6), tp.prune_linear_in_channels, {"weight": 1}),
    "conv": (lambda: nn.Conv2d(4, 5, 3), tp.prune_conv_out_channels, {"weight": 0, "bias": 0}),
    "conv inputs": (lambda: nn.Conv1d(5, 4, 3), tp.prune_conv_in_channels, {"weight": 1}),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 5, 3),
        tp.prune_conv_out_channels,
        {"weight": 1, "bias": 0},
    ),
    "transposed inputs": (
        lambda: nn.ConvTranspose2d(5, 4, 3),
        tp.prune_conv_in_channels,
        {"weight": 0},
    ),
    "depthwise": (
        lambda: nn.Conv2d(5, 5, 3, groups=5),
        tp.prune_depthwise_conv_out_channels,
        {"weight": 0, "bias": 0},
    ),
    "batch norm": (
        lambda: nn.BatchNorm2d(5),
        tp.prune_batchnorm_out_channels,
        {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0},
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_cut_as_torch_prunings_function_cuts_it(kind: str) -> None:
    build, function, dims = LAYERS[kind]
    layer = build()
    expected = copy.deepcopy(layer)
    function(expected, idxs=[1, 3])
    for key, dim in dims.items():
        cut_(getattr(layer, key), {dim: torch.tensor([0, 2, 4])})
    refresh_sizes_(layer)
    assert str(layer) == str(expected)
    state = layer.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())
