"""The demo: PLATON against magnitude pruning on handwritten digits, with a table and a picture."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from platon_prune.commands._output import make_folder
from platon_prune.commands.benchmarks.compiled import check_compiled
from platon_prune.commands.benchmarks.digits import (
    DENSE_FURTHER,
    Digits,
    Run,
    Settings,
    fine_tune_dense,
    fine_tune_pruned,
    label_of,
    load_digits,
    prune_one_shot,
    train_dense,
)
from platon_prune.criteria import CRITERIA, CriterionName
from platon_prune.plots import Comparison, save_demo_report
from platon_prune.reports.summary import summary

if TYPE_CHECKING:
    from tqdm import tqdm

HELP = "Prune a small vision transformer on real handwritten digits, compare, and draw the result."
BASELINE: CriterionName = "magnitude"
EXTRAS = ("transformers", "sklearn", "matplotlib", "tqdm")


@dataclass(frozen=True)
class Results:
    """All runs of a demo; ``by_amount`` lists those of one amount together."""

    dense: Run
    dense_fine_tuned: Run
    by_amount: dict[float, list[Run]]

    @property
    def runs(self) -> list[Run]:
        """Every run, in the order of the table."""
        pruned = [run for runs in self.by_amount.values() for run in runs]
        return [self.dense, self.dense_fine_tuned, *pruned]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    default = Settings()
    parser.add_argument(
        "--amount",
        type=float,
        nargs="+",
        default=list(default.amounts),
        help="fraction of the weights to prune, one or several "
        f"(default: {' '.join(map(str, default.amounts))})",
    )
    parser.add_argument(
        "--criterion",
        default=default.criterion,
        help=f"what to compare with {BASELINE}: one of "
        f"{', '.join(name for name in CRITERIA if name != BASELINE)} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="of the split, the initial weights and the order of batches (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=default.steps,
        help="optimizer steps of each phase (default: %(default)s)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("platon-demo"),
        help="folder for report.png (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, prune, compare, and check the finalized model under torch.compile.

    Returns:
        The exit status: 0, or 1 if the compiled model's outputs differ.

    Raises:
        ValueError: If an option's value can't be used; nothing is trained then.
    """
    settings = Settings(
        amounts=tuple(arguments.amount),
        criterion=arguments.criterion,
        seed=arguments.seed,
        steps=arguments.steps,
    )
    _check(settings)
    # Before anything is trained: minutes later a missing package would be found too late.
    for name in EXTRAS:
        importlib.import_module(name)
    report = make_folder(arguments.output_dir) / "report.png"
    num_threads = torch.get_num_threads()
    torch.set_num_threads(settings.num_threads)
    try:
        digits = load_digits(settings)
        results = _run_all(digits, settings)
        print(_table(results, digits, settings))
        save_demo_report(_comparisons(results), results.dense_fine_tuned.accuracy, report)
        print(f"\npicture: {report}")
        # The sparsest one, of the criterion that the demo is about.
        finalized = results.by_amount[max(settings.amounts)][0]
        return check_compiled(finalized.model, digits, settings)
    finally:
        torch.set_num_threads(num_threads)


def _check(settings: Settings) -> None:
    for amount in settings.amounts:
        if not 0 < amount < 1:
            raise ValueError(
                f"--amount must be above 0 and below 1, got {amount}: it is the fraction of the "
                "weights to prune, such as 0.9"
            )
        if settings.amounts.count(amount) > 1:
            # The runs are kept by their amounts.
            raise ValueError(f"--amount values must differ, got {amount} twice: give it once")
    compared = [name for name in CRITERIA if name != BASELINE]
    if settings.criterion not in compared:
        raise ValueError(
            f"--criterion must be one of {', '.join(compared)}; got {settings.criterion!r}"
            + (" (the baseline of every comparison)" if settings.criterion == BASELINE else "")
        )
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"--seed must be from 0 to 2**32 - 1, got {settings.seed}: choose another")
    if settings.steps < 2 * settings.window:
        raise ValueError(
            f"--steps must be at least {2 * settings.window}, two windows of "
            f"{settings.window} steps, got {settings.steps}: train longer, the default is "
            f"{Settings.steps}"
        )


def _run_all(digits: Digits, settings: Settings) -> Results:
    """Train the dense model, then its copies, each for the same steps on the same batches."""
    from tqdm import tqdm

    criteria = (settings.criterion, BASELINE)
    num_phases = 2 + len(criteria) * len(settings.amounts)
    # One bar for all phases, each of which takes equally many steps.
    with tqdm(total=num_phases * settings.steps, unit="step") as bar:
        dense = train_dense(digits, settings, _stepper(bar, "dense"))
        longer = fine_tune_dense(dense, digits, settings, _stepper(bar, DENSE_FURTHER))
        by_amount = {}
        for amount in settings.amounts:
            gradual = [
                fine_tune_pruned(
                    dense,
                    criterion,
                    amount,
                    digits,
                    settings,
                    _stepper(bar, f"{label_of(criterion)} to {_percent(1 - amount)}"),
                )
                for criterion in criteria
            ]
            by_amount[amount] = [*gradual, prune_one_shot(dense, amount, digits)]
    return Results(dense, longer, by_amount)


def _stepper(bar: tqdm, phase: str) -> Callable[[], object]:
    """Name the phase in the progress bar; the bar's function that counts one step."""
    bar.set_description(phase)

    def on_step() -> None:
        bar.update()

    return on_step


# --- what is shown ------------------------------------------------------------------------------


def _table(results: Results, digits: Digits, settings: Settings) -> str:
    rows = [("density", "model", "accuracy", "sparsity", "non-zero weights")]
    for run in results.runs:
        total = summary(run.model).total
        rows.append(
            (
                _percent(1 - run.amount),
                run.label,
                f"{run.accuracy:.1f} %",
                f"{100 * total.sparsity:.4f} %",
                f"{total.kept:,} of {total.numel:,}",
            )
        )
    return (
        f"accuracy on {len(digits.held_out_labels)} held-out digits; {settings.steps} steps each; "
        f"seed {settings.seed}\n\n" + _aligned(rows)
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = (1,)  # columns of words; numbers go to the right
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _comparisons(results: Results) -> list[Comparison]:
    return [
        Comparison(
            density=1 - amount,
            schedule=runs[0].densities,
            accuracies={run.label: run.accuracies for run in runs},
            sparsities={
                run.label: {row.name: row.sparsity for row in summary(run.model)} for run in runs
            },
        )
        for amount, runs in results.by_amount.items()
    ]
