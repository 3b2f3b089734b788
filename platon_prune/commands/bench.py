"""``platon-prune bench``: times and memory of PLATON beside a textbook implementation."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from platon_prune.commands._device import require_device
from platon_prune.commands.benchmarks.figures import (
    Figure,
    add_measuring_arguments,
    check_measuring_arguments,
    print_table,
    ratio_table,
    write_json,
)

if TYPE_CHECKING:
    from platon_prune.timing import Clock

HELP = "Measure speed and memory on the shapes of BERT-base against a textbook implementation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_measuring_arguments(parser, repeats=3, what="runs of each part")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="fraction of the models' layers, for a quick try; below one layer they get narrower",
    )
    parser.add_argument(
        "--device", help="cpu or cuda (default: cpu, and cuda too where there is one)"
    )
    parser.add_argument(
        "--processor_time",
        action="store_true",
        help="on a busy machine: run on one CPU thread and count its processor time",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="also train BERT-base and a Llama of 1 B with and without pruning; tiny ones on a CPU",
    )
    parser.add_argument(
        "--semi_structured",
        action="store_true",
        help="n:m instead: the time of a choice, and 2:4 layers beside dense ones on a GPU",
    )
    parser.add_argument(
        "--sparse_layers",
        action="store_true",
        help="linear layers that skip their zeros instead: each sparse product beside dense, on "
        "the CPU",
    )
    parser.add_argument(
        "--cut",
        action="store_true",
        help="whole runs of structured pruning instead: masks alone beside runs cut as they go",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the file."""
    import torch

    from platon_prune.timing import clock

    check_measuring_arguments(arguments)
    if not 0 < arguments.scale <= 1:
        raise ValueError(f"--scale must be in (0, 1], got {arguments.scale}: 1 is BERT-base")
    if arguments.processor_time:
        if arguments.device != "cpu":
            # A GPU works on while the host waits, which is no processor time of this thread.
            raise ValueError("--processor_time needs --device cpu: it does not see a GPU's work")
        torch.set_num_threads(1)
    if arguments.device:
        require_device(arguments.device)
        names = [arguments.device]
    else:
        names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if arguments.cut:
        return _whole_runs(arguments, names)
    if arguments.sparse_layers:
        return _sparse_layers(arguments)
    if arguments.semi_structured:
        return _semi_structured(arguments, names)
    # Keys of devices hold what they always held, a list of figures; what came later has its own.
    reports: dict[str, Any] = {}
    for name in names:
        timed = clock(name, arguments.processor_time)
        _measure_sizes(arguments, name, timed, reports)
        if arguments.train:
            _measure_training(arguments, name, timed, reports)
    write_json(arguments, reports)
    return 0


def _measure_sizes(
    arguments: argparse.Namespace, device: str, timed: Clock, reports: dict[str, Any]
) -> None:
    """Print a table for each size: all figures for BERT-base, those of steps for the others."""
    from platon_prune.commands.benchmarks.contest import step_times
    from platon_prune.commands.benchmarks.counts import step_counts
    from platon_prune.commands.benchmarks.offloading import offload_figures
    from platon_prune.commands.benchmarks.peaks import memory_figures
    from platon_prune.commands.benchmarks.rivals import figures
    from platon_prune.commands.benchmarks.workload import bert_base, smaller_sizes

    repeats = arguments.repeats
    ratios: dict[str, list[Figure]] = {}
    for size in [bert_base(arguments.scale), *smaller_sizes(arguments.scale)]:
        # The other sizes are there for the steps; a choice by itself costs what its weights cost.
        is_first = not ratios
        times = step_times(size, device, repeats, timed)
        asked = step_counts(size, device)
        found = [*(times.figures() if is_first else times.kinds()), *asked.figures]
        if is_first:
            found += figures(size, device, repeats, timed)
            found += memory_figures(size, device, repeats)
            # On a CPU the averages are in host memory anyway.
            found += offload_figures(size, device, repeats, timed) if device != "cpu" else []
        print_table(size.tensor_sizes, device, found, f"{size.name} by {asked.backend}")
        key = device if is_first else f"{device}: {size.name}"
        reports[key] = [figure._asdict() for figure in found]
        reports[f"{key}: backend"] = asked.backend
        ratios[size.name] = times.kinds()
    print("\n" + ratio_table(ratios))


def _measure_training(
    arguments: argparse.Namespace, device: str, timed: Clock, reports: dict[str, Any]
) -> None:
    from platon_prune.commands.benchmarks.training import figures, training_table

    found = figures(device, arguments.repeats, timed)
    print("\n" + training_table(found, device))
    reports[f"{device}: training"] = [figure._asdict() for figure in found]


def _whole_runs(arguments: argparse.Namespace, names: list[str]) -> int:
    from platon_prune.commands.benchmarks.whole_runs import outcomes, whole_run_table
    from platon_prune.timing import clock

    reports = {}
    for name in names:
        timed = clock(name, arguments.processor_time)
        found = outcomes(name, arguments.scale, arguments.repeats, timed)
        print(f"\n{name}\n\n{whole_run_table(found)}")
        reports[name] = [each._asdict() for each in found]
    write_json(arguments, reports)
    return 0


def _sparse_layers(arguments: argparse.Namespace) -> int:
    import torch

    from platon_prune.commands.benchmarks.sparse_layers import layer_figures, layer_table
    from platon_prune.runtimes.llvm_product import why_not
    from platon_prune.timing import clock

    if arguments.device not in (None, "cpu"):
        raise ValueError(
            f"--sparse_layers needs --device cpu, got {arguments.device}: sparse layers are for "
            "the CPU"
        )
    found = layer_figures(arguments.repeats, clock("cpu", arguments.processor_time))
    print(
        f"\ncpu ({torch.get_num_threads()} threads), torch {torch.__version__}, float32, zeros "
        "scattered at random;\nms are the shortest, ratios median (lowest-highest) of the runs\n"
    )
    print(layer_table(found))
    if (reason := why_not()) is not None:
        print(f"the product of LLVM was not measured: {reason}")
    write_json(arguments, [each._asdict() for each in found])
    return 0


def _semi_structured(arguments: argparse.Namespace, names: list[str]) -> int:
    from platon_prune.commands.benchmarks.semi_structured import choice_table, kernel_table
    from platon_prune.commands.benchmarks.workload import bert_base
    from platon_prune.timing import clock

    if arguments.json:
        raise ValueError("--json must be left out with --semi_structured: its tables are printed")
    shapes = [
        (outputs, max(24, inputs // 24 * 24))  # all patterns divide it
        for inputs, outputs in bert_base(arguments.scale).shapes
    ]
    for name in names:
        timed = clock(name, arguments.processor_time)
        num_weights = sum(outputs * inputs for outputs, inputs in shapes)
        print(f"\n{name}: {num_weights:,} weights; half of them pruned, or of groups constrained\n")
        print(choice_table(shapes, name, arguments.repeats, timed))
        print("\n" + kernel_table(name, timed))
    return 0
