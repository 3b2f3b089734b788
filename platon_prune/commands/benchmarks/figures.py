"""Figures of the commands that measure: their options, their spread, and the table of the bench."""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from platon_prune.commands._output import require_file
from platon_prune.tables import WIDTH, rounded, table
from platon_prune.writing import write_text


def add_measuring_arguments(parser: argparse.ArgumentParser, repeats: int, what: str) -> None:
    """Declare ``--repeats`` and ``--json``, which all commands that measure have."""
    parser.add_argument("--repeats", type=int, default=repeats, help=f"{what} (default: {repeats})")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def check_measuring_arguments(arguments: argparse.Namespace) -> None:
    """Raise a ValueError unless something is to be measured, and the file can be written."""
    if arguments.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {arguments.repeats}")
    require_file("--json", arguments.json)


def write_json(arguments: argparse.Namespace, figures: Any) -> None:
    """Write the figures, if it was asked for."""
    if arguments.json:
        write_text(arguments.json, json.dumps(rounded(figures), indent=2) + "\n")


class Spread(NamedTuple):
    """Median, smallest and largest of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


class Figure(NamedTuple):
    """A line of the table; None where there is nothing to measure.

    Args:
        name: What was measured; what stands beside it is the textbook, or follows a slash.
        unit: Of the values; empty for numbers and ratios.
        ours: Of the library.
        textbook: Of what stands beside it.
    """

    name: str
    unit: str
    ours: Spread | None
    textbook: Spread | None

    @property
    def ratio(self) -> float | None:
        """How many times more the textbook, or what the slash names, takes."""
        if self.ours is None or self.textbook is None or not self.ours.median:
            return None
        return self.textbook.median / self.ours.median


def print_table(sizes: Sequence[int], device: str, figures: Sequence[Figure], what: str) -> None:
    """Print one device's figures for tensors of these sizes.

    Args:
        sizes: Entries of each tensor.
        device: Where they are.
        figures: The lines.
        what: What the tensors are those of, and who carries steps out.
    """
    # Not at the top: `--help` of every command reads this file.
    import torch

    where = f"{torch.get_num_threads()} threads"
    if torch.device(device).type == "cuda":
        where = torch.cuda.get_device_name(device)
    head = (
        f"{device} ({where}), torch {torch.__version__}, {what}: {sum(sizes):,} weights in "
        f"{len(sizes)} tensors, float32; median (lowest-highest); a ratio above 1 is good: "
        "platon_prune takes less"
    )
    lines = [("", "platon_prune", "textbook, or / what", "ratio")]
    for figure in figures:
        name = f"{figure.name} [{figure.unit}]" if figure.unit else figure.name
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2g}"
        lines.append((name, _cell(figure.ours), _cell(figure.textbook), ratio))
    print(f"\n{textwrap.fill(head, WIDTH)}\n\n{table(lines)}")


def ratio_table(sizes: Mapping[str, Sequence[Figure]]) -> str:
    """How many times as fast as the textbook each kind of step is, of models of several sizes.

    Args:
        sizes: Of each model the same figures.
    """
    lines = [("times as fast", *sizes)]
    for figures in zip(*sizes.values(), strict=True):
        ratios = ("-" if each.ratio is None else f"{each.ratio:.2g}" for each in figures)
        lines.append((figures[0].name, *ratios))
    # Above the table, whose last lines are the numbers.
    return f"textbook / platon_prune: above 1 is good, platon_prune is faster\n\n{table(lines)}"


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    median, low, high = map(_number, spread)
    # What is counted has no spread.
    return median if low == high else f"{median} ({low}-{high})"


def _number(value: float) -> str:
    if 0 < value < 1:
        return f"{value:.3f}"  # of a column that has to fit, more digits than were measured
    return f"{value:.3g}" if value < 10 else f"{value:,.0f}"
