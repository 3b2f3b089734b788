"""The demo's runs, one after the other, and what it shows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from platon_prune.commands.benchmarks.demo_settings import BASELINE, Settings
from platon_prune.commands.benchmarks.digits import (
    DENSE_FURTHER,
    Digits,
    Run,
    fine_tune_dense,
    fine_tune_pruned,
    label_of,
    prune_one_shot,
    train_dense,
)
from platon_prune.plots import Comparison
from platon_prune.reports.summary import summary

if TYPE_CHECKING:
    from tqdm import tqdm


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


def run_all(digits: Digits, settings: Settings) -> Results:
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


def table_of(results: Results, digits: Digits, settings: Settings) -> str:
    """The table of a demo: one line for each run."""
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


def for_picture(results: Results) -> list[Comparison]:
    """What the picture shows: one comparison for each amount."""
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
