"""`apply_masks(copy, scheduler)`: anybody's copy of a pruned model ends with the model's zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import platon_prune

PRUNED = (12 * 8 + 8 * 8) * 3 // 4  # of the weights of both layers


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))


def _scheduler(model: nn.Module, **settings: object) -> platon_prune.PlatonScheduler:
    return platon_prune.global_unstructured(
        model, amount=0.75, total_steps=8, warmup_steps=2, cooldown_steps=2, window=2, **settings
    )


def _train(model, scheduler, after=lambda: None) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(8):
        model(torch.randn(6, 12)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        after()


def _zeros(model: nn.Module) -> int:
    return sum(int((model[i].weight == 0).sum()) for i in (0, 3))


def _outside(model: nn.Module, scheduler: platon_prune.PlatonScheduler) -> int:
    masks = scheduler.masks()
    return sum(int((model[i].weight[~masks[f"{i}.weight"]] != 0).sum()) for i in (0, 3))


def _finalized(model: nn.Module) -> nn.Module:
    return platon_prune.remove(model) if hasattr(model[0], "weight_mask") else model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_buffers": True, "avg_fn": get_ema_avg_fn(0.9)},
        {"use_buffers": True, "multi_avg_fn": None, "avg_fn": lambda a, b, n: (a + b) / 2},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    ],
    ids=["mean", "ema with buffers", "own rule with buffers", "foreach"],
)
def test_torchs_average_ends_with_the_zeros_of_the_model(settings: dict) -> None:
    # With buffers it averages the masks, too, which are then no longer those of the model.
    model = _net()
    scheduler = _scheduler(model)
    average = AveragedModel(model, **settings)
    _train(model, scheduler, lambda: average.update_parameters(model))
    assert _outside(average.module, scheduler) > 0
    assert platon_prune.apply_masks(average, scheduler) is average
    assert _outside(average.module, scheduler) == 0
    assert _zeros(platon_prune.remove(average.module)) == PRUNED
    assert _zeros(platon_prune.remove(model)) == PRUNED


def test_an_average_that_was_made_before_pruning_ends_with_the_zeros_of_the_model() -> None:
    model = _net()
    average = AveragedModel(model)
    scheduler = _scheduler(model)

    def update() -> None:  # as many frameworks do it: parameters alone, in their order
        for kept, new in zip(average.module.parameters(), model.parameters(), strict=True):
            kept.detach().lerp_(new.detach(), 0.5)

    _train(model, scheduler, update)
    assert _outside(average.module, scheduler) > 0
    platon_prune.apply_masks(average, scheduler)
    assert _zeros(average.module) == PRUNED


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("made", ["before pruning", "after it"])
def test_the_average_of_ema_pytorch_ends_with_the_zeros_of_the_model(made, online) -> None:
    ema_pytorch = pytest.importorskip("ema_pytorch", reason="needs ema-pytorch: platon-prune[test]")
    model = _net()
    scheduler = _scheduler(model) if made == "after it" else None
    average = ema_pytorch.EMA(
        model, beta=0.5, update_after_step=0, update_every=1, include_online_model=online
    )
    average.update()  # it copies the model at its first update
    scheduler = scheduler or _scheduler(model)
    if made == "after it":
        _train(model, scheduler, average.update)
    else:
        _train(model, scheduler)
    assert _outside(average.ema_model, scheduler) > 0
    platon_prune.apply_masks(average, scheduler)
    assert _outside(average.ema_model, scheduler) == 0
    assert _zeros(_finalized(average.ema_model)) == PRUNED


@pytest.mark.parametrize("kind", ["ModelEma", "ModelEmaV2", "ModelEmaV3"])
def test_the_averages_of_timm_end_with_the_zeros_of_the_model(kind: str) -> None:
    timm = pytest.importorskip("timm", reason="timm needs a torchvision that fits the torch here")
    model = _net()
    scheduler = _scheduler(model)
    average = getattr(timm.utils, kind)(model, decay=0.9)
    _train(model, scheduler, lambda: average.update(model))
    kept = average.ema if kind == "ModelEma" else average.module
    assert _outside(kept, scheduler) > 0
    platon_prune.apply_masks(average, scheduler)
    assert _outside(kept, scheduler) == 0
    assert _zeros(_finalized(kept)) == PRUNED


@pytest.mark.parametrize("form", ["own names", "torch's form"])
def test_a_state_dict_ends_with_the_zeros_of_the_model(form: str) -> None:
    model = _net()
    names = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scheduler = _scheduler(model)
    if form == "torch's form":
        names = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {f"ema.{name}": tensor for name, tensor in names.items()}
    _train(model, scheduler)
    platon_prune.apply_masks(names, scheduler)
    suffix = "_orig" if form == "torch's form" else ""
    for name, mask in scheduler.masks().items():
        assert torch.equal(names[f"ema.{name}{suffix}"] != 0, mask)
        if suffix:
            assert torch.equal(names[f"ema.{name}_mask"], mask)


class _Compiled(nn.Module):
    """A copy whose first layer is wrapped, as `torch.compile` of a part of a model does it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parts = list(copy.deepcopy(model))
        wrapper = nn.Module()
        wrapper._orig_mod = parts[0]
        self.module = nn.Sequential(wrapper, *parts[1:])


def test_wrappers_within_a_copy_do_not_hide_its_names() -> None:
    model = _net()
    average = _Compiled(model)
    scheduler = _scheduler(model)
    _train(model, scheduler)
    platon_prune.apply_masks(average, scheduler)
    first, last = average.module[0]._orig_mod.weight, average.module[3].weight
    assert int((first == 0).sum()) + int((last == 0).sum()) == PRUNED


def test_a_copy_in_another_dtype_and_the_model_itself_are_zeroed_too() -> None:
    model = _net()
    average = copy.deepcopy(model).to(torch.bfloat16)
    scheduler = _scheduler(model)
    _train(model, scheduler)
    with torch.no_grad():
        model[0].weight_orig.fill_(1.0)
    assert platon_prune.apply_masks(model, scheduler) is model
    assert _outside(model, scheduler) == 0
    platon_prune.apply_masks(average, scheduler)
    assert _zeros(average) == PRUNED


class _Two(nn.Module):
    """Holds the copy beside another network of the same names and shapes."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second


def test_what_carries_the_models_masks_is_meant_and_not_what_looks_alike() -> None:
    model, other = _net(), _net()
    scheduler = _scheduler(model)
    both = _Two(copy.deepcopy(model), other)
    before = [tensor.clone() for tensor in other.state_dict().values()]
    _train(model, scheduler)
    platon_prune.apply_masks(both, scheduler)
    assert _outside(both.first, scheduler) == 0
    assert all(map(torch.equal, before, other.state_dict().values()))


def _unchanged(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_two_that_look_alike_are_refused_and_left_alone() -> None:
    model, both = _net(), _Two(_net(), _net())
    scheduler = _scheduler(model)
    _train(model, scheduler)
    before = _unchanged(both)
    with pytest.raises(ValueError, match="one copy.*got a _Two with 2.*pass the part"):
        platon_prune.apply_masks(both, scheduler)
    assert all(map(torch.equal, before, both.state_dict().values()))


@pytest.mark.parametrize("kind", ["other names", "other shape", "a part"])
def test_what_is_no_copy_is_refused_by_what_it_lacks(kind: str) -> None:
    model = _net()
    scheduler = _scheduler(model)
    _train(model, scheduler)
    other = {
        "other names": nn.ModuleDict({"a": nn.Linear(12, 8)}),
        "other shape": nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.ReLU(), nn.Linear(8, 9)),
        "a part": nn.Sequential(nn.Linear(12, 8)),
    }[kind]
    before = _unchanged(other)
    lacking = "2 of 2, such as 0.weight" if kind == "other names" else "1 of 2, such as 3.weight"
    with pytest.raises(ValueError, match=f"without {lacking} of shape.*a copy of the model"):
        platon_prune.apply_masks(other, scheduler)
    assert all(map(torch.equal, before, other.state_dict().values()))


def test_an_object_without_a_model_is_refused() -> None:
    scheduler = _scheduler(_net())
    with pytest.raises(TypeError, match="got a list with 0 modules"):
        platon_prune.apply_masks([], scheduler)
    with pytest.raises(ValueError, match=r"must carry masks.*apply_masks\(model, scheduler\)"):
        platon_prune.apply_masks([])


def test_a_scheduler_of_learning_rates_or_the_model_in_its_place_is_refused() -> None:
    model = _net()
    scheduler = _scheduler(model)
    for other in (model, torch.optim.lr_scheduler.LRScheduler):
        with pytest.raises(TypeError, match="must be the PlatonScheduler.*behind the copy"):
            platon_prune.apply_masks(scheduler, other)


def test_after_the_end_masks_that_were_recorded_are_applied_and_others_asked_for(tmp_path) -> None:
    model, recorded = _net(), _net()
    average = copy.deepcopy(model)
    schedulers = _scheduler(model), _scheduler(recorded, mask_history=tmp_path / "masks.bin")
    for each, scheduler in zip((model, recorded), schedulers, strict=True):
        _train(each, scheduler)
        platon_prune.remove(each)
    with pytest.raises(ValueError, match="before the pruned model is finalized"):
        platon_prune.apply_masks(average, schedulers[0])
    platon_prune.apply_masks(average, schedulers[1])
    assert _zeros(average) == PRUNED
