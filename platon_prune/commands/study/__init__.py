"""``platon-prune study``: a grid of runs, each done once, with a table and pictures.

It may be stopped at any moment and started again, and run by several processes in one folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from platon_prune.commands.study.digits import DIGITS
from platon_prune.commands.study.glue import OF_COMMANDS
from platon_prune.commands.study.presets import PRESETS
from platon_prune.commands.study.structured import STRUCTURED
from platon_prune.criteria import CRITERIA
from platon_prune.studies.cells import Cell, Grid, Recipe, Workspace, check, read_options
from platon_prune.studies.report import listing, report
from platon_prune.studies.running import run_missing

HELP = "Run a grid of criteria, amounts, seeds and options; draw accuracy against density."
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (DIGITS, *STRUCTURED, *OF_COMMANDS)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    grid = Grid()
    parser.add_argument("--recipe", choices=list(RECIPES), help="what is trained (default: digits)")
    parser.add_argument(
        "--preset", choices=list(PRESETS), help="a grid of the documentation; other flags win"
    )
    parser.add_argument(
        "--criteria",
        nargs="+",
        help=f"dense, {', '.join(CRITERIA)} (default: {' '.join(grid.criteria)})",
    )
    parser.add_argument(
        "--amounts",
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
        "--one-by-one",
        action="store_true",
        help="change one option at a time instead of running all combinations",
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the recipe's)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="(default: cuda if there is one, else cpu)"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("platon-study"),
        help="folder of the results; finished cells are found there (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="show which cells are done, and end")
    parser.add_argument(
        "--report-only", action="store_true", help="write tables and pictures of what is done"
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
    recipe, cells = cells_of(arguments)
    folder: Path = arguments.output_dir
    if arguments.list:
        print(listing(cells, folder))
        return 0
    failed: Sequence[object] = ()
    if not arguments.report_only:
        for name in (*recipe.extras, "matplotlib"):
            importlib.import_module(name)
        try:
            failed = run_missing(recipe, cells, Workspace(folder, device_of(arguments)))
        except KeyboardInterrupt:
            print("\nstopped: the same command goes on with the cells that are missing")
            return 130
    print(report(recipe, cells, folder))
    return 1 if failed else 0


def device_of(arguments: argparse.Namespace) -> str:
    """Where the cells run.

    Raises:
        ValueError: If that is a GPU, and torch finds none.
    """
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.device == "cuda" != found:
        raise ValueError(
            f"--device cuda needs a GPU that torch can use, got none with torch "
            f"{torch.__version__}: leave it out to run on the CPU, or install a build with CUDA"
        )
    return arguments.device or found


def cells_of(arguments: argparse.Namespace) -> tuple[Recipe, list[Cell]]:
    """The recipe and the cells that the flags ask for.

    Raises:
        ValueError: If a value can't be used.
    """
    name, grids = PRESETS[arguments.preset] if arguments.preset else ("digits", (Grid(),))
    if arguments.preset and arguments.recipe not in (None, name):
        raise ValueError(
            f"--preset {arguments.preset} is of the recipe {name}, got --recipe "
            f"{arguments.recipe}: leave one of them out"
        )
    recipe = RECIPES[arguments.recipe or name]
    given: dict[str, Any] = {
        name: tuple(getattr(arguments, name))
        for name in ("criteria", "amounts", "seeds")
        if getattr(arguments, name)
    }
    if arguments.option:
        given["options"] = read_options(arguments.option)
    if arguments.one_by_one:
        given["one_by_one"] = True
    if arguments.steps is not None and arguments.steps < 2:
        raise ValueError(f"--steps must be at least 2, got {arguments.steps}: train longer")
    settings = recipe.settings(arguments.steps, arguments.flags)
    recipe = recipe.given(settings)
    cells: dict[str, Cell] = {}
    for i, grid in enumerate(grids):
        chosen = dataclasses.replace(grid, **given)
        if i:  # a preset's further grids are of some criteria only
            chosen = dataclasses.replace(chosen, criteria=_both(grid.criteria, chosen.criteria))
        check(chosen, recipe, list(CRITERIA))
        cells |= {cell.key: cell for cell in chosen.cells(recipe, settings)}
    _check_cells(recipe, list(cells.values()))
    return recipe, list(cells.values())


def _check_cells(recipe: Recipe, cells: Sequence[Cell]) -> None:
    """Raise a ValueError that names a cell which can't run; of those of all seeds the first."""
    checked = set()
    for cell in cells:
        name = f"{cell.label}, amount {cell.amount:g}"
        if name not in checked:
            checked.add(name)
            try:
                recipe.check(cell)
            except ValueError as error:
                raise ValueError(f"every cell must be able to run, got {name}: {error}") from error


def _both(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in wanted)
