"""`scope`: the scores of all tensors are ranked together, or those of each tensor by itself."""

import copy
from typing import get_args

import pytest
import rank_jobs
import ranks
import torch
from test_selection import LIMITS, SCORES, SIZES, N, _limit, _scored, _sorted_positions
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune

import platon_prune
from platon_prune.choice.granularity import SCOPES
from platon_prune.choice.limits import prune_smallest_within_
from platon_prune.choice.selection import prune_smallest_
from platon_prune.criteria import CRITERIA

AT_ONCE = dict(total_steps=4, window=1, warmup_steps=0, cooldown_steps=0)


def _model():
    """Its first layer has by far the smallest weights: 200, 400 and 100 of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.Linear(20, 5))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    return model


def _train(model, scheduler, steps):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        inputs = torch.randn(16, 10, generator=generator)
        F.cross_entropy(model(inputs), inputs[:, :5].argmax(1)).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return scheduler


def _lost(scheduler):
    return [int((~mask).sum()) for mask in scheduler.masks().values()]


def _pruned(**settings):
    model = _model()
    settings = AT_ONCE | dict(criterion="magnitude") | settings
    return _lost(_train(model, platon_prune.global_unstructured(model, **settings), 4))


# --- which scope ---------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_by_layer_every_criterion_takes_the_same_fraction_of_each_tensor(criterion):
    assert _pruned(amount=0.5, criterion=criterion, scope="layer") == [100, 200, 50]
    one_threshold = _pruned(amount=0.5, criterion=criterion)
    assert sum(one_threshold) == 350 and one_threshold != [100, 200, 50]
    assert _pruned(amount=0.5, criterion=criterion, scope="global") == one_threshold


@pytest.mark.parametrize("door", [platon_prune.global_unstructured, platon_prune.semi_structured])
def test_a_scope_that_there_is_not_is_refused_before_anything(door):
    model = nn.Linear(8, 8)
    with pytest.raises(ValueError, match='scope must be "global", .* or "layer", got .tensor'):
        door(model, amount=0.5, total_steps=20, scope="tensor")
    assert list(model.state_dict()) == ["weight", "bias"]
    assert get_args(platon_prune.Scope) == SCOPES


# --- what a layer's scope prunes -----------------------------------------------------------------


def test_of_each_tensor_its_own_smallest_go_as_torchs_method_for_one_tensor_has_it():
    model, plain = _model(), _model()
    settings = dict(amount=0.5, criterion="magnitude", scope="layer", **AT_ONCE)
    scheduler = platon_prune.global_unstructured(model, **settings)
    for _ in range(4):
        scheduler.step()
    for layer in (0, 2, 3):
        prune.l1_unstructured(plain[layer], "weight", 0.5)
        assert torch.equal(scheduler.masks()[f"{layer}.weight"], plain[layer].weight_mask.bool())


def test_the_total_is_exact_where_no_share_is_a_whole_number():
    # 233 of 700: 66.57, 133.14 and 33.29.
    assert _pruned(amount=0.333, scope="layer") == [67, 133, 33]
    assert _pruned(amount=351, scope="layer") == [100, 201, 50]  # 100.3, 200.6, 50.1


def test_what_a_limit_saves_is_lost_by_the_others_in_equal_fractions():
    # 300 of the other 500.
    assert _pruned(amount=0.5, scope="layer", max_amount={"0.weight": 0.25}) == [50, 240, 60]


def test_every_choice_of_the_ramp_is_even_and_exact_and_nobody_is_warned():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, amount=0.99, criterion="movement", scope="layer", total_steps=60, window=5
    )
    _train(model, scheduler, 60)
    for choice in scheduler.history:
        count = round(choice.amount * 700)
        lost = [round(200 * choice.sparsities["0.weight"])]
        lost += [round(400 * choice.sparsities["2.weight"])]
        lost += [round(100 * choice.sparsities["3.weight"])]
        assert sum(lost) == count
        for number, size in zip(lost, (200, 400, 100), strict=True):
            assert abs(number - count * size / 700) < 1
    assert _lost(scheduler) == [198, 396, 99]


def test_a_tensor_of_few_weights_keeps_one_that_rounding_would_take():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 200, bias=False))
    settings = dict(amount=0.95, criterion="random", scope="layer", **AT_ONCE)
    scheduler = platon_prune.global_unstructured(model, **settings)
    for _ in range(4):
        scheduler.step()
    # 384 of 404: 3.8 and 380.2.
    assert _lost(scheduler) == [3, 381]


# --- ties, replicas, processes -------------------------------------------------------------------


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", SCORES)
def test_a_choice_in_each_tensor_equals_a_sort_of_it(kind, limits, monkeypatch):
    torch.manual_seed(0)
    scores, before = SCORES[kind](N), torch.rand(N) < 0.7
    order = _sorted_positions(scores, before)
    _limit(monkeypatch, limits)
    shares = (0, 200, 4, 1031, 5, 2, 33)
    mask = before.clone()
    threshold = prune_smallest_within_(_scored(scores, mask, SIZES), sum(shares), shares)
    start, pruned = 0, []
    for size, share in zip(SIZES, shares, strict=True):
        pruned += [i for i in order if start <= i < start + size][:share]
        start += size
    expected = torch.ones(N, dtype=torch.bool)
    expected[pruned] = False
    assert torch.equal(mask, expected)
    assert threshold == max(scores[i].item() for i in pruned)


def test_with_no_slack_no_threshold_of_all_tensors_is_looked_for(monkeypatch):
    searched = []
    module = prune_smallest_within_.__globals__
    find_cut = module["find_cut"]

    def spying(tensors, count, processes):
        searched.append((len(tensors), count))
        return find_cut(tensors, count, processes)

    monkeypatch.setitem(module, "find_cut", spying)
    scores = torch.rand(N)
    shares = [size // 2 for size in SIZES]
    prune_smallest_within_(_scored(scores, scores > 0, SIZES), sum(shares), shares)
    assert searched[1:] == [(1, share) for share in shares] and searched[0] == (0, 0)


AT = (8, 13, 18, 24)


@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize(
    ("layout", "size"), [("copies", 2), ("fsdp", 3), ("tp", 2), ("several_meshes", 4)]
)
def test_each_tensor_loses_its_share_over_processes_as_in_one(layout, size, kind):
    settings = dict(criterion="movement", scope="layer")
    expected = rank_jobs.results(rank_jobs.alone, kind, AT, settings)
    # 0.7 of 117, 130 and 10: 81.9, 91 and 7.
    masks = expected[-1]["masks"].values()
    assert [int((~mask).sum()) for mask in masks] == [82, 91, 7]
    function = getattr(rank_jobs, layout)
    for found in ranks.run(size, rank_jobs.results, function, kind, AT, settings):
        for one, other in zip(found, expected, strict=True):
            assert not rank_jobs.differences(one, other)


# --- states --------------------------------------------------------------------------------------


def _movement(**settings):
    model = _model()
    settings = dict(amount=0.8, criterion="movement", total_steps=40, window=4) | settings
    return model, platon_prune.global_unstructured(model, **settings)


def test_a_run_resumes_bit_by_bit(tmp_path):
    model, scheduler = _movement(scope="layer")
    _train(model, scheduler, 21)
    torch.save([model.state_dict(), scheduler.state_dict()], tmp_path / "state.pt")
    of_model, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other_model, other = _movement(scope="layer")
    other_model.load_state_dict(of_model)
    other.load_state_dict(state)
    for each in ((model, scheduler), (other_model, other)):
        _train(*each, 19)
    for name, mask in scheduler.masks().items():
        assert torch.equal(mask, other.masks()[name])
        assert torch.equal(scheduler.score(name), other.score(name))


def test_a_state_of_another_scope_is_refused_with_its_name():
    states = {scope: _movement(scope=scope)[1].state_dict() for scope in SCOPES}
    # Of a state without it there was once no other.
    assert "scope" not in states["global"]["settings"]
    for scope, other in (SCOPES, SCOPES[::-1]):
        _, scheduler = _movement(scope=scope)
        before = copy.deepcopy(scheduler.state_dict())
        message = f"scope is {scope!r} here and {other!r} in the state"
        with pytest.raises(ValueError, match=message):
            scheduler.load_state_dict(states[other])
        assert str(scheduler.state_dict()) == str(before)
        scheduler.load_state_dict(states[scope])


# --- n of m ---------------------------------------------------------------------------------------


def _constrained(mask):
    return mask.view(-1, 4).sum(1) == 2


@pytest.mark.parametrize("criterion", ["movement", "magnitude"])
def test_the_same_share_of_the_groups_of_each_tensor_is_constrained(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20, bias=False), nn.Linear(20, 12, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    settings = AT_ONCE | dict(amount=0.5, criterion=criterion, scope="layer")
    scheduler = platon_prune.semi_structured(model, **settings)
    weights = [layer.weight.detach().clone() for layer in model]
    for _ in range(4):
        model(torch.randn(4, 8)).square().mean().backward()
        scheduler.step()
        model.zero_grad()
    masks = list(scheduler.masks().values())
    # Half of 40 and of 60 groups.
    assert [int(_constrained(mask).sum()) for mask in masks] == [20, 30]
    if criterion == "magnitude":  # those whose two smallest weights add up to the least
        for mask, weight in zip(masks, weights, strict=True):
            costs = weight.abs().view(-1, 4).sort(1).values[:, :2].sum(1)
            least = costs.argsort()[: len(costs) // 2].sort().values
            assert torch.equal(_constrained(mask).nonzero().squeeze(1), least)


def test_n_of_m_compares_the_groups_of_all_tensors_by_default():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20, bias=False), nn.Linear(20, 12, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    scheduler = platon_prune.semi_structured(model, amount=0.4, criterion="magnitude", **AT_ONCE)
    for _ in range(4):
        scheduler.step()
    assert [int(_constrained(mask).sum()) for mask in scheduler.masks().values()] == [40, 0]


def test_one_choice_of_all_tensors_and_of_one_alone_are_the_same():
    scores = torch.rand(N)
    masks = torch.ones(2, N, dtype=torch.bool)
    prune_smallest_(_scored(scores, masks[0], [N]), 100)
    prune_smallest_within_(_scored(scores, masks[1], [N]), 100, [100])
    assert torch.equal(*masks)
