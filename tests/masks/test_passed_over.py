"""What the default selection can't take is refused or named, never left out in silence."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_transformers import bert
from torch import nn
from torch.nn.utils import parametrizations

import platon_prune

GOOD = dict(amount=0.5, total_steps=20, window=5)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def _prune(model: nn.Module, **settings: object) -> list[str]:
    return list(
        platon_prune.global_unstructured(
            model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD | settings
        ).masks()
    )


def _quantised(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves these to torchao
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


# --- scripted, traced and exported --------------------------------------------------------------

SCRIPTED = {
    "scripted": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model, torch.zeros(1, 6)),
}


def _scripted(how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return SCRIPTED[how](_model())


@pytest.mark.parametrize("how", SCRIPTED)
@pytest.mark.parametrize("settings", [{}, {"include": "0."}])
def test_a_scripted_model_is_refused_with_what_to_do(how: str, settings: dict) -> None:
    with pytest.raises(ValueError, match="0.weight must be held by a module written in Python.*"):
        _prune(_scripted(how), **settings)


@pytest.mark.parametrize("how", SCRIPTED)
def test_a_scripted_part_is_refused_unless_it_is_excluded(how: str) -> None:
    model = nn.ModuleDict({"part": _scripted(how), "own": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="part.0.weight must be held .* before it is scripted"):
        _prune(model)
    assert list(model.state_dict())[-2:] == ["own.weight", "own.bias"]
    assert _prune(model, exclude="part.") == ["own.weight"]


def test_an_exported_graph_is_refused_with_what_to_do_unless_it_is_named() -> None:
    model = torch.export.export(_model(), (torch.zeros(1, 6),)).module()
    with pytest.raises(ValueError, match="got none.* prune the model before it is exported"):
        _prune(model)
    assert _prune(model, include="weight") == ["0.weight", "2.weight"]


def test_layers_of_a_graph_that_was_traced_with_fx_are_pruned() -> None:
    model = torch.fx.symbolic_trace(_model())
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    weights = [p for n, p in platon_prune.remove(model).named_parameters() if "weight" in n]
    assert sum(int((weight == 0).sum()) for weight in weights) == 20


# --- computed and quantised weights -------------------------------------------------------------

COMPUTED = {
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight norm by a hook": nn.utils.weight_norm,
    "spectral norm by a hook": nn.utils.spectral_norm,
}


def _computed(how: str) -> nn.Sequential:
    model = _model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        COMPUTED[how](model[0])
    return model


@pytest.mark.parametrize("how", COMPUTED)
def test_a_layer_whose_weight_is_computed_is_named_and_left_out(how: str) -> None:
    with pytest.warns(platon_prune.PruningWarning, match=r"not pruned: 0.weight \(computed from"):
        assert _prune(_computed(how)) == ["2.weight"]


@pytest.mark.parametrize("how", COMPUTED)
def test_what_is_excluded_is_not_warned_about(how: str) -> None:
    assert _prune(_computed(how), exclude="0.") == ["2.weight"]
    assert _prune(_computed(how), exclude="0.weight") == ["2.weight"]


def test_a_warning_that_is_an_error_leaves_the_model_untouched() -> None:
    model = _computed("weight norm")
    before = list(model.state_dict())
    with pytest.raises(platon_prune.PruningWarning):
        _prune(model)
    assert list(model.state_dict()) == before


def test_attention_whose_projection_is_computed_is_named() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "top": nn.Linear(8, 8)})
    parametrizations.weight_norm(model["attention"], "in_proj_weight")
    with pytest.warns(platon_prune.PruningWarning, match=r"attention.in_proj_weight \(computed"):
        assert _prune(model) == ["attention.out_proj.weight", "top.weight"]


def test_what_the_default_selection_leaves_out_by_design_is_not_warned_about() -> None:
    model = bert()
    parametrizations.weight_norm(model.classifier)
    nn.utils.parametrize.register_parametrization(
        model.bert.embeddings.word_embeddings, "weight", nn.Identity()
    )
    assert all("encoder" in name for name in _prune(model))


@pytest.mark.parametrize("how", ["weight norm", "orthogonal"])
def test_a_computed_weight_that_is_included_is_refused_with_what_to_do(how: str) -> None:
    message = "0.weight must be .* got one that is computed .*: remove the parametrization"
    with pytest.raises(ValueError, match=message):
        _prune(_computed(how), include="0.weight")


@pytest.mark.parametrize("how", COMPUTED)
def test_including_what_a_weight_is_computed_from_is_warned_about(how: str) -> None:
    with pytest.warns(platon_prune.PruningWarning, match="are not zeros of 0.weight"):
        _prune(_computed(how), include="0.")
    assert _prune(_computed(how), include="bias") == ["0.bias", "2.bias"]


def test_a_parameter_whose_name_only_begins_like_an_attribute_is_pruned() -> None:
    cell = nn.LSTMCell(4, 3)  # has a flag "bias" beside bias_ih and bias_hh
    assert _prune(cell, include=["bias"]) == ["bias_ih", "bias_hh"]  # a warning is an error here


def test_what_a_weight_is_computed_from_is_pruned_where_it_is_spelled_out() -> None:
    names = _prune(_computed("weight norm"), include="parametrizations.weight.original1")
    assert names == ["0.parametrizations.weight.original1"]
    names = _prune(_computed("weight norm by a hook"), include="weight_v")
    assert names == ["0.weight_v"]


def test_a_quantised_layer_is_named_and_left_out() -> None:
    model = nn.Sequential(_quantised(_model()), nn.Linear(2, 2))
    message = r"not pruned: 0.0.weight \(quantised\), 0.2.weight \(quantised\).*before quantising"
    with pytest.warns(platon_prune.PruningWarning, match=message):
        assert _prune(model) == ["1.weight"]
    assert _prune(nn.Sequential(_quantised(_model()), nn.Linear(2, 2)), exclude="0.") == [
        "1.weight"
    ]


def test_an_entirely_quantised_model_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"0.weight \(quantised\).* before quantising"):
        _prune(_quantised(_model()))


def test_of_many_layers_a_few_are_named_and_the_others_counted() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(12)), nn.Linear(3, 3))
    for layer in model[:12]:
        parametrizations.weight_norm(layer)
    with pytest.warns(platon_prune.PruningWarning, match=r"0.weight \(.* and 7 more: ") as caught:
        _prune(model)
    assert "6.weight" not in str(caught[0].message)


def test_adopt_zeros_names_what_it_passes_over() -> None:
    model = _computed("weight norm")
    with torch.no_grad():
        model[2].weight[0] = 0
    with pytest.warns(platon_prune.PruningWarning, match=r"not pruned: 0.weight \(computed from"):
        platon_prune.adopt_zeros(model)


# --- matrices that no layer holds ---------------------------------------------------------------


class _Mixer(nn.Module):
    """Keeps its matrices itself, as XLNet's attention does, beside what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(6, 2, 3)) for _ in range(2))
        self.r_bias = nn.Parameter(torch.randn(6, 6))
        self.positions = nn.Parameter(torch.randn(1, 6, 6))
        self.few = nn.Parameter(torch.randn(2, 2))


@pytest.mark.case
def test_large_matrices_that_a_module_keeps_itself_are_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6), _Mixer())
    with pytest.warns(platon_prune.PruningWarning, match=r"not pruned: 1\.q \(.*1\.k \(a") as said:
        assert _prune(model) == ["0.weight"]
    assert not any(name in str(said[0].message) for name in ("r_bias", "positions", "few"))
    assert "include=[...]" in str(said[0].message)


def test_they_can_be_excluded_or_included_without_a_word() -> None:
    assert _prune(nn.Sequential(nn.Linear(6, 6), _Mixer()), exclude="1.") == ["0.weight"]
    names = _prune(nn.Sequential(nn.Linear(6, 6), _Mixer()), include=["0.weight", "1.q", "1.k"])
    assert names == ["0.weight", "1.q", "1.k"]


def test_a_model_with_no_others_is_refused_with_their_names() -> None:
    with pytest.raises(ValueError, match=r"passed over: q \(a parameter of.*include="):
        _prune(_Mixer())
