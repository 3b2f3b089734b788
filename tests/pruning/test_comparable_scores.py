"""Scores of different places made comparable, and scores that are learned without training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import platon_prune
from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.groups.group_scores import normalized


def _place(name: str, size: int) -> CoupledGroups:
    return CoupledGroups(name, "neurons", size, (Member(f"{name}.weight", 0, torch.arange(size)),))


def test_scores_are_divided_by_the_mean_of_their_place_or_by_the_cost_of_a_group() -> None:
    places = [_place("a", 2), _place("b", 3), _place("c", 2)]
    scores = torch.tensor([1.0, 3.0, 10.0, math.inf, 30.0, 0.0, 0.0], dtype=torch.float64)
    found = normalized(scores, places, "mean", [1, 1, 1]).tolist()
    assert found == [0.5, 1.5, 0.5, math.inf, 1.5, 0.0, 0.0]
    found = normalized(scores, places, "cost", [4, 10, 0]).tolist()
    assert found == [0.25, 0.75, 1.0, math.inf, 3.0, 0.0, 0.0]
    assert normalized(scores, places, "none", [4, 10, 0]).equal(scores)


class _Scales(nn.Module):
    """Two layers side by side, one with weights a hundred times smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(3, 8)
        self.c, self.d = nn.Linear(8, 2), nn.Linear(8, 2)
        with torch.no_grad():
            for parameter in (*self.b.parameters(), *self.d.parameters()):
                parameter *= 0.01

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu()) + self.d(self.b(x).relu())


def _kept(**settings: object) -> list[int]:
    torch.manual_seed(0)
    model = _Scales()
    scheduler = platon_prune.global_structured(
        model, torch.randn(2, 3), amount=0.44, total_steps=1, criterion="magnitude", **settings
    )
    scheduler.step()
    return [int(kept.sum()) for kept in scheduler.granularity.kept(scheduler.masks())]


def test_no_place_is_emptied_for_its_scale_alone() -> None:
    assert _kept(normalizer="none") == [
        8,
        1,
    ]  # of 16 neurons 7: all that the floor lets go of the small one
    large, small = _kept(normalizer="mean")
    assert large + small == 9 and small > 1


def test_a_state_tells_its_normalizer_only_where_there_is_one() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    for normalizer, told in (("none", False), ("cost", True)):
        scheduler = platon_prune.global_structured(
            model, torch.randn(2, 3), amount=0.4, total_steps=20, normalizer=normalizer
        )
        assert ("normalizer" in scheduler.granularity.settings) == told
        platon_prune.remove(model)


def test_a_state_from_before_normalizers_is_refused_with_what_it_was_made_with() -> None:
    made = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    before, now = (
        platon_prune.global_structured(
            model, torch.randn(2, 3), amount=0.4, total_steps=20, normalizer=normalizer
        )
        for model, normalizer in zip(made, ("none", "mean"), strict=True)
    )
    with pytest.raises(ValueError, match="normalizer is 'mean' here and 'none' in the state"):
        now.load_state_dict(before.state_dict())


def test_places_are_compared_by_their_means_only_where_there_are_channels() -> None:
    pieces = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 4))
    channels = nn.Sequential(*pieces, nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 1, 8, 8)
    neurons = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 3)
    for (model, inputs), expected in ((channels, "mean"), (neurons, "none")):
        scheduler = platon_prune.global_structured(model, inputs, amount=0.4, total_steps=20)
        assert scheduler.granularity.normalizer == expected


def test_an_unknown_normalizer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(
        ValueError, match="normalizer must be one of auto, none, mean, cost; got 'max'"
    ):
        platon_prune.global_structured(
            model, torch.randn(2, 3), amount=0.4, total_steps=20, normalizer="max"
        )


def test_scores_learned_over_batches_choose_once_and_leave_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(4, 3) for _ in range(10)]
    before = model[0].weight.detach().clone()
    scheduler = platon_prune.global_structured(
        model, batches[0], amount=0.5, total_steps=30, warmup_steps=10, window=5, schedule="once"
    )
    loss = lambda batch: model(batch).square().mean()  # noqa: E731
    assert platon_prune.learn_scores(model, scheduler, batches, loss) == 10
    assert scheduler.last_step == 10
    (kept,) = scheduler.granularity.kept(scheduler.masks())
    assert int(kept.sum()) == 4
    assert torch.equal(model[0].weight[kept], before[kept])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_that_only_its_floor_holds_is_named_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
    model.append(nn.Linear(40, 2))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor *= 1e-4
        model[2].weight *= 1e-2
    scheduler = platon_prune.global_structured(
        model,
        torch.randn(2, 3),
        amount=0.97,
        total_steps=2,
        window=1,
        criterion="magnitude",
        min_neurons=0.05,
        normalizer="none",
        schedule="linear",
    )
    with pytest.warns(platon_prune.PruningWarning, match=r"0 keeps 2 of 40 neurons.*normal") as all:
        for _ in range(2):
            scheduler.step()
    assert sum("0 keeps 2" in str(one.message) for one in all) == 1
