"""What a run leaves behind: the table of layers, ``results.json`` and ``report.png``."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import platon_prune
from platon_prune import PlatonScheduler, Summary, TensorSummary
from platon_prune.integrations.recipes.parsing import Arguments
from platon_prune.integrations.writing import write_text

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy")


def selected_names(model: nn.Module, pruning: Any) -> list[str]:
    """Names of the tensors that the report counts, before pruning gives them other names.

    Args:
        model: A model without masks.
        pruning: PruningArguments, with the patterns.

    Returns:
        Names of parameters, a shared one once.
    """
    names = [row.name for row in platon_prune.summary(model, pruning.pruning_include)]
    left_out = pruning.pruning_exclude or ()
    return [name for name in names if not any(pattern in name for pattern in left_out)]


@torch.no_grad()
def measure(model: nn.Module, names: Sequence[str]) -> Summary:
    """Count the zeros of the named parameters of a model without masks.

    Collective if the model is sharded.
    """
    rows = []
    for name in names:
        parameter: Tensor = model.get_parameter(name)
        if hasattr(parameter, "full_tensor"):  # a DTensor
            parameter = parameter.full_tensor()
        kept = int(torch.count_nonzero(parameter))
        rows.append(TensorSummary(name, tuple(parameter.shape), kept))
    return Summary(tuple(rows))


def settings_of(arguments: Arguments[Any]) -> dict[str, Any]:
    """All settings of a run as plain values; transformers leaves tokens out."""
    return {
        "model": vars(arguments.model),
        "data": vars(arguments.data),
        "pruning": vars(arguments.pruning),
        "distillation": vars(arguments.distillation),
        "training": arguments.training.to_dict(),  # type: ignore[no-untyped-call]
    }


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    found = {"platon_prune": platon_prune.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def choices_of(scheduler: PlatonScheduler | None) -> list[dict[str, Any]]:
    """What each choice of the masks did, as plain numbers; without the tensors one by one."""
    choices = () if scheduler is None else scheduler.history
    # All fields but this one, so that a new metric of the history is in every results.json.
    return [
        {name: value for name, value in vars(choice).items() if name != "sparsities"}
        for choice in choices
    ]


def results_of(
    arguments: Arguments[Any],
    metrics: dict[str, float],
    table: Summary,
    history: Sequence[dict[str, Any]],
    choices: Sequence[dict[str, Any]],
    log: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Everything that ``results.json`` holds.

    Args:
        arguments: Settings of the run.
        metrics: Name to value, such as ``eval_accuracy``.
        table: The layers as measured at the end.
        history: Where pruning was at each log: step, amount, sparsity and threshold.
        choices: What each choice of the masks did, of a resumed run from its beginning on.
        log: The trainer's own log.

    Returns:
        Plain values. ``sparsity`` is the measured one of all selected tensors together.
    """
    total = table.total
    return {
        "recipe": arguments.recipe,
        "metrics": metrics,
        "sparsity": total.sparsity,
        "selected_weights": total.numel,
        "pruned_weights": total.numel - total.kept,
        "seed": arguments.training.seed,
        "settings": settings_of(arguments),
        "given": sorted(arguments.given),
        "from_preset": arguments.from_preset,
        "versions": versions(),
        "layers": [
            {"name": row.name, "shape": row.shape, "kept": row.kept, "sparsity": row.sparsity}
            for row in table
        ],
        "pruning_history": list(history),
        "pruning_choices": list(choices),
        "log": list(log),
    }


def write_json(content: Any, path: Path) -> None:
    """Write valid JSON: what is not finite becomes null, what has no JSON form its text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(content), indent=2, default=str, allow_nan=False)
    write_text(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and getattr(value, "size", None) == 1:  # of numpy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
