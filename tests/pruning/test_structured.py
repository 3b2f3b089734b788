"""Whole heads, neurons and channels go by their scores, come back, and cost what they cost."""

from __future__ import annotations

import copy
import pickle

import group_twin
import pytest
import resnet
import small_transformers
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import platon_prune
from platon_prune.choice.scored import ScoredTensor
from platon_prune.groups.costs import parameter_prices
from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.groups.coupled_choice import Structured
from platon_prune.tensors.collectives import Processes

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SCHEDULE = dict(total_steps=12, warmup_steps=1, cooldown_steps=2, window=2)


def _mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


MODELS = {
    "MLP": (_mlp, torch.ones(2, 3)),
    "ResNet": (resnet.ResNet, IMAGES),
    "BERT": (lambda: small_transformers.build("BERT"), None),
    "GPT-2": (lambda: small_transformers.build("GPT-2"), None),
    "Llama": (lambda: small_transformers.build("Llama"), None),
    "T5": (lambda: small_transformers.build("T5 v1.1"), None),
}


def _steps(model, scheduler, num_steps, seed=0):
    """Steps with random gradients and a little descent; yields after each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                parameter -= 0.01 * parameter.grad
        scheduler.step()
        yield scheduler.last_step


def _run(model, scheduler, num_steps=12):
    for _ in _steps(model, scheduler, num_steps):
        pass


def _floors(groups, heads=1, share=0.05):
    return [heads if p.kind == "heads" else max(1, -(-p.size * share // 1)) for p in groups]


@pytest.mark.parametrize(
    ("name", "aggregate"),
    [
        *[("MLP", aggregate) for aggregate in ("mean", "sum", "max", "l2")],
        ("ResNet", "l2"), ("BERT", "mean"), ("GPT-2", "max"), ("Llama", "mean"),
    ],
)  # fmt: skip
def test_every_choice_is_that_of_plain_loops(name, aggregate):
    build, inputs = MODELS[name]
    model = build()
    scheduler = platon_prune.global_structured(
        model,
        inputs,
        amount=0.6,
        **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
        aggregate=aggregate,
    )
    groups = model._platon_groups
    floors = [int(floor) for floor in _floors(groups)]
    gone, num_choices = [], 0
    for step in _steps(model, scheduler, 12):
        if not scheduler.schedule.is_choosing_step(step):
            continue
        num_choices += 1
        gone = group_twin.choice(scheduler, groups, gone, scheduler.amount, floors, aggregate)
        found = scheduler.masks()
        shapes = {tensor: mask.shape for tensor, mask in found.items()}
        for tensor, mask in group_twin.masks(groups, shapes, gone).items():
            assert torch.equal(found[tensor], mask), (step, tensor)
        last = {(i, g): s for i, g, s in group_twin.scores(scheduler, groups, aggregate)}[gone[-1]]
        assert scheduler.threshold == pytest.approx(last, rel=1e-12)
    assert num_choices == 6  # steps 2, 4, 6, 8, 10, 12


def _place(name, size):
    return CoupledGroups(name, "neurons", size, (Member(name, 0, torch.arange(size)),))


def _scored(name, scores, mask):
    return ScoredTensor(scores.flatten().__getitem__, mask, 0, None, name)


def _kept_of_six_neurons(amount):
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    scheduler = platon_prune.global_structured(
        model, torch.ones(2, 3), amount=amount, **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE
    )
    _run(model, scheduler)
    (row,) = platon_prune.structure(model)
    assert (row.name, row.kind, row.size) == ("0", "neurons", 6)
    return row.kept, scheduler


# A neuron has 3 + 1 + 2 entries of 36. Of these 0.4 are 14.4, nearer to two neurons (12) than to
# three (18); 0.45 are 16.2, nearer to three; 5/12 are 15, as near to both.
@pytest.mark.parametrize(("amount", "kept"), [(0.4, 4), (0.45, 3), (5 / 12, 3), (0.5, 3)])
def test_the_last_group_goes_to_the_nearer_side_of_the_amount(amount, kept):
    found, scheduler = _kept_of_six_neurons(amount)
    assert found == kept
    assert scheduler.sparsity() == 1 - kept / 6
    # Two biases of the last layer are in no group, and in none of its tensors.
    assert scheduler.granularity.sparsity_of(amount) == pytest.approx(amount)
    assert scheduler.granularity.tolerance == pytest.approx(3 / 36)  # half a neuron


def test_an_amount_below_half_of_the_smallest_group_is_warned_of():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.warns(platon_prune.PruningWarning, match="nothing will be pruned: amount=0.08"):
        platon_prune.global_structured(model, torch.ones(2, 3), amount=0.08, **SCHEDULE)


def test_smaller_groups_fill_up_what_a_head_would_overshoot():
    """Three heads of 40 parameters with small scores, ten neurons of 10 with large ones."""
    wide, narrow = _place("attention", 3), _place("mlp", 10)
    names = {"attention": torch.Size([3, 40]), "mlp": torch.Size([10, 10])}
    choice = Structured([wide, narrow], names, parameter_prices([wide, narrow]), [1, 1])
    scores = {name: torch.ones(shape) for name, shape in names.items()}
    scores["attention"] *= torch.tensor([[0.1], [0.2], [0.3]])
    # Of 220: 55 are one head and one or two neurons, since two heads are 25 too many; 65 are two
    # heads, 15 too many, for one alone is 25 too few.
    for due, heads, neurons in ((55, 1, 2), (65, 2, 0), (40, 1, 0), (50, 1, 1), (15, 0, 2)):
        masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in names.items()}
        choice.choose_([_scored(n, scores[n], masks[n]) for n in names], due / 220, Processes(None))
        left = [int(mask.any(dim=1).sum()) for mask in masks.values()]
        assert left == [3 - heads, 10 - neurons], due


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("name", MODELS)
def test_exactly_the_slices_of_pruned_groups_are_zero(name, masking):
    build, inputs = MODELS[name]
    model = build()
    scheduler = platon_prune.global_structured(
        model,
        inputs,
        amount=0.6,
        **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
        masking=masking,
    )
    groups = model._platon_groups
    _run(model, scheduler)
    kept = scheduler.granularity.kept(scheduler.masks())
    platon_prune.remove(model)
    zeros = {
        member.name: torch.zeros_like(model.get_parameter(member.name), dtype=torch.bool)
        for place in groups
        for member in place.members
    }
    for place, left in zip(groups, kept, strict=True):
        assert left.sum() > 0 or place.size == 0
        for member in place.members:
            index = place.indices(member, (~left).nonzero().flatten())
            zeros[member.name].index_fill_(member.dim, index, True)
    for tensor, expected in zeros.items():
        assert torch.equal(model.get_parameter(tensor) == 0, expected), tensor
    assert any(expected.any() for expected in zeros.values())


def test_a_masked_head_is_a_head_that_is_not_there():
    """BERT's attention with three of four heads, written out."""
    model = small_transformers.build("BERT")
    layer = model.encoder.layer[0].attention
    scheduler = platon_prune.global_structured(
        model,
        amount=0.25,
        **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
        kinds="heads",
        include="layer.0.",
    )
    _run(model, scheduler)
    (kept,) = scheduler.granularity.kept(scheduler.masks())
    assert kept.sum() == 3
    rows = kept.repeat_interleave(4)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    query, key, value = (
        F.linear(x, part.weight[rows], part.bias[rows]).view(2, 5, 3, 4).transpose(1, 2)
        for part in (layer.self.query, layer.self.key, layer.self.value)
    )
    mixed = (query @ key.transpose(2, 3) / 2).softmax(-1) @ value
    dense = layer.output.dense
    added = F.linear(mixed.transpose(1, 2).reshape(2, 5, 12), dense.weight[:, rows], dense.bias)
    expected = layer.output.LayerNorm(added + x)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_masked_neuron_is_a_neuron_that_is_not_there():
    model = small_transformers.build("Llama")
    scheduler = platon_prune.global_structured(
        model, amount=0.5, **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE, kinds="neurons"
    )
    _run(model, scheduler)
    for layer, kept in zip(
        model.layers, scheduler.granularity.kept(scheduler.masks()), strict=True
    ):
        mlp = layer.mlp
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
        hidden = F.silu(x @ mlp.gate_proj.weight[kept].T) * (x @ mlp.up_proj.weight[kept].T)
        assert 0 < kept.sum() < 10
        torch.testing.assert_close(mlp(x), hidden @ mlp.down_proj.weight[:, kept].T)


def test_masked_channels_of_a_resnet_are_channels_that_are_not_there():
    model = resnet.ResNet()
    scheduler = platon_prune.global_structured(
        model, IMAGES, amount=0.6, **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE
    )
    _run(model, scheduler)
    model(IMAGES)  # batch norms learn means of what is left
    model.eval()
    kept = scheduler.granularity.kept(scheduler.masks())
    assert sum(bool((~left).any()) for left in kept) >= 4
    narrow = resnet.ResNet().eval()
    state = {name: value.clone() for name, value in platon_prune.remove(model).state_dict().items()}
    for place, left in zip(model._platon_groups, kept, strict=True):
        for member in place.members:
            index = left.nonzero().flatten()
            state[member.name] = state[member.name].index_select(member.dim, index)
            path, _, key = member.name.rpartition(".")
            if key == "bias" and f"{path}.running_mean" in state:
                for name in ("running_mean", "running_var"):
                    state[f"{path}.{name}"] = state[f"{path}.{name}"][index]
    for name, value in state.items():
        module = narrow.get_submodule(name.rpartition(".")[0])
        old = getattr(module, name.rpartition(".")[2])
        new = nn.Parameter(value) if isinstance(old, nn.Parameter) else value
        setattr(module, name.rpartition(".")[2], new)
    torch.testing.assert_close(narrow(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)


def test_floors_hold_whatever_the_scores():
    model = small_transformers.build("BERT")
    with torch.no_grad():  # the first layer is worth nothing
        for parameter in model.encoder.layer[0].parameters():
            parameter.mul_(1e-6)
    scheduler = platon_prune.global_structured(
        model,
        amount=0.5,
        **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
        criterion="magnitude",
        min_heads=2,
        min_neurons=0.31,
    )
    for _ in range(12):
        scheduler.step()
    assert [row.kept for row in platon_prune.structure(model)][:2] == [2, 4]  # 3.1 rounded up


@pytest.mark.parametrize(
    ("max_amount", "kept"),
    [
        (0.69, [2, 4, 2, 4]),
        ({"layer.0": 0.69}, [2, 4, 1, 1]),
        ({"layer.0": 0.69, "attention": 0.26}, [3, 4, 3, 1]),
    ],
)
def test_max_amount_limits_a_place_as_it_limits_a_tensor(max_amount, kept):
    # Of 4 heads and 10 neurons at most floor(0.69 * size) go, 2 and 6; of heads floor(0.26 * 4).
    scheduler = platon_prune.global_structured(
        small_transformers.build("BERT"), amount=0.1, **SCHEDULE, max_amount=max_amount
    )
    assert list(scheduler.granularity.floors) == kept


def test_a_max_amount_that_is_no_fraction_or_names_nothing_is_refused_before_anything():
    model = small_transformers.build("BERT")
    for max_amount, error in (
        (1.5, "max_amount must be in"), ({"no.such": 0.5}, "'no.such' matches none"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=error):
            platon_prune.global_structured(model, amount=0.1, **SCHEDULE, max_amount=max_amount)
    assert not any("_orig" in name for name, _ in model.named_parameters())


def test_an_amount_that_the_floors_leave_no_room_for_is_refused():
    model = _mlp()
    # One neuron each: 4 + 1 + 1 + 2 of 69 stay.
    for amount, fits in ((0.884, True), (0.885, False)):
        kwargs = dict(amount=amount, **SCHEDULE, min_neurons=0.0)
        if fits:
            platon_prune.global_structured(
                model, torch.ones(2, 3), **dict(warmup_steps=0, cooldown_steps=0) | kwargs
            ).remove()
        else:
            with pytest.raises(ValueError, match="amount must be at most 0.884 with these floors"):
                platon_prune.global_structured(
                    model, torch.ones(2, 3), **dict(warmup_steps=0, cooldown_steps=0) | kwargs
                )
    assert not hasattr(model[0], "weight_mask")


def test_multiply_adds_count_positions_and_the_products_of_attention():
    model = resnet.ResNet()
    scheduler = platon_prune.global_structured(
        model,
        IMAGES,
        amount=0.5,
        **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
        budget="macs",
    )
    large, small = 2 * 8 * 8, 2 * 4 * 4  # positions of two images at full and at half size
    prices = {name: 0 for name in scheduler.masks()}
    for name in prices:
        if ".conv" in name or name == "conv1.weight":
            prices[name] = small if name.startswith("layer2") else large
    prices["layer2.0.downsample.0.weight"], prices["fc.weight"] = small, 2
    groups = model._platon_groups
    floors = [int(floor) for floor in _floors(groups)]
    gone = []
    for step in _steps(model, scheduler, 12):
        if scheduler.schedule.is_choosing_step(step):
            gone = group_twin.choice(
                scheduler, groups, gone, scheduler.amount, floors, prices=prices
            )
            found = scheduler.masks()
            shapes = {name: mask.shape for name, mask in found.items()}
            expected = group_twin.masks(groups, shapes, gone)
            assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_head_also_costs_its_products():
    from platon_prune.groups.costs import mac_prices

    for name, heads in (("BERT", (4, 4)), ("Llama", (4, 8)), ("GPT-2", (4, 4))):
        model = small_transformers.build(name)
        groups = platon_prune.find_groups(model)
        prices = mac_prices(model, groups, small_transformers.inputs(model))
        for tensor, price in prices.of_entry.items():  # two examples of six tokens
            assert price == (2 * 6 if tensor.endswith("weight") else 0)
        products = 2 * 6 * 6 * 2 * heads[1]  # all pairs of tokens, twice, for each width
        expected = [products if place.kind == "heads" else 0 for place in groups]
        assert list(prices.of_group) == expected, name


def test_multiply_adds_need_an_example():
    with pytest.raises(ValueError, match='example_inputs must be given for budget="macs"'):
        platon_prune.global_structured(
            small_transformers.build("BERT"),
            amount=0.5,
            **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
            budget="macs",
        )


@pytest.mark.parametrize(
    ("aggregate", "scores"),
    [
        ("mean", [(1 + 2 + 3 + 4) / 4, (5 + 0 + 1 + 6) / 4]),
        ("sum", [10.0, 12.0]),
        ("max", [4.0, 6.0]),
        ("l2", [30**0.5, 62**0.5]),
    ],
)
def test_a_groups_score_is_the_aggregate_of_its_entries(aggregate, scores):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [5.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([-3.0, 1.0]))
        model[1].weight.copy_(torch.tensor([[4.0, -6.0]]))
    scheduler = platon_prune.global_structured(
        model, torch.ones(1, 2), amount=0.4, total_steps=1, window=1, criterion="magnitude",
        aggregate=aggregate, normalizer="none", warmup_steps=0, cooldown_steps=0
    )  # fmt: skip
    scheduler.step()
    assert scheduler.threshold == pytest.approx(scores[0])
    assert scheduler.masks()["0.weight"].tolist() == [[False, False], [True, True]]


def test_a_group_comes_back_with_the_values_that_it_had():
    """A steady neuron goes before one that is less sensitive and more uncertain.

    To be pruned is a change: its uncertainty grows by its sensitivity, and it takes its place back.
    """
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    ins, outs = [1.0, 2.0, 4.0], [0.5, 0.25, 0.125]
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(ins)[:, None])
        model[2].weight.copy_(torch.tensor(outs)[None])
    scheduler = platon_prune.global_structured(
        model, torch.ones(1, 1), amount=1 / 3, initial_amount=1 / 3, total_steps=60, window=1,
        warmup_steps=40, beta1=0.85, beta2=0.9, cooldown_steps=0
    )  # fmt: skip
    history, alive = [], [True] * 3
    average, spread, samples = [0.0] * 3, [0.0] * 3, [0.0] * 3
    for step in range(1, 61):
        for i in range(3):  # the recurrences of the averages; the first window counts a zero
            mean = samples[i] / (2 if step == 1 else 1)
            average[i] = 0.85 * average[i] + 0.15 * mean
            spread[i] = 0.9 * spread[i] + 0.1 * abs(mean - average[i])
        steady, wavering, large = 2.0, step % 2 if step < 45 else 0.0, 9.0
        samples = [s * a for s, a in zip((steady, wavering, large), alive, strict=True)]
        quotients = [s / w if a else 0.0 for s, w, a in zip(samples, ins, alive, strict=True)]
        model[0].weight_orig.grad = torch.tensor(quotients)[:, None]
        quotients = [s / w if a else 0.0 for s, w, a in zip(samples, outs, alive, strict=True)]
        model[2].weight_orig.grad = torch.tensor(quotients)[None]
        scheduler.step()
        if step > 40:
            gone = min(range(3), key=lambda i: average[i] * spread[i])
            history.append(gone)
            alive = [i != gone for i in range(3)]
        assert scheduler.granularity.kept(scheduler.masks())[0].tolist() == alive, step
        found = [w if a else 0.0 for w, a in zip(ins, alive, strict=True)]
        assert model[0].weight[:, 0].tolist() == found, step
        found = [w if a else 0.0 for w, a in zip(outs, alive, strict=True)]
        assert model[2].weight[0].tolist() == found, step
    assert history == [0, 0] + 18 * [1]


def test_ties_go_in_a_fixed_order_and_those_that_are_gone_stay_gone():
    model = _mlp()
    scheduler = platon_prune.global_structured(
        model,
        torch.ones(2, 3),
        amount=0.7,
        total_steps=10,
        window=1,
        criterion="random",
        warmup_steps=0,
        cooldown_steps=0,
    )
    gone, before = [], set()
    for _ in range(10):
        scheduler.step()
        gone = group_twin.choice(scheduler, model._platon_groups, gone, scheduler.amount, [1, 1])
        kept = scheduler.granularity.kept(scheduler.masks())
        found = {(i, g) for i, left in enumerate(kept) for g, k in enumerate(left) if not k}
        assert found == set(gone)
        assert before <= found
        before = found
    assert all(left.any() and not left.all() for left in kept)  # no layer is emptied


@pytest.mark.parametrize("masking", ["step", "window"])
def test_a_run_that_is_resumed_goes_on_bit_by_bit(masking):
    def start():
        model = resnet.ResNet()
        return model, platon_prune.global_structured(
            model,
            IMAGES,
            amount=0.6,
            **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
            masking=masking,
        )

    torch.manual_seed(0)
    straight, scheduler = start()
    torch.manual_seed(0)
    stopped, first = start()
    for _ in _steps(straight, scheduler, 5):
        pass
    for _ in _steps(stopped, first, 5):
        pass
    resumed, second = start()
    resumed.load_state_dict(stopped.state_dict())
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for _ in _steps(straight, scheduler, 7, seed=1):
        pass
    for _ in _steps(resumed, second, 7, seed=1):
        pass
    for (name, one), other in zip(
        straight.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("change", "named"),
    [(dict(aggregate="max"), "aggregate"), (dict(min_neurons=0.5), "floors"),
     (dict(kinds="neurons"), "floors"), (dict(budget="macs"), "budget")],
)  # fmt: skip
def test_a_state_of_other_groups_is_refused(change, named):
    def start(**settings):
        model = small_transformers.build("BERT")
        inputs = small_transformers.inputs(model)
        return platon_prune.global_structured(
            model,
            inputs,
            amount=0.2,
            **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
            **settings,
        )

    with pytest.raises(ValueError, match=f"same configuration: {named}"):
        start(**change).load_state_dict(start().state_dict())


def test_groups_stay_on_the_model_when_it_is_copied_pickled_and_finalized():
    model = small_transformers.build("BERT")
    scheduler = platon_prune.global_structured(
        model, amount=0.5, **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE
    )
    _run(model, scheduler)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        platon_prune.remove(twin)
        names = [place.name for place in scheduler.granularity.groups]
        assert [place.name for place in twin._platon_groups] == names
        assert str(platon_prune.structure(twin)) == str(platon_prune.structure(model))


def test_structure_is_a_table_of_what_is_left():
    model = small_transformers.build("GPT-2")
    scheduler = platon_prune.global_structured(
        model, amount=0.6, **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE
    )
    _run(model, scheduler)
    rows = list(platon_prune.structure(model))
    kept = [int(left.sum()) for left in scheduler.granularity.kept(scheduler.masks())]
    assert [(row.name, row.kind, row.size) for row in rows] == [
        ("h.0.attn", "heads", 4), ("h.0.mlp", "neurons", 10),
        ("h.1.attn", "heads", 4), ("h.1.mlp", "neurons", 10),
    ]  # fmt: skip
    assert [row.kept for row in rows] == kept
    assert str(platon_prune.structure(model)).splitlines()[0].split() == [
        "place", "kind", "kept", "of",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="example_inputs must be given"):
        platon_prune.structure(nn.Linear(2, 2))


BAD = {
    "amount must be in": dict(amount=1.0),
    "amount must be a fraction": dict(amount=True),
    "aggregate must be one of": dict(aggregate="median"),
    "budget must be one of": dict(budget="flops"),
    "min_heads must be a count": dict(min_heads=0),
    "min_neurons must be a share": dict(min_neurons=3),
    "kinds must be some of": dict(kinds=()),
    "include must match names": dict(include="nothing"),
    "exclude must match names": dict(exclude=["query", "nothing"]),
    "none that include, exclude and kinds leave": dict(exclude="layer"),
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_can_not_be_are_refused_and_leave_the_model_alone(message):
    model = small_transformers.build("BERT")
    error = TypeError if "a fraction" in message else ValueError
    with pytest.raises(error, match=message):
        platon_prune.global_structured(
            model,
            **dict(warmup_steps=0, cooldown_steps=0) | {"amount": 0.5, **SCHEDULE, **BAD[message]},
        )
    assert not hasattr(model, "_platon_groups")
    assert not any(name.endswith("_mask") for name, _ in model.named_buffers())


def test_places_are_taken_and_left_out_by_the_names_of_their_tensors():
    model = small_transformers.build("BERT")
    platon_prune.global_structured(
        model,
        amount=0.2,
        **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
        include=["layer.0", "query"],
        exclude="intermediate",
    )
    assert [place.name for place in model._platon_groups] == [
        "encoder.layer.0.attention.self", "encoder.layer.1.attention.self",
    ]  # fmt: skip


def test_a_frozen_tensor_is_refused_unless_its_place_is_left_out():
    model = small_transformers.build("BERT")
    model.embeddings.requires_grad_(False)
    model.encoder.layer[0].attention.self.key.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.key\.bias must require"):
        platon_prune.global_structured(
            model, amount=0.2, **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE
        )
    platon_prune.global_structured(
        model,
        amount=0.2,
        **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE,
        exclude="layer.0.attention",
    )
    assert len(model._platon_groups) == 3


def test_a_wrapped_model_carries_its_groups_inside():
    model = small_transformers.build("BERT")
    platon_prune.global_structured(
        nn.DataParallel(model), amount=0.2, **dict(warmup_steps=0, cooldown_steps=0) | SCHEDULE
    )
    assert len(model._platon_groups) == 4


def test_patterns_that_are_no_strings_are_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(TypeError, match="exclude must hold substrings of parameter names, got 0"):
        platon_prune.global_structured(
            model,
            torch.ones(1, 4),
            amount=0.5,
            total_steps=20,
            exclude=0,
            warmup_steps=0,
            cooldown_steps=0,
        )
