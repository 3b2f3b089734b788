"""The demo: PLATON against magnitude pruning on handwritten digits, with a table and a picture."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from platon_prune.commands._output import make_folder
from platon_prune.commands._parser import CRITERION_NAMES
from platon_prune.commands.benchmarks.demo_settings import BASELINE, Settings

HELP = "Prune a small vision transformer on real handwritten digits, compare, and draw the result."
EXTRAS = ("transformers", "sklearn", "matplotlib", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    default = Settings()
    parser.add_argument(
        "--amount",
        "--amounts",
        dest="amount",
        metavar="AMOUNT",
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
        f"{', '.join(name for name in CRITERION_NAMES if name != BASELINE)} "
        "(default: %(default)s)",
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
        "--output_dir",
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
    import torch

    from platon_prune.commands.benchmarks import comparison, compiled
    from platon_prune.commands.benchmarks.digits import load_digits
    from platon_prune.plots import save_demo_report

    num_threads = torch.get_num_threads()
    torch.set_num_threads(settings.num_threads)
    try:
        digits = load_digits(settings)
        results = comparison.run_all(digits, settings)
        print(comparison.table_of(results, digits, settings))
        save_demo_report(comparison.for_picture(results), results.dense_fine_tuned.accuracy, report)
        print(f"\npicture: {report}")
        # The sparsest one, of the criterion that the demo is about.
        finalized = results.by_amount[max(settings.amounts)][0]
        return compiled.check_compiled(finalized.model, digits, settings)
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
    compared = [name for name in CRITERION_NAMES if name != BASELINE]
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
