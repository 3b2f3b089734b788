"""Each place is tried at set-up; what breaks or changes without some of its groups is left out."""

from __future__ import annotations

import copy
import pickle
import random
import warnings

import awkward_nets as nets
import pytest
import torch
from tiny_shrink import built
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import platon_prune
from platon_prune.groups.find import find_groups
from platon_prune.shrinking.proof import prove
from platon_prune.warning import PruningWarning

BROKEN_BY_A_CUT = {
    nets.ConstantView: "conv",
    nets.BuffersOfTheWidth: "conv",
    nets.SplitWithSizes: "conv",
    nets.HeadOfTraining: "conv",
    nets.ConvWithBuffer: "conv",
    nets.ScaleByWidth: "inner",
}


def pruned(model: nn.Module, inputs: object, **settings: object) -> platon_prune.PlatonScheduler:
    """By magnitude, at once: what is chosen does not matter here."""
    scheduler = platon_prune.global_structured(
        model, inputs, amount=0.4, total_steps=1, criterion="magnitude", **settings
    )
    scheduler.step()
    return scheduler


@pytest.mark.case
@pytest.mark.parametrize("kind", BROKEN_BY_A_CUT)
def test_what_a_cut_breaks_is_left_out_by_name_and_the_rest_is_cut(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    with pytest.warns(PruningWarning, match=rf"shrink could not.* {BROKEN_BY_A_CUT[kind]} \("):
        scheduler = pruned(model, nets.images())
    assert "hidden" in [place.name for place in scheduler.granularity.groups]
    expected = model(nets.images())
    report = platon_prune.shrink(model)
    assert report.parameters_after < report.parameters_before
    assert (model(nets.images()) - expected).abs().max() <= 1e-5 * expected.abs().max()
    outputs = model.train()(nets.images())
    sum(
        output.sum() for output in (outputs if isinstance(outputs, tuple) else [outputs])
    ).backward()


def test_splits_that_are_added_up_in_turn_stay_whole() -> None:
    torch.manual_seed(0)
    model = nets.Splits().eval()
    pruned(model, nets.images())
    expected = model(nets.images())
    platon_prune.shrink(model)
    assert model.conv.out_channels == 8 and model.next.out_channels < 5
    assert (model(nets.images()) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_tied_reader_keeps_its_width() -> None:
    torch.manual_seed(0)
    model = nets.TiedReader().eval()
    with pytest.warns(PruningWarning, match=r"inner \(tied.weight is shared with words.weight"):
        pruned(model, nets.images())
    expected = model(nets.images())
    platon_prune.shrink(model)
    assert model.words.weight.shape == (6, 8) and model.words.weight is model.tied.weight
    assert (model(nets.images()) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_nothing_left_is_an_error_at_set_up() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.inner(x))
            return self.out(x / x.shape[-1])

    model = Scaled()
    with pytest.raises(ValueError, match=r"shrink can cut out.*inner.*outputs differ.*global_unst"):
        pruned(model, torch.randn(2, 4))
    assert not hasattr(model.inner, "weight_mask")


@pytest.mark.case
def test_heads_that_share_a_bias_in_an_unknown_way_are_left_out_at_set_up() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 12}
    config = transformers.MPNetConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)
    model = transformers.MPNetForSequenceClassification(config)
    known = type(model.mpnet.encoder.layer[0].attention.attn)
    for layer in model.mpnet.encoder.layer:
        layer.attention.attn.__class__ = type("OtherAttention", (known,), {})
    with pytest.warns(PruningWarning, match=r"attention\.attn \(its heads may share a position"):
        scheduler = platon_prune.global_structured(model, amount=0.3, total_steps=20, window=5)
    assert {place.kind for place in scheduler.granularity.groups} == {"neurons"}


@pytest.mark.case
def test_heads_beside_a_list_of_them_in_the_config_are_cut() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [2, 2, 4, 4]}
    sizes |= {"depths": [1] * 4, "decoder_hidden_size": 16}
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**sizes))
    images = torch.randn(1, 3, 64, 64)
    pruned(model, images)
    expected = model.eval()(images).logits
    report = platon_prune.shrink(model)
    assert report.parameters_after < report.parameters_before and report.in_config == ()
    assert (model(images).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_trial_leaves_the_model_its_statistics_and_all_random_numbers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 3), nn.Flatten(1)
    )
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    groups = find_groups(model, nets.images())
    seen.clear()
    state = copy.deepcopy(model.state_dict())
    numbers = torch.get_rng_state(), random.getstate()
    proof = prove(model, groups, nets.images())
    assert len(proof.groups) == 1 and not proof.left_out
    assert torch.equal(torch.get_rng_state(), numbers[0]) and random.getstate() == numbers[1]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training and not seen
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_place_that_fits_alone_but_not_beside_another_is_left_out() -> None:
    class Beside(nn.Module):
        """Its two layers may have fewer neurons, but only as many as each other."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Linear(4, 8) for _ in range(2))
            self.x, self.y = (nn.Linear(8, 2) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            a, b = F.relu(self.a(x)), F.relu(self.b(x))
            if 8 not in (a.shape[-1], b.shape[-1]):
                raise RuntimeError("one of them must be whole")
            return self.x(a) + self.y(b)

    model, inputs = Beside(), torch.randn(2, 4)
    proof = prove(model, find_groups(model, inputs), inputs)
    assert [place.name for place in proof.groups] == ["a"]
    assert "one of them must be whole" in proof.left_out["b"]


def test_shrink_leaves_what_changes_an_output_on_other_inputs_than_those_of_set_up() -> None:
    class Branches(nets.Net):
        def __init__(self) -> None:
            super().__init__(8)
            self.inner = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.inner(x))
            return self.tail(x / x.shape[-1] if len(x) > 2 else x)

    torch.manual_seed(0)
    model = Branches().eval()
    with torch.no_grad():
        for tensor in (model.inner.weight, model.inner.bias, model.hidden.weight.T):
            tensor[:4] *= 1e-3  # what goes first
    pruned(model, torch.randn(2, 4))
    many = torch.randn(3, 4)
    expected = model(many)
    report = platon_prune.shrink(model, example_inputs=many)
    rows = {row.name: row for row in report.places}
    assert rows["inner"].after == 8 and "outputs differ" in rows["inner"].note
    assert rows["hidden"].after < 12
    assert (model(many) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_inputs_that_a_model_does_not_run_on_are_refused_before_anything_is_changed() -> None:
    model = built("BERT")
    with pytest.raises(ValueError, match=r"must run on example_inputs, but got"):
        pruned(model, torch.randn(2, 3))
    assert not any("_mask" in name for name in model.state_dict())


def test_example_inputs_go_with_a_copy_and_not_into_a_pickle() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    secret = torch.full((2, 4), 1234.5)
    pruned(model, secret)
    assert copy.deepcopy(model)._platon_example_inputs.inputs is not None
    again = pickle.loads(pickle.dumps(model))
    assert again._platon_example_inputs.inputs is None
    assert platon_prune.shrink(again).parameters_after < 4 * 64 + 64 + 2 * 64 + 2


def test_what_can_be_cut_is_no_news() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned(built("T5"), None)
        pruned(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
