"""Compiled, traced and exported models equal eager ones, and changed masks recompile nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import CASES, MASKINGS, Case, go_on, num_pruned, sample, sites, train
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx

import platon_prune

both_maskings = pytest.mark.parametrize("masking", MASKINGS)

# Dense recurrent modules are not one graph either, for torch.compile and for export.
RECURRENT = ("LSTM", "GRU")
WHOLE_GRAPH = {name: case for name, case in CASES.items() if name not in RECURRENT}
# The symbolic tracer can't look inside these, pruned or not; within a model it calls them.
OPAQUE = ("transposed conv1d", "transposed conv2d", "encoder layer", *RECURRENT)
TRACEABLE = [name for name in CASES if not name.startswith("attention")]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A compiler backend that counts how often it is asked."""

    def __init__(self, backend: Callable[[torch.fx.GraphModule, Any], Callable]) -> None:
        self.backend = backend
        self.compilations = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable:
        self.compilations += 1
        return self.backend(graph, inputs)


def interpreted(graph: torch.fx.GraphModule, inputs: Any) -> Callable:
    return graph.forward


def masks_of(model: nn.Module) -> list[Tensor]:
    return [getattr(module, f"{name}_mask").clone() for module, name in sites(model)]


def differ(one: list[Tensor], other: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def arguments(case: Case, model: nn.Module) -> tuple[Tensor, ...]:
    """What the case calls its model with."""
    seen: list[tuple[Tensor, ...]] = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args))
    case.run(model)
    handle.remove()
    return seen[0]


class Mixed(nn.Module):
    """A convolution, attention, a tensor read directly, and a norm that differs in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.direct = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x @ self.direct.weight.T + self.direct.bias


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))),
    reason="Inductor part skipped: no C++ compiler",
)
@both_maskings
def test_inductor_equals_eager_over_50_steps_without_compiling_again(masking: str) -> None:
    torch.manual_seed(1)
    model = Mixed()
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.8,
        total_steps=50,
        window=4,
        warmup_steps=2,
        masking=masking,
        cooldown_steps=0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    backend = Counting(compile_fx)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x, changes = sample(3, 4, 6), 0
    for step in range(50):
        before = masks_of(model)
        output = compiled(x)
        torch.testing.assert_close(output, model(x))
        (output - 0.5).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        changes += differ(before, masks_of(model))
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
        model.train()
        if step == 0:
            assert backend.compilations == 2  # one graph for training, one for evaluation
    assert backend.compilations == 2
    assert changes >= 5
    assert num_pruned(model) == round(0.8 * (96 + 192 + 64 + 24))

    platon_prune.remove(model.eval())
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@both_maskings
@pytest.mark.parametrize("case", WHOLE_GRAPH.values(), ids=list(WHOLE_GRAPH))
def test_every_module_is_one_graph_that_outlives_a_change_of_masks(
    case: Case, masking: str
) -> None:
    torch.manual_seed(1)
    model = case.build()
    scheduler = train(model, case.run, masking, include=case.include)
    backend = Counting(interpreted)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    args = arguments(case, model)
    before, compilations = masks_of(model), None
    for _ in range(3):
        for training in (True, False):
            model.train(training)
            torch.testing.assert_close(compiled(*args), model(*args))
        compilations = compilations or backend.compilations
        assert backend.compilations == compilations
        go_on(model, case.run, scheduler, 2)
    assert compilations in (1, 2)  # training and evaluation may be one graph or two
    assert differ(before, masks_of(model))


@both_maskings
@pytest.mark.parametrize("name", RECURRENT)
def test_compiled_recurrent_modules_equal_eager(name: str, masking: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    model = case.build()
    scheduler = train(model, case.run, masking, include=case.include)
    compiled = torch.compile(model, backend=interpreted)
    args = arguments(case, model)
    for _ in range(2):
        for training in (True, False):
            model.train(training)
            torch.testing.assert_close(compiled(*args), model(*args))
        go_on(model, case.run, scheduler, 2)


@both_maskings
def test_a_model_compiled_and_run_before_pruning_follows_it_and_its_end(masking: str) -> None:
    torch.manual_seed(1)
    case = CASES["linear"]
    model = case.build()
    compiled = torch.compile(model, backend=interpreted, fullgraph=True)
    args = arguments(case, model)
    for training in (True, False):
        torch.testing.assert_close(compiled.train(training)(*args), model(*args))
    train(compiled, case.run, masking)
    assert num_pruned(model) > 0
    for training in (True, False):
        torch.testing.assert_close(compiled.train(training)(*args), model(*args))
    expected = model(*args)
    platon_prune.remove(compiled)
    torch.testing.assert_close(compiled(*args), expected)
    assert type(model[0]) is nn.Linear
    with torch.no_grad():
        model[0].weight.fill_(1)
    torch.testing.assert_close(compiled(*args), model(*args))


@both_maskings
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TRACEABLE)
def test_symbolically_traced_model_equals_eager_and_follows_its_masks(
    name: str, training: bool, masking: str
) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    model = case.build()
    scheduler = train(model, case.run, masking, include=case.include)
    root = nn.Sequential(model) if name in OPAQUE else model
    traced = torch.fx.symbolic_trace(root.train(training))
    args, before = arguments(case, model), masks_of(model)
    torch.testing.assert_close(traced(*args), model(*args), rtol=0, atol=0)
    go_on(model, case.run, scheduler, 2)
    assert differ(before, masks_of(model))
    model.train(training)
    torch.testing.assert_close(traced(*args), model(*args), rtol=0, atol=0)


@both_maskings
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", WHOLE_GRAPH.values(), ids=list(WHOLE_GRAPH))
def test_exported_program_equals_eager(
    case: Case, strict: bool, training: bool, masking: str
) -> None:
    model = case.trained(masking).train(training)
    args = arguments(case, model)
    program = torch.export.export(model, args, strict=strict)
    torch.testing.assert_close(program.module()(*args), model(*args))
