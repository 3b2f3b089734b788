"""The forms that are measured on a GPU, as far as a machine without one can run them."""

import dataclasses
import functools
import json

import pytest
import torch
from tiny import sample
from torch import nn

import platon_prune
from platon_prune import cli
from platon_prune.deploy import facts, measure, memory, rounded_forms
from platon_prune.deploy.form import Form, Source
from platon_prune.deploy.forms import FORMS, int8_forms, usual_forms
from platon_prune.deploy.inputs import Example
from platon_prune.deploy.picture import save_picture
from platon_prune.deploy.report import DeployReport
from platon_prune.deploy.rows import FileSize, FormRow, Times
from platon_prune.runtimes import semi_structured_inference
from platon_prune.timing import clock, event_clock


def two_layers(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    for layer in (model[0], model[2]):
        layer.weight.data.unflatten(1, (-1, 4))[..., 2:] = 0
    return model.to(dtype).eval()


@pytest.fixture(autouse=True)
def any_cpu(monkeypatch):
    """As if this CPU had instructions for bfloat16, without which it is no form."""
    monkeypatch.setattr(rounded_forms, "has_bfloat16", lambda: True)


def quick(model, forms, inputs=None, **settings):
    inputs = sample(2, 64) if inputs is None else inputs
    settings = {"rounds": 2, "memory": False} | settings
    return platon_prune.deploy_report(model, inputs, forms=forms, **settings)


def test_a_gpu_and_a_cpu_have_their_own_forms_and_int8_comes_on_top_when_it_is_asked_for():
    on_gpu = ("dense", "masked", "float16", "bfloat16", "shrunk", "2:4", "compiled")
    assert usual_forms("cuda:1") == on_gpu
    on_cpu = ("dense", "masked", "bfloat16", "CSR", "shrunk", "2:4", "ONNX Runtime", "OpenVINO")
    assert usual_forms("cpu") == on_cpu
    added = {*int8_forms(with_unpruned=True), "unpruned"}
    assert {*on_gpu, *on_cpu, *added} == set(FORMS)


def test_half_precision_takes_half_the_file_and_counts_as_the_same_model_within_3_percent():
    report = quick(two_layers(), ["float16", "bfloat16"])
    dense = report.row("dense")
    for name in ("float16", "bfloat16"):
        row = report.row(name)
        assert row.file_bytes < 0.6 * dense.file_bytes and row.num_weights == dense.num_weights
        assert 0 < row.difference < row.tolerance
        assert row.tolerance == pytest.approx(30 * report.tolerance)
    assert report.row("bfloat16").difference > report.tolerance
    assert not any("not the same model" in line for line in report.recommendation)


def test_inputs_that_are_no_integers_are_brought_to_the_type_of_the_form():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    report = quick(model, ["bfloat16"], sample(2, 3, 8, 8))
    assert report.row("bfloat16").difference < report.row("bfloat16").tolerance


def test_a_model_that_is_in_half_precision_has_no_such_form_of_its_own():
    model, inputs = two_layers(torch.bfloat16), sample(2, 64).bfloat16()
    report = quick(model, ["bfloat16", "float16"], inputs)
    assert "in bfloat16 already" in report.row("bfloat16").reason
    assert report.row("float16").reason is None and report.model["dtype"] == "bfloat16"


def test_the_compiled_form_is_compiled_for_each_size_and_has_the_files_of_dense(monkeypatch):
    made = []

    def compiling(model, **settings):
        made.append(settings)
        return functools.partial(model)

    monkeypatch.setattr(torch, "compile", compiling)
    monkeypatch.setattr(memory, "_run_job", lambda job: 1000)
    report = platon_prune.deploy_report(
        two_layers(),
        lambda num_tokens: sample(num_tokens, 64),
        num_tokens=(2, 3),
        forms=["compiled"],
        rounds=1,
    )
    row, dense = report.row("compiled"), report.row("dense")
    assert made == [{"dynamic": False}]
    assert set(row.times) == {"2 tokens", "3 tokens"} and row.difference == 0
    assert (row.file_bytes, row.num_weights) == (dense.file_bytes, dense.num_weights)
    # Of a process that compiles, most is the compiler's.
    assert (dense.peak_bytes, row.peak_bytes) == (1000, None)
    assert "compiling takes more" in row.note


def test_a_model_that_can_not_be_compiled_says_so_and_the_others_go_on(monkeypatch):
    def compiling(model, **settings):
        def fail(inputs):
            raise RuntimeError("no compiler\nand a trace")

        return fail

    monkeypatch.setattr(torch, "compile", compiling)
    report = quick(two_layers(), ["compiled", "float16"])
    assert report.row("compiled").reason == "no compiler"
    assert report.row("float16").times


def _kernels(monkeypatch, times):
    """As if this machine had 2:4 kernels, with these times."""
    monkeypatch.setattr(
        semi_structured_inference,
        "usable_kernels",
        lambda device, dtype: ({"CUTLASS": torch.clone}, ""),
    )
    monkeypatch.setattr(
        semi_structured_inference, "clock", lambda device: lambda run: times[run.kernel]
    )


def test_2_of_4_is_in_half_precision_of_which_the_note_speaks(monkeypatch):
    _kernels(monkeypatch, {"dense": 10.0, "CUTLASS": 1.0})
    report = quick(two_layers(), ["2:4"])
    row, dense = report.row("2:4"), report.row("dense")
    assert row.note.startswith("2 of 2 linear layers are 2:4, the file is dense; in float16")
    assert row.file_bytes < 0.6 * dense.file_bytes and row.num_weights == dense.num_weights
    assert 0 < row.difference < row.tolerance


def test_2_of_4_where_no_layer_gains_is_no_form(monkeypatch):
    _kernels(monkeypatch, {"dense": 1.0, "CUTLASS": 10.0})
    reason = quick(two_layers(), ["2:4"]).row("2:4").reason
    assert reason.startswith("no linear layer is faster as 2:4 (left dense: 2 where 2:4 does not")


# --- the device ---------------------------------------------------------------------------------


def test_memory_of_a_device_is_that_of_the_model_and_of_its_run(monkeypatch):
    done = []
    for name, result in (
        ("synchronize", None),
        ("reset_peak_memory_stats", None),
        ("memory_allocated", 5000),
        ("max_memory_allocated", 5700),
    ):
        monkeypatch.setattr(
            torch.cuda, name, lambda device, n=name, r=result: (done.append(n), r)[1]
        )
    model = nn.Linear(4, 8)
    found = memory.device_peak_bytes(model, lambda: done.append("run"), torch.device("cuda"))
    assert found == 4 * (4 * 8 + 8) + 700
    # What ran before must be over, and what is measured too.
    assert done == [
        "synchronize", "reset_peak_memory_stats", "memory_allocated", "run", "synchronize",
        "max_memory_allocated",
    ]  # fmt: skip


def test_a_whole_report_by_the_way_of_a_gpu(monkeypatch, tmp_path):
    _kernels(monkeypatch, {"dense": 10.0, "CUTLASS": 1.0})
    monkeypatch.setattr(torch, "compile", lambda model, **settings: functools.partial(model))
    # What stands in for the device: its memory, its clock, and where the models are.
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100)
    monkeypatch.setattr(memory, "_device_of", lambda form: torch.device("cuda"))
    monkeypatch.setattr(measure, "usual_forms", lambda device: usual_forms("cuda"))
    monkeypatch.setattr(measure, "event_clock", lambda device: lambda call: (call(), 1.0)[1])
    model = two_layers()
    model[0].weight.data[128:] = model[0].bias.data[128:] = 0
    model[2].weight.data[:, 128:] = 0
    platon_prune.global_unstructured(model, amount=0.5, total_steps=100)
    for layer in (model[0], model[2]):
        layer.weight_mask.copy_(layer.weight_orig != 0)
    report = quick(model, None, memory=True)
    assert [row.name for row in report] == list(usual_forms("cuda"))
    assert [row.reason for row in report] == [None] * 7
    assert all(row.times["2x64"].median == 1.0 for row in report)
    dense, half = report.row("dense").peak_bytes, report.row("float16").peak_bytes
    assert dense - 100 == 2 * (half - 100) == 4 * (2 * 64 * 256 + 256 + 64)
    assert report.row("shrunk").peak_bytes < dense


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_what_a_model_holds_is_counted_once_and_2_of_4_by_what_it_is_made_of():
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    assert memory.held_bytes(model) == 4 * 64 * 64
    packed, meta = torch.zeros(64, 32), torch.zeros(64, 4, dtype=torch.int16)
    weight = torch.sparse.SparseSemiStructuredTensorCUTLASS(
        torch.Size((64, 64)), packed, meta, None, None, None
    )
    model[1].weight = nn.Parameter(weight, requires_grad=False)
    assert memory.held_bytes(model) == 4 * 64 * 64 + packed.nbytes + meta.nbytes


def test_times_on_a_device_are_between_two_events_of_its_stream(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append(f"record on {stream}")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            assert other is not self
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    assert event_clock("cuda:1")(lambda: log.append("run")) == 2.5
    on = "record on the stream of cuda:1"
    assert log == [on, "run", on, "wait"]
    assert event_clock("cpu")(lambda: None) >= 0


def test_the_report_names_the_device_and_its_cuda_and_the_picture_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU called {device}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    machine = facts.machine_facts("cuda:0")
    assert (machine["device"], machine["cuda"]) == ("a GPU called cuda:0", "13.0")
    assert "cuda" not in facts.machine_facts("cpu")
    rows = [
        FormRow(name, None, 100, 80, {"8": Times(2, 1, 3)}, 1000, 0.0)
        for name in usual_forms("cuda")
    ]
    model = {"class": "Net", "parameters": 1, "sparsity": 0.5}
    files = (FileSize("dense", 100, 80),)
    report = DeployReport(tuple(rows), files, ("8",), 1.0, model, machine, {})
    assert json.loads(json.dumps(report.to_json()))["machine"]["device"] == "a GPU called cuda:0"
    assert "a GPU called cuda:0" in str(report)
    drawn = []
    monkeypatch.setattr(
        "platon_prune.deploy.picture._draw_bytes", lambda *given: drawn.append(given[-1])
    )
    pytest.importorskip("matplotlib")
    save_picture(report, tmp_path / "deploy.png")
    assert drawn == ["file (MB)", "peak memory of the device (MB)"]
    drawn.clear()
    rows = [dataclasses.replace(each, peak_bytes=None) for each in rows]
    save_picture(dataclasses.replace(report, rows=tuple(rows)), tmp_path / "deploy.png")
    assert drawn == ["file (MB)"]


@pytest.mark.parametrize(
    ("device", "count", "said"),
    [
        ("cuda", 0, "--device must be there, got cuda without a GPU: use --device cpu"),
        ("cuda:3", 0, "--device must be there, got cuda:3 without a GPU"),
        ("cuda:3", 2, "--device must be there, got cuda:3 where the last is cuda:1"),
        *(
            (name, 2, f"--device must be cpu, cuda or cuda:1, got {name}")
            for name in ("gpu", "xpu", "mps", "meta", "cuda:x")
        ),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(
    monkeypatch, capsys, tmp_path, device, count, said
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    # Of the two things that are wrong here the device is told: the model has not been looked for.
    options = ["--device", device, "--output_dir", str(tmp_path / "out")]
    assert cli.main(["deploy", str(tmp_path / "nothing"), *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_benchmark_refuses_the_same_devices(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, said in (("xpu", "must be cpu, cuda or cuda:1"), ("cuda:3", "the last is cuda:1")):
        assert cli.main(["bench", "--device", device]) == 2
        assert said in capsys.readouterr().err


def test_times_on_any_accelerator_are_taken_once_it_is_done(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    clock("xpu:1")(lambda: None)
    assert waited == ["xpu:1"] * 2


def test_of_a_device_that_tells_no_memory_no_memory_is_told():
    model = nn.Linear(2, 2, device="meta")
    form = Form(lambda inputs: None, "torch", model=model)
    row = FormRow("dense", times={"8": Times.of([1.0])})
    source = Source(model, model, [Example("8", None)], None, 1)
    row = memory.with_memory(row, form, source, lambda words: None)
    assert row.peak_bytes is None and "the model is on meta" in row.note
    assert facts.machine_facts("xpu:1")["device"] == "xpu:1"
