"""`deploy_report`: what can run is measured, what can't says why, and the right form is advised."""

from __future__ import annotations

import copy
import json
import platform
import re
import sys
import tempfile

import pytest
import tiny_transformers
import torch
from tiny import sample
from torch import nn
from torch.nn.utils import prune

import platon_prune
from platon_prune.deploy import forms, measure
from platon_prune.deploy.inputs import make_examples
from platon_prune.deploy.report import DeployReport
from platon_prune.deploy.rows import FileSize, FormRow, Times

TEN = Times(10.0, 9.0, 12.0)


def two_layers(kept=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    for layer in (model[0], model[2]):
        layer.weight.data.masked_fill_(torch.rand(layer.weight.shape) >= kept, 0)
    return model


def quick(model, inputs=None, **settings):
    inputs = sample(2, 64) if inputs is None else inputs
    return platon_prune.deploy_report(
        model, inputs, **{"rounds": 2, "memory": False, "forms": ["masked"]} | settings
    )


# --- what is measured ---------------------------------------------------------------------------


def test_the_model_with_its_masks_and_the_finalized_one_are_equal_and_the_model_stays():
    model = two_layers()
    platon_prune.global_unstructured(
        model, amount=0.5, total_steps=10, warmup_steps=0, cooldown_steps=0
    )
    model[0].weight_mask[:, ::2] = False
    platon_prune.apply_masks(model)
    model[2].eval()
    keys, modes = list(model.state_dict()), [module.training for module in model.modules()]
    report = quick(model)
    assert [row.name for row in report] == ["dense", "masked"]
    assert report.row("masked").difference == 0
    assert set(report.row("masked").times) == {"2x64"} == set(report.sizes)
    assert list(model.state_dict()) == keys
    assert [module.training for module in model.modules()] == modes
    # Of 2 * 64 * 256 entries a quarter is masked.
    assert report.model["sparsity"] == 0.25


def test_masks_of_torchs_own_methods_are_masks_too():
    model = two_layers()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    report = quick(model)
    assert report.row("masked").difference == 0
    assert report.model["sparsity"] == 0.25
    assert prune.is_pruned(model)


def test_a_model_without_masks_has_no_masked_form():
    row = quick(two_layers()).row("masked")
    assert row.reason == "the model carries no masks"
    assert not row.times


def test_linear_layers_become_csr_where_that_pays_and_the_sparse_file_is_counted(monkeypatch):
    model = two_layers(kept=0.1)
    expected = copy.deepcopy(model)

    def converted(copied, inputs):
        clock = lambda function: 1.0 if "Sparse" in str(function.func) else 10.0  # noqa: E731
        return platon_prune.to_sparse_inference(copied, inputs, timed=clock)

    monkeypatch.setattr(forms, "to_sparse_inference", converted)
    report = quick(model, forms=["csr"])
    row = report.row("CSR")
    assert row.note.startswith("2 of 2 linear layers are CSR")
    assert row.difference < 1e-5
    assert row.file_bytes == next(f.num_bytes for f in report.files if f.name == "sparse")
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


def test_a_form_that_no_layer_gains_from_says_so():
    row = quick(two_layers(kept=1.0), forms=["CSR"]).row("CSR")
    assert "no linear layer is faster as CSR" in row.reason
    assert "2 with more than 50% of the entries not zero" in row.reason


def test_the_shrunk_model_has_fewer_weights_and_the_same_outputs():
    model = two_layers()
    model[0].weight.data[128:] = model[0].bias.data[128:] = 0
    model[2].weight.data[:, 128:] = 0
    report = quick(model, forms=["shrunk"])
    assert report.row("shrunk").num_weights * 2 == report.row("dense").num_weights == 2 * 64 * 256
    assert report.row("shrunk").difference < 1e-5
    assert model[0].out_features == 256


@pytest.mark.parametrize(("form", "name"), [("shrunk", "shrink"), ("2:4", "to_semi_structured")])
def test_what_a_function_refuses_is_the_reason_and_other_forms_go_on(monkeypatch, form, name):
    def refuse(*arguments, **settings):
        raise ValueError("there is nothing to do\nand more lines")

    monkeypatch.setattr(forms, name, refuse, raising=False)
    model = two_layers()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    report = quick(model, forms=[form, "masked"])
    assert report.row(form).reason == "there is nothing to do"
    assert report.row("masked").reason is None
    assert f"- {form}: there is nothing to do" in str(report)


def test_a_package_that_is_not_installed_is_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    row = quick(two_layers(), forms=["ONNX Runtime"]).row("ONNX Runtime")
    said = "the package onnxscript is not installed: pip install onnxscript"
    assert row.reason == said


def test_onnx_runtime_and_openvino_run_every_size():
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    report = platon_prune.deploy_report(
        two_layers(),
        lambda num_tokens: sample(num_tokens, 64),
        num_tokens=(3, 5),
        forms=["ONNX Runtime", "OpenVINO"],
        rounds=1,
        memory=False,
    )
    for name in ("ONNX Runtime", "OpenVINO"):
        assert set(report.row(name).times) == {"3 tokens", "5 tokens"}
        assert report.row(name).difference < 1e-5
        # Two matrices and two biases in float32.
        assert report.row(name).file_bytes > 4 * (2 * 64 * 256 + 256 + 64)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_memory_is_that_of_a_process_that_loads_and_runs_the_form():
    model = nn.Linear(2048, 2048)
    report = quick(model, sample(1, 2048), memory=True)
    num_bytes = model.weight.nbytes
    assert num_bytes <= report.row("dense").peak_bytes < 5 * num_bytes


def test_a_class_that_no_other_process_can_import_is_measured_but_for_its_memory():
    class Local(nn.Linear):
        pass

    row = quick(Local(4, 4), sample(1, 4), memory=True).row("dense")
    assert row.times
    assert row.peak_bytes is None
    assert "memory not measured" in row.note


def test_outputs_that_differ_in_shape_differ_infinitely(monkeypatch):
    monkeypatch.setattr(forms, "shrink", lambda m, **s: m.append(nn.Linear(64, 3)), False)
    report = quick(two_layers(), forms=["shrunk"])
    assert report.row("shrunk").difference == float("inf")
    assert any("shrunk is not the same model" in line for line in report.recommendation)


def test_neither_the_name_of_the_machine_nor_a_path_is_in_the_json():
    text = json.dumps(quick(two_layers()).to_json())
    assert platform.node() not in text
    assert tempfile.gettempdir() not in text
    assert sys.prefix not in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"forms": ["CSR", "fast"]}, "got fast"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"seconds": 0}, "seconds must be above 0"),
        ({"num_tokens": (8,)}, "num_tokens must be left out"),
        ({"num_tokens": (0,)}, "num_tokens must be whole numbers"),
        ({"batch_size": 1.5}, "batch_size must be whole numbers"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings, said):
    with pytest.raises(ValueError, match=said):
        quick(two_layers(), **settings)


def test_one_name_instead_of_a_list_is_refused():
    with pytest.raises(TypeError, match="'CSR'"):
        quick(two_layers(), forms="CSR")


# --- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "T5", "Llama"])
def test_text_models_get_tokens_of_each_length(name):
    model = tiny_transformers.BUILD[name]()
    examples = make_examples(model, None, (3, 7), 2)
    assert [example.label for example in examples] == ["2 x 3 tokens", "2 x 7 tokens"]
    for example, length in zip(examples, (3, 7), strict=True):
        ids = example.inputs["input_ids"]
        assert ids.shape == (2, length)
        assert int(ids.max()) < 16
        assert model.config.pad_token_id not in ids.flatten().tolist()
        model(**example.inputs)


def test_image_models_get_images():
    model = tiny_transformers.vit()
    (example,) = make_examples(model, None, None, 3)
    assert example.label == "3 images"
    assert example.inputs["pixel_values"].shape == (3, 3, 8, 8)
    with pytest.raises(ValueError, match="left out for a model of images"):
        make_examples(model, None, (8,), 1)


def test_a_sequence_that_is_too_long_and_a_model_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="at most 16"):
        make_examples(tiny_transformers.bert(), None, (8, 17), 1)
    with pytest.raises(ValueError, match="example_inputs must be given"):
        make_examples(two_layers(), None, None, 1)


def test_a_decoder_does_not_return_its_cache_and_keeps_its_setting():
    model = tiny_transformers.gpt2()
    report = platon_prune.deploy_report(
        model, num_tokens=(4,), forms=["masked"], rounds=1, memory=False
    )
    assert report.row("dense").difference == 0
    assert model.config.use_cache is True


# --- the advice ---------------------------------------------------------------------------------


ONE_FILE = (FileSize("dense", 100, 80),)


def report_of(*rows, files=ONE_FILE, sizes=("8 tokens",)):
    facts = {"class": "Net", "parameters": 10, "sparsity": 0.9}
    machine = {"device": "CPU", "threads": 2}
    return DeployReport(rows, files, sizes, 1e-3, facts, machine, {})


def row(name, median, low=None, difference=0.0, size="8 tokens"):
    times = {size: Times(median, median if low is None else low, 2 * median)}
    return FormRow(name, None, 100, 80, times, 1000, difference)


def test_the_fastest_form_is_advised_with_its_ratio():
    report = report_of(row("dense", 10.0), row("CSR", 5.0), row("shrunk", 4.0))
    assert report.recommendation[0].startswith("Use shrunk: 2.50 times as fast as dense")
    assert report.speed("CSR", "8 tokens") == 2.0


def test_a_gain_that_may_be_noise_is_none():
    by_median = report_of(row("dense", 10.0), row("CSR", 9.5))
    # Half the time in the median, but the shortest times are alike: the machine was busy.
    by_shortest = report_of(row("dense", 10.0, low=5.0), row("CSR", 5.0, low=5.0))
    for report in (by_median, by_shortest):
        assert report.recommendation[0].startswith("Use dense")


def test_a_form_with_other_outputs_is_not_advised():
    report = report_of(row("dense", 10.0), row("2:4", 1.0, difference=0.5))
    assert report.recommendation[0].startswith("Use dense")
    assert "2:4 is not the same model: its outputs differ by 0.5." in report.recommendation


def test_another_runtime_is_advised_beside_the_best_form_within_torch():
    report = report_of(row("dense", 10.0), row("CSR", 5.0), row("OpenVINO", 2.0))
    first, second = report.recommendation
    assert first.startswith("Use OpenVINO: 5.00 times")
    assert second.startswith("Without leaving PyTorch: use CSR: 2.00 times")


def test_each_size_gets_its_form():
    sizes = ("8 tokens", "64 tokens")
    dense = FormRow("dense", None, 100, 80, dict.fromkeys(sizes, TEN), 1000, 0.0)
    fast = {"8 tokens": Times(5.0, 4.5, 6.0), "64 tokens": Times(20.0, 18.0, 24.0)}
    report = report_of(dense, FormRow("CSR", None, 90, 80, fast, 900, 0.0), sizes=sizes)
    expected = "Use CSR at 8 tokens (2.00 times as fast as dense); dense at 64 tokens."
    assert report.recommendation[0] == expected


def test_the_smallest_file_and_a_busy_machine_are_told():
    files = (FileSize("dense", 100, 80), FileSize("sparse", 40, 11))
    report = report_of(row("dense", 10.0, low=2.0), files=files)
    assert "Smallest file: sparse, 0.400 of the dense one." in report.recommendation
    assert "5.0 times its shortest time" in report.recommendation[-1]


def test_the_page_has_a_row_for_each_form_and_file():
    files = (FileSize("dense", 100, 80), FileSize("sparse", 40, 11))
    missing = FormRow("masked", "the model carries no masks")
    page = report_of(row("dense", 10.0), row("CSR", 4.0), missing, files=files).to_markdown()
    assert "| CSR | 0.0001 MB | 0.001 MB | 0.0e+00 | 4 (4 to 8) 2.50x |" in page
    assert "| sparse | 4e-05 MB | 0.400 | 0.138 |" in page  # 11 / 80
    assert "- masked: the model carries no masks" in page


def test_the_largest_difference_over_all_outputs_counts():
    outputs = {"a": [torch.zeros(2), torch.tensor([1.0, 5.0])]}
    expected = {"a": [torch.zeros(2), torch.tensor([1.5, 3.0])]}
    assert measure._difference(outputs, expected) == 2.0


def noisy(name, median, spread):
    times = {"8 tokens": Times(median, median - spread, median + spread, spread)}
    return FormRow(name, None, 100, 80, times, 1000, 0.0)


def test_a_difference_within_the_spread_of_the_times_is_no_advice_but_a_busy_machine():
    report = report_of(noisy("dense", 10.0, 4.0), noisy("CSR", 7.0, 1.0))
    first = report.recommendation[0]
    assert first.startswith("Machine busy, figures not comparable: at 8 tokens")
    assert "spread over 4 ms" in first and "dense and CSR differ by 3 ms" in first
    assert not any(sentence.startswith("Use") for sentence in report.recommendation)


def test_a_spread_below_the_difference_or_too_small_to_matter_leaves_the_advice():
    clear = report_of(noisy("dense", 10.0, 2.0), noisy("CSR", 5.0, 1.0))
    assert clear.recommendation[0].startswith("Use CSR: 2.00 times")
    # A tenth of dense is what would be worthwhile: half of that is enough to say that none is.
    alike = report_of(noisy("dense", 10.0, 0.5), noisy("CSR", 9.9, 0.5))
    assert alike.recommendation[0].startswith("Use dense")


def test_the_spread_is_that_of_the_middle_half():
    # Of 0 to 100, from 25 to 75; one slow call moves it little.
    assert Times.of([*map(float, range(101))]).spread == 50
    assert Times.of([10.0] * 99 + [500.0]).spread == 0
    assert Times.of([3.0, 5.0]).spread == 2 and Times.of([3.0]).spread == 0


def test_the_json_has_no_more_digits_than_were_measured():
    third = report_of(noisy("dense", 10 / 3, 0.1), noisy("CSR", 0.7 + 0.1, 0.0))
    text = json.dumps(third.to_json())
    assert "3.33333" in text and max(map(len, re.findall(r"\d+\.\d+", text))) <= 8


def test_many_sizes_fit_100_columns():
    sizes = tuple(f"1 x {2**i} tokens" for i in range(3, 9))
    rows = [
        FormRow(n, None, 100, 80, dict.fromkeys(sizes, TEN), 1000, 0.0) for n in ("dense", "CSR")
    ]
    shown = str(report_of(*rows, sizes=sizes))
    assert max(map(len, shown.splitlines())) <= 100 and "9 to 12" in shown


def test_a_notebook_shows_the_advice_and_both_tables():
    shown = report_of(row("dense", 10.0), row("CSR", 5.0))._repr_html_()
    assert "Use CSR" in shown and shown.count("<table>") == 2
