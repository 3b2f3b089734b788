"""The bench of sparse layers times each product of a layer and divides what took turns."""

import json

import pytest
import torch

from platon_prune.cli import main
from platon_prune.commands.benchmarks import sparse_layers
from platon_prune.runtimes import llvm_product


class Clock:
    """Of a dense layer 12 ms and of torch's product 4 in the first pass, 2 in the second."""

    def __init__(self):
        self.passes = 0
        self.last = None
        self.seen = set()

    def __call__(self, function):
        module = function.func.__self__
        kept = int((module.weight.to_dense() != 0).sum())
        self.seen.add((kept, tuple(function.args[0].shape)))
        product = getattr(module, "product", "dense")
        if product == "dense" and module is not self.last:
            self.last = module
            self.passes += 1
        return {"dense": 12.0, "torch": 4.0 if self.passes == 1 else 2.0, "llvm": 1.0}[product]


@pytest.fixture
def without_llvmlite(monkeypatch):
    monkeypatch.setattr(llvm_product, "_compile", lambda: "llvmlite can't be imported")


def test_ratios_are_of_each_pass_and_times_the_shortest(without_llvmlite):
    clock = Clock()
    (figure,) = sparse_layers.layer_figures(2, clock, [(32, 64)], [0.25], [8])
    assert figure.times_as_fast["torch_ms"] == (4.5, 3.0, 6.0)
    assert figure.milliseconds["torch_ms"].low == 2.0
    assert "llvm_ms" not in figure.milliseconds
    assert {shape for _, shape in clock.seen} == {(8, 64)}
    assert all(0.15 < kept / (32 * 64) < 0.35 for kept, _ in clock.seen)
    row = sparse_layers.layer_table([figure]).splitlines()[-1]
    cells = ["32x64", "25%", "8", "12.000", "2.000", "-", "4.5", "(3.0-6.0)", "-"]
    assert row.split() == cells


def test_the_product_of_llvm_is_beside_torchs_where_there_is_one():
    pytest.importorskip("llvmlite", reason="llvmlite is optional")
    (figure,) = sparse_layers.layer_figures(1, Clock(), [(32, 64)], [0.25], [8])
    assert figure.times_as_fast == {"torch_ms": (3.0, 3.0, 3.0), "llvm_ms": (12.0, 12.0, 12.0)}


def test_the_command_prints_a_row_a_layer_and_writes_the_figures(
    capsys, monkeypatch, tmp_path, without_llvmlite
):
    found = [sparse_layers.LayerFigure((8, 4), 0.1, 2, {}, {})]
    monkeypatch.setattr(sparse_layers, "layer_figures", lambda repeats, timed: found)
    path = tmp_path / "figures.json"
    assert main(["bench", "--sparse-layers", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    assert f"cpu ({torch.get_num_threads()} threads)" in output
    assert "\n8x4 " in output
    assert "the product of LLVM was not measured: llvmlite can't be imported" in output
    assert json.loads(path.read_text())[0]["shape"] == [8, 4]


def test_sparse_layers_on_a_gpu_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("platon_prune.commands.bench.require_device", lambda device: None)
    assert main(["bench", "--sparse-layers", "--device", "cuda"]) == 2
    assert "--sparse-layers needs --device cpu, got cuda" in capsys.readouterr().err
