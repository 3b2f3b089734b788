"""Grids with a name: those that the pages of this project report."""

from __future__ import annotations

from dataclasses import dataclass, replace

from platon_prune.commands.study.rival_names import RIVALS, installed, is_installed
from platon_prune.studies.cells import DENSE, Grid
from platon_prune.studies.views import View


@dataclass(frozen=True)
class Preset:
    """A grid of the documentation.

    Args:
        recipe: What is trained.
        grids: What is run; a further one is of its own criteria only.
        view: How the report looks at it.
    """

    recipe: str
    grids: tuple[Grid, ...]
    view: View = View()


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


def _structured_text(amounts: tuple[float, ...]) -> tuple[Grid, ...]:
    """The strongest of torch-pruning's where it is installed, and ours at once and gradually."""
    seeds = (0, 1, 2)
    others = RIVALS[:1] if is_installed() else ()
    return (
        Grid(criteria=(DENSE, *others), amounts=amounts, seeds=seeds),
        Grid(criteria=("platon",), amounts=amounts, seeds=seeds, options={"schedule": ("once",)}),
        Grid(criteria=("platon",), amounts=amounts, seeds=seeds),
    )


_FIVE = (0, 1, 2, 3, 4)
# Every criterion at its own best of three rates, at the densities where they differ.
_FAIR = Grid(
    criteria=("platon", "sensitivity", "fisher", "magnitude", "movement"),
    amounts=(0.98, 0.99),
    seeds=_FIVE,
    options={"validation": (0.2,), "learning_rate": (0.002, 0.006, 0.018)},
)
_GRADUAL = ("torchao-pat", "nncf", "torch-l1")  # rivals that prune single weights on a ramp


def _n_of_m(pattern: str, amount: float) -> Grid:
    """All groups of a pattern, which prunes that amount of the weights."""
    return Grid(
        criteria=("platon", "magnitude", *installed(("torchao-pat", "one-shot"))),
        amounts=(amount,),
        options={"pattern": (pattern,)},
    )


# Name of the preset to what it runs, and how it is looked at.
PRESETS: dict[str, Preset] = {
    "digits-criteria": Preset(
        "digits",
        (
            Grid(
                criteria=(DENSE, "platon", "sensitivity", "magnitude", "movement", "random"),
                amounts=(0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99),
                seeds=(0, 1, 2, 3, 4),
            ),
        ),
    ),
    "digits-headline": Preset(
        "digits",
        (
            Grid(
                criteria=(DENSE, "platon", "magnitude"),
                amounts=(0.9, 0.99),
                seeds=tuple(range(10)),
                options={"threads": (1, 2)},
            ),
        ),
        View(mean_over="threads", against="magnitude"),
    ),
    "digits-fair": Preset(
        "digits",
        (
            _FAIR,
            # As NNCF prunes: magnitude over the norm of its tensor, on an exponential schedule.
            replace(
                _FAIR,
                criteria=("scaled_magnitude",),
                options={**_FAIR.options, "schedule": ("exponential",)},
            ),
            replace(_FAIR, criteria=(DENSE,)),
        ),
        View(best_of="learning_rate"),
    ),
    # Where scores are noisy, which is what the uncertainty is for.
    "digits-noise": Preset(
        "digits",
        (
            Grid(
                criteria=("sensitivity", "platon"),
                amounts=(0.99,),
                seeds=_FIVE,
                options={
                    "batch_size": (4, 8),
                    "window": (1,),
                    "label_noise": (0.1, 0.3),
                    "examples": (500,),
                    "learning_rate": (0.018,),
                    "steps": (1200,),
                },
                one_by_one=True,
            ),
        ),
        View(against="sensitivity"),
    ),
    "digits-options": Preset(
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
    "digits-rivals": Preset(
        "digits",
        (Grid(criteria=(DENSE, "platon", *installed(_GRADUAL)), amounts=(0.98, 0.99)),),
    ),
    "digits-n-of-m": Preset("digits", (_n_of_m("2:4", 0.5), _n_of_m("1:8", 0.875))),
    "structured-transformer": Preset("structured-transformer", _structured((0.85, 0.7, 0.5))),
    "structured-cnn": Preset("structured-cnn", _structured((0.9, 0.7, 0.5))),
    "structured-sst2": Preset("structured-sst2", _structured_text((0.7, 0.5))),
    "sst2": Preset(
        "sst2",
        (
            Grid(
                criteria=(DENSE, "magnitude", "movement", "fisher", "sensitivity", "platon"),
                amounts=(0.8, 0.9, 0.95),
                seeds=(0, 1, 2),
            ),
            Grid(
                criteria=("platon",),
                amounts=(0.8, 0.9, 0.95),
                seeds=(0, 1, 2),
                options={"distillation": (0.5,)},
            ),
            Grid(
                criteria=("scaled_magnitude",),
                amounts=(0.8, 0.9, 0.95),
                seeds=(0, 1, 2),
                options={"schedule": ("exponential",)},
            ),
        ),
    ),
}
