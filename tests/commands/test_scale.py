"""The command that measures a choice over processes, and the model that it is compared with."""

import json

import pytest

from platon_prune.cli import main
from platon_prune.commands.benchmarks.figures import Spread
from platon_prune.commands.scale import ChoiceCost, CostModel


def _choice(weights, processes, seconds):
    return ChoiceCost(weights, processes, Spread.of([seconds]), seconds, 6, 1000)


def test_the_model_is_fitted_to_one_process_and_to_the_smallest_choices():
    # 2 ns a weight, 50 ns a sample: 2^16 of 800,000, and a 1024th of 100 million.
    samples = 100_000_000 / 1024
    choices = [
        _choice(1_000, 1, 0.001),
        _choice(1_000, 4, 0.003),
        _choice(800_000, 1, 0.001 + 0.0016 + 65_536 * 50e-9),
        _choice(10_000_000, 1, 77.0),
        _choice(100_000_000, 1, 0.001 + 0.2 + samples * 50e-9),
        _choice(100_000_000, 4, 77.0),
    ]
    model = CostModel.fit(choices)
    assert model.per_weight == pytest.approx(2e-9)
    assert model.per_sample == pytest.approx(50e-9)
    # A quarter of the weights and samples, and what four processes need to agree on nothing.
    expected = (0.2 + samples * 50e-9) / 4 + 0.003
    assert model.seconds(100_000_000, 4) == pytest.approx(expected)


def test_the_command_measures_every_size_over_every_number_of_processes(tmp_path, capsys):
    file = tmp_path / "scale.json"
    flags = ["--processes", "2", "1", "--weights", "3e5", "3e6", "--repeats", "1"]
    assert main(["scale", *flags, "--json", str(file)]) == 0
    measured = json.loads(file.read_text())
    sizes = (1024, 300_000, 3_000_000)
    found = [(each["weights"], each["processes"]) for each in measured]
    assert found == [(size, count) for count in (1, 2) for size in sizes]
    # Of ten times as many weights not a byte more: ends of the sample, its histogram, counts, one
    # or two histograms of digits, digests.
    for two in measured[-2:]:
        assert two["collectives"] in (5, 6)
        assert two["payload"] <= 3 * (8 << 16) + 100
    table = capsys.readouterr().out
    assert "300,000" in table and "GB/s" in table


@pytest.mark.parametrize("command", ["scale", "bench"])
def test_a_command_that_would_measure_nothing_is_refused(command, capsys):
    assert main([command, "--repeats", "0"]) == 2
    assert "--repeats must be at least 1, got 0" in capsys.readouterr().err


def test_the_command_needs_one_process_to_compare_with(capsys):
    assert main(["scale", "--processes", "2"]) == 2
    assert "--processes must have 1 among them" in capsys.readouterr().err
