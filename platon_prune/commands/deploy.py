"""``platon-prune deploy``: a model in every form that this machine can run, and which to use."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platon_prune.commands._device import require_device
from platon_prune.commands._function import load_function
from platon_prune.commands._output import make_folder, require_place
from platon_prune.writing import write_text

if TYPE_CHECKING:
    from torch import nn

    from platon_prune.deploy.report import DeployReport

HELP = "Measure file, speed, memory and outputs of a model in every form this machine can run."
DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="folder of a transformers model, or one that platon_prune.save wrote",
    )
    parser.add_argument(
        "--bert_base",
        action="store_true",
        help="instead of MODEL, measure BERT-base with random weights: at 90 and 95 %% sparsity, "
        "and with half of its heads and neurons zero",
    )
    parser.add_argument(
        "--layers", type=int, default=12, help="of --bert_base, for a quick try (default: 12)"
    )
    parser.add_argument(
        "--tokens", type=int, nargs="+", help="lengths of the sequence (default: 8 32 128)"
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="sequences or images in a call (default: 1)"
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        metavar="FORM",
        help='only these beside dense, such as CSR shrunk 2:4 "ONNX Runtime" OpenVINO, or on a GPU '
        "float16 bfloat16 compiled (default: all of the device)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="measure int8 too, bfloat16 and both runtimes: of the model, of the shrunk and of "
        "the unpruned one",
    )
    parser.add_argument(
        "--unpruned",
        type=Path,
        metavar="FOLDER",
        help="the model before it was pruned, to be measured beside it",
    )
    parser.add_argument(
        "--evaluate",
        metavar="FILE.py:FUNCTION",
        help="function that takes a form, called like the model, and returns its metric; also "
        "package.module:FUNCTION; FUNCTION is evaluate if left out",
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="what its number is called (default: the function's name)"
    )
    parser.add_argument(
        "--smaller_is_better",
        action="store_true",
        help='of the metric (default: where its name ends in "loss" or "perplexity")',
    )
    parser.add_argument("--threads", type=int, help="of the CPU (default: what torch takes)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as saved)")
    parser.add_argument(
        "--rounds", type=int, help="times to take of each form (default: about ten seconds a size)"
    )
    parser.add_argument(
        "--processor_time",
        action="store_true",
        help="on a busy machine: run on one CPU thread and count the process's processor time",
    )
    parser.add_argument(
        "--no_memory", action="store_true", help="measure no memory, and start no processes for it"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("platon-deploy"),
        help="where deploy.md, deploy.json, deploy.png and, with a metric, deploy_metric.png go "
        "(default: platon-deploy)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the files.

    Raises:
        ValueError: If an option can't be used, before anything is measured.
    """
    import torch

    _check(arguments)
    # Wanted for the picture at the end, and better missed now than then.
    importlib.import_module("matplotlib")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1 if arguments.processor_time else arguments.threads or num_threads)
    try:
        if arguments.bert_base:
            return _run_bert_base(arguments)
        from platon_prune.deploy.models import read_model

        evaluate = None
        if arguments.evaluate is not None:
            evaluate = load_function("--evaluate", arguments.evaluate, default="evaluate")
        unpruned = None
        if arguments.unpruned is not None:
            unpruned = _as_unpruned(read_model, arguments.unpruned)
        report = measure(read_model(arguments.model), arguments, unpruned, evaluate)
        print(report)
        _write(report, make_folder(arguments.output_dir))
        return 0
    finally:
        torch.set_num_threads(num_threads)


def measure(
    model: nn.Module,
    arguments: argparse.Namespace,
    unpruned: nn.Module | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> DeployReport:
    """The report of one model, with what is going on in the terminal's error stream."""
    import torch

    from platon_prune.deploy import deploy_report
    from platon_prune.timing import process_clock

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    if unpruned is not None:
        unpruned = unpruned.to(arguments.device, dtype)
    report = deploy_report(
        model.to(arguments.device, dtype),
        num_tokens=arguments.tokens,
        batch_size=arguments.batch,
        forms=arguments.forms,
        rounds=arguments.rounds,
        memory=not arguments.no_memory,
        timed=process_clock() if arguments.processor_time else None,
        progress=lambda words: print(f"{words} ...", file=sys.stderr, flush=True),
        int8=arguments.int8,
        unpruned=unpruned,
        evaluate=evaluate,
        metric=arguments.metric,
        greater_is_better=False if arguments.smaller_is_better else None,
    )
    if not arguments.processor_time:
        return report
    return replace(report, machine={**report.machine, "clock": "processor time"})


def _as_unpruned(read: Callable[[Path], nn.Module], folder: Path) -> nn.Module:
    try:
        return read(folder)
    except ValueError as error:
        # Of two folders the reader names neither; its sentences are those of MODEL.
        raise ValueError(str(error).replace("MODEL", "--unpruned", 1)) from error


def _check(arguments: argparse.Namespace) -> None:
    if arguments.bert_base == (arguments.model is not None):
        raise ValueError("MODEL or --bert-base must be given, and not both: name a folder")
    for name in ("threads", "rounds", "batch", "layers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    for name in ("unpruned", "evaluate") if arguments.bert_base else ():
        if getattr(arguments, name) is not None:
            raise ValueError(
                f"--{name} must be left out with --bert-base, whose weights are random: give MODEL"
            )
    for name in ("metric", "smaller_is_better") if arguments.evaluate is None else ():
        if getattr(arguments, name):
            raise ValueError(f"--{name} needs --evaluate, the function whose number it is about")
    if arguments.processor_time:
        if arguments.device != "cpu":
            raise ValueError("--processor_time needs --device cpu: it does not see a GPU's work")
        if arguments.threads not in (None, 1):
            raise ValueError(
                f"--processor_time is that of one thread, got --threads {arguments.threads}: leave "
                "one of them out"
            )
    require_device(arguments.device)
    if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
        raise ValueError(
            f"--output_dir must be a folder, got the file {arguments.output_dir}: give another path"
        )
    require_place("--output_dir", arguments.output_dir)


def _write(report: DeployReport, folder: Path) -> None:
    from platon_prune.deploy.metric_picture import save_metric_picture
    from platon_prune.deploy.picture import save_picture

    write_text(folder / "deploy.md", report.to_markdown() + "\n")
    write_text(folder / "deploy.json", _json(report.to_json()))
    save_picture(report, folder / "deploy.png")
    names = ["deploy.md", "deploy.json", "deploy.png"]
    if report.metric is not None:
        save_metric_picture(report, folder / "deploy_metric.png")
        names.append("deploy_metric.png")
    print(f"\nwritten: {', '.join(names[:-1])} and {names[-1]} in {folder}")


def _run_bert_base(arguments: argparse.Namespace) -> int:
    from platon_prune.commands.benchmarks import bert_base as _bert_base

    reports = {}
    folder = make_folder(arguments.output_dir)
    for name, build in _bert_base.MODELS.items():
        print(f"--- BERT-base, {name} ---\n")
        reports[name] = measure(build(arguments.layers), arguments)
        print(reports[name])
        _write(reports[name], make_folder(folder / name.replace(" ", "-")))
        print()
    aims = _bert_base.aims(reports)
    print(_bert_base.table_of(aims))
    write_text(folder / "aims.json", _json([aim._asdict() for aim in aims]))
    return 0


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"
