"""``platon-prune inspect``: zeros, n:m patterns and removable groups in a file, without a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from platon_prune.commands._output import require_file
from platon_prune.writing import write_text

HELP = "Show zeros, n:m patterns and removable heads and neurons of a file, without its model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="safetensors file, sparse file, or folder of a transformers model",
    )
    parser.add_argument("--all", action="store_true", help="list vectors and scalars, too")
    parser.add_argument("--json", type=Path, help="also write everything to this file")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, write the file.

    Raises:
        ValueError: If the path holds no tensors that can be read.
    """
    from platon_prune.export.inspection import inspect_path

    require_file("--json", arguments.json)
    inspection = inspect_path(arguments.path)
    print(inspection.to_text(every=arguments.all))
    if arguments.json:
        content = json.dumps(inspection.to_json(), indent=2)
        write_text(arguments.json, content + "\n")
    return 0
