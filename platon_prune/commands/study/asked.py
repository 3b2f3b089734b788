"""What a command line of ``platon-prune study`` asks for: its recipe, its cells and its device."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from platon_prune.commands.study.digits import DIGITS
from platon_prune.commands.study.glue import OF_COMMANDS
from platon_prune.commands.study.presets import PRESETS, Preset
from platon_prune.commands.study.structured import STRUCTURED
from platon_prune.commands.study.structured_text import STRUCTURED_TEXT, from_fine_tuned
from platon_prune.criteria import CRITERIA
from platon_prune.studies.cells import Cell, Grid, Recipe, check, read_options
from platon_prune.studies.views import View

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (DIGITS, *STRUCTURED, *STRUCTURED_TEXT, *OF_COMMANDS)
}


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


def cells_of(arguments: argparse.Namespace) -> tuple[Recipe, list[Cell], View]:
    """The recipe, the cells and the view of them that the flags ask for.

    Raises:
        ValueError: If a value can't be used.
    """
    preset = PRESETS[arguments.preset] if arguments.preset else Preset("digits", (Grid(),))
    name = preset.recipe
    if arguments.preset and arguments.recipe not in (None, name):
        raise ValueError(
            f"--preset {arguments.preset} is of the recipe {name}, got --recipe "
            f"{arguments.recipe}: leave one of them out"
        )
    name = arguments.recipe or name
    if name not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    recipe = RECIPES[name]
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
    if arguments.fine_tuned:
        settings = from_fine_tuned(name, settings)
    recipe = recipe.given(settings)
    cells: dict[str, Cell] = {}
    for i, grid in enumerate(preset.grids):
        chosen = dataclasses.replace(grid, **given)
        if i:  # a preset's further grids are of some criteria only
            chosen = dataclasses.replace(chosen, criteria=_both(grid.criteria, chosen.criteria))
        check(chosen, recipe, list(CRITERIA))
        cells |= {cell.key: cell for cell in chosen.cells(recipe, settings)}
    found = list(cells.values())
    _check_cells(recipe, found)
    views = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(View)}
    view = dataclasses.replace(preset.view, **{k: v for k, v in views.items() if v is not None})
    view.check(recipe, found)
    return recipe, found, view


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
