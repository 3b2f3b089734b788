"""The choice of n:m groups: by hand, against a plain twin, with ties, and at the schedule's end."""

import copy

import n_of_m_twin
import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.choice.n_of_m import SemiStructured
from platon_prune.choice.scored import ScoredTensor
from platon_prune.tensors.collectives import ALONE

T, F = True, False


def _choose(scores, masks, dims, n, m, share):
    """Masks (changed in place) and threshold of one choice."""
    tensors, offset = [], 0
    for name, score in scores.items():
        flat = score.reshape(-1)
        tensors.append(ScoredTensor(flat.__getitem__, masks[name], offset, None, name))
        offset += flat.numel()
    return SemiStructured(n, m, dims).choose_(tensors, share, ALONE)


def _all_kept(scores):
    return {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}


# --- by hand ------------------------------------------------------------------------------------

SCORES = torch.tensor(
    [[5.0, 1.0, 4.0, 2.0, 9.0, 9.5, 8.0, 7.0], [0.5, 3.0, 2.5, 6.0, 1.0, 1.5, 9.0, 2.0]]
)
# Costs at 2:4, the sums of the two smallest of each group: 3 and 15; 3 (0.5 + 2.5) and 2.5.


@pytest.mark.parametrize(
    ("share", "constrained", "threshold"),
    [
        (0.0, [], None),
        (0.25, [3], 2.5),
        (0.75, [0, 2, 3], 3.0),
        (1.0, [0, 1, 2, 3], 15.0),
    ],
)
def test_groups_that_lose_least_are_constrained_first(share, constrained, threshold):
    two_kept = torch.tensor([[[T, F, T, F], [T, T, F, F]], [[F, T, F, T], [F, F, T, T]]])
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[constrained] = two_kept.view(4, 4)[constrained]
    masks = {"w": torch.ones(2, 8, dtype=torch.bool)}
    assert _choose({"w": SCORES}, masks, {"w": 1}, 2, 4, share) == threshold
    assert torch.equal(masks["w"], expected.view(2, 8))


def test_groups_along_the_first_dimension_are_those_of_the_transposed_matrix():
    masks = {"w": torch.ones(8, 2, dtype=torch.bool)}
    _choose({"w": SCORES.t().contiguous()}, masks, {"w": 0}, 2, 4, 1.0)
    expected = torch.tensor([[T, F, T, F, T, T, F, F], [F, T, F, T, F, F, T, T]])
    assert torch.equal(masks["w"], expected.t())


def test_a_group_that_became_dear_is_released_and_kept_entries_swap():
    masks = {"w": torch.tensor([[T, T, F, F], [T, T, T, T]])}
    scores = torch.tensor([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 4.0]])
    _choose({"w": scores}, masks, {"w": 1}, 2, 4, 0.5)
    assert torch.equal(masks["w"], torch.tensor([[T, T, T, T], [F, F, T, T]]))
    _choose({"w": scores.flip(1)}, masks, {"w": 1}, 2, 4, 0.5)
    assert torch.equal(masks["w"], torch.tensor([[T, T, T, T], [T, T, F, F]]))


# --- against the twin ---------------------------------------------------------------------------

KINDS = {
    "random": lambda shape, g: torch.rand(shape, generator=g),
    "few values": lambda shape, g: torch.randint(0, 3, shape, generator=g).float(),
    "zero": lambda shape, g: torch.zeros(shape),
    "signed": lambda shape, g: torch.randn(shape, generator=g),
    "denormal": lambda shape, g: torch.rand(shape, generator=g) * 1e-43,
    "huge": lambda shape, g: torch.rand(shape, generator=g) * 3e38,
    "infinite": lambda shape, g: (torch.rand(shape, generator=g) - 0.5).round() * torch.inf,
}
PATTERNS = [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 3), (3, 5), (7, 16), (5, 40)]


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "infinite"])
def test_the_fast_choice_equals_the_plain_twin(kind, n, m):
    generator = torch.Generator().manual_seed(n * m)
    shapes = {"rows": (5, 2 * m), "columns": (3 * m, 3), "kernels": (2, m, 3, 2), "one": (1, m)}
    dims = {"rows": 1, "columns": 0, "kernels": 1, "one": 1}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for share in (0.3, 0.55, 0.8, 0.4, 1.0):
        scores = {name: KINDS[kind](shape, generator) for name, shape in shapes.items()}
        expected = n_of_m_twin.choose(scores, masks, dims, n, m, share)
        _choose(scores, masks, dims, n, m, share)
        for name in shapes:
            assert torch.equal(masks[name], expected[name]), f"{name} at share {share}"


def test_many_blocks_are_chosen_over_as_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.randint(0, 9, (30, 32), generator=generator).float()}
    scores |= {"b": torch.randint(0, 9, (24, 17), generator=generator).float()}
    dims = {"a": 1, "b": 0}
    whole, pieces = _all_kept(scores), _all_kept(scores)
    _choose(scores, whole, dims, 2, 4, 0.5)
    monkeypatch.setattr("platon_prune.tensors.blocks.CPU_BLOCK", 50)
    _choose(scores, pieces, dims, 2, 4, 0.5)
    assert all(torch.equal(whole[name], pieces[name]) for name in scores)


def test_a_mask_that_begins_in_the_middle_of_a_word_is_chosen_all_the_same():
    memory = torch.ones(17, dtype=torch.bool)
    masks = {"w": memory[1:].view(2, 8)}
    _choose({"w": SCORES}, masks, {"w": 1}, 2, 4, 1.0)
    assert torch.equal(
        masks["w"], torch.tensor([[T, F, T, F, T, T, F, F], [F, T, F, T, F, F, T, T]])
    )
    assert memory[0]


def test_infinite_scores_leave_the_pattern_exact():
    generator = torch.Generator().manual_seed(0)
    scores = {"w": KINDS["infinite"]((50, 40), generator)}
    assert scores["w"].isnan().any()
    scores["w"].nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    masks = _all_kept(scores)
    _choose(scores, masks, {"w": 1}, 2, 4, 0.5)
    kept = masks["w"].view(-1, 4).sum(1)
    assert set(kept.tolist()) == {2, 4} and int((kept == 2).sum()) == 250


# --- ties ---------------------------------------------------------------------------------------


def test_of_equal_groups_those_constrained_already_stay_so():
    scores = {"w": torch.ones(8, 40)}
    masks = _all_kept(scores)
    _choose(scores, masks, {"w": 1}, 2, 4, 0.3)
    first = masks["w"].clone()
    _choose(scores, masks, {"w": 1}, 2, 4, 0.6)
    assert not (masks["w"] & ~first).any(), "masks are nested"
    assert int((masks["w"].view(-1, 4).sum(1) == 2).sum()) == 48
    _choose(scores, masks, {"w": 1}, 2, 4, 0.3)
    assert torch.equal(masks["w"], first)


def test_of_equal_entries_those_pruned_already_go_first():
    masks = {"w": torch.tensor([[T, F, T, F], [F, F, T, T], [F, T, T, F]])}
    before = masks["w"].clone()
    _choose({"w": torch.zeros(3, 4)}, masks, {"w": 1}, 2, 4, 1.0)
    assert torch.equal(masks["w"], before)


def test_equal_scores_empty_no_column():
    masks = {"w": torch.ones(200, 8, dtype=torch.bool)}
    _choose({"w": torch.zeros(200, 8)}, masks, {"w": 1}, 2, 4, 1.0)
    kept = masks["w"].float().mean(0)
    assert (kept - 0.5).abs().max() < 0.15  # 3 standard deviations of a fair coin are 0.11


# --- along a schedule ---------------------------------------------------------------------------

SETTINGS = dict(total_steps=24, warmup_steps=3, cooldown_steps=6, window=4)


class Net(nn.Module):
    def __init__(self, m=4):
        super().__init__()
        self.conv = nn.Conv2d(2 * m, 6, 2)
        self.first = nn.Linear(m * 6, 5 * m)
        self.second = nn.Linear(5 * m, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(1)
        return self.second(
            torch.relu(self.first(torch.cat([x] * (self.first.in_features // 6), 1)))
        )


def _net(m=4):
    torch.manual_seed(0)
    return Net(m)


DIMS = {"conv.weight": 1, "first.weight": 1, "second.weight": 1}


def _train(model, scheduler, steps, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        step = scheduler.last_step
        x = torch.randn(
            4, model.conv.in_channels, 2, 2, generator=torch.Generator().manual_seed(step)
        )
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 5)])
def test_every_choice_of_a_run_is_the_twin_s_and_the_last_is_exact(n, m, masking):
    model = _net(m)
    scheduler = platon_prune.semi_structured(
        model, n=n, m=m, masking=masking, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    masks, shares = scheduler.masks(), []
    num_groups = sum(mask.numel() for mask in masks.values()) // m
    for _ in _train(model, scheduler, 24):
        if not scheduler.schedule.is_choosing_step(scheduler.last_step):
            continue
        scores = {name: scheduler.score(name) for name in masks}
        masks = n_of_m_twin.choose(scores, masks, DIMS, n, m, scheduler.amount)
        now = scheduler.masks()
        assert all(torch.equal(now[name], masks[name]) for name in masks)
        pruned = sum(int((~mask).sum()) for mask in masks.values())
        shares.append(pruned / (m - n))
        assert shares[-1] == round(scheduler.amount * num_groups)
    assert shares[0] < shares[1] < shares[-1] == num_groups
    assert scheduler.sparsity() >= 1 - n / m  # an entry that has just come back is zero still
    assert scheduler.target_sparsity == pytest.approx(1 - n / m)
    scheduler.remove()
    for name in masks:
        weight = model.get_parameter(name).movedim(1, -1).reshape(-1, m)
        assert int(weight.ne(0).sum(1).max()) == n


def test_a_share_of_the_groups_can_be_asked_for():
    model = _net()
    scheduler = platon_prune.semi_structured(
        model, amount=0.5, initial_amount=0.25, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for _ in _train(model, scheduler, 24):
        pass
    mask = torch.cat([m.movedim(1, -1).reshape(-1, 4) for m in scheduler.masks().values()])
    kept = mask.sum(1)
    assert int((kept == 2).sum()) == round(0.5 * len(kept)) and set(kept.tolist()) == {2, 4}
    assert scheduler.target_sparsity == 0.25


@pytest.mark.parametrize("masking", ["step", "window"])
def test_a_resumed_run_is_the_same_bit_by_bit(masking):
    model = _net()
    scheduler = platon_prune.semi_structured(
        model, masking=masking, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    list(_train(model, scheduler, 13))
    states = copy.deepcopy((model.state_dict(), scheduler.state_dict()))
    list(_train(model, scheduler, 11))

    resumed = _net()
    other = platon_prune.semi_structured(
        resumed, masking=masking, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    list(_train(resumed, other, 11))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    assert scheduler.threshold == other.threshold


def test_a_state_of_another_pattern_or_granularity_is_refused():
    state = platon_prune.semi_structured(
        _net(), **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    ).state_dict()
    with pytest.raises(ValueError, match="n is 1 here and 2 in the state"):
        platon_prune.semi_structured(
            _net(), n=1, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        ).load_state_dict(state)
    unstructured = platon_prune.global_unstructured(
        _net(), amount=1.0 - 1e-9, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    with pytest.raises(ValueError, match="settings must be of the same configuration"):
        unstructured.load_state_dict(state)


def test_a_copy_goes_its_own_way():
    model = _net()
    scheduler = platon_prune.semi_structured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    twin_model, twin = copy.deepcopy((model, scheduler))
    list(_train(model, scheduler, 24))
    assert twin.sparsity() == 0 and twin_model.first.weight_mask.all()
    list(_train(twin_model, twin, 24))
    assert all(torch.equal(a, twin.masks()[name]) for name, a in scheduler.masks().items())


@pytest.mark.parametrize("criterion", ["magnitude", "random", "movement", "sensitivity"])
def test_every_criterion_ends_in_the_exact_pattern(criterion):
    model = _net()
    scheduler = platon_prune.semi_structured(
        model, criterion=criterion, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    list(_train(model, scheduler, 24))
    for mask in scheduler.masks().values():
        assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all()
