"""Sparse linear layers equal dense ones, and only layers that gain are converted."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import tiny_transformers
import torch
from tiny import hf_conv1d, sample
from torch import nn
from torch.nn.utils import prune

import platon_prune
from platon_prune.runtimes.sparse_linear import SparseLinear
from platon_prune.timing import interleaved

SHAPES = [(1, 8), (8,), (5, 8), (2, 3, 8), (2, 1, 3, 8), (0, 8), (2, 0, 8)]


class Clock:
    """Runs a function and says what it is told to: of dense layers 10 ms."""

    def __init__(self, sparse_ms=1.0):
        self.sparse_ms = sparse_ms
        self.timed = []

    def __call__(self, function):
        function()
        module = function.func.__self__
        self.timed.append(module)
        return self.sparse_ms if isinstance(module, SparseLinear) else 10.0

    @property
    def num_measured(self):
        """Layers of which a sparse form was timed, with whatever products."""
        sparse = [module for module in self.timed if isinstance(module, SparseLinear)]
        return len({id(module) for module in sparse if module.product == "torch"})


def with_zeros(model, density=0.3, seed=0):
    """Zero a random share of the weights of every linear layer."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            dropped = torch.rand(module.weight.shape, generator=generator) >= density
            module.weight.data.masked_fill_(dropped, 0)
    return model.eval()


def converted(model, **settings):
    """Every layer that can be sparse is, whatever this machine's speed."""
    return platon_prune.to_sparse_inference(model, timed=Clock(), **settings)


def in_float64(module, inputs):
    """What a dense linear layer must give, computed in double precision."""
    with torch.no_grad():
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.t()
        output = inputs.double() @ weight.double().t()
        return output if module.bias is None else output + module.bias.double()


def assert_close(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def sparse_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, SparseLinear)]


def two_layers():
    return with_zeros(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_equal_a_dense_layers_for_any_leading_dimensions(shape, bias, contiguous):
    torch.manual_seed(0)
    layer = with_zeros(nn.Linear(8, 6, bias=bias))
    inputs = sample(*shape)
    expected = in_float64(layer, inputs)
    sparse = converted(layer, contiguous_outputs=contiguous)
    assert isinstance(sparse, SparseLinear)
    output = sparse(inputs)
    assert output.shape == (*shape[:-1], 6)
    assert output.is_contiguous() or not contiguous
    assert_close(output, expected)


def test_inputs_that_are_not_contiguous_give_the_same_outputs():
    layer = with_zeros(nn.Linear(8, 6))
    inputs = sample(8, 5, 3).permute(2, 1, 0)
    expected = in_float64(layer, inputs)
    assert_close(converted(layer)(inputs), expected)


def test_conv1d_of_transformers_is_converted_and_equal():
    model = with_zeros(hf_conv1d())
    inputs = sample(2, 3, 4)
    expected = in_float64(model[0], inputs)
    converted(model)
    assert sparse_names(model) == ["0", "2"]
    assert_close(model[0](inputs), expected)


def test_a_weight_of_only_zeros_leaves_the_bias():
    layer = nn.Linear(8, 6)
    nn.init.zeros_(layer.weight)
    output = converted(layer)(sample(3, 8))
    assert torch.equal(output, layer.bias.expand(3, 6))


@pytest.mark.parametrize("name", tiny_transformers.BUILD)
@pytest.mark.parametrize("contiguous", [True, False])
@torch.no_grad()
def test_whole_models_give_the_same_outputs(name, contiguous):
    torch.manual_seed(0)
    model = with_zeros(tiny_transformers.BUILD[name]())
    expected = tiny_transformers.logits(model)
    converted(model, contiguous_outputs=contiguous)
    assert model.sparse_report.num_sparse > 0
    torch.testing.assert_close(tiny_transformers.logits(model), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_inputs_and_biases_and_stop_at_weights():
    layer = with_zeros(nn.Linear(8, 6))
    inputs = sample(2, 3, 8).requires_grad_()
    expected = torch.ones(2, 3, 6) @ layer.weight.detach()
    sparse = converted(layer)
    sparse(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, expected)
    torch.testing.assert_close(sparse.bias.grad, torch.full((6,), 6.0))
    assert not sparse.weight.requires_grad


# --- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparse_ms", "chosen"), [(1.0, "sparse"), (9.0, "sparse"), (9.1, "dense"), (20.0, "dense")]
)
def test_a_layer_is_converted_if_it_saves_a_tenth_of_its_time(sparse_ms, chosen):
    model = two_layers()
    layer = model[0]
    assert platon_prune.to_sparse_inference(model, timed=Clock(sparse_ms)) is model
    assert [row.chosen for row in model.sparse_report] == [chosen, chosen]
    assert (model[0] is layer) == (chosen == "dense")
    assert {(row.dense_ms, row.sparse_ms) for row in model.sparse_report} == {(10.0, sparse_ms)}


def test_a_moment_in_which_the_machine_is_slow_changes_no_choice():
    calls = []

    def slow_at_first(function):
        calls.append(function)
        dense = isinstance(function.func.__self__, nn.Linear)
        return (10.0 if dense else 5.0) + (1000.0 if len(calls) < 40 else 0.0)

    model = nn.Sequential(with_zeros(nn.Linear(8, 6)))
    platon_prune.to_sparse_inference(model, timed=slow_at_first)
    assert sparse_names(model) == ["0"]


def test_functions_take_turns_and_the_first_calls_do_not_count():
    seen = []

    def timed(function):
        seen.append(function())
        return float(len(seen))

    times = interleaved([lambda: "a", lambda: "b"], 3, timed)
    assert seen == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert times == [[3.0, 6.0, 7.0], [4.0, 5.0, 8.0]]


def test_layers_alike_are_measured_once():
    layers = [nn.Linear(64, 64) for _ in range(5)]
    for layer in layers:
        layer.weight.data.view(-1)[400:] = 0
    # One more entry is alike; twice as many, another shape or no bias are not.
    layers[1].weight.data.view(-1)[400] = 1
    layers += [nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(64, 64, bias=False)]
    layers[5].weight.data.view(-1)[800:] = 0
    for layer in layers[6:]:
        layer.weight.data.view(-1)[400:] = 0
    clock = Clock()
    model = platon_prune.to_sparse_inference(nn.ModuleList(layers), timed=clock)
    assert clock.num_measured == 4
    assert model.sparse_report.num_sparse == 8


def test_a_layer_with_most_weights_left_is_not_even_measured():
    clock = Clock()
    model = nn.Sequential(nn.Linear(8, 6))
    platon_prune.to_sparse_inference(model, timed=clock)
    assert type(model[0]) is nn.Linear
    assert clock.timed == []
    assert "not zero" in str(model.sparse_report)


def test_layers_are_measured_with_the_tokens_that_they_will_see():
    seen = set()

    def timed(function):
        seen.add(tuple(function.args[0].shape))
        return 1.0

    platon_prune.to_sparse_inference(two_layers(), num_tokens=24, timed=timed)
    assert seen == {(24, 8), (24, 16)}
    seen.clear()
    platon_prune.to_sparse_inference(two_layers(), timed=timed)
    assert seen == {(128, 8), (128, 16)}


@pytest.mark.parametrize(
    "example",
    [sample(2, 3, 8), (sample(2, 3, 8),), {"input": sample(2, 3, 8)}],
    ids=["tensor", "tuple", "mapping"],
)
def test_example_inputs_tell_the_tokens_of_each_layer(example):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.idle = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 8)

        def forward(self, input):
            return self.head(self.body(input).mean(1))

    model = converted(with_zeros(Pooled()), example_inputs=example)
    assert {row.name: row.num_tokens for row in model.sparse_report} == {
        "body": 6,
        "head": 2,
        "idle": 0,
    }
    assert sparse_names(model) == ["body", "head"]
    assert "do not reach" in str(model.sparse_report)


def test_the_users_random_numbers_stay_the_same():
    model = two_layers()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    converted(model)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_clock_layers_are_timed_on_this_machine():
    model = platon_prune.to_sparse_inference(two_layers(), num_tokens=2)
    assert all(row.dense_ms > 0 and row.sparse_ms > 0 for row in model.sparse_report)


def test_the_report_prints_a_line_a_layer_and_what_was_left():
    model = nn.Sequential(with_zeros(nn.Linear(8, 16)), nn.Linear(16, 8))
    model[0].weight.data.fill_(0).view(-1)[:32] = 1  # a quarter of 128
    lines = str(converted(model).sparse_report).splitlines()
    columns = ["layer", "shape", "density", "tokens", "dense ms", "torch ms", "llvm ms", "chosen"]
    assert lines[0].split() == " ".join(columns).split()
    assert lines[1].split() == ["0", "16x8", "25.00%", "128", "10.000", "1.000", "-", "sparse"]
    assert lines[2].split() == ["1", "8x16", "100.00%", "128", "-", "-", "-", "dense"]
    assert lines[3] == "1 of 2 linear layers are sparse now"
    assert lines[4] == "left dense: 1 with more than 50% of the entries not zero"


def test_a_model_without_linear_layers_is_returned_as_it_is():
    model = nn.Sequential(nn.Conv1d(2, 2, 1))
    assert converted(model) is model
    assert "0 of 0 linear layers" in str(model.sparse_report)


# --- what stays dense ---------------------------------------------------------------------------


def test_a_weight_tied_to_an_embedding_stays_dense_and_tied():
    model = with_zeros(tiny_transformers.llama(tied=True))
    converted(model)
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "another module shares" in str(model.sparse_report)


def test_two_layers_that_share_a_weight_stay_dense():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert sparse_names(converted(with_zeros(model))) == []


def test_a_layer_held_in_two_places_is_converted_in_both():
    layer = with_zeros(nn.Linear(8, 8))
    model = converted(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}))
    assert isinstance(model["a"], SparseLinear)
    assert model["a"] is model["b"][0]
    assert len(model.sparse_report) == 1


def test_attention_and_encoder_layers_of_torch_keep_the_weights_that_they_read():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = with_zeros(nn.ModuleDict({"encoder": layer, "head": nn.Linear(8, 2)}))
    inputs = sample(2, 5, 8)
    with torch.no_grad():
        expected = model["encoder"](inputs)
        converted(model)
        assert torch.equal(model["encoder"](inputs), expected)
    assert sparse_names(model) == ["head"]


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def with_own_forward():
    layer = nn.Linear(8, 8)
    layer.forward = lambda input: input
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: nn.Linear(8, 8).double(), "in float64"),
        (lambda: nn.Linear(8, 8).half(), "in float16"),
        (lambda: Doubled(8, 8), "of the subclass Doubled"),
        (lambda: nn.Linear(8, 8, device="meta"), "on meta"),
        (lambda: nn.LazyLinear(8), "of the subclass LazyLinear"),
        (lambda: nn.Linear(0, 8), "without entries"),
        (with_own_forward, "with a forward of its own"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "of the subclass"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_has_no_sparse_form_stays_dense_and_the_report_says_why(layer, reason):
    model = nn.ModuleList([layer(), with_zeros(nn.Linear(8, 8))])
    kept = model[0]
    converted(model)
    assert model[0] is kept
    assert sparse_names(model) == ["1"]
    assert reason in str(model.sparse_report)


# --- a good citizen -----------------------------------------------------------------------------


def test_the_dense_weight_is_freed():
    model = two_layers()
    weights = [weakref.ref(model[i].weight) for i in (0, 2)]
    converted(model)
    gc.collect()
    assert [weight() for weight in weights] == [None, None]


def test_the_sparse_form_takes_eight_bytes_a_weight_that_is_left():
    layer = nn.Linear(64, 32)
    layer.weight.data.view(-1)[200:] = 0
    buffers = dict(converted(layer).named_buffers())
    assert sum(buffer.nbytes for buffer in buffers.values()) == 200 * (4 + 4) + 33 * 4


def test_mode_hooks_and_handles_move_to_the_sparse_layer():
    model = two_layers()
    seen = []
    before = model[0].register_forward_pre_hook(lambda module, args: seen.append("before"))
    model[0].register_forward_hook(lambda module, args, output: seen.append("after"))
    converted(model)
    assert not model[0].training
    model(sample(1, 8))
    before.remove()
    model(sample(1, 8))
    assert seen == ["before", "after", "after"]


def test_copies_and_pickles_give_the_same_outputs_and_keep_the_report():
    model = converted(two_layers())
    expected = model(sample(3, 8))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(twin(sample(3, 8)), expected)
        assert str(twin.sparse_report) == str(model.sparse_report)


def test_a_state_dict_loads_into_a_model_converted_from_the_same_weights():
    model = converted(two_layers())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = two_layers()
    other[0].weight.data.mul_(2)
    other = converted(other)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(sample(3, 8)), model(sample(3, 8)))


def test_the_weight_can_be_read_as_csr():
    layer = with_zeros(nn.Linear(8, 6))
    weight = layer.weight.detach().clone()
    sparse = converted(layer)
    assert sparse.weight.layout == torch.sparse_csr
    assert torch.equal(sparse.weight.to_dense(), weight)
    assert "in_features=8, out_features=6, bias=True, density=" in repr(sparse)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad], ids=["no_grad", "grad"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_compiled_model_is_one_graph_with_equal_outputs_and_gradients(bias, mode):
    torch._dynamo.reset()
    layer = with_zeros(nn.Linear(8, 6, bias=bias))
    inputs = sample(2, 3, 8).requires_grad_()
    expected = in_float64(layer, inputs)
    slopes = torch.ones(2, 3, 6) @ layer.weight.detach()
    compiled = torch.compile(converted(layer), fullgraph=True, backend="aot_eager")
    with mode():
        output = compiled(inputs)
    assert_close(output.detach(), expected)
    if output.requires_grad:
        output.sum().backward()
        torch.testing.assert_close(inputs.grad, slopes)
    torch._dynamo.reset()


@torch.no_grad()
def test_a_compiled_graph_may_read_the_weight():
    torch._dynamo.reset()
    layer = with_zeros(nn.Linear(8, 6))
    weight = layer.weight.detach().clone()
    sparse = converted(layer)
    read = torch.compile(lambda: sparse.weight * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(read(), weight * 2)
    torch._dynamo.reset()


@torch.no_grad()
def test_a_compiled_t5_which_asks_weights_for_their_type_is_one_graph():
    torch._dynamo.reset()
    model = with_zeros(tiny_transformers.t5())
    tokens = {"input_ids": torch.ones(1, 4).long(), "decoder_input_ids": torch.ones(1, 4).long()}
    expected = model(**tokens).logits
    compiled = torch.compile(converted(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**tokens, use_cache=False).logits, expected)
    torch._dynamo.reset()


def test_the_operations_of_compiled_graphs_keep_torchs_rules():
    sparse = SparseLinear(with_zeros(nn.Linear(8, 6)).weight)
    parts = (sparse.weight_crow_indices, sparse.weight_col_indices, sparse.weight_values, 8)
    for name, rows in (("csr_matmul", 8), ("csr_matmul_transposed", 6)):
        operation = getattr(torch.ops.platon_prune, name).default
        torch.library.opcheck(operation, (*parts, sample(rows, 3)))


# --- what is refused ----------------------------------------------------------------------------


def test_a_model_that_carries_masks_is_refused_untouched():
    model = nn.Sequential(nn.Linear(8, 6))
    platon_prune.global_unstructured(
        model, amount=0.9, total_steps=20, warmup_steps=0, cooldown_steps=0
    )
    with pytest.raises(ValueError, match=r"platon_prune\.remove\(model\)"):
        converted(model)
    converted(with_zeros(platon_prune.remove(model)))
    assert sparse_names(model) == ["0"]


def test_masks_of_torchs_own_methods_are_refused_too():
    model = nn.Sequential(nn.Linear(8, 6))
    prune.l1_unstructured(model[0], "weight", amount=0.9)
    with pytest.raises(ValueError, match="must not carry masks"):
        converted(model)


def test_a_model_that_is_sparse_already_is_refused():
    model = converted(two_layers())
    with pytest.raises(ValueError, match="converted already"):
        converted(model)


def test_a_model_on_another_device_is_refused():
    with pytest.raises(ValueError, match=r"must be on the CPU, got one on meta"):
        converted(nn.Sequential(nn.Linear(8, 6, device="meta")))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_tokens": 0}, ValueError, "num_tokens must be at least 1, got 0"),
        ({"num_tokens": 2.0}, TypeError, "num_tokens must be a whole number, got 2.0"),
        ({"num_tokens": True}, TypeError, "num_tokens must be a whole number, got True"),
        ({"num_tokens": 3, "example_inputs": sample(1, 8)}, ValueError, "got both"),
    ],
)
def test_a_setting_out_of_range_is_refused_untouched(settings, error, message):
    model = two_layers()
    with pytest.raises(error, match=message):
        converted(model, **settings)
    assert sparse_names(model) == []


def test_example_inputs_need_evaluation_mode():
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        converted(two_layers().train(), example_inputs=sample(1, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_inputs_of_another_type_are_refused(dtype):
    with pytest.raises(TypeError, match=f"must have float32 inputs and weights, got {dtype}"):
        converted(two_layers())(torch.ones(2, 8, dtype=dtype))


def test_a_call_under_autocast_is_refused():
    model = converted(two_layers())
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="autocast"):
        model(sample(2, 8))


def test_inputs_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"must have 8 entries .* got shape \(4, 2\)"):
        converted(two_layers())(sample(4, 2))
