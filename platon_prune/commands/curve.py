"""``platon-prune curve``: a metric, size and speed against density, from one run."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.commands._output import make_folder, require_place
from platon_prune.writing import write_text

if TYPE_CHECKING:
    from platon_prune.deploy.curve import Point

HELP = "Draw a metric, size and speed against density, from the checkpoints of one run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="output folder of a recipe or a Trainer with PlatonCallback, which evaluated and "
        "saved at the same steps of its ramp",
    )
    parser.add_argument(
        "--metric",
        help="of the evaluations, such as eval_accuracy (default: the only one beside the loss, "
        "else eval_loss)",
    )
    parser.add_argument(
        "--keep",
        type=float,
        metavar="SPARSITY",
        help="put the model of the point next to this sparsity, such as 0.93, into kept/",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=None,
        help="length of the sequence that is timed (default: 32)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="sequences or images in a call (default: 1)"
    )
    parser.add_argument(
        "--rounds", type=int, help="times to take of each point (default: about two seconds)"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("platon-curve"),
        help="where curve.json, curve.png and kept/ go (default: platon-curve)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure the checkpoints, print the table, write the files.

    Raises:
        ValueError: If an option can't be used, before anything is measured, or the run has no
            checkpoints with a metric.
    """
    from platon_prune.deploy.curve import checkpoints_of, measured, metric_of, nearest, shown

    for name in ("batch", "rounds", "tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if arguments.keep is not None and not 0 <= arguments.keep < 1:
        raise ValueError(f"--keep must be a sparsity in [0, 1), got {arguments.keep}")
    require_place("--output_dir", arguments.output_dir)
    checkpoints = checkpoints_of(arguments.run)
    metric = metric_of(checkpoints, arguments.metric)
    points = []
    for checkpoint in checkpoints:
        if metric in checkpoint.metrics:
            print(f"step {checkpoint.step} ...", file=sys.stderr, flush=True)
            points.append(
                measured(
                    checkpoint, metric, arguments.tokens or 32, arguments.batch, arguments.rounds
                )
            )
    print(shown(points, metric))
    folder = make_folder(arguments.output_dir)
    _write(points, metric, folder)
    if arguments.keep is not None:
        _keep(nearest(points, arguments.keep), folder / "kept")
    return 0


def _write(points: list[Point], metric: str, folder: Path) -> None:
    from platon_prune.deploy.curve_picture import save_curve

    content = {"metric": metric, "points": [point.to_json() for point in points]}
    write_text(folder / "curve.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    save_curve(points, metric, folder / "curve.png")
    print(f"\nwritten: curve.json and curve.png in {folder}")


def _keep(point: Point, folder: Path) -> None:
    """Copy what a user of a checkpoint's model needs, and nothing that resumes its training."""
    from platon_prune.deploy.models import COMPANIONS

    folder.mkdir(exist_ok=True)
    for pattern in ("config.json", "generation_config.json", "*.safetensors*", *COMPANIONS):
        for path in point.folder.glob(pattern):
            shutil.copy(path, folder)
    print(f"kept: the model of step {point.step}, {point.sparsity:.1%} sparse, in {folder}")
