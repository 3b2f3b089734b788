"""Grids with a name: those that the pages of this project report."""

from __future__ import annotations

from platon_prune.commands.study.rival_names import RIVALS, is_installed
from platon_prune.studies.cells import DENSE, Grid


def _structured(amounts: tuple[float, ...]) -> tuple[Grid, ...]:
    """Torch-pruning where it is installed, and ours gradually and at once, smallest sizes first."""
    ours, seeds = ("platon", "sensitivity"), (0, 1, 2, 3, 4)
    normalizers = {"normalizer": ("none", "mean")}
    at_once = {"schedule": ("once",), "learn": (20,), **normalizers}
    others = RIVALS if is_installed() else ()
    return (
        Grid(criteria=(DENSE, *others), amounts=amounts, seeds=seeds),
        Grid(criteria=ours, amounts=amounts, seeds=seeds, options=at_once),
        Grid(criteria=ours, amounts=amounts, seeds=seeds, options=normalizers),
    )


# Name of the preset to its recipe and its grids.
PRESETS: dict[str, tuple[str, tuple[Grid, ...]]] = {
    "digits-criteria": (
        "digits",
        (
            Grid(
                criteria=(DENSE, "platon", "sensitivity", "magnitude", "movement", "random"),
                amounts=(0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99),
                seeds=(0, 1, 2, 3, 4),
            ),
        ),
    ),
    "digits-options": (
        "digits",
        (
            Grid(
                criteria=("platon",),
                amounts=(0.99, 0.98, 0.9),
                seeds=(0, 1, 2, 3, 4),
                options={
                    "masking": ("window",),
                    "window": (1, 50),
                    "biases": (True,),
                    "scope": ("layer",),
                    "floor": (0.2,),
                    "frozen": (True,),
                    "cooldown": (0.2, 0.6),
                    "distillation": (0.5,),
                    "beta1": (0.5,),
                    "beta2": (0.5, 0.99),
                },
                one_by_one=True,
            ),
        ),
    ),
    "structured-transformer": ("structured-transformer", _structured((0.85, 0.7, 0.5))),
    "structured-cnn": ("structured-cnn", _structured((0.9, 0.7, 0.5))),
    "sst2": (
        "sst2",
        (
            Grid(
                criteria=(DENSE, "magnitude", "movement", "sensitivity", "platon"),
                amounts=(0.8, 0.9, 0.95),
                seeds=(0, 1, 2),
            ),
            Grid(
                criteria=("platon",),
                amounts=(0.8, 0.9, 0.95),
                seeds=(0, 1, 2),
                options={"distillation": (0.5,)},
            ),
        ),
    ),
}
