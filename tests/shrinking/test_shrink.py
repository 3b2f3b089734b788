"""What nothing is left of is removed, and the model computes what it did."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import transformers
from tiny_shrink import (
    ATTENTIONS,
    FAMILIES,
    bert,
    built,
    counts,
    differing,
    images,
    inputs_of,
    mask,
    masked,
    output,
    resnet,
)
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune

import platon_prune
from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.groups.find import find_groups
from platon_prune.masks.masked import forms_of

both_attentions = pytest.mark.parametrize("attention", ATTENTIONS)
every_family = pytest.mark.parametrize("name", FAMILIES)
both_blocks = pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and expected.isfinite().all()
    assert float((found - expected).detach().abs().max()) <= 1e-5


def implementation(name: str, attention: str) -> dict[str, str]:
    # DeBERTa has one of its own.
    return {} if name == "DeBERTa-v3" else {"attn_implementation": attention}


# --- what is left is known ------------------------------------------------------------------------


@pytest.mark.parametrize("again", [lambda model: model, copy.deepcopy, lambda model: pickle.loads(
    pickle.dumps(model))], ids=["itself", "copied", "pickled"])  # fmt: skip
def test_the_structure_of_a_shrunk_model_is_what_the_report_says(
    again: Callable[[nn.Module], nn.Module],
) -> None:
    for model, inputs in ((masked("BERT"), None), (_traced(), torch.ones(2, 3))):
        report = platon_prune.shrink(model, None, inputs)
        found = platon_prune.structure(again(model))
        # One group stays though nothing is left of it, where all of a place would go.
        expected = [
            (row.name, row.kind, 0 if row.note == "one must stay" else row.after, row.after)
            for row in report.places
        ]
        assert [(row.name, row.kind, row.kept, row.size) for row in found] == expected


def test_the_structure_of_any_model_is_found_with_example_inputs() -> None:
    (row,) = platon_prune.structure(_traced(), torch.ones(2, 3))
    assert (row.kind, row.kept, row.size) == ("neurons", 3, 5)


def _traced() -> nn.Module:
    """Layers of no known names, with two neurons of five zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[2].weight.T):
            tensor[[1, 3]] = 0
    return model


# --- outputs --------------------------------------------------------------------------------------


@both_attentions
@every_family
def test_outputs_stay_with_other_counts_in_every_layer(name: str, attention: str) -> None:
    model = masked(name, **implementation(name, attention))
    expected = output(model)
    report = platon_prune.shrink(model)
    heads = [row.after for row in report.places if row.kind == "heads"]
    assert len(set(heads)) > 1
    assert_close(output(model), expected)
    assert not any(forms_of(module) for module in model.modules())


@every_family
def test_what_masks_hold_back_between_choices_is_not_taken_for_alive(name: str) -> None:
    model = masked(name, masking="window")  # the pruned weights still have their values
    expected = output(model)
    twin = masked(name)
    assert counts(platon_prune.shrink(model)) == counts(platon_prune.shrink(twin))
    assert_close(output(model), expected)


@both_blocks
def test_channels_go_with_their_norm_and_what_reads_them(bottleneck: bool) -> None:
    torch.manual_seed(1)
    model = resnet(bottleneck)
    groups = find_groups(model, images())
    assert {place.kind for place in groups} == {"channels"}
    mask(model, groups, differing(groups))
    expected = model(images())
    report = platon_prune.shrink(model, example_inputs=images())
    assert report.parameters_after < report.parameters_before
    assert_close(model(images()), expected)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean.shape == module.weight.shape == (module.num_features,)
    # The batch's own statistics, and the running ones that it updates.
    twin = copy.deepcopy(model).train()
    assert_close(twin(images()), masked_resnet(bottleneck).train()(images()))


def masked_resnet(bottleneck: bool) -> nn.Module:
    torch.manual_seed(1)
    model = resnet(bottleneck)
    groups = find_groups(model, images())
    mask(model, groups, differing(groups))
    return model


def test_zeros_of_a_finalized_model_do_as_masks_do() -> None:
    model = masked("BERT")
    expected = output(model)
    platon_prune.remove(model)
    report = platon_prune.shrink(model)
    assert counts(report) == counts(platon_prune.shrink(masked("BERT")))
    assert_close(output(model), expected)


def test_a_bias_that_is_left_keeps_its_neuron() -> None:
    model = masked("BERT")
    platon_prune.remove(model)
    dense = model.bert.encoder.layer[0].intermediate.dense
    gone = int(dense.bias.eq(0).nonzero()[0])
    with torch.no_grad():
        dense.bias[gone] = 1e-30
    before = int(dense.bias.ne(0).sum())
    platon_prune.shrink(model)
    assert dense.out_features == before


def test_entries_pruned_here_and_there_remove_nothing() -> None:
    model = built("BERT")
    platon_prune.global_unstructured(
        model, amount=0.5, total_steps=1, criterion="magnitude", warmup_steps=0, cooldown_steps=0
    ).step()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"something is left of each.*global_structured"):
        platon_prune.shrink(model)
    assert state.keys() == model.state_dict().keys()


# --- what modules and reports say -----------------------------------------------------------------


def test_the_report_counts_by_arithmetic() -> None:
    model = built("BERT")
    groups = {place.name: place for place in find_groups(model)}
    attention, feed_forward = list(groups)[:2]
    gone = {attention: [0, 2], feed_forward: [1, 3, 11]}
    mask(model, list(groups.values()), lambda place: gone.get(place.name, []))
    before = sum(parameter.numel() for parameter in model.parameters())
    report = platon_prune.shrink(model)
    # A head: 4 rows of three 16-column matrices, their biases, 4 columns of a 16-row matrix. A
    # neuron: a row of 16, its bias, a column of 16.
    removed = 2 * (3 * 4 * 17 + 4 * 16) + 3 * (16 + 1 + 16)
    assert (report.parameters_before, report.parameters_after) == (before, before - removed)
    rows = {row.name: (row.kind, row.before, row.after, row.note) for row in report.places}
    assert rows[attention] == ("heads", 4, 2, "")
    assert rows[feed_forward] == ("neurons", 12, 9, "")
    text = str(report)
    assert f"{before:,}" in text and f"{before - removed:,}" in text and attention in text
    module = model.get_submodule(attention)
    assert (module.num_attention_heads, module.all_head_size) == (2, 8)
    assert (module.query.out_features, module.query.in_features) == (8, 16)


def test_one_group_of_each_place_stays() -> None:
    model = built("Llama", mlp_bias=True)  # what a layer adds in the end keeps it
    groups = find_groups(model)
    mask(model, groups, lambda place: range(place.size))
    expected = output(model)
    report = platon_prune.shrink(model)
    assert {(row.after, row.note) for row in report.places} == {(1, "one must stay")}
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.out_features == 2 * attention.head_dim  # two queries, one key
    assert_close(output(model), expected)


# --- parameters, gradients and copies -------------------------------------------------------------


def test_parameters_stay_the_same_objects_and_keep_what_hangs_on_them() -> None:
    model = masked("GPT-2")
    model.transformer.h[0].mlp.c_fc.weight_orig.requires_grad_(False)
    loss = output(model).square().mean()
    loss.backward()  # still referenced below: autograd then remembers the old shapes
    before = list(model.parameters())
    seen = []
    block = model.transformer.h[1].mlp.c_fc
    block.weight_orig.register_post_accumulate_grad_hook(lambda p: seen.append(p.shape))
    platon_prune.shrink(model)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    for parameter in before:
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
    assert not model.transformer.h[0].mlp.c_fc.weight.requires_grad
    output(model).square().mean().backward()
    assert seen == [block.weight.shape]
    assert loss.grad_fn is not None


def test_gradients_are_cut_as_their_weights() -> None:
    model = masked("BERT")
    output(model).square().mean().backward()
    twin = copy.deepcopy(model)
    platon_prune.shrink(model)
    kept = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    output(model).square().mean().backward()
    for parameter, gradient in zip(
        (p for p in model.parameters() if p.grad is not None), kept, strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient)
    assert twin is not model


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", ["T5", "Llama"])
def test_a_shrunk_model_is_copied_and_pickled(name: str, copied: Callable) -> None:
    model = masked(name)
    platon_prune.shrink(model)
    again = copied(model)
    assert type(again) is type(model)
    assert torch.equal(output(again), output(model))


def test_channels_last_stays() -> None:
    model = masked_resnet(False).to(memory_format=torch.channels_last)
    platon_prune.shrink(model, example_inputs=images())
    weight = model.layer1[0].conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


# --- going on -------------------------------------------------------------------------------------


@every_family
def test_what_a_schedule_pruned_is_shrunk_and_pruned_on(name: str) -> None:
    model = built(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        scheduler = platon_prune.global_structured(
            model, amount=0.4, total_steps=4, window=2, warmup_steps=0, cooldown_steps=0
        )
        for _ in range(4):
            output(model).square().mean().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        expected = output(model)
        places = scheduler.granularity.groups
        total = sum(
            sum(model.get_parameter(f"{m.name}_orig").numel() for m in place.members)
            for place in places
        )
        report = platon_prune.shrink(model, optimizer)
        removed = report.parameters_before - report.parameters_after
        # As near to the amount as it gets: no further than half of a group, a quarter of it.
        assert 0.3 * total <= removed <= 0.5 * total
        assert_close(output(model), expected)
        with pytest.raises(RuntimeError, match="not pruned any more|finalized"):
            scheduler.step()


@every_family
def test_a_shrunk_model_is_shrunk_again(name: str) -> None:
    model = masked(name)
    platon_prune.shrink(model)
    groups = find_groups(model)
    mask(model, groups, lambda place: [place.size - 1] if place.size > 1 else [])
    expected = output(model)
    sizes = {place.name: place.size for place in groups}
    report = platon_prune.shrink(model)
    assert counts(report) == {name: max(size - 1, 1) for name, size in sizes.items()}
    assert_close(output(model), expected)


def test_a_shrunk_model_is_pruned_again() -> None:
    model = masked("T5")
    platon_prune.shrink(model)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=4, window=2, warmup_steps=0, cooldown_steps=0
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(4):
        output(model).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert scheduler.sparsity() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "T5"])
def test_generation_with_a_cache_goes_on_as_before(name: str, cache: str) -> None:
    model = masked(name)
    inputs = {key: value for key, value in inputs_of(model).items() if "decoder" not in key}
    settings = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    if cache == "static":
        settings["cache_implementation"] = "static"
        settings["disable_compile"] = True
    expected = model.generate(**inputs, **settings)
    platon_prune.shrink(model)
    assert torch.equal(model.generate(**inputs, **settings), expected)
    without = model.generate(**inputs, **(settings | {"use_cache": False}))
    if cache == "dynamic":
        assert torch.equal(without, expected)


# --- the optimizer --------------------------------------------------------------------------------


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))


def mlp_groups() -> list[CoupledGroups]:
    of = torch.arange(6)
    return [
        CoupledGroups(
            f"{i}",
            "neurons",
            6,
            (
                Member(f"{i}.weight", 0, of),
                Member(f"{i}.bias", 0, of),
                Member(f"{i + 2}.weight", 1, of),
            ),
        )
        for i in (0, 2)
    ]


KEPT = {"0": [1, 2, 5], "2": [0, 4]}

OPTIMIZERS: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "AdamW for each": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
    optimizer.zero_grad()
    F.mse_loss(model(x), x[:, :2].sin()).backward()
    optimizer.step()


def masked_mlp(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = mlp()
    groups = model._platon_groups = mlp_groups()
    first, last = list(model[0].parameters()), list(model[2:].parameters())
    optimizer = OPTIMIZERS[kind]([{"params": last}, {"params": first, "lr": 0.02}])
    for _ in range(3):
        step(model, optimizer)
    mask(model, groups, lambda place: sorted({*range(6)} - {*KEPT[place.name]}))
    return model, optimizer


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_with_the_masks(kind: str) -> None:
    model, optimizer = masked_mlp(kind)
    small, small_optimizer = masked_mlp(kind)
    learning_rates = torch.optim.lr_scheduler.ExponentialLR(small_optimizer, 0.9)
    platon_prune.shrink(small, small_optimizer)
    assert small[2].weight.shape == (2, 3)
    for i in range(4):
        step(model, optimizer)
        platon_prune.apply_masks(model)
        for group, other in zip(optimizer.param_groups, small_optimizer.param_groups, strict=True):
            group["lr"] = other["lr"]
            assert i == 0 or group["lr"] < 0.02
        step(small, small_optimizer)
        learning_rates.step()
        for group, other in zip(optimizer.param_groups, small_optimizer.param_groups, strict=True):
            group["lr"] = other["lr"]
    rows, columns = torch.tensor(KEPT["2"]), torch.tensor(KEPT["0"])
    for key in ("weight_orig", "bias_orig"):
        expected = model[2]._parameters[key].detach()[rows]
        expected = expected[:, columns] if expected.dim() == 2 else expected
        torch.testing.assert_close(small[2]._parameters[key[:-5]].detach(), expected)
    old, new = optimizer.state[model[2].weight_orig], small_optimizer.state[small[2].weight]
    assert old.keys() == new.keys()
    for key, value in old.items():
        if isinstance(value, Tensor) and value.dim() == 2:
            torch.testing.assert_close(new[key], value[rows][:, columns])
        elif isinstance(value, Tensor):
            assert torch.equal(new[key], value)


def test_training_bert_goes_on_as_with_the_masks() -> None:
    models = [masked("BERT"), masked("BERT")]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in models]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        output(model).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
        platon_prune.apply_masks(model)
    platon_prune.shrink(models[1], optimizers[1])
    for _ in range(3):
        train(models[0], optimizers[0])
        platon_prune.apply_masks(models[0])
        train(models[1], optimizers[1])
        assert_close(output(models[1]), output(models[0]))


@pytest.mark.parametrize("make", [torch.optim.Adafactor, transformers.Adafactor])
def test_means_over_rows_and_columns_are_cut_where_they_have_the_dimension(make: Callable) -> None:
    model = mlp()
    groups = model._platon_groups = mlp_groups()
    optimizer = make(model.parameters())
    step(model, optimizer)
    mask(model, groups, lambda place: sorted({*range(6)} - {*KEPT[place.name]}))
    state = copy.deepcopy(optimizer.state[model[2].weight_orig])
    platon_prune.shrink(model, optimizer)
    new = optimizer.state[model[2].weight]
    rows, columns = torch.tensor(KEPT["2"]), torch.tensor(KEPT["0"])
    by_row = next(key for key in state if "row" in key)
    by_column = next(key for key in state if "col" in key)
    assert torch.equal(new[by_row].flatten(), state[by_row].flatten()[rows])
    assert torch.equal(new[by_column].flatten(), state[by_column].flatten()[columns])
    step(model, optimizer)


def test_a_state_that_cannot_be_cut_is_refused_and_nothing_changes() -> None:
    model = mlp()
    groups = model._platon_groups = mlp_groups()
    optimizer = torch.optim.LBFGS(model.parameters())
    loss = model(torch.ones(1, 4)).square().sum()
    loss.backward()
    optimizer.step(lambda: loss)
    mask(model, groups, lambda place: [0])
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="got .* of a LBFGS: shrink without optimizer"):
        platon_prune.shrink(model, optimizer)
    momentum = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    momentum.state[model[0].weight_orig]["momentum_buffer"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"momentum_buffer of 0\.weight must be a number or have"):
        platon_prune.shrink(model, momentum)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


# --- what is refused or left ----------------------------------------------------------------------


def test_layers_that_cannot_be_cut_keep_their_zeros_and_say_why() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model.append(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8)))
    model.append(nn.Conv2d(8, 2, 1))
    of = torch.arange(8)
    grouped = CoupledGroups(
        "0",
        "channels",
        8,
        (Member("0.weight", 0, of), Member("0.bias", 0, of), Member("2.weight", 1, of)),
    )
    names = [
        ("3.0.weight", 0),
        ("3.0.bias", 0),
        ("3.1.weight", 0),
        ("3.1.bias", 0),
        ("4.weight", 1),
    ]
    depthwise = CoupledGroups("3", "channels", 8, tuple(Member(n, d, of) for n, d in names))
    model._platon_groups = [grouped, depthwise]
    mask(model, [grouped, depthwise], lambda place: [0, 1, 2])
    x = torch.randn(2, 4, 5, 5)
    expected = model(x)
    report = platon_prune.shrink(model)
    assert counts(report) == {"0": 8, "3": 5}
    assert "0.weight: the channels of a grouped convolution" in report.places[0].note
    assert (model[3][1].groups, model[3][1].in_channels, model[3][1].out_channels) == (5, 5, 5)
    assert_close(model(x), expected)


def test_a_tensor_that_another_layer_shares_is_left() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    of = torch.arange(4)
    members = (Member("0.weight", 0, of), Member("0.bias", 0, of), Member("1.weight", 1, of))
    model._platon_groups = [CoupledGroups("0", "neurons", 4, members)]
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias, model[1].weight.T):
            parameter[1] = 0
    with pytest.raises(ValueError, match=r"0\.weight is shared with 2\.weight"):
        platon_prune.shrink(model)


def test_members_that_leave_a_layer_with_sizes_that_do_not_fit_are_refused() -> None:
    model = mlp()
    of = torch.arange(6)
    members = (Member("0.weight", 0, of), Member("2.weight", 1, of))
    model._platon_groups = [CoupledGroups("0", "neurons", 6, members)]
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[:, 1] = 0
    with pytest.raises(ValueError, match=r"must hold its weight and its bias alike"):
        platon_prune.shrink(model)
    assert model[0].weight.shape == (6, 4)


class OtherAttention(transformers.models.mpnet.modeling_mpnet.MPNetSelfAttention):
    """Of a class that the table of biases does not have."""


def test_heads_of_models_with_another_shared_bias_stay() -> None:
    config = transformers.MPNetConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12,
        vocab_size=16, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.MPNetForSequenceClassification(config).eval()
    for layer in model.mpnet.encoder.layer:
        layer.attention.attn.__class__ = OtherAttention
    groups = find_groups(model)
    mask(model, groups, lambda place: [0])
    expected = output(model)
    report = platon_prune.shrink(model)
    notes = {row.note for row in report.places if row.kind == "heads"}
    assert notes == {"its heads may share a position bias in a way that is not known"}
    assert {row.after for row in report.places} == {4, 11}
    assert_close(output(model), expected)


def test_heads_stay_in_attention_that_cannot_run_with_fewer() -> None:
    config = transformers.LongformerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12,
        vocab_size=16, max_position_embeddings=32, attention_window=4, pad_token_id=1,
    )  # fmt: skip
    model = transformers.LongformerForSequenceClassification(config).eval()
    groups = find_groups(model)
    mask(model, groups, lambda place: [0])
    expected = output(model)
    report = platon_prune.shrink(model)
    assert {row.after for row in report.places} == {4, 11}
    notes = {row.note for row in report.places if row.kind == "heads"}
    assert all("can't run with fewer heads" in note for note in notes)
    assert_close(output(model), expected)


def test_what_is_not_a_whole_plain_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got list"):
        platon_prune.shrink([])
    model = built("BERT")
    prune.l1_unstructured(model.bert.encoder.layer[0].output.dense, "weight", amount=0.5)
    with pytest.raises(
        ValueError, match=r"of other methods, got one on bert.*0\.output\.dense\.weight"
    ):
        platon_prune.shrink(model)
    with pytest.raises(ValueError, match="one that is on the meta device"):
        platon_prune.shrink(bert().to("meta"))


def test_adapters_are_to_be_merged_first() -> None:
    model = masked("BERT")
    model.classifier.lora_A = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="merge_and_unload"):
        platon_prune.shrink(model)


# --- the same counts in every layer ---------------------------------------------------------------


def same_counts(name: str, kept: int, head: int) -> nn.Module:
    model = built(name)
    groups = find_groups(model)
    order = {place.name: i for i, place in enumerate(groups)}

    def pruned(place: CoupledGroups) -> list[int]:
        if place.kind == "heads":
            return [i for i in range(place.size) if i // 2 != head]
        first = order[place.name] % 3
        return [i for i in range(place.size) if not first <= i < first + kept]

    mask(model, groups, pruned)
    return model


# ViT, T5 and Llama have the size of a head in their configs; the others take hidden size by heads.
TELLS_HEADS = {"ViT", "T5", "gated T5", "Llama"}


@every_family
def test_uniform_counts_are_in_the_config(name: str, tmp_path: object) -> None:
    model = same_counts(name, kept=5, head=1)
    expected = output(model)
    report = platon_prune.shrink(model, uniform=True)
    told = name in TELLS_HEADS
    assert set(report.in_config) == ({"heads", "neurons"} if told else {"neurons"})
    assert {row.after for row in report.places if row.kind == "neurons"} == {5}
    assert {row.after for row in report.places if row.kind == "heads"} == {2 if told else 4}
    notes = {row.note for row in report.places if row.kind == "heads"}
    assert notes == ({""} if told else {"fewer heads are beyond the config: they stay as zeros"})
    assert_close(output(model), expected)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(again[1].values()), again[1]
    assert torch.equal(output(again[0].eval()), output(model))


def test_the_largest_count_of_any_layer_decides() -> None:
    model = built("Llama")
    groups = find_groups(model)
    neurons = [place.name for place in groups if place.kind == "neurons"]
    gone = {neurons[0]: range(9), neurons[1]: range(4)}
    mask(model, groups, lambda place: gone.get(place.name, [0] if place.kind == "heads" else []))
    expected = output(model)
    report = platon_prune.shrink(model, uniform=True)
    assert {row.after for row in report.places if row.kind == "neurons"} == {8}
    assert model.config.intermediate_size == 8
    # Three of four key-value heads, with two queries each, do not divide the hidden size of 16.
    assert {row.after for row in report.places if row.kind == "heads"} == {4}
    assert model.config.num_key_value_heads == 4
    assert_close(output(model), expected)


def test_equal_counts_are_in_the_config_without_being_asked_for() -> None:
    model = same_counts("Llama", kept=5, head=0)
    report = platon_prune.shrink(model)
    assert set(report.in_config) == {"heads", "neurons"}
    config = model.config
    assert (config.intermediate_size, config.num_key_value_heads) == (5, 2)
    assert (config.num_attention_heads, config.head_dim) == (4, 2)


def test_layers_of_t5_with_other_heads_of_the_same_number_are_not_in_the_config() -> None:
    model = built("T5")
    groups = find_groups(model)
    heads = [place.name for place in groups if place.kind == "heads"]
    mask(model, groups, lambda p: [heads.index(p.name) % 4] if p.name in heads else [])
    expected = output(model)
    report = platon_prune.shrink(model)
    assert {row.after for row in report.places if row.kind == "heads"} == {3}
    assert report.in_config == () and model.config.num_heads == 4
    assert_close(output(model), expected)


def test_uniform_needs_a_config() -> None:
    model = masked_resnet(False)
    with pytest.raises(ValueError, match=r"must have a config.*load_into"):
        platon_prune.shrink(model, uniform=True, example_inputs=images())
