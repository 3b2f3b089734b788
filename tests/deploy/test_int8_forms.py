"""Forms with int8 weights: each rounds as its maker says, zeros stay, and reasons are told."""

import sys

import pytest
import tiny_transformers
import torch
from tiny import sample
from torch import nn

import platon_prune
from platon_prune.deploy import forms, rounded_forms
from platon_prune.deploy.forms import FORMS, int8_forms
from platon_prune.runtimes import int8

TORCHAO = "torchao is not installed: platon-prune[test]"
INT8 = ("int8 weights", "int8", "ONNX Runtime int8", "OpenVINO int8")


def two_layers(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[torch.rand(layer.weight.shape) < 0.5] = 0
    return model.eval()


def half_empty():
    model = two_layers()
    with torch.no_grad():
        model[0].weight[48:] = model[0].bias[48:] = 0
        model[2].weight[:, 48:] = 0
    return model


def quick(model, wanted, inputs=None, **settings):
    inputs = sample(16, 64) if inputs is None else inputs
    settings = {"rounds": 1, "memory": False, "forms": wanted} | settings
    return platon_prune.deploy_report(model, inputs, **settings)


def require(name):
    needed = {"ONNX Runtime": ("onnxruntime", "onnxscript")}
    needed["OpenVINO"] = ("openvino", "nncf", "onnxscript")
    packages = next((p for runtime, p in needed.items() if runtime in name), ("torchao",))
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")


# --- what int8 does, by hand ----------------------------------------------------------------------


def rounded_weight(weight, levels):
    """Each row over its largest entry: whole numbers from -levels to levels, 0 where 0 was."""
    scale = weight.abs().amax(1, keepdim=True) / levels
    return (weight / scale).round().clamp(-128, 127) * scale


def rounded_rows(inputs, levels=127.5):
    """Each row of activations likewise, as torchao has it."""
    return rounded_weight(inputs, levels)


def rounded_asymmetric(inputs):
    """All activations together to 0 to 255, with a zero point, as ONNX Runtime has it."""
    low, high = inputs.min().clamp(max=0), inputs.max().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round()
    return ((inputs / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def by_hand(model, inputs, levels, activation):
    for layer in (model[0], model[2]):
        inputs = activation(inputs) @ rounded_weight(layer.weight, levels).T + layer.bias
        inputs = inputs.relu() if layer is model[0] else inputs
    return inputs.detach()


# The largest entry of a row is 127 by most, and 127.5 by torchao, which uses -128 too.
BY_HAND = {
    "int8 weights": (127.5, lambda inputs: inputs),
    "int8": (127.5, rounded_rows),
    "ONNX Runtime int8": (127, rounded_asymmetric),
    # Rounded by OpenVINO in groups that depend on the CPU, or not at all.
    "OpenVINO int8": (127, lambda inputs: inputs),
}


@pytest.mark.parametrize("name", INT8)
def test_a_form_computes_with_weights_rounded_by_hand(name):
    require(name)
    model, inputs = two_layers(), sample(16, 64)
    outputs = {}

    def kept(form):
        outputs[form] = form(inputs)
        return 0.0

    row = quick(model, [name], evaluate=kept).row(name)
    assert row.reason is None
    _, found = outputs.values()
    expected = by_hand(model, inputs, *BY_HAND[name])
    exact = model(inputs).detach()
    rounding = float((expected - exact).norm())
    # One that was not rounded at all would be off by nothing.
    assert rounding > 2e-3 * float(exact.norm())
    # A number just at a half may fall to its other side, a step away; OpenVINO rounds more.
    allowed = 2 if name == "OpenVINO int8" else 0.3
    assert float((found - expected).norm()) < allowed * rounding
    assert row.difference == pytest.approx(float((found - exact).abs().max()), rel=1e-3, abs=1e-6)


def test_what_torchao_rounds_keeps_every_zero_and_no_layer_that_it_does_not_know_is_counted():
    pytest.importorskip("torchao", reason=TORCHAO)
    model = two_layers()
    model.append(nn.Bilinear(8, 8, 2))
    zeros = [layer.weight == 0 for layer in (model[0], model[2])]
    assert int8.quantize_(model, activations=True) == 2
    for layer, was_zero in zip((model[0], model[2]), zeros, strict=True):
        assert was_zero.any() and bool((layer.weight.dequantize()[was_zero] == 0).all())


def test_the_files_of_both_runtimes_keep_every_zero(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from onnx import numpy_helper

    from platon_prune.runtimes.onnx_file import write_onnx

    model = two_layers()
    write_onnx(model, [sample(3, 64), sample(2, 64)], tmp_path / "model.onnx")
    int8.write_int8_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    stored = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer]
    for layer in (model[0], model[2]):
        shape = tuple(layer.weight.T.shape)
        (found,) = (each for each in stored if each.shape == shape)
        assert found.dtype == "int8"
        assert bool((torch.tensor(found)[layer.weight.T == 0] == 0).all())
    # What is subtracted from a rounded weight is nothing.
    points = [each for each in stored if each.dtype == "int8" and each.ndim == 1]
    assert points and not any(each.any() for each in points)

    pytest.importorskip("nncf", reason="nncf is not installed: platon-prune[int8]")
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    int8.write_int8_openvino(tmp_path / "model.onnx", tmp_path / "int8.xml")
    nodes = openvino.Core().read_model(tmp_path / "int8.xml").get_ops()
    constants = [n.data for n in nodes if n.get_type_name() == "Constant"]
    for layer in (model[0], model[2]):
        (found,) = (
            each for each in constants if each.dtype == "int8" and each.size == layer.weight.numel()
        )
        found = torch.tensor(found.reshape(layer.weight.shape))
        assert bool((found[layer.weight == 0] == 0).all())


def test_nncf_sends_no_word_of_its_use_and_leaves_the_environment_as_it_was(monkeypatch):
    seen = []

    def loading(name):
        import os

        seen.append((name, os.environ.get("NNCF_CI")))

    monkeypatch.setattr(int8.importlib, "import_module", loading)
    monkeypatch.delenv("NNCF_CI", raising=False)
    int8.import_nncf()
    assert seen == [("nncf", "1")] and "NNCF_CI" not in int8.os.environ
    monkeypatch.setenv("NNCF_CI", "mine")
    int8.import_nncf()
    assert int8.os.environ["NNCF_CI"] == "mine"


# --- which forms there are ------------------------------------------------------------------------


def test_int8_adds_the_same_forms_of_the_model_the_shrunk_and_the_unpruned_one():
    runs = (
        "bfloat16", "int8 weights", "int8", "compiled int8", "ONNX Runtime", "ONNX Runtime int8",
        "OpenVINO", "OpenVINO int8",
    )  # fmt: skip
    expected = [f"{of}{name}" for of in ("", "shrunk ", "unpruned ") for name in runs]
    assert int8_forms(with_unpruned=True) == tuple(expected)
    assert int8_forms(with_unpruned=False) == tuple(expected[:16])
    assert set(expected) <= FORMS.keys()


def test_each_weights_are_compared_with_their_own_float32_and_shrunk_with_dense():
    pytest.importorskip("torchao", reason=TORCHAO)
    wanted = ["int8 weights", "shrunk int8 weights", "unpruned int8 weights"]
    model, unpruned, inputs = half_empty(), two_layers(1), sample(16, 64)
    report = quick(model, wanted, inputs, unpruned=unpruned)
    assert [(row.name, row.compared_with) for row in report] == [
        ("dense", "dense"), ("shrunk", "dense"), ("int8 weights", "dense"),
        ("shrunk int8 weights", "shrunk"), ("unpruned", "unpruned"),
        ("unpruned int8 weights", "unpruned"),
    ]  # fmt: skip
    assert report.row("unpruned").difference == 0 and report.row("shrunk").difference < 1e-6
    # Of the unpruned one by hand; from the pruned one its outputs are far away.
    expected = by_hand(unpruned, inputs, *BY_HAND["int8 weights"])
    rounding = float((expected - unpruned(inputs).detach()).abs().max())
    assert report.row("unpruned int8 weights").difference == pytest.approx(rounding, rel=0.3)
    assert report.row("shrunk int8 weights").num_weights == 48 * (64 + 8)
    assert report.row("int8 weights").num_weights == 96 * (64 + 8)


def test_neither_int8_nor_the_unpruned_model_is_advised_however_fast():
    pytest.importorskip("torchao", reason=TORCHAO)
    ticks = iter(range(10**6, 0, -1))
    # Each call takes less time than the one before: the last form is the fastest by far.
    report = quick(
        half_empty(), ["int8 weights", "unpruned"], unpruned=two_layers(1),
        timed=lambda call: (call(), 1.01 ** -(10**6 - next(ticks)))[1], rounds=5,
    )  # fmt: skip
    first, *others = report.recommendation
    assert "int8" not in first and "unpruned" not in first
    assert any(line.startswith("Forms with int8 are other models") for line in others)
    assert not any("not the same model" in line for line in others)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_memory_of_int8_and_of_half_precision_is_that_of_a_process_of_its_own(monkeypatch):
    pytest.importorskip("torchao", reason=TORCHAO)
    monkeypatch.setattr(rounded_forms, "has_bfloat16", lambda: True)
    wanted = ["bfloat16", "int8 weights"]
    report = quick(nn.Linear(1024, 2048), wanted, sample(1, 1024), memory=True)
    for name, num_bytes in (("bfloat16", 2), ("int8 weights", 1)):
        assert report.row(name).peak_bytes >= num_bytes * 1024 * 2048
        assert "not measured" not in report.row(name).note


# --- reasons ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "name"),
    [("torchao", "int8"), ("nncf", "OpenVINO int8"), ("onnxruntime", "ONNX Runtime int8"),
     ("torchao", "shrunk int8 weights")],
)  # fmt: skip
def test_a_package_that_is_missing_is_the_reason_with_what_to_install(monkeypatch, package, name):
    if "OpenVINO" in name:
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    row = quick(half_empty(), [name, "masked"]).row(name)
    assert row.reason == f"the package {package} is not installed: pip install {package}"


def test_bfloat16_on_a_cpu_without_its_instructions_says_so(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    row = quick(two_layers(), ["bfloat16"]).row("bfloat16")
    assert row.reason.startswith("this CPU has no instructions for bfloat16") and not row.times


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True),
     ({"avx512_f": True, "avx512_bf16": False}, False), ({}, False)],
)  # fmt: skip
def test_the_instructions_for_bfloat16_are_those_that_torch_finds(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert int8.has_bfloat16() is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"architecture": "x86_64", "avx2": True}, False), ({"architecture": "aarch64"}, True),
     ({"architecture": "x86_64", "avx512_vnni": True}, True),
     ({"architecture": "x86_64", "avx_vnni": True}, True)],
)  # fmt: skip
def test_weights_have_7_bits_where_the_cpu_would_cut_sums(monkeypatch, tmp_path, found, expected):
    quantization = pytest.importorskip("onnxruntime.quantization", reason="no onnxruntime")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    given = {}
    monkeypatch.setattr(quantization, "quantize_dynamic", lambda *a, **s: given.update(s))
    with pytest.raises(FileNotFoundError):  # nothing is written
        int8.write_int8_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert given["reduce_range"] is not expected


def test_a_model_that_is_not_in_float32_or_without_a_linear_layer_is_a_reason():
    pytest.importorskip("torchao", reason=TORCHAO)
    row = quick(two_layers().bfloat16(), ["int8"], sample(2, 64).bfloat16()).row("int8")
    assert row.reason == "it is made of float32 weights, and the model is in bfloat16"
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3))
    row = quick(convolution, ["int8", "compiled int8"], sample(1, 3, 8, 8)).row("compiled int8")
    assert row.reason.startswith("the model has no nn.Linear")


@pytest.mark.parametrize(
    ("name", "by"), [("ONNX Runtime int8", "ONNX Runtime"), ("OpenVINO int8", "NNCF")]
)
def test_a_model_of_which_nothing_is_rounded_is_no_int8(name, by):
    require(name)
    row = quick(nn.Sequential(nn.LayerNorm(64), nn.GELU()), [name]).row(name)
    assert row.reason == f"the model has no weight that {by} rounds to int8"


def test_what_can_not_be_shrunk_is_told_once_for_all_of_its_forms(monkeypatch):
    tried = []

    def refuse(model, **settings):
        tried.append(model)
        raise ValueError("there is nothing to cut")

    monkeypatch.setattr(forms, "shrink", refuse)
    report = quick(two_layers(), ["shrunk", "shrunk bfloat16", "shrunk OpenVINO"])
    assert len(tried) == 1
    said = "- shrunk, shrunk bfloat16, shrunk OpenVINO: there is nothing to cut"
    assert said in str(report).splitlines()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"int8": "yes"}, TypeError, "int8 must be a bool"),
        ({"unpruned": "folder"}, TypeError, "unpruned must be an nn.Module, got str"),
        ({"forms": ["unpruned int8"]}, ValueError, "unpruned must be given for the form"),
        ({"unpruned": nn.Linear(64, 8, device="meta")}, ValueError, "on cpu, got one on meta"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_a_setting_that_can_not_be_used_is_refused_before_any_work(
    monkeypatch, settings, error, said
):
    monkeypatch.setattr(platon_prune.deploy.measure, "make_examples", pytest.fail)
    with pytest.raises(error, match=said):
        platon_prune.deploy_report(two_layers(), sample(2, 64), **settings)


def test_the_model_itself_is_not_the_unpruned_one():
    model = two_layers()
    with pytest.raises(ValueError, match="got the model itself"):
        quick(model, ["masked"], unpruned=model)


def test_the_unpruned_model_stays_as_it_is_and_in_its_mode():
    pytest.importorskip("torchao", reason=TORCHAO)
    unpruned = two_layers(1).train()
    before = {name: tensor.clone() for name, tensor in unpruned.state_dict().items()}
    quick(two_layers(), ["unpruned int8"], unpruned=unpruned)
    assert unpruned.training
    assert all(torch.equal(before[name], t) for name, t in unpruned.state_dict().items())


def test_a_compiled_int8_model_is_that_of_int8_and_its_metric_is_taken_uncompiled(monkeypatch):
    pytest.importorskip("torchao", reason=TORCHAO)
    called = []

    def compiling(model, **settings):
        assert settings == {"dynamic": False}

        def run(*args, **kwargs):
            called.append(model)
            return model(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compiling)
    report = quick(
        two_layers(),
        ["int8", "compiled int8"],
        evaluate=lambda form: float(form(sample(9, 64)).sum()),
    )
    plain, row = report.row("int8"), report.row("compiled int8")
    assert (row.metric, row.difference, row.file_bytes) == (
        plain.metric, plain.difference, plain.file_bytes
    )  # fmt: skip
    # Compiled at its size, run for the comparison, warmed up twice and timed once.
    assert len(called) == 5


@pytest.mark.case
def test_a_text_model_of_one_length_is_evaluated_at_any_other_in_batches_of_any_size():
    require("ONNX Runtime")
    model = tiny_transformers.bert().eval()
    tokens = torch.randint(1, 16, (5, 7), generator=torch.Generator().manual_seed(0))

    def logit(form):
        out = form(input_ids=tokens, attention_mask=None, token_type_ids=torch.zeros_like(tokens))
        return float(out.logits[4, 1])

    report = platon_prune.deploy_report(
        model, num_tokens=(6,), forms=["ONNX Runtime", "ONNX Runtime int8"], rounds=1,
        memory=False, evaluate=logit,
    )  # fmt: skip
    expected = float(model(input_ids=tokens).logits.detach()[4, 1])
    assert report.row("dense").metric == pytest.approx(expected, abs=1e-6)
    assert report.row("ONNX Runtime").metric == pytest.approx(expected, abs=1e-4)
    assert report.row("ONNX Runtime int8").metric == pytest.approx(expected, abs=0.1)
