"""Whole blocks compete by their scores, with heads and neurons or alone, where they can go."""

from __future__ import annotations

import pytest
import tiny_blocks
import torch
from torch import Tensor, nn

import platon_prune
from platon_prune.groups.costs import Savings, parameter_prices

SCHEDULE = dict(total_steps=4, warmup_steps=0, cooldown_steps=0, window=1)


class _Layer(nn.Module):
    """Adds to what it is given; all of its 60 parameters, of the default width, are one number."""

    def __init__(self, scale: float, width: int = 5) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 5)
        for parameter in self.parameters():
            nn.init.constant_(parameter, scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.first(x).relu())


def _stack(*scales: float) -> nn.Module:
    return nn.Sequential(*(_Layer(scale) for scale in scales))


def _run(model: nn.Module, **settings: object) -> list[int]:
    """Which layers are gone by the magnitudes of their weights, of which no step changes any."""
    settings = {"kinds": "blocks", "criterion": "magnitude", **SCHEDULE, **settings}
    scheduler = platon_prune.global_structured(model, torch.ones(2, 5), **settings)
    for _ in range(4):
        model(torch.ones(2, 5)).sum().backward()
        scheduler.step()
        model.zero_grad()
    masks = scheduler.masks()
    return [
        i for i in range(len(model))
        if not any(mask.any() for name, mask in masks.items() if name.startswith(f"{i}."))
    ]  # fmt: skip


def test_the_blocks_with_the_smallest_mean_scores_go_until_the_amount_is_nearest() -> None:
    assert _run(_stack(0.3, 0.1, 0.4, 0.2), amount=0.5) == [1, 3]
    assert _run(_stack(0.3, 0.1, 0.4, 0.2), amount=0.3) == [1]  # a quarter is nearer than a half
    assert _run(_stack(0.3, 0.1, 0.4, 0.2), amount=0.7) == [0, 1, 3]


@pytest.mark.filterwarnings("error:nearly empty:platon_prune.PruningWarning")
def test_nobody_is_warned_of_a_block_that_is_meant_to_go() -> None:
    assert _run(_stack(0.3, 0.1, 0.4, 0.2), amount=0.5) == [1, 3]


def test_a_score_for_its_cost_decides_between_blocks_of_other_sizes() -> None:
    model = nn.Sequential(_Layer(0.2, 10), _Layer(0.3, 5), _Layer(0.5, 5), _Layer(0.6, 5))
    # Sums are 0.2 * 115, 0.3 * 60, ...: the second is the smallest, the first for its parameters.
    settings = dict(aggregate="sum", amount=0.3, schedule="once", warmup_steps=1, total_steps=4)
    assert _run(model, normalizer="none", **settings) == [1]
    model = nn.Sequential(_Layer(0.2, 10), _Layer(0.3, 5), _Layer(0.5, 5), _Layer(0.6, 5))
    assert _run(model, normalizer="cost", **settings) == [0]


def test_a_list_keeps_as_many_blocks_as_it_is_told() -> None:
    scales = (0.3, 0.1, 0.4, 0.2)
    assert len(_run(_stack(*scales), amount=0.5, min_blocks=2)) == 2
    for settings, message in (
        (dict(amount=0.5, min_blocks=3), "amount must be at most 0.25"),
        (dict(amount=0.8), "amount must be at most 0.75"),
        (dict(amount=0.5, min_blocks=0), "min_blocks must be a count of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            _run(_stack(*scales), **settings)


def test_what_a_block_shares_with_its_heads_and_neurons_is_counted_once() -> None:
    model = tiny_blocks.built("GPT-2")
    places = platon_prune.find_groups(model, kinds=["heads", "neurons", "blocks"])
    (stack,) = (place for place in places if place.kind == "blocks")
    shapes = {m.name: model.get_parameter(m.name).shape for p in places for m in p.members}
    savings = Savings(places, shapes, parameter_prices(places))
    layer = sum(p.numel() for p in model.transformer.h[0].parameters())
    assert savings.total == 4 * layer
    pruned = torch.zeros(sum(place.size for place in places), dtype=torch.bool)
    views = dict(zip([p.name for p in places], pruned.split([p.size for p in places]), strict=True))
    views[stack.name][1] = True
    assert savings.of(pruned) == layer
    views["transformer.h.1.attn"][:3] = True  # inside of what is gone already
    views["transformer.h.1.mlp"][:5] = True
    assert savings.of(pruned) == layer
    views["transformer.h.2.attn"][0] = True
    # Of one head of four: rows of queries, keys and values, their biases, columns of the output.
    assert savings.of(pruned) == layer + 3 * 4 * 16 + 3 * 4 + 4 * 16


def test_a_block_that_lost_its_heads_and_neurons_goes_with_its_biases() -> None:
    model = tiny_blocks.built("GPT-2")
    settings = dict(kinds=["heads", "neurons", "blocks"], criterion="magnitude")
    scheduler = platon_prune.global_structured(
        model, amount=0.243, min_heads=0, min_neurons=0, **SCHEDULE, **settings
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".h.2." in name:
                # Its biases and norms are large, so that it does not go for its own score.
                is_grouped = parameter.ndim > 1 or "c_attn" in name or "c_fc" in name
                parameter.mul_(1e-3 if is_grouped else 1e3)
    for _ in range(4):
        tiny_blocks.output(model.train())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        scheduler.step()
    masks = {n: m for n, m in scheduler.masks().items() if ".h.2." in n}
    assert masks and not any(mask.any() for mask in masks.values())


@pytest.mark.filterwarnings("ignore:left out of pruning")
def test_heads_and_neurons_may_all_go_where_a_layer_then_hands_on_what_it_is_given() -> None:
    for name in ("Llama", "Gemma 2"):
        scheduler = platon_prune.global_structured(
            tiny_blocks.built(name),
            amount=0.9,
            min_heads=0,
            min_neurons=0,
            total_steps=20,
            window=2,
        )
        assert set(scheduler.granularity.floors) == {0}
        assert scheduler.granularity.largest_amount == 1.0
    refused = {
        "GPT-2": "it does not hand its input on",  # for its biases, which no head has
        "BERT": "it does not hand its input on",
    }
    models = {"GPT-2": lambda: tiny_blocks.built("GPT-2"), "BERT": tiny_blocks.bert}
    for name, why in refused.items():
        with pytest.raises(ValueError, match=rf"min_heads must be a count of at least 1.*{why}"):
            platon_prune.global_structured(
                models[name](), amount=0.5, min_heads=0, total_steps=20, window=2
            )


class _NormAfter(_Layer):
    def __init__(self) -> None:
        super().__init__(0.1)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class _Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


def _sharing() -> nn.Module:
    model = _stack(0.1, 0.2, 0.3)
    model[1].first.weight = model[0].first.weight
    return model


NO_BLOCKS = {
    "a norm after the addition": (
        lambda: nn.Sequential(_NormAfter(), _NormAfter()), "as where a norm comes after"),
    "called twice": (lambda: _Twice(_Layer(0.1), _Layer(0.2)), "it is called 2 times"),
    "a shared matrix": (lambda: _sharing()[:2], "0.first.weight is shared"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_BLOCKS)
def test_what_is_no_block_is_not_offered_and_the_reason_is_told(case: str) -> None:
    build, why = NO_BLOCKS[case]
    with pytest.raises(ValueError, match=f"blocks that can be removed, got none.*{why}"):
        _run(build(), amount=0.5)


def test_a_model_in_training_is_left_as_it_was_by_the_trial() -> None:
    model = tiny_blocks.built("Llama").train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    places = platon_prune.find_groups(model, kinds="blocks")
    assert [(place.kind, place.size) for place in places] == [("blocks", 4)]
    assert model.training and model.model.layers[0].training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_blocks_of_an_unknown_model_need_example_inputs() -> None:
    with pytest.raises(ValueError, match="example_inputs must be given to try it"):
        platon_prune.global_structured(_stack(0.1, 0.2), amount=0.5, kinds="blocks", **SCHEDULE)


def test_multiply_adds_of_a_block_are_those_of_its_matrices() -> None:
    model = nn.Sequential(_Layer(0.2, 10), _Layer(0.3, 5))
    scheduler = platon_prune.global_structured(
        model, torch.ones(2, 5), amount=0.5, kinds="blocks", budget="macs", **SCHEDULE
    )
    # Two rows through 5 x 10 and 10 x 5, then 5 x 5 twice; biases count nothing.
    assert scheduler.granularity.total == 2 * (100 + 50)
    assert scheduler.granularity.largest_amount == pytest.approx(2 / 3)
