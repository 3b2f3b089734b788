"""What can't be traced is walked around, or named in an error."""

from __future__ import annotations

import time

import awkward_nets as nets
import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.groups import dependencies
from platon_prune.groups.find import find_groups
from platon_prune.warning import PruningWarning


@pytest.mark.case
@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_after_a_recurrent_one_are_found(cls: type[nn.RNNBase], bidirectional: bool) -> None:
    model = nets.Recurrent(cls, bidirectional)
    with pytest.warns(PruningWarning, match=rf"stays whole: recurrent \(a {cls.__name__}, whose"):
        groups = find_groups(model, nets.images())
    assert [place.name for place in groups] == ["hidden"]


@pytest.mark.case
def test_a_model_that_is_all_recurrent_is_refused_by_name() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.cell = nn.Linear(3, 8), nn.GRU(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell(self.inner(x))[0]

    with pytest.raises(ValueError, match=r"got none around cell \(a GRU, .*global_unstructured"):
        find_groups(Tagger(), torch.randn(2, 4, 3))


def test_what_lies_within_and_around_modules_that_the_tracer_fails_on_is_cut() -> None:
    torch.manual_seed(0)
    model = nets.SplitWithinList().eval()
    with pytest.warns(PruningWarning, match=r"features\.1 \(a C2f, on .*; features\.3 \(a C2f"):
        scheduler = platon_prune.global_structured(
            model, nets.images(), amount=0.4, total_steps=1, criterion="magnitude"
        )
    names = {place.name for place in scheduler.granularity.groups}
    assert names == {"features.1.block.0.0", "features.3.block.0.0", "hidden"}
    scheduler.step()
    expected = model(nets.images())
    platon_prune.shrink(model)
    assert (model(nets.images()) - expected).abs().max() <= 1e-5 * expected.abs().max()


def _slow(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """torch-pruning loops for ever on whatever holds a module of that class."""
    plain = dependencies._places

    def places(model: nn.Module, inputs: object, walls: list[nn.Module], names: object) -> object:
        within = [layer for wall in walls for layer in wall.modules()]
        found = [m for m in model.modules() if type(m).__name__ == module and m not in within]
        while found:
            time.sleep(0.01)
        return plain(model, inputs, walls, names)

    monkeypatch.setattr(dependencies, "_places", places)


def test_a_module_on_which_the_tracer_loops_is_named_and_the_rest_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _slow(monkeypatch, "C2f")
    with pytest.warns(PruningWarning, match=r"features\.3 \(a C2f, on which .* did not end within"):
        groups = find_groups(nets.SplitWithinList().eval(), nets.images(), time_limit=4)
    assert "hidden" in [place.name for place in groups]


def test_the_time_limit_says_what_was_being_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(*_: object) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(dependencies, "_places", loop)
    with pytest.raises(TimeoutError, match=r"within 0\.2 seconds.*it was tracing features"):
        find_groups(nets.SplitWithinList().eval(), nets.images(), time_limit=0.2)


def test_a_model_without_any_place_is_refused_with_the_classes_that_were_looked_at() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    tokens = {"input_ids": torch.randint(16, (2, 5))}
    with pytest.raises(ValueError, match=r"got none in its .*MambaMixer.*global_unstructured"):
        platon_prune.global_structured(model, tokens, amount=0.3, total_steps=20)
