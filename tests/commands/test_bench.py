"""The bench compares two implementations that choose alike, and prints what it promises."""

import json

import pytest
import torch

from platon_prune.cli import main
from platon_prune.commands.benchmarks import training, workload
from platon_prune.commands.benchmarks.contest import Contest
from platon_prune.commands.benchmarks.counts import count
from platon_prune.commands.benchmarks.figures import Spread
from platon_prune.commands.benchmarks.workload import KINDS, SHORT, Workload


def test_the_squad_average_counts_each_kind_of_step():
    # Windows of 10: 540 end by step 5,400; 2,260 by 28,000; 2,700 by 55,000.
    times = {kind: Spread(float(i == 0), 0.0, 0.0) for i, kind in enumerate(KINDS)}
    counts = {}
    for kind in KINDS:
        only = {other: Spread(float(other == kind), 0.0, 0.0) for other in times}
        counts[kind] = round(workload.average(only).median * 55_000)
    assert counts == {
        "ordinary step": 5_400 - 540 + 22_600 - 2_260,
        "window's end": 540,
        "choosing step": 2_260 + 2_700,
        "final-phase step": 27_000 - 2_700,
    }


def test_the_shapes_are_those_of_bert_base():
    sizes = workload.bert_base(1.0).tensor_sizes
    assert len(sizes) == 12 * 6 * 2
    assert sum(sizes) == 12 * (4 * 768 * 768 + 4 * 768 + 2 * 768 * 3072 + 3072 + 768) == 85_017_600


def test_both_implementations_zero_the_same_weights():
    torch.manual_seed(0)
    contest = Contest(Workload(workload.bert_base(0.01), "cpu"))
    for step in range(1, SHORT.total_steps):
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


def test_the_authors_interface_zeroes_the_same_weights_as_the_textbook_but_one_and_ties():
    torch.manual_seed(0)
    contest = Contest(Workload(workload.bert_base(0.01), "cpu"), ("textbook", "compat"))
    for step in range(1, SHORT.total_steps):
        contest.advance(lambda function: function())
        if step in (30, 40, 44):
            compat = torch.cat([weight.view(-1) for weight in contest.compat.parameters()])
            textbook = torch.cat([weight.view(-1) for weight in contest.textbook.weights])
            differ = int(((compat == 0) != (textbook == 0)).sum())
            assert differ <= 1e-4 * compat.numel()


STEPS = [*KINDS, "average over SQuAD's schedule"]
COUNTS = [f"{kind}: {what}" for kind in KINDS for what in ("dispatched operations", "values read")]


def _begins_with(line, name):
    """Also where the table is wide, so that the name and its unit have lost their middle."""
    shown, dots, _ = line.partition("...")
    return line.startswith(name) or (dots and len(shown) > 10 and f"{name} [".startswith(shown))


def _lines_of(names, lines):
    """The first lines in a row that begin with some names."""
    for i in range(len(lines) - len(names) + 1):
        if all(map(_begins_with, lines[i : i + len(names)], names)):
            return lines[i : i + len(names)]
    raise AssertionError(f"no lines begin with {names}")


def test_the_command_prints_each_figure_and_writes_them(tmp_path, capsys):
    path = tmp_path / "bench.json"
    arguments = ["bench", "--scale", "0.0005", "--repeats", "1", "--device", "cpu"]
    assert main([*arguments, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [
        *STEPS,
        "plain copy of 16 bytes a weight",
        "ordinary step / plain copy",
        *(f"compat.Pruner, {name}" for name in STEPS),
        *COUNTS,
        "tensors on the plain path",
        "ordinary step / fused AdamW",
        "exact selection / kthvalue",
        "exact selection / topk",
        "choosing step / without history",
        "choice of 2:4 / of single weights",
        "peak of extra memory",
        "peak of extra memory, bfloat16 state",
    ]
    assert len(_lines_of(names, lines)) == len(names)
    report = json.loads(path.read_text())
    assert [figure["name"] for figure in report["cpu"]] == names
    assert report["cpu: backend"] == "plain"
    for model in ("small encoder", "digits transformer"):
        figures = report[f"cpu: {model}"]
        assert [each["name"] for each in figures] == [*STEPS, *COUNTS, "tensors on the plain path"]
    # Last, how many times as fast as the textbook each kind is at each size.
    head, *rows = lines[-1 - len(STEPS) :]
    assert head.split("  ")[-3:] == ["BERT-base", "small encoder", "digits transformer"]
    assert len(_lines_of(STEPS, rows)) == len(STEPS)


def test_the_sizes_are_those_that_were_measured_on_a_gpu():
    encoder, digits = workload.smaller_sizes(1.0)
    assert len(encoder.tensor_sizes) == 72
    assert sum(encoder.tensor_sizes) == 6 * (12 * 384 * 384 + 9 * 384) == 10_637_568
    assert len(digits.tensor_sizes) == 24
    assert sum(digits.tensor_sizes) == 4 * 12 * 64 * 64


def test_operations_and_values_that_are_read_are_counted():
    values = torch.ones(3)
    counted = count(lambda: float(values.add(1).sum()), "cpu")
    assert counted == (3, 1)  # add, sum, and the value


def test_training_is_timed_with_pruning_and_without(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(torch, "compile", lambda model: model)  # takes a minute
    monkeypatch.setattr(training, "WINDOW", 2)
    monkeypatch.setattr(training, "WARMUP_STEPS", 2)
    figures = training.figures("cpu", 1, lambda function: function() or 1.0)
    names = [each.name for each in training.TRAININGS]
    assert [figure.name for figure in figures] == names
    # The clock says 1 ms a window of two steps.
    assert all(figure.ours == figure.textbook == (0.5, 0.5, 0.5) for figure in figures)
    lines = training.training_table(figures, "cpu").splitlines()
    assert [line.split()[-3:] for line in lines[1:]] == [["0.5", "0.5", "0.0%"]] * len(names)


def test_training_that_nothing_can_compile_here_is_left_out(monkeypatch, capsys):
    pytest.importorskip("transformers")
    from torch._inductor.exc import InvalidCxxCompiler

    def fail(_):
        # Its __init__ reads Inductor's settings, which another test may have loaded half-way.
        raise InvalidCxxCompiler.__new__(InvalidCxxCompiler)

    monkeypatch.setattr(torch, "compile", fail)
    compiled = [each for each in training.TRAININGS if each.compiled]
    (figure,) = training.figures("cpu", 1, lambda function: function() or 1.0, compiled)
    assert figure.ours is None
    assert "BERT-base, compiled was not measured: no compiler" in capsys.readouterr().out
    assert "-" in training.training_table([figure], "cpu").splitlines()[-1]


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


def test_2_of_4_is_measured_by_each_kernel_eager_and_compiled(monkeypatch):
    from platon_prune.commands.benchmarks import semi_structured

    kernels = {"cuSPARSELt": torch.clone, "CUTLASS": torch.clone}
    monkeypatch.setattr(semi_structured, "usable_kernels", lambda device, dtype: (kernels, ""))
    monkeypatch.setattr(semi_structured, "NUM_TOKENS", (8,))
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    # Ten calls in a row.
    times = {"dense": 20.0, "cuSPARSELt": 40.0, "CUTLASS": 10.0}
    shown = semi_structured.kernel_table("cpu", lambda run: times[run.kernel], [(16, 8)])
    rows = [line.split() for line in shown.splitlines() if line.startswith("16x8")]
    measured = ["2.000", "4.000", "1.000", "2.00"]
    assert rows == [["16x8", "8", how, *measured] for how in ("eager", "compiled")]


def test_offloaded_averages_are_measured_beside_others_with_what_goes_over_the_bus(monkeypatch):
    from platon_prune.commands.benchmarks.offloading import offload_figures
    from platon_prune.commands.benchmarks.workload import Size
    from platon_prune.scheduling import averages, bus

    monkeypatch.setattr(averages, "queues_for", lambda device: bus.OneQueue())
    size = Size("tiny", [(8, 8)], biases=False)
    found = offload_figures(size, "cpu", 1, lambda function: (function(), 1.0)[1])
    values = {figure.name: figure.ours.median for figure in found}
    assert values["offloaded, ordinary step: to the device"] == 0
    # Two averages of four bytes.
    assert values["offloaded, window's end: to the device"] == 8
    assert values["offloaded, window's end: to the host"] == 8
    assert values["offloaded, choosing step: to the host"] == 8
    assert values["offloaded, choosing step: to the device"] > 8
    assert values["offloaded, choosing step / on the device"] == 1.0


def test_whole_runs_end_with_the_same_model_whether_they_are_cut_in_the_end_or_as_they_go() -> None:
    from platon_prune.commands.benchmarks.whole_runs import outcomes, whole_run_table
    from platon_prune.timing import clock

    found = outcomes("cpu", 0.01, 1, clock("cpu"), steps=20)
    dense, *pruned = found
    assert dense.parameters > pruned[0].parameters
    assert {each.parameters for each in pruned} == {pruned[0].parameters}
    shown = whole_run_table(found)
    assert "masks alone, cut in the end" in shown and "cut after 3 choices" in shown
