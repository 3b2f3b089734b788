"""State dicts: what a pruned model saves; dense, torch-pruned and own ones load into it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from tiny import CASES, MASKINGS, Case, go_on, masked, num_pruned, sample, sites, train
from torch import Tensor, nn
from torch.nn.utils import prune

import platon_prune

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
both_maskings = pytest.mark.parametrize("masking", MASKINGS)
both_ways = pytest.mark.parametrize("assign", [True, False])

WEIGHT = torch.tensor([[0.0, 2.0, -3.0], [4.0, 0.0, 6.0]])


def pruned_layer(masking: str) -> nn.Linear:
    """A layer that is trained, pruned, and about to be loaded into."""
    torch.manual_seed(1)
    layer = nn.Linear(3, 2)
    train(layer, lambda m: m(sample(5, 3)), masking)
    assert num_pruned(layer) > 0
    return layer


def load(layer: nn.Module, state: dict[str, Tensor], assign: bool) -> None:
    """Load strictly, and check that the dict is as it was."""
    before = {key: value.clone() for key, value in state.items()}
    missing, unexpected = layer.load_state_dict(state, assign=assign)
    assert not missing and not unexpected
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in before)


@both_maskings
@all_cases
def test_a_plain_module_saves_the_form_of_torch_prune(case: Case, masking: str) -> None:
    model = case.trained(masking)
    expected = {name for name, _ in case.build().named_parameters(remove_duplicate=False)}
    keys = set(model.state_dict())
    for key in [key for key in keys if key.endswith("_mask")]:
        name = key.removesuffix("_mask")
        expected = expected - {name} | {f"{name}_orig", key}
    assert keys == expected and len(keys) > len(list(model.parameters()))


def _tie_again(model: nn.Module) -> None:
    """As after any load with assign=True: torch makes a parameter of each name."""
    tied: dict[int, nn.Parameter] = {}
    for module, name in sites(model):
        weight = getattr(module, f"{name}_orig")
        setattr(module, f"{name}_orig", tied.setdefault(weight.data_ptr(), weight))


@both_maskings
@both_ways
@all_cases
def test_own_state_dict_loads_safely_into_a_fresh_pruned_model(
    case: Case, assign: bool, masking: str, tmp_path: Path
) -> None:
    model = case.trained(masking).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(2)
    fresh = case.build()
    scheduler = train(fresh, case.run, masking, include=case.include, steps=0)
    load(fresh, torch.load(tmp_path / "model.pt", weights_only=True), assign)
    for (one, name), (other, _) in zip(sites(fresh), sites(model), strict=True):
        assert torch.equal(getattr(one, f"{name}_orig"), getattr(other, f"{name}_orig"))
        assert torch.equal(getattr(one, f"{name}_mask"), getattr(other, f"{name}_mask"))
    assert torch.equal(case.run(fresh.eval()), case.run(model))
    if assign:
        _tie_again(fresh)
    go_on(fresh, case.run, scheduler, 12)
    total = sum(mask.numel() for mask in scheduler.masks().values())
    assert sum(int((~mask).sum()) for mask in scheduler.masks().values()) == round(0.6 * total)


@both_maskings
@both_ways
def test_a_dense_state_dict_loads_and_its_zeros_become_the_mask(assign: bool, masking: str) -> None:
    layer = pruned_layer(masking)
    load(layer, {"weight": WEIGHT.clone(), "bias": torch.ones(2)}, assign)
    assert torch.equal(layer.weight_orig, WEIGHT)
    assert torch.equal(layer.weight_mask, torch.tensor([[0, 1, 1], [1, 0, 1]]).bool())
    assert torch.equal(layer.eval().weight, WEIGHT) and torch.equal(layer.bias, torch.ones(2))


@both_maskings
@both_ways
def test_a_dense_state_dict_without_zeros_empties_the_mask(assign: bool, masking: str) -> None:
    layer = pruned_layer(masking)
    load(layer, {"weight": WEIGHT + 0.5, "bias": torch.ones(2)}, assign)
    assert layer.weight_mask.all() and torch.equal(layer.eval().weight, WEIGHT + 0.5)


@both_maskings
@both_ways
def test_a_torch_pruned_state_dict_loads_with_its_mask(assign: bool, masking: str) -> None:
    other = nn.Linear(3, 2)
    with torch.no_grad():
        other.weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]))
    prune.l1_unstructured(other, "weight", 2)
    prune.l1_unstructured(other, "weight", 1)  # a container of two methods
    state = other.state_dict()
    assert state["weight_mask"].dtype == torch.float32 and state["weight_orig"].all()

    layer = pruned_layer(masking)
    load(layer, state, assign)

    expected = torch.tensor([[0.0, 0.0, 0.0], [-4.0, 5.0, -6.0]])  # 1, 2 and then 3 are smallest
    assert torch.equal(layer.weight_mask, expected != 0)
    assert torch.equal(layer.eval().weight, expected)
    original = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])
    # "window" keeps what pruned weights were trained to; "step" has its zeros in the parameter.
    assert torch.equal(layer.weight_orig, expected if masking == "step" else original)
    x = sample(5, 3)
    torch.testing.assert_close(layer(x), other(x), rtol=0, atol=0)


@both_maskings
def test_not_a_number_in_a_pruned_entry_of_a_state_dict_is_masked(masking: str) -> None:
    layer = pruned_layer(masking)
    weight = torch.tensor([[torch.nan, 1.0, -torch.inf], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    load(
        layer,
        {"weight_orig": weight.nan_to_num(nan=7.0), "weight_mask": mask, "bias": mask[1, :2]},
        True,
    )
    layer.load_state_dict({"weight_orig": weight, "weight_mask": mask, "bias": mask[1, :2]})
    assert torch.equal(layer.eval().weight, mask)


@both_maskings
@pytest.mark.parametrize("form", ["dense", "torch", "own"])
def test_loading_goes_through_containers_and_prefixes(form: str, masking: str) -> None:
    case = CASES["encoder layer"]
    source = case.build().eval()
    if form == "torch":
        for module in (source.linear1, source.linear2):
            prune.l1_unstructured(module, "weight", 0.5)
    elif form == "own":
        train(source, case.run, "step")
    expected = case.run(source.eval())
    model = nn.ModuleDict({"inner": case.trained(masking)})
    load(model, {f"inner.{key}": value for key, value in source.state_dict().items()}, False)
    torch.testing.assert_close(case.run(model["inner"].eval()), expected, rtol=0, atol=0)


@both_maskings
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"bias": torch.ones(2)}, 'Missing key.*"weight_orig"'),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, "size mismatch for weight_orig"),
        (
            {"weight": WEIGHT, "bias": torch.ones(2), "extra": torch.ones(1)},
            'Unexpected key.*"extra"',
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_as_torch_does(
    state: dict[str, Tensor], message: str, masking: str
) -> None:
    layer = pruned_layer(masking)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    missing_only = layer.load_state_dict({"bias": torch.ones(2)}, strict=False)
    assert missing_only.missing_keys == ["weight_orig", "weight_mask"]


@both_maskings
@both_ways
def test_a_finalized_model_loads_the_dense_form_and_saves_it(assign: bool, masking: str) -> None:
    layer = pruned_layer(masking)
    expected = masked(layer, "weight")
    platon_prune.remove(layer)
    assert list(layer.state_dict()) == ["weight", "bias"]
    plain = nn.Linear(3, 2)
    load(plain, layer.state_dict(), assign)
    assert torch.equal(plain.weight, expected)


@both_maskings
def test_loading_with_assign_leaves_tied_weights_as_tied_as_torch_does(masking: str) -> None:
    def storages(model: nn.Module) -> set[int]:
        return {
            parameter.data_ptr() for name, parameter in model.named_parameters() if "weight" in name
        }

    dense = CASES["tied linears"].build()
    dense.load_state_dict(dense.state_dict(), assign=True)
    model = CASES["tied linears"].trained(masking)
    model.load_state_dict(model.state_dict(), assign=True)
    assert len(storages(model)) == len(storages(dense)) == 1
    kept = CASES["tied linears"].trained(masking)
    kept.load_state_dict(kept.state_dict(keep_vars=True), assign=True)
    assert kept[0].weight_orig is kept[2].weight_orig


@both_maskings
def test_a_whole_model_can_be_saved_and_loaded(masking: str) -> None:
    model = CASES["linear"].trained(masking).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(CASES["linear"].run(again), CASES["linear"].run(model))
    assert prune.is_pruned(again) and not prune.is_pruned(platon_prune.remove(again))
