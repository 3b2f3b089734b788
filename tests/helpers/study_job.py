"""A study of instant cells, run as a process of its own that may be killed or meet another."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from platon_prune import cli
from platon_prune.commands.study import asked as study
from platon_prune.studies.cells import Cell, Option, Recipe, Workspace


def fake(run: Callable[[Cell, Workspace], Mapping[str, float]]) -> Recipe:
    """A recipe named "fake", with an option that is 1 by default."""
    return Recipe(
        "fake",
        run,
        title="score",
        options={"width": Option(1), "kind": Option("a", ("a", "b"))},
        settings=lambda steps, flags: {"steps": steps, "flags": list(flags)},
    )


def with_options(recipe: Recipe, **changes: object) -> Recipe:
    """A recipe with some of its fields changed."""
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]


def score(cell: Cell) -> float:
    """By arithmetic: 100 of nothing pruned, less with the amount, more with the seed."""
    loss = {"dense": 0, "platon": 10, "magnitude": 20}[cell.criterion]
    return 100 - loss * cell.amount + cell.seed


def run_logged(cell: Cell, place: Workspace) -> dict[str, float]:
    """Note the cell in a log; where the environment says so, die in its middle or take a while."""
    with (place.folder.parent / "log.txt").open("a") as log:
        log.write(f"{cell.key}\n")
    if os.environ.get("DIE_IN") == f"{cell.criterion} {cell.seed}":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("SLEEP", "0")))
    return {"accuracy": score(cell)}


if __name__ == "__main__":
    study.RECIPES["fake"] = fake(run_logged)
    ready = Path(os.environ["READY"]) if "READY" in os.environ else None
    if ready is not None:  # the two that start together wait for each other
        Path(f"{ready}-{os.getpid()}").touch()
        while len(list(ready.parent.glob(f"{ready.name}-*"))) < 2:
            time.sleep(0.01)
    sys.exit(cli.main(["study", *sys.argv[1:]]))
