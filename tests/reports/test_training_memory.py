"""What the table of memory says is what a training keeps, byte by byte."""

import json

import pytest
import torch
from pages import ROOT
from torch import nn

import platon_prune
from platon_prune import cli
from platon_prune.criteria import Magnitude, Sensitivity
from platon_prune.reports.training_memory import (
    GPUS,
    MODELS,
    SETTINGS,
    ModelSize,
    TrainingMemory,
    gigabytes,
    kinds_table,
    models_table,
)

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


def _train(setting, sizes, steps, device="cpu"):
    """A run that ends right after a choice, with gradients set by hand; nothing runs forward."""
    model = nn.Sequential(*[nn.Linear(*size) for size in sizes]).to(device, setting.dtype)
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.5,
        total_steps=40,
        warmup_steps=4,
        cooldown_steps=5,
        window=3,
        criterion=setting.criterion,
        state_dtype=setting.state_dtype,
        offload_averages=setting.offload_averages,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device != "cpu")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


@pytest.mark.parametrize(
    "setting",
    [
        *SETTINGS,
        TrainingMemory(criterion=Sensitivity()),
        TrainingMemory(criterion=Magnitude(), state_dtype=BFLOAT16),
    ],
    ids=lambda s: f"{s.dtype}-{s.name}-{s.criterion.name}",
)
def test_every_kind_is_what_is_kept_by_a_training_on_the_cpu(setting):
    model, optimizer, scheduler = _train(setting, [(7, 11), (11, 5)], 7)
    parameters, selected = 7 * 11 + 11 + 11 * 5 + 5, 7 * 11 + 11 * 5
    remembered = [dict(tensor.remembered) for tensor in scheduler._tensors]
    windows = [each.pop("window").nbytes for each in remembered if each]
    averages = sum(average.nbytes for each in remembered for average in each.values())
    states = [state for each in optimizer.state.values() for state in each.values()]
    kept = {
        "weights": sum(each.nbytes for each in model.parameters()),
        "gradients": sum(each.grad.nbytes for each in model.parameters()),
        "AdamW": sum(each.nbytes for each in states if each.dim()),  # the rest counts steps
        "mask": sum(each.nbytes for each in model.buffers()),
        "window": sum(windows),
    }
    told = setting.on_device(ModelSize("", parameters, selected))
    assert {kind: told[kind] for kind in kept} == kept
    on_host = setting.on_host(ModelSize("", parameters, selected))
    assert (told["averages"], on_host) == (
        (0, averages) if setting.offload_averages else (averages, 0)
    )
    assert scheduler.memory().total == kept["mask"] + kept["window"] + averages


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.dtype}-{s.name}")
def test_a_gpu_allocates_no_more_than_the_table_says_and_hardly_less(setting):
    sizes = [(8192, 8192)] * 4
    size = ModelSize("", 4 * (8192 * 8192 + 8192), 4 * 8192 * 8192)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = _train(setting, sizes, 13, "cuda")
    peak = torch.cuda.max_memory_allocated() - before
    told = setting.on_device(size)
    del kept
    least = sum(told.values()) - told["a choice"]
    # A quarter of a billion weights: at a choice up to two bytes each, and what is rounded up.
    assert least <= peak <= 1.01 * least + 2 * size.selected


def test_the_default_is_13_bytes_a_selected_weight_beside_16_a_parameter():
    size = ModelSize("", 1000, 100)
    told = TrainingMemory().on_device(size)
    assert sum(told.values()) - told["a choice"] == 16 * 1000 + 13 * 100
    small = TrainingMemory(BFLOAT16, BFLOAT16, True)
    told = small.on_device(size)
    assert sum(told.values()) - told["a choice"] == 8 * 1000 + 3 * 100
    assert small.on_host(size) == 4 * 100


def test_under_autocast_a_copy_in_16_bits_of_each_matrix_is_kept_for_the_backward():
    model, copies = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 24)), {}

    def keep(saved):
        if saved.dtype == BFLOAT16 and saved.numel() in (16 * 32, 32 * 24):
            copies[saved.untyped_storage().data_ptr()] = saved.nbytes
        return saved

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
        torch.autocast("cpu", BFLOAT16),
    ):
        loss = model(torch.zeros(1, 16, requires_grad=True)).sum()
    assert loss.requires_grad and sum(copies.values()) == 2 * (16 * 32 + 32 * 24)
    # As the page says it of its three models, with the output layer.
    outputs = (128_256 * 2048, 128_256 * 3072, 32_000 * 4096)
    sizes = [2e-9 * (size.selected + more) for size, more in zip(MODELS, outputs, strict=True)]
    assert [round(each, 1) for each in sizes] == [2.5, 6.4, 13.2]


def test_the_models_have_the_sizes_of_their_layers():
    def llama(hidden, inner, layers, heads, kv, vocabulary, tied):
        attention = 2 * hidden * hidden + 2 * hidden * (hidden // heads) * kv
        selected = layers * (attention + 3 * hidden * inner)
        norms = (2 * layers + 1) * hidden
        return selected + (2 - tied) * vocabulary * hidden + norms, selected

    shapes = (
        (2048, 8192, 16, 32, 8, 128_256, True),
        (3072, 8192, 28, 24, 8, 128_256, True),
        (4096, 11008, 32, 32, 32, 32_000, False),
    )
    assert [(m.parameters, m.selected) for m in MODELS] == [llama(*each) for each in shapes]


def test_what_does_not_fit_has_no_rest():
    table = models_table(MODELS[:1], (24, 48))
    # 16 bytes of 1.2358 B and 14 of 0.97308 B are 33.4 GB, of which 24 have no room.
    (line,) = [row for row in table.splitlines() if "float32" in row and "default" in row]
    assert line.split()[-3:] == ["33.4", "-", "14.6"]
    assert gigabytes(MODELS[0], TrainingMemory()) == pytest.approx(33.4, abs=0.01)


@pytest.mark.parametrize("table", [kinds_table, models_table])
def test_the_page_shows_what_the_command_prints(table):
    page = (ROOT / "docs" / "large_models.md").read_text()
    assert table() in page


def test_the_command_prints_both_tables_and_writes_the_figures(tmp_path, capsys):
    path = tmp_path / "memory.json"
    assert cli.main(["memory", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert kinds_table() in printed and models_table(gpus=GPUS) in printed
    rows = json.loads(path.read_text())
    assert len(rows) == len(MODELS) * len(SETTINGS)
    assert rows[0]["bytes"]["window"] == 4 * MODELS[0].selected


def test_the_command_takes_other_models_and_gpus(capsys):
    options = ["--parameters", "8e9", "--selected", "7e9", "--gpus", "192"]
    assert cli.main(["memory", *options]) == 0
    printed = capsys.readouterr().out
    assert "8e+09 parameters" in printed and "of 192" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--selected", "1e9"], "--selected must go with --parameters"),
        (["--parameters", "1e9", "2e9", "--selected", "1e9"], "as many numbers"),
        (["--parameters", "1e9", "--selected", "2e9"], "from 1 to --parameters"),
        (["--gpus", "0"], "--gpus must be above 0"),
        (["--gpus", "nan"], "--gpus must be above 0, got nan"),
        (["--gpus", "80", "inf"], "--gpus must be above 0, got inf"),
        (["--parameters", "inf"], "--parameters must be at least 1, got inf"),
        (["--parameters", "0.5"], "--parameters must be at least 1, got 0.5"),
        (["--parameters", "1e9", "--selected", "nan"], "--selected must be at least 1"),
    ],
)
def test_numbers_that_can_not_be_used_are_refused(options, said, capsys):
    assert cli.main(["memory", *options]) == 2
    assert said in capsys.readouterr().err
