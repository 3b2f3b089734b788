"""Transformers models save their own keys while they are pruned, so that nothing is lost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tiny import MASKINGS, go_on, masked, num_pruned, sites, train
from tiny_transformers import BUILD, bert, gpt2, llama, logits, mixtral
from torch import Tensor, nn

import platon_prune

both_maskings = pytest.mark.parametrize("masking", MASKINGS)
all_models = pytest.mark.parametrize("name", BUILD)


def pruned(name: str, masking: str) -> nn.Module:
    torch.manual_seed(1)
    model = BUILD[name]()
    train(model, logits, masking)
    assert num_pruned(model) > 0
    return model.eval()


def named_sites(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The sites under the names that their tensors had before pruning."""
    paths = {id(module): path for path, module in model.named_modules()}
    return {f"{paths[id(module)]}.{name}": (module, name) for module, name in sites(model)}


@both_maskings
@all_models
def test_a_saved_model_that_is_being_pruned_comes_back_sparse_and_complete(
    name: str, masking: str, tmp_path: Path
) -> None:
    model = pruned(name, masking)
    values = {key: masked(*site) for key, site in named_sites(model).items()}
    model.save_pretrained(tmp_path)

    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)

    assert not any(info.values()), info
    for key, value in values.items():
        assert torch.equal(again.get_parameter(key), value)
    assert torch.equal(logits(again), logits(model))
    assert num_pruned(model) > 0  # saving leaves it as it was
    platon_prune.remove(model)
    assert torch.equal(logits(again), logits(model))
    state, other = model.state_dict(), again.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[key], other[key]) for key in state)


@both_maskings
@all_models
def test_state_dict_has_the_keys_of_the_model_before_pruning(name: str, masking: str) -> None:
    model = pruned(name, masking)
    assert set(model.state_dict()) == set(BUILD[name]().state_dict())


@both_maskings
@all_models
@pytest.mark.parametrize("assign", [True, False])
def test_own_and_dense_state_dicts_load_into_a_model_that_is_being_pruned(
    name: str, assign: bool, masking: str
) -> None:
    source, model = pruned(name, masking), pruned(name, "step")
    missing, unexpected = model.load_state_dict(source.state_dict(), assign=assign)
    assert not missing and not unexpected
    assert torch.equal(logits(model.eval()), logits(source))
    assert num_pruned(model) == num_pruned(source)  # no kept weight is zero here

    torch.manual_seed(3)
    dense = BUILD[name]().eval()
    model.load_state_dict(dense.state_dict(), assign=assign)
    assert num_pruned(model) == 0 and torch.equal(logits(model), logits(dense))


@both_maskings
@all_models
def test_copies_and_other_dtypes_of_transformers_models(name: str, masking: str) -> None:
    model = pruned(name, masking)
    expected = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), expected)
    twin.to(torch.bfloat16)
    for (module, tensor), (other, _) in zip(sites(twin), sites(model), strict=True):
        assert torch.equal(getattr(module, tensor), masked(other, tensor).bfloat16())
    platon_prune.remove(twin)
    assert torch.equal(logits(model), expected) and num_pruned(model) > 0


class Wrapper(nn.Module):
    """An ordinary module around a transformers model, as training frameworks make them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.extra = nn.Linear(3, 3)

    def forward(self) -> Tensor:
        return self.extra(logits(self.model))


@both_maskings
def test_a_transformers_model_in_a_plain_root_keeps_its_own_keys_and_the_rest_torch_form(
    masking: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    root = Wrapper(bert())
    plain_keys = set(root.state_dict())
    train(root, lambda m: m(), masking)
    assert set(root.state_dict()) == plain_keys - {"extra.weight"} | {
        "extra.weight_orig",
        "extra.weight_mask",
    }
    root.eval()
    root.model.save_pretrained(tmp_path)
    again, info = type(root.model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(again), logits(root.model))


@both_maskings
@pytest.mark.parametrize(("build", "part"), [(bert, "bert.encoder"), (gpt2, "transformer")])
def test_pruning_only_a_part_of_a_transformers_model_does_not_break_saving_the_whole(
    build: object, part: str, masking: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = build()
    scheduler = platon_prune.global_unstructured(
        model.get_submodule(part),
        amount=0.6,
        total_steps=12,
        window=2,
        masking=masking,
        warmup_steps=0,
        cooldown_steps=0,
    )
    go_on(model, logits, scheduler, 7)
    model.eval().save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert num_pruned(model) > 0 and torch.equal(logits(again), logits(model))


def test_a_module_tells_from_the_stack_that_save_pretrained_asks_for_its_state() -> None:
    layer = nn.Linear(3, 2)
    platon_prune.global_unstructured(
        layer, amount=0.5, total_steps=20, warmup_steps=0, cooldown_steps=0
    )

    class Model(nn.Module):
        """Takes in a layer that was pruned before, which nothing can tell of this."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def save_pretrained(self) -> list[str]:
            return self._collected()

        def _collected(self) -> list[str]:
            return list(self.state_dict())

    model = Model()
    assert sorted(model.save_pretrained()) == ["layer.bias", "layer.weight"]
    pruned_keys = ["layer.weight_orig", "layer.bias", "layer.weight_mask"]
    assert sorted(model._collected()) == sorted(pruned_keys)


def test_tying_again_leaves_a_pruned_model_as_it_is() -> None:
    model = pruned("Llama with a tied head", "step")
    expected = logits(model)
    model.tie_weights()
    assert torch.equal(logits(model), expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@both_maskings
def test_a_head_tied_to_the_embedding_is_pruned_with_it_if_named(masking: str) -> None:
    torch.manual_seed(1)
    model = llama(tied=True)
    train(model, logits, masking, include=("lm_head.weight",))
    assert num_pruned(model) > 0
    mask = model.lm_head.weight_mask
    if masking == "step":
        assert torch.equal(model.model.embed_tokens.weight == 0, ~mask)
    expected = masked(model.lm_head, "weight")
    platon_prune.remove(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, expected)


@both_maskings
def test_expert_tensors_are_pruned_entry_by_entry(masking: str) -> None:
    torch.manual_seed(1)
    model = mixtral()
    scheduler = train(model, logits, masking, include=("experts",), steps=12)
    experts = model.model.layers[0].mlp.experts
    assert experts.gate_up_proj.shape == (3, 24, 8) and experts.down_proj.shape == (3, 8, 12)
    zeros = int((experts.gate_up_proj == 0).sum() + (experts.down_proj == 0).sum())
    assert zeros == round(0.6 * (576 + 288)) and list(scheduler.masks()) == [
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    ]


def test_a_model_without_save_pretrained_from_transformers_parts_saves_torch_form() -> None:
    model = nn.Sequential(transformers.pytorch_utils.Conv1D(6, 4))
    platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, warmup_steps=0, cooldown_steps=0
    )
    assert set(model.state_dict()) == {"0.weight_orig", "0.weight_mask", "0.bias"}


def _some_layers(model: nn.Module) -> nn.Sequential:
    layer = model.bert.encoder.layer[0]
    return nn.Sequential(layer.intermediate.dense, layer.output.dense)


HANDED_OVER: dict[str, Callable[[nn.Module], object]] = {
    "the model, with torch's form asked for": lambda model: (model, {"own_keys": False}),
    "pairs": lambda model: ([(layer, "weight") for layer in _some_layers(model)], {}),
    "one layer": lambda model: (_some_layers(model)[0], {}),
    "a container of its layers": lambda model: (_some_layers(model), {}),
    "the model in a plain module": lambda model: (nn.ModuleDict({"model": model}), {}),
}


@both_maskings
@pytest.mark.parametrize("how", HANDED_OVER)
def test_save_pretrained_is_complete_and_sparse_however_the_model_was_handed_over(
    how: str, masking: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = bert()
    handed, settings = HANDED_OVER[how](model)
    scheduler = platon_prune.global_unstructured(
        handed,
        amount=0.6,
        total_steps=12,
        window=2,
        masking=masking,
        **dict(warmup_steps=0, cooldown_steps=0) | settings,
    )
    go_on(model, logits, scheduler, 7)
    keys = set(model.state_dict())
    model.eval().save_pretrained(tmp_path)

    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert num_pruned(model) > 0 and torch.equal(logits(again), logits(model))
    assert set(model.state_dict()) == keys  # the form asked for, everywhere else
    for key, site in named_sites(model).items():
        assert torch.equal(again.get_parameter(key), masked(*site))


def test_save_pretrained_is_complete_if_a_layer_was_pruned_before_it_joined_the_model(
    tmp_path: Path,
) -> None:
    layer, model = nn.Linear(8, 3), bert().eval()
    platon_prune.PlatonUnstructured.apply(layer, "weight", amount=0.5)
    model.classifier = layer
    assert "classifier.weight_orig" in model.state_dict()
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert int((again.classifier.weight == 0).sum()) == 12
    assert torch.equal(logits(again), logits(model))
