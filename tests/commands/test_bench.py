"""The bench compares two implementations that choose alike, and prints what it promises."""

import json

import pytest
import torch

from platon_prune.cli import main
from platon_prune.commands import bench


def test_the_squad_average_counts_each_kind_of_step():
    # Windows of 10: 540 end by step 5,400; 2,260 by 28,000; 2,700 by 55,000.
    times = {kind: bench.Spread(float(i == 0), 0.0, 0.0) for i, kind in enumerate(bench.KINDS)}
    counts = {}
    for kind in bench.KINDS:
        only = {other: bench.Spread(float(other == kind), 0.0, 0.0) for other in times}
        counts[kind] = round(bench.average(only).median * 55_000)
    assert counts == {
        "ordinary step": 5_400 - 540 + 22_600 - 2_260,
        "window's end": 540,
        "choosing step": 2_260 + 2_700,
        "final-phase step": 27_000 - 2_700,
    }


def test_the_shapes_are_those_of_bert_base():
    sizes = bench.tensor_sizes(1.0)
    assert len(sizes) == 12 * 6 * 2
    assert sum(sizes) == 12 * (4 * 768 * 768 + 4 * 768 + 2 * 768 * 3072 + 3072 + 768) == 85_017_600


def test_both_implementations_zero_the_same_weights():
    torch.manual_seed(0)
    contest = bench.Contest(bench.Workload(0.01, "cpu"))
    for step in range(1, bench.SHORT.total_steps):
        contest.advance(lambda function: function() or 0.0)
        if step not in (20, 30, 40, 44):
            continue
        ours = torch.cat([parameter.detach().view(-1) for parameter in contest.parameters])
        textbook = torch.cat([weight.view(-1) for weight in contest.textbook.weights])
        num_pruned = {20: 0, 30: round((0.9 - 0.9 / 8) * ours.numel())}
        expected = num_pruned.get(step, round(0.9 * ours.numel()))
        assert int((ours == 0).sum()) == expected
        # Rounding of the averages may swap neighbours at the threshold; ties go with it there.
        assert int(((ours == 0) != (textbook == 0)).sum()) <= 1e-4 * ours.numel()
    contest.close()


def test_the_command_prints_each_figure_and_writes_them(tmp_path, capsys):
    path = tmp_path / "bench.json"
    arguments = ["bench", "--scale", "0.0005", "--repeats", "1", "--device", "cpu"]
    assert main([*arguments, "--json", str(path)]) == 0
    table = capsys.readouterr().out
    names = [
        *bench.KINDS,
        "average over SQuAD's schedule",
        "plain copy of 16 bytes a weight",
        "ordinary step / plain copy",
        "exact selection / kthvalue",
        "peak of extra memory",
    ]
    lines = table.splitlines()[-len(names) :]
    assert [name for name, line in zip(names, lines, strict=True) if line.startswith(name)] == names
    assert [figure["name"] for figure in json.loads(path.read_text())["cpu"]] == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--scale", "0"], "--scale must be in (0, 1], got 0.0"),
        (["--scale", "1.5"], "--scale must be in (0, 1], got 1.5"),
        (["--processor-time"], "--processor-time needs --device cpu"),
    ],
)
def test_a_bad_option_is_refused_with_a_sentence(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_n_of_m_is_measured_and_missing_kernels_are_named(capsys):
    arguments = ["bench", "--semi-structured", "--scale", "0.0005", "--repeats", "1"]
    assert main([*arguments, "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    for name in ("single weights", "2:4", "1:4", "4:8", "3:6"):
        assert f"\n{name} " in output
    assert "2:4 against dense was not measured: it needs a CUDA GPU" in output
