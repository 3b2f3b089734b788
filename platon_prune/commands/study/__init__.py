"""``platon-prune study``: a grid of runs, each done once, with a table and pictures.

It may be stopped at any moment and started again, and run by several processes in one folder.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from platon_prune.commands._output import require_place
from platon_prune.commands._parser import CRITERION_NAMES
from platon_prune.commands.study.presets import PRESETS
from platon_prune.commands.study.rival_names import RIVALS, WEIGHT_RIVALS
from platon_prune.studies.cells import Grid

HELP = "Run a grid of criteria, amounts, seeds and options; draw accuracy against density."
# Of recipes.
NAMES = (
    "digits", "structured-transformer", "structured-cnn", "structured-text", "structured-sst2",
    "glue", "text", "clm", "image", "squad", "sst2",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    grid = Grid()
    parser.add_argument("--recipe", help=f"what is trained: {', '.join(NAMES)} (default: digits)")
    parser.add_argument(
        "--preset", choices=list(PRESETS), help="a grid of the documentation; other flags win"
    )
    parser.add_argument(
        "--criteria",
        nargs="+",
        help=f"dense, {', '.join(CRITERION_NAMES)}; of other packages, where they are installed, "
        f"{', '.join(WEIGHT_RIVALS)} (digits) and {', '.join(RIVALS)} (structured) "
        f"(default: {' '.join(grid.criteria)})",
    )
    parser.add_argument(
        "--amounts",
        "--amount",
        metavar="AMOUNT",
        type=float,
        nargs="+",
        help=f"fractions to prune (default: {' '.join(map(str, grid.amounts))})",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help=f"(default: {' '.join(map(str, grid.seeds))})",
    )
    parser.add_argument(
        "--option",
        action="append",
        metavar="NAME=VALUE[,VALUE...]",
        help="an option of the recipe and its values, such as window=1,10; may be repeated",
    )
    parser.add_argument(
        "--one_by_one",
        action="store_true",
        help="change one option at a time instead of running all combinations",
    )
    parser.add_argument(
        "--best_of",
        metavar="OPTION",
        help="report each row at its own best value of an option, chosen on validation",
    )
    parser.add_argument(
        "--mean_over", metavar="OPTION", help="report each seed's mean over an option's values"
    )
    parser.add_argument(
        "--against",
        metavar="CRITERION",
        help="take differences to this criterion (default: to the first, and to no option)",
    )
    parser.add_argument(
        "--fine_tuned",
        action="store_true",
        help="structured-text, structured-sst2: start all cells from the model as it is, which was "
        "fine-tuned before, instead of a dense one for each seed",
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the recipe's)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="(default: cuda if there is one, else cpu)"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("platon-study"),
        help="folder of the results; finished cells are found there (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="show which cells are done, and end")
    parser.add_argument(
        "--report_only", action="store_true", help="write tables and pictures of what is done"
    )
    parser.add_argument(
        "flags",
        nargs="*",
        help="after --: flags of the recipe, such as the model and its files; digits has none",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the cells that are missing, and write the report.

    Returns:
        The exit status: 0, 1 if a cell failed, or 130 if it was stopped from the keyboard.

    Raises:
        ValueError: If a flag's value can't be used; nothing is run then.
    """
    # Here, since they need torch, which --help has no use for.
    from platon_prune.commands.study.asked import cells_of, device_of
    from platon_prune.studies.cells import Workspace
    from platon_prune.studies.report import listing, report
    from platon_prune.studies.running import run_missing

    recipe, cells, view = cells_of(arguments)
    folder: Path = arguments.output_dir
    if arguments.list:
        print(listing(cells, folder))
        return 0
    failed: Sequence[object] = ()
    require_place("--output_dir", folder)
    if not arguments.report_only:
        for name in (*recipe.extras, "matplotlib"):
            importlib.import_module(name)
        try:
            failed = run_missing(recipe, cells, Workspace(folder, device_of(arguments)))
        except KeyboardInterrupt:
            print("\nstopped: the same command goes on with the cells that are missing")
            return 130
    print(report(recipe, cells, folder, view))
    return 1 if failed else 0
