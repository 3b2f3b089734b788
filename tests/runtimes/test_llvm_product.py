"""The product of LLVM equals a plain one, and is taken where it was measured to be the fastest."""

from __future__ import annotations

import copy
import io
import pickle
import platform
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import sample
from torch import nn

import platon_prune
from platon_prune.runtimes import llvm_product
from platon_prune.runtimes.sparse_linear import SparseLinear

needs_llvmlite = pytest.mark.skipif(
    llvm_product.why_not() is not None, reason=f"{llvm_product.why_not()}"
)


def with_zeros(outputs, inputs, density=0.2, bias=True):
    """A dense layer; its fourth row, if there is one, and its second column are empty."""
    generator = torch.Generator().manual_seed(outputs + inputs)
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator))
        dropped = torch.rand(outputs, inputs, generator=generator) >= density
        layer.weight.masked_fill_(dropped, 0)
        layer.weight[3:4] = 0
        layer.weight[:, 1:2] = 0
    return layer


def sparse(layer, product="llvm"):
    return SparseLinear(layer.weight, layer.bias, product=product)


def in_float64(layer, inputs):
    output = inputs.detach().double() @ layer.weight.detach().double().t()
    return output if layer.bias is None else output + layer.bias.detach().double()


def assert_close(actual, expected):
    torch.testing.assert_close(actual.detach().double(), expected, rtol=1e-5, atol=1e-5)


# --- values -------------------------------------------------------------------------------------


@needs_llvmlite
@pytest.mark.parametrize("num_tokens", [0, 1, 15, 16, 17, 33, 48, 63, 64, 65, 100, 130])
@pytest.mark.parametrize("shape", [(16, 16), (17, 16), (16, 19), (33, 100), (96, 64)], ids=str)
def test_outputs_equal_a_plain_product_for_any_sizes(shape, num_tokens):
    layer = with_zeros(*shape)
    inputs = sample(num_tokens, shape[1])
    output = sparse(layer)(inputs)
    assert output.shape == (num_tokens, shape[0])
    assert output.is_contiguous()
    assert_close(output, in_float64(layer, inputs))


@needs_llvmlite
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("num_tokens", [5, 20, 40, 64])
def test_outputs_equal_a_plain_product_for_any_density(num_tokens, density, bias):
    layer = with_zeros(40, 50, density, bias)
    inputs = sample(num_tokens, 50)
    assert_close(sparse(layer)(inputs), in_float64(layer, inputs))


@needs_llvmlite
def test_more_tokens_than_one_pass_takes_are_multiplied_in_several(monkeypatch):
    monkeypatch.setattr(llvm_product, "_TOKENS_IN_A_PASS", 64)
    layer = with_zeros(20, 24)
    inputs = sample(64 * 3 + 7, 24)
    assert_close(sparse(layer)(inputs), in_float64(layer, inputs))


@needs_llvmlite
@pytest.mark.parametrize(
    "inputs",
    [
        sample(2, 3, 4, 24),
        sample(24),
        sample(24, 9).t(),
        sample(9, 48)[:, ::2],
        sample(9, 40)[:, 16:],
        sample(1, 24).expand(9, 24),
        sample(0, 5, 24),
    ],
    ids=["leading", "vector", "transposed", "every second", "part of rows", "expanded", "empty"],
)
def test_inputs_of_any_layout_and_leading_dimensions_are_taken(inputs):
    layer = with_zeros(20, 24)
    output = sparse(layer)(inputs)
    assert output.shape == (*inputs.shape[:-1], 20)
    assert_close(output, in_float64(layer, inputs))


@needs_llvmlite
def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    # So that a small layer is worth four threads.
    monkeypatch.setattr(llvm_product, "_GRAIN", 1)
    layer = sparse(with_zeros(80, 40))
    inputs = sample(150, 40)
    before = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            outputs += [layer(inputs) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@needs_llvmlite
def test_without_the_threads_of_torch_one_thread_does_all(monkeypatch):
    monkeypatch.setattr(llvm_product, "_GRAIN", 1)
    monkeypatch.setattr(llvm_product, "_parallel_region", lambda: None)
    layer = with_zeros(40, 24)
    inputs = sample(70, 24)
    assert_close(sparse(layer)(inputs), in_float64(layer, inputs))


@needs_llvmlite
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86-64")
def test_code_for_a_processor_without_wide_vectors_gives_equal_outputs(monkeypatch):
    import llvmlite.binding as llvm

    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "x86-64")
    monkeypatch.setattr(llvm, "get_host_cpu_features", llvm.FeatureMap)
    kernel = llvm_product._compile.__wrapped__()
    monkeypatch.setattr(llvm_product, "_compile", lambda: kernel)
    layer = with_zeros(20, 24)
    inputs = sample(70, 24)
    assert_close(sparse(layer)(inputs), in_float64(layer, inputs))


@needs_llvmlite
def test_calls_from_several_threads_do_not_disturb_one_another():
    layer = sparse(with_zeros(64, 48))
    inputs = [sample(70, 48) * i for i in range(8)]
    expected = [layer(each) for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(layer, inputs))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_llvmlite
def test_an_input_that_is_not_a_number_spoils_its_own_token_alone():
    layer = with_zeros(20, 24)
    inputs = sample(20, 24)
    expected = in_float64(layer, inputs)
    inputs[7] = torch.nan
    output = sparse(layer)(inputs)
    # The empty row skips the input, as any sparse product does.
    assert output[7].isnan().sum() == 19
    others = torch.arange(20) != 7
    assert_close(output[others], expected[others])


# --- a good citizen -----------------------------------------------------------------------------


@needs_llvmlite
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_gradients_reach_inputs_and_biases_where_they_are_wanted(mode):
    layer = with_zeros(20, 24)
    inputs = sample(2, 9, 24).requires_grad_()
    module = sparse(layer)
    with mode():
        output = module(inputs)
    assert_close(output, in_float64(layer, inputs))
    assert output.requires_grad == (mode is torch.enable_grad)
    if output.requires_grad:
        slopes = sample(2, 9, 20)
        output.backward(slopes)
        torch.testing.assert_close(inputs.grad, slopes @ layer.weight.detach())
        torch.testing.assert_close(module.bias.grad, slopes.sum((0, 1)))


@needs_llvmlite
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_a_compiled_layer_is_one_graph_with_equal_outputs_and_gradients(mode, bias):
    torch._dynamo.reset()
    layer = with_zeros(20, 24, bias=bias)
    inputs = sample(3, 24).requires_grad_()
    compiled = torch.compile(sparse(layer), fullgraph=True, backend="aot_eager")
    with mode():
        output = compiled(inputs)
    assert_close(output, in_float64(layer, inputs))
    if output.requires_grad:
        output.sum().backward()
        torch.testing.assert_close(inputs.grad, torch.ones(3, 20) @ layer.weight.detach())
    torch._dynamo.reset()


@needs_llvmlite
def test_an_exported_program_multiplies_as_the_layer_does_for_any_number_of_tokens():
    layer = with_zeros(20, 24)
    tokens = torch.export.Dim("tokens", min=2, max=500)
    with torch.no_grad():
        program = torch.export.export(
            sparse(layer), (sample(4, 24),), dynamic_shapes=({0: tokens},)
        )
    inputs = sample(70, 24)
    assert_close(program.module()(inputs), in_float64(layer, inputs))


def test_the_operation_keeps_torchs_rules():
    module = sparse(with_zeros(20, 24))
    weight = (module.weight_crow_indices, module.weight_col_indices, module.weight_values)
    operation = torch.ops.platon_prune.sparse_linear.default
    for bias, grad in ((module.bias, True), (None, False)):
        tokens = sample(5, 24).requires_grad_(grad)
        torch.library.opcheck(operation, (*weight, bias, tokens))


def test_copies_and_pickles_and_state_dicts_give_the_same_outputs():
    layer = with_zeros(20, 24)
    module = sparse(layer)
    inputs = sample(9, 24)
    expected = module(inputs)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    filled = sparse(layer)
    filled.weight_values.zero_()
    filled.load_state_dict(module.state_dict())
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), filled]
    for twin in (*twins, torch.load(file, weights_only=False)):
        assert twin.product == "llvm"
        assert torch.equal(twin(inputs), expected)


def test_a_layer_that_was_pickled_before_there_was_a_choice_takes_torchs_product():
    layer = with_zeros(20, 24)
    module = sparse(layer, "torch")
    del module.__dict__["product"]
    inputs = sample(9, 24)
    assert_close(pickle.loads(pickle.dumps(module))(inputs), in_float64(layer, inputs))


def test_both_products_have_the_same_state_dict():
    layer = with_zeros(20, 24)
    first, second = sparse(layer, "torch").state_dict(), sparse(layer).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_unknown_product_is_refused():
    with pytest.raises(ValueError, match="product must be 'torch' or 'llvm', got 'mkl'"):
        sparse(with_zeros(20, 24), "mkl")


# --- where there is no machine code -------------------------------------------------------------


def test_with_llvmlite_there_is_machine_code():
    pytest.importorskip("llvmlite", reason="llvmlite is optional")
    assert llvm_product.why_not() is None
    assert llvm_product.takes((16, 16))


@pytest.fixture
def without_llvmlite(monkeypatch):
    monkeypatch.setattr(llvm_product, "_compile", lambda: "llvmlite can't be imported (no module)")


def test_without_llvmlite_the_layer_gives_equal_outputs_and_gradients(without_llvmlite):
    layer = with_zeros(20, 24)
    inputs = sample(2, 9, 24).requires_grad_()
    output = sparse(layer)(inputs)
    assert output.is_contiguous()
    assert_close(output, in_float64(layer, inputs))
    output.sum().backward()
    expected = torch.ones(2, 9, 20) @ layer.weight.detach()
    torch.testing.assert_close(inputs.grad, expected)


@pytest.mark.parametrize("shape", [(15, 64), (64, 15), (2, 3)], ids=str)
def test_layers_smaller_than_a_vector_take_torchs_product(shape):
    layer = with_zeros(*shape)
    inputs = sample(9, shape[1])
    assert not llvm_product.takes(shape)
    assert_close(sparse(layer)(inputs), in_float64(layer, inputs))


def test_indices_of_64_bits_take_torchs_product():
    layer = with_zeros(20, 24)
    module = sparse(layer)
    state = module.state_dict()
    wide = {key: each.long() if "indices" in key else each for key, each in state.items()}
    module.load_state_dict(wide, assign=True)
    assert module.weight_col_indices.dtype == torch.int64
    inputs = sample(9, 24)
    assert_close(module(inputs), in_float64(layer, inputs))


def test_a_release_of_llvmlite_with_another_interface_does_not_stand_in_the_way(monkeypatch):
    binding = pytest.importorskip("llvmlite.binding", reason="llvmlite is optional")
    monkeypatch.delattr(binding, "create_pass_builder")
    reason = llvm_product._compile.__wrapped__()
    assert isinstance(reason, str) and reason.startswith("llvmlite makes no code here (")


# --- the choice ---------------------------------------------------------------------------------


class Clock:
    """Runs a function and says what it is told to, of each form of a layer."""

    def __init__(self, **milliseconds):
        self.milliseconds = milliseconds

    def __call__(self, function):
        function()
        module = function.func.__self__
        return self.milliseconds[getattr(module, "product", "dense")]


@needs_llvmlite
@pytest.mark.parametrize(
    ("torch_ms", "llvm_ms", "chosen", "product"),
    [
        (5.0, 2.0, "sparse", "llvm"),
        (2.0, 5.0, "sparse", "torch"),
        (20.0, 9.0, "sparse", "llvm"),
        (20.0, 9.1, "dense", "llvm"),
        (9.0, 20.0, "sparse", "torch"),
    ],
)
def test_a_layer_takes_the_fastest_of_dense_and_both_products(torch_ms, llvm_ms, chosen, product):
    layer = with_zeros(20, 24)
    inputs = sample(9, 24)
    expected = in_float64(layer, inputs)
    model = nn.Sequential(layer)
    clock = Clock(dense=10.0, torch=torch_ms, llvm=llvm_ms)
    platon_prune.to_sparse_inference(model, timed=clock)
    (row,) = model.sparse_report
    assert (row.chosen, row.product) == (chosen, product)
    assert (row.dense_ms, row.torch_ms, row.llvm_ms) == (10.0, torch_ms, llvm_ms)
    assert row.sparse_ms == min(torch_ms, llvm_ms)
    assert getattr(model[0], "product", "dense") == (product if chosen == "sparse" else "dense")
    assert_close(model(inputs), expected)


def test_without_llvmlite_the_report_says_so_and_what_was_measured(without_llvmlite):
    model = nn.Sequential(with_zeros(20, 24))
    platon_prune.to_sparse_inference(model, timed=Clock(dense=10.0, torch=5.0))
    (row,) = model.sparse_report
    assert (row.torch_ms, row.llvm_ms, row.product) == (5.0, None, "torch")
    last = str(model.sparse_report).splitlines()[-1]
    assert last.startswith("measured without the product of LLVM: llvmlite can't be imported")


def test_machine_code_that_is_not_wanted_is_not_made(monkeypatch):
    def compile_():
        raise AssertionError

    monkeypatch.setattr(llvm_product, "_compile", compile_)
    model = nn.Sequential(with_zeros(20, 24))
    clock = Clock(dense=10.0, torch=5.0)
    platon_prune.to_sparse_inference(model, machine_code=False, timed=clock)
    assert model[0].product == "torch"
    assert str(model.sparse_report).endswith("the product of LLVM: machine_code is False")
    model(sample(2, 24))


def test_a_report_in_which_nothing_was_measured_does_not_speak_of_llvmlite(without_llvmlite):
    model = nn.Sequential(nn.Linear(24, 20))
    platon_prune.to_sparse_inference(model)
    assert "LLVM" not in str(model.sparse_report)
