"""The study's structured recipes: heads, neurons or channels to a share of the multiply-adds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import platon_prune
from platon_prune.commands.benchmarks import digits as _digits
from platon_prune.commands.study import rivals
from platon_prune.commands.study.digits import dense_of, settings
from platon_prune.commands.study.networks import (
    EXAMPLE,
    make_cnn,
    multiply_adds,
    num_parameters,
)
from platon_prune.criteria import make_criterion
from platon_prune.groups.coupled_choice import Structured
from platon_prune.groups.group_scores import AGGREGATES, NORMALIZERS
from platon_prune.schedule import SCHEDULES
from platon_prune.studies.cells import DENSE, Cell, Option, Recipe, Workspace

_DEFAULT = _digits.Settings()
_SCORING_BATCHES = 20  # of a rival, and of ours with learn=20: one pass over the training digits
OPTIONS: dict[str, Option] = {
    "schedule": Option("cubic", tuple(SCHEDULES)),
    "learn": Option(0),  # batches that scores are learned over before the first optimizer step
    "normalizer": Option("none", NORMALIZERS),
    "aggregate": Option("mean", AGGREGATES),
    "min_neurons": Option(0.05),
    "min_channels": Option(0.05),
    "masking": Option("step", ("step", "window")),
    "window": Option(_DEFAULT.window),
    "beta1": Option(0.85),
    "beta2": Option(0.95),
    "cut_after": Option(0),  # choices that a group stays out before it is cut; 0 cuts in the end
    "warmup": Option(_DEFAULT.warmup),  # share of the steps
    "cooldown": Option(_DEFAULT.cooldown),  # share of the steps
}
_PASSED_ON: tuple[str, ...] = (
    "schedule",
    "normalizer",
    "aggregate",
    "min_neurons",
    "min_channels",
    "masking",
)
_PASSED_ON += ("window", "beta1", "beta2")


@dataclass(frozen=True)
class _Network:
    """A network of the study.

    Args:
        kind: Tells its dense models from others in the study's folder; empty for the demo's.
        make: Makes it, with random weights.
        whole: Ends of the names of layers that keep all their outputs: what a residual adds up
            in a transformer, and the last layer.
        heads: Ends of the names of its queries, keys and values.
    """

    kind: str
    make: Callable[[_digits.Settings], nn.Module]
    whole: tuple[str, ...]
    heads: tuple[str, ...] = ()


_NETWORKS = {
    "structured-transformer": _Network(
        "",
        _digits.make_model,
        ("classifier", "projection", "o_proj", "fc2"),
        ("q_proj", "k_proj", "v_proj"),
    ),
    "structured-cnn": _Network("residual CNN", make_cnn, ("classifier",)),
}


def run(cell: Cell, place: Workspace) -> dict[str, float]:
    """Train the dense model of the seed (once in a folder), prune a copy of it, and cut it out."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(_DEFAULT.num_threads)
    try:
        with warnings.catch_warnings():
            # That a place sits on its floor is what the study shows.
            warnings.filterwarnings("ignore", "at their floor", platon_prune.PruningWarning)
            return _run(cell, place)
    finally:
        torch.set_num_threads(num_threads)


def _run(cell: Cell, place: Workspace) -> dict[str, float]:
    network = _NETWORKS[cell.recipe]
    training, chosen = _chosen(cell)
    digits = _digits.load_digits(training, place.device)
    dense = dense_of(training, digits, place.folder, network.make, network.kind)
    if cell.criterion == DENSE:
        finished = _digits.fine_tune_dense(dense, digits, training, _digits.unwatched)
    elif cell.criterion in rivals.RIVALS:
        finished = _of_rival(cell, network, dense, digits, training)
    else:
        finished = _of_ours(cell, dense, digits, training, chosen)
    return {
        "accuracy": finished.accuracy,
        "dense_accuracy": dense.accuracy,
        "multiply_adds": 100 * multiply_adds(finished.model) / multiply_adds(dense.model),
        "parameters": 100 * num_parameters(finished.model) / num_parameters(dense.model),
    }


def _of_ours(
    cell: Cell,
    dense: _digits.Run,
    digits: _digits.Digits,
    training: _digits.Settings,
    chosen: Mapping[str, Any],
) -> _digits.Run:
    """Pruned along the schedule while it is fine-tuned, and cut out; measured after that."""
    run = _digits.Run(cell.label, copy.deepcopy(dense.model), cell.amount)
    scheduler = _set_up(run.model, cell, training, chosen)
    if chosen["learn"]:
        order = _scoring_batches(digits, training, chosen["learn"])
        run.model.eval()  # as the rivals' scores are taken

        def loss(batch: Tensor) -> Tensor:
            output = _digits.logits_of(run.model(digits.train_images[batch]))
            return nn.functional.cross_entropy(output, digits.train_labels[batch])

        platon_prune.learn_scores(run.model, scheduler, order, loss)
    if chosen["learn"] and not SCHEDULES[chosen["schedule"]].has_ramp:
        # Its one choice is made, so the small model is trained, as a rival's is.
        platon_prune.remove(run.model)
        platon_prune.shrink(run.model)
        _digits.train(
            run, digits, training, training.fine_tuning_learning_rate, None, _digits.unwatched
        )
        return run
    _digits.fine_tune_with(scheduler, run, digits, training, _digits.unwatched)
    rows = platon_prune.structure(run.model).rows
    # Of a run that was cut as it went there may be nothing left to take out.
    if any(row.kept < row.size for row in rows):
        platon_prune.shrink(run.model)
    run.accuracies[training.steps] = _digits.accuracy(run.model, digits)
    return run


def _of_rival(
    cell: Cell,
    network: _Network,
    dense: _digits.Run,
    digits: _digits.Digits,
    training: _digits.Settings,
) -> _digits.Run:
    """Cut once to the multiply-adds that ours has at the same amount, then fine-tuned."""
    scheduler = _set_up(copy.deepcopy(dense.model), cell, training, _defaults())
    assert isinstance(scheduler.granularity, Structured)
    target = multiply_adds(dense.model) - round(cell.amount * scheduler.granularity.total)
    count = training.num_heads
    names = [n for n, _ in dense.model.named_modules() if n.endswith(network.heads)]
    model = rivals.prune_one_shot(
        cell.criterion,
        dense.model,
        target,
        dict.fromkeys(names if network.heads else (), count),
        lambda name: name.endswith(network.whole),
        digits,
        _scoring_batches(digits, training, _SCORING_BATCHES),
    )
    run = _digits.Run(cell.label, model, cell.amount)
    rate = training.fine_tuning_learning_rate
    _digits.train(run, digits, training, rate, None, _digits.unwatched)
    return run


def _set_up(
    model: nn.Module, cell: Cell, training: _digits.Settings, chosen: Mapping[str, Any]
) -> platon_prune.PlatonScheduler:
    learn = chosen["learn"]
    # Of a rival only the groups are asked for: a criterion that any length of run can have.
    criterion: Any = "magnitude" if cell.criterion in rivals.RIVALS else cell.criterion
    scheduler: platon_prune.PlatonScheduler = platon_prune.global_structured(
        model,
        torch.zeros(EXAMPLE, device=next(model.parameters()).device),
        amount=cell.amount,
        criterion=criterion,
        budget="macs",
        total_steps=training.steps + learn,
        warmup_steps=learn or training.warmup_steps,
        cooldown_steps=training.cooldown_steps,
        cut_after=chosen["cut_after"] or None,
        **{name: chosen[name] for name in _PASSED_ON},
    )
    return scheduler


def _scoring_batches(
    digits: _digits.Digits, training: _digits.Settings, num_batches: int
) -> list[Tensor]:
    """Positions of the training digits, in an order of the seed; as many passes as it takes."""
    generator = torch.Generator().manual_seed(training.seed)
    found: list[Tensor] = []
    while len(found) < num_batches:
        shuffled = torch.randperm(len(digits.train_labels), generator=generator)
        found += shuffled.split(training.batch_size)  # type: ignore[no-untyped-call]
    return found[:num_batches]


def _defaults() -> dict[str, Any]:
    return {name: option.default for name, option in OPTIONS.items()}


def _chosen(cell: Cell) -> tuple[_digits.Settings, dict[str, Any]]:
    """The settings of a cell's training, and all options with their values."""
    chosen = _defaults() | dict(cell.options)
    decisive = {name: chosen[name] for name in ("window", "warmup", "cooldown")}
    training = _digits.Settings(**cell.settings, seed=cell.seed, num_evaluations=1, **decisive)
    return training, chosen


def check(cell: Cell) -> None:
    """Raise a ValueError that says what must hold, unless pruning can be set up for a cell."""
    if cell.criterion == DENSE:
        return
    if cell.criterion in rivals.RIVALS:
        rivals.require_installed(cell.criterion)
        return
    training, chosen = _chosen(cell)
    learn = chosen["learn"]
    if learn < 0:
        raise ValueError(f"learn must be a number of batches, 0 or more, got {learn}")
    if chosen["cut_after"] < 0 or (chosen["cut_after"] and learn):
        raise ValueError(
            f"cut_after must be a number of choices, 0 or more, and 0 with learn, got "
            f"{chosen['cut_after']}"
        )
    for name in ("min_neurons", "min_channels"):
        if not 0 <= chosen[name] <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {chosen[name]}: it is a share")
    # Not the groups: to trace them for each cell takes longer than to find out in the first one.
    total = training.steps + learn
    shape = SCHEDULES[chosen["schedule"]](cell.amount, total, window=chosen["window"])
    schedule = shape.lasting(total, learn or training.warmup_steps, training.cooldown_steps)
    if make_criterion(cell.criterion, chosen["beta1"], chosen["beta2"]).windowed:
        schedule.require_scores()


def _recipe(name: str) -> Recipe:
    return Recipe(
        name,
        run,
        title="accuracy on held-out digits (%)",
        columns={
            "multiply_adds": "multiply-adds (%)",
            "parameters": "parameters (%)",
        },
        options=OPTIONS,
        extras=("sklearn", "transformers"),
        settings=settings,
        check=check,
        rivals=dict.fromkeys(rivals.RIVALS, ()),
        counted="multiply-adds",
    )


STRUCTURED: Sequence[Recipe] = tuple(_recipe(name) for name in _NETWORKS)
