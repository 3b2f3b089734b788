"""Criteria by hand: names, settings, samples of gradients, and what is known of whole tensors."""

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.criteria import CRITERIA, CriterionName, make_criterion


def test_the_names_of_criteria_are_those_of_the_table():
    assert tuple(CRITERIA) == get_args(CriterionName)
    assert all(CRITERIA[name].name == name for name in CRITERIA)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("platon", {"beta1": 0.5, "beta2": 0.25}),
        ("sensitivity", {"beta1": 0.5}),
        ("fisher", {"beta1": 0.5}),
        ("movement", {"fades": True}),
        ("magnitude", {}),
        ("scaled_magnitude", {}),
        ("random", {}),
    ],
)
def test_a_criterion_is_handed_the_betas_that_it_declares(name, settings):
    assert make_criterion(name, 0.5, 0.25).settings == settings


def test_a_criterion_with_the_old_name_of_a_method_is_refused():
    with pytest.raises(TypeError, match="Old must define update_averages_, got fold_"):

        class Old(platon_prune.Criterion):
            def fold_(self, mean, averages):
                pass


def _two_layers():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0], [0.0, 12.0]]))  # norm 13
        model[1].weight.copy_(torch.tensor([[0.3, 0.4]]))  # norm 0.5
    return model


def _choose(model, amount, **settings):
    scheduler = platon_prune.global_unstructured(
        model,
        amount=amount,
        total_steps=2,
        window=1,
        schedule="once",
        **dict(warmup_steps=0, cooldown_steps=0) | settings,
    )
    for _ in range(2):
        scheduler.step()
    return scheduler


def test_scaled_magnitudes_are_shares_of_the_norm_of_their_tensor():
    scheduler = _choose(_two_layers(), 0.0, criterion="scaled_magnitude")
    expected = torch.tensor([[3 / 13, 4 / 13], [0, 12 / 13]])
    torch.testing.assert_close(scheduler.score("0.weight"), expected)
    torch.testing.assert_close(scheduler.score("1.weight"), torch.tensor([[0.6, 0.8]]))


def test_scaled_magnitudes_prune_what_is_small_within_its_tensor():
    scheduler = _choose(_two_layers(), 0.5, criterion="scaled_magnitude")
    masks = scheduler.masks()
    assert masks["0.weight"].tolist() == [[False, False], [False, True]]  # by |w|, 1.weight first
    assert masks["1.weight"].tolist() == [[True, True]]
    assert scheduler.threshold == pytest.approx(4 / 13)


def test_a_tensor_of_zeros_has_scaled_magnitudes_of_zero():
    model = _two_layers()
    model[0].weight.data.zero_()
    scheduler = _choose(model, 0.5, criterion="scaled_magnitude")
    assert scheduler.score("0.weight").tolist() == [[0, 0], [0, 0]]
    assert int(scheduler.masks()["0.weight"].sum()) == 1
    assert scheduler.masks()["1.weight"].all()


def test_a_weight_that_is_not_finite_is_kept_and_spoils_no_other():
    model = _two_layers()
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([math.nan, -math.inf])
    before = model[0].weight.detach().clone()
    for dtype in (torch.float32, torch.float64):
        scheduler = _choose(model.to(dtype), 0.0, criterion="scaled_magnitude")
        assert scheduler.score("0.weight").tolist() == [[math.inf, math.inf], [0, 1]]
        platon_prune.remove(model)
        assert torch.equal(model[0].weight.float().nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("name", ["fisher", "scaled_magnitude"])
def test_scores_in_bfloat16_are_computed_in_float32(name):
    torch.manual_seed(0)
    model = nn.Linear(16, 16, bias=False).bfloat16()
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.0,
        total_steps=4,
        window=2,
        criterion=name,
        beta1=0.5,
        warmup_steps=0,
        cooldown_steps=0,
    )
    gradient = torch.randn(16, 16).bfloat16()
    for _ in range(2):
        model.weight.grad = gradient.clone()
        scheduler.step()
    weight = model.weight.detach().double()
    # The first window has one sample beside the phantom zero, and half of its mean is taken in.
    fisher = weight**2 * (0.5 * gradient.double() ** 2 / 2) / 2
    expected = fisher if name == "fisher" else weight.abs() / weight.norm()
    torch.testing.assert_close(scheduler.score("weight").double(), expected, rtol=1e-6, atol=0)


def _scores_of_windows(criterion, steps=8, **settings):
    """The score at each step where w = 2 and the gradient is -0.5, so that -w g is 1."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    settings = dict(total_steps=8, window=2, warmup_steps=0, cooldown_steps=0) | settings
    scheduler = platon_prune.global_unstructured(model, amount=0.0, criterion=criterion, **settings)
    scores = []
    for _ in range(steps):
        model.weight.grad = torch.full((1, 1), -0.5)
        scheduler.step()
        scores.append(float(scheduler.score("weight")))
    return scores


def test_a_window_of_movement_counts_the_less_the_later_it_begins():
    # A first window has half a sample; then 6, 4 and 2 of 8 steps are left.
    assert _scores_of_windows("movement") == [0, 0.5, 0.5, 1.25, 1.25, 1.75, 1.75, 2]
    plain = _scores_of_windows(platon_prune.Movement(fades=False))
    assert plain == [0, 0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 3.5]
    # Of a run of a single window nothing is lost.
    assert _scores_of_windows("movement", steps=2, total_steps=2) == [0, 0.5]


def test_a_window_of_ones_own_criterion_counts_as_it_says_and_not_at_all_at_zero():
    @dataclass(frozen=True)
    class Early(platon_prune.Movement):
        name: ClassVar[str] = "early"

        def weight_of_window(self, left):
            return 2.0 if left > 0.5 else 0.0

    assert _scores_of_windows(Early()) == [0, 1, 1, 3, 3, 3, 3, 3]


def test_a_state_of_the_plain_sum_is_not_gone_on_with_by_the_one_that_fades():
    def scheduler(criterion):
        return platon_prune.global_unstructured(
            nn.Linear(4, 4), amount=0.5, total_steps=40, criterion=criterion
        )

    plain = scheduler(platon_prune.Movement(fades=False)).state_dict()
    with pytest.raises(ValueError, match="fades is True here and False in the state"):
        scheduler("movement").load_state_dict(plain)
    # As was saved when there was no other.
    del plain["settings"]["fades"]
    with pytest.raises(ValueError, match="fades is True here and False in the state"):
        scheduler("movement").load_state_dict(plain)
    scheduler(platon_prune.Movement(fades=False)).load_state_dict(plain)


@dataclass(frozen=True)
class Gradient(platon_prune.Criterion):
    """The sum of |g| to a power, over the largest weight of the tensor."""

    name: ClassVar[str] = "gradient"
    averages: ClassVar[tuple[str, ...]] = ("sum",)
    num_statistics: ClassVar[int] = 2
    power: float = 1.0

    def sample(self, weight, grad, out):
        return out.copy_(grad).abs_().pow_(self.power)

    def update_averages_(self, mean, averages):
        averages[0].add_(mean)

    def statistics(self, weight):
        return torch.stack([(weight > 0).sum(), (weight < 0).sum()]).double()

    def score_with(self, statistics, weight, averages, out):
        return out.copy_(averages[0]).mul_(float(statistics[0]) - float(statistics[1]))


def test_a_criterion_of_a_few_lines_has_settings_and_sees_gradients_and_whole_tensors():
    model = _two_layers()
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.0,
        total_steps=4,
        window=2,
        criterion=Gradient(power=2.0),
        warmup_steps=0,
        cooldown_steps=0,
    )
    assert scheduler.settings["power"] == 2.0
    for _ in range(2):
        model[0].weight.grad = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
        model[1].weight.grad = torch.tensor([[-4.0, 1.0]])
        scheduler.step()
    # Halved by the phantom zero; two weights above and one below zero, then two and none.
    assert scheduler.score("0.weight").tolist() == [[0.5, 2.0], [4.5, 0.0]]
    assert scheduler.score("1.weight").tolist() == [[16.0, 1.0]]
    _, other = (
        None,
        platon_prune.global_unstructured(
            _two_layers(),
            amount=0.0,
            total_steps=4,
            window=2,
            criterion=Gradient(),
            warmup_steps=0,
            cooldown_steps=0,
        ),
    )
    with pytest.raises(ValueError, match="power is 1.0 here and 2.0 in the state"):
        other.load_state_dict(scheduler.state_dict())
