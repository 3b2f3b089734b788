"""``platon-prune architectures``: what can be pruned of each architecture, as the docs' table."""

from __future__ import annotations

import argparse
from pathlib import Path

from platon_prune.commands._output import require_file
from platon_prune.commands.architectures.configs import TINY
from platon_prune.writing import write_text

HELP = "Try what can be pruned and cut of every architecture of transformers, on tiny models."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="architectures, such as ModernBERT (default: all)"
    )
    parser.add_argument("--output", type=Path, help="write the table to this file, as Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Try them, print the table, write the file.

    Raises:
        ValueError: If a name is none of the table's.
    """
    from transformers.utils import logging

    from platon_prune.commands.architectures.rows import markdown, row_of

    unknown = [name for name in arguments.names if name not in TINY]
    if unknown:
        raise ValueError(
            f"NAME must be one of {', '.join(TINY)}; got {', '.join(unknown)}: write it as there"
        )
    require_file("--output", arguments.output)
    # Each model tells things of its kernels and tokens that are not about pruning.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    names = arguments.names or list(TINY)
    text = markdown([row_of(name, TINY[name]) for name in names])
    print(text)
    if arguments.output:
        write_text(arguments.output, text + "\n")
    return 0
