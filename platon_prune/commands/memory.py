"""``platon-prune memory``: how large a model can be trained and pruned on one GPU."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platon_prune.commands._output import require_file

if TYPE_CHECKING:
    from platon_prune.reports.training_memory import ModelSize

HELP = "Print what training with pruning takes of a GPU's memory, by setting and size of model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--parameters",
        type=float,
        nargs="+",
        help="of your models, such as 8.03e9 (default: models of 1, 3 and 7 B)",
    )
    parser.add_argument(
        "--selected",
        type=float,
        nargs="+",
        help="of them, what pruning selects: without embeddings and the output layer (default: "
        "all parameters)",
    )
    parser.add_argument(
        "--gpus",
        type=float,
        nargs="+",
        default=[24, 48, 80, 141],
        help="GB of memory (default: 24 48 80 141)",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def run(arguments: argparse.Namespace) -> int:
    """Print both tables.

    Raises:
        ValueError: If a number can't be used.
    """
    from platon_prune.reports.training_memory import MODELS, kinds_table, models_table

    require_file("--json", arguments.json)
    if arguments.selected and not arguments.parameters:
        raise ValueError("--selected must go with --parameters, got it alone: give both")
    _require_numbers(arguments)
    models = _models(arguments) if arguments.parameters else list(MODELS)
    print(f"bytes for each weight on the GPU\n\n{kinds_table()}\n")
    print("GB (10^9 bytes) on the GPU, and what activations have of each size; - for no room\n")
    print(models_table(models, arguments.gpus))
    if arguments.json:
        _write(arguments, models)
    return 0


def _require_numbers(arguments: argparse.Namespace) -> None:
    # float() takes nan and inf, of which no table can be made.
    for name, least in (("parameters", 1), ("selected", 1), ("gpus", 0)):
        for value in getattr(arguments, name) or ():
            if not (math.isfinite(value) and value >= least and value > 0):
                bound = "above 0" if least == 0 else f"at least {least}"
                raise ValueError(f"--{name} must be {bound}, got {value:g}")


def _models(arguments: argparse.Namespace) -> list[ModelSize]:
    from platon_prune.reports.training_memory import ModelSize

    parameters = arguments.parameters
    selected = arguments.selected or parameters
    if len(selected) != len(parameters):
        raise ValueError(
            f"--selected must have as many numbers as --parameters, got {len(selected)} and "
            f"{len(parameters)}"
        )
    for count, chosen in zip(parameters, selected, strict=True):
        if chosen > count:
            raise ValueError(
                f"--selected must be from 1 to --parameters, got {chosen:g} of {count:g}"
            )
    return [
        ModelSize(f"{count:.4g} parameters", round(count), round(chosen))
        for count, chosen in zip(parameters, selected, strict=True)
    ]


def _write(arguments: argparse.Namespace, models: list[ModelSize]) -> None:
    from platon_prune.commands.benchmarks.figures import write_json
    from platon_prune.reports.training_memory import SETTINGS

    rows: list[dict[str, Any]] = [
        {
            "model": model.name,
            "weights": str(setting.dtype).removeprefix("torch."),
            "pruning": setting.name,
            "bytes": setting.on_device(model),
            "host_bytes": setting.on_host(model),
        }
        for model in models
        for setting in SETTINGS
    ]
    write_json(arguments, rows)
