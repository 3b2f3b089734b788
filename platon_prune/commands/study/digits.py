"""The study's recipe for digits: the demo's vision transformer, with the options of a cell."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import platon_prune
from platon_prune.choice.granularity import SCOPES
from platon_prune.commands.benchmarks import digits as _digits
from platon_prune.commands.benchmarks.scans import NUM_CLASSES, num_training
from platon_prune.commands.study import weight_rivals
from platon_prune.commands.study.counted import Counted
from platon_prune.commands.study.flags import require_teacher
from platon_prune.commands.study.patterns import NO_PATTERN, Pattern
from platon_prune.criteria import Movement
from platon_prune.masks.targets import find_tensors
from platon_prune.schedule import SCHEDULES
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.studies.cells import DENSE, Cell, Option, Recipe, Workspace
from platon_prune.writing import replacing

# Of the demo's settings: what a cell says itself, and what changes no result.
_NOT_SHARED = {"amounts", "criterion", "seed", "warmup", "cooldown", "window", "tolerance"}
_NOT_SHARED |= {"num_evaluations", "num_threads"}
# Options of the data, which the dense model is trained on as well.
_OF_DATA = ("validation", "examples", "label_noise")
_NOT_SHARED |= {*_OF_DATA}
# Options of the training to their names among the settings, which have their defaults.
_OF_TRAINING = {
    "learning_rate": "fine_tuning_learning_rate",
    "batch_size": "batch_size",
    "steps": "steps",
}

_DEFAULT = _digits.Settings()
OPTIONS: dict[str, Option] = {
    "masking": Option("step", ("step", "window")),
    "window": Option(_DEFAULT.window),
    "beta1": Option(0.85),
    "beta2": Option(0.95),
    "warmup": Option(_DEFAULT.warmup),  # share of the steps
    "cooldown": Option(_DEFAULT.cooldown),  # share of the steps
    "biases": Option(False),  # whether the biases of the pruned layers are pruned too
    "scope": Option("global", SCOPES),  # as of global_unstructured
    "fades": Option(True),  # as of Movement
    "frozen": Option(False),  # whether the mask stays as it is once the ramp has ended
    "distillation": Option(0.0),  # share of the dense model in the loss
    "temperature": Option(2.0),  # that both models' probabilities are taken at, as in the recipes
    "floor": Option(0.0),  # least density of a tensor, as a share of the density of all
    "max_amount": Option(None, kind=float),  # as of global_unstructured
    "schedule": Option("cubic", tuple(SCHEDULES)),
    # Of fine-tuning; the dense model that it starts from is the same for all of them.
    "learning_rate": Option(_DEFAULT.fine_tuning_learning_rate),
    "batch_size": Option(_DEFAULT.batch_size),
    "steps": Option(_DEFAULT.steps),
    "threads": Option(_DEFAULT.num_threads),  # of the processor
    # Of the training digits; the dense model is trained on the same.
    "validation": Option(_DEFAULT.validation),  # share set aside, to choose other options by
    "examples": Option(_DEFAULT.examples),  # how many there are; 0: all
    "label_noise": Option(_DEFAULT.label_noise),  # share that has the label of another class
    "pattern": Option(NO_PATTERN, kind=str),  # n:m along the inputs, by semi_structured
}
SHARED_OPTIONS = (*_OF_TRAINING, "threads", *_OF_DATA)


def settings(steps: int | None, flags: Sequence[str]) -> dict[str, Any]:
    """The demo's settings, with another number of steps if it is given."""
    if flags:
        raise ValueError(f"the recipes on digits take no flags after --, got {' '.join(flags)!r}")
    steps = _DEFAULT.steps if steps is None else steps
    shared = dataclasses.asdict(dataclasses.replace(_DEFAULT, steps=steps))
    return {name: value for name, value in shared.items() if name not in _NOT_SHARED}


def check(cell: Cell) -> None:
    """Raise a ValueError that says what must hold, unless pruning can be set up for a cell."""
    training, chosen = _chosen(cell)
    _check_training(training, chosen)
    require_teacher(cell.options)
    if cell.criterion == DENSE:
        return
    if not chosen["fades"] and cell.criterion != Movement.name:
        raise ValueError(
            f"fades=false is an option of movement, got {cell.criterion}: leave it out"
        )
    stand_in = nn.Sequential(nn.Linear(64, 64))
    if cell.criterion in weight_rivals.RIVALS:
        _select(stand_in, chosen)
        weight_rivals.check(cell, training, chosen["pattern"])
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", platon_prune.PruningWarning)
        selected = _select(stand_in, chosen)
        _set_up(stand_in, selected, cell, training, chosen)


def _check_training(training: _digits.Settings, chosen: Mapping[str, Any]) -> None:
    for name in ("distillation", "floor", "label_noise"):
        if not 0 <= chosen[name] <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {chosen[name]}: it is a share")
    if not 0 < chosen["temperature"] < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {chosen['temperature']}")
    if not 0 <= chosen["validation"] <= 0.5:
        raise ValueError(
            f"validation must be in [0, 0.5], got {chosen['validation']}: it is the share of the "
            "training digits that is set aside to choose by"
        )
    if not 0 < chosen["learning_rate"] < math.inf:
        raise ValueError(f"learning_rate must be above 0, got {chosen['learning_rate']}")
    for name, least in (("batch_size", 1), ("steps", 2), ("threads", 1)):
        if chosen[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {chosen[name]}")
    most = num_training(training) - NUM_CLASSES
    if chosen["examples"] and not NUM_CLASSES <= chosen["examples"] <= most:
        raise ValueError(
            f"examples must be from {NUM_CLASSES}, one of each class, to {most}, or 0 for all, got "
            f"{chosen['examples']}"
        )


def run(cell: Cell, place: Workspace) -> dict[str, float]:
    """Train the dense model of the seed (once in a folder), and prune a copy of it."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(_chosen(cell)[1]["threads"])
    try:
        return _run(cell, place)
    finally:
        torch.set_num_threads(num_threads)


def _run(cell: Cell, place: Workspace) -> dict[str, float]:
    training, chosen = _chosen(cell)
    digits = _digits.load_digits(training, place.device)
    # Whatever the options of fine-tuning, all start from one dense model.
    first = dataclasses.replace(
        training, steps=cell.settings["steps"], batch_size=cell.settings["batch_size"]
    )
    dense = dense_of(first, digits, place.folder)
    if cell.criterion == DENSE:
        longer = _digits.fine_tune_dense(dense, digits, training, _digits.unwatched)
        return {**_accuracies(longer, dense, digits), "sparsity": 0.0}
    run = _digits.Run(cell.label, copy.deepcopy(dense.model), cell.amount)
    selected = _select(run.model, chosen)
    if cell.criterion in weight_rivals.RIVALS:
        more = weight_rivals.fine_tune(run, selected, cell, digits, training, chosen["pattern"])
    else:
        scheduler = Counted(_set_up(run.model, selected, cell, training, chosen))
        loss = _teaching(dense.model, digits, chosen["distillation"], chosen["temperature"])
        state_bytes = scheduler.state_bytes()
        _digits.fine_tune_with(scheduler, run, digits, training, _digits.unwatched, loss)
        more = {
            "state_bytes": state_bytes,
            "step_ms": scheduler.step_ms(),
            **scheduler.regrowth(),
        }
    kept = [int(torch.count_nonzero(getattr(module, name))) for _, module, name in selected]
    numel = sum(getattr(module, name).numel() for _, module, name in selected)
    return {
        **_accuracies(run, dense, digits),
        "sparsity": 1 - sum(kept) / numel,
        "kept": sum(kept),
        "selected": numel,
        "empty_tensors": sum(count == 0 for count in kept),
        **more,
    }


def _accuracies(run: _digits.Run, dense: _digits.Run, digits: _digits.Digits) -> dict[str, float]:
    found = {"accuracy": run.accuracy, "dense_accuracy": dense.accuracy}
    if len(digits.validation_labels):
        found["validation_accuracy"] = _digits.validation_accuracy(run.model, digits)
    return found


def _chosen(cell: Cell) -> tuple[_digits.Settings, dict[str, Any]]:
    """The settings of a cell's training, and all options with their values."""
    defaults = {name: option.default for name, option in OPTIONS.items()}
    chosen = {**defaults, **_defaults(cell.settings), **cell.options}
    decided = {setting: chosen[name] for name, setting in _OF_TRAINING.items()}
    decided |= {name: chosen[name] for name in ("window", "warmup", "cooldown", *_OF_DATA)}
    training = _digits.Settings(**{**cell.settings, **decided}, seed=cell.seed, num_evaluations=1)
    return training, chosen


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the training as the settings have them."""
    return {name: settings[setting] for name, setting in _OF_TRAINING.items()}


def _set_up(
    model: nn.Module,
    selected: Sequence[tuple[str, nn.Module, str]],
    cell: Cell,
    training: _digits.Settings,
    chosen: Mapping[str, Any],
) -> PlatonScheduler:
    """The scheduler of a cell."""
    frozen = training.cooldown_steps if chosen["frozen"] else 0
    pattern = Pattern.of(chosen["pattern"])
    pruning: dict[str, Any] = dict(
        amount=cell.amount,
        criterion=cell.criterion if chosen["fades"] else Movement(fades=False),
        # Past the end of its schedule a scheduler only re-applies its masks.
        total_steps=training.steps - frozen,
        warmup_steps=training.warmup_steps,
        cooldown_steps=training.cooldown_steps - frozen,
        **{
            name: chosen[name]
            for name in ("window", "masking", "beta1", "beta2", "schedule", "scope")
        },
    )
    if pattern is not None:
        alone = {name: chosen[name] for name in ("biases", "floor", "max_amount")}
        pattern.refuse({n: v for n, v in alone.items() if v != OPTIONS[n].default})
        pruning |= dict(n=pattern.n, m=pattern.m, amount=pattern.share(cell.amount))
    elif chosen["floor"]:
        pruning["max_amount"] = 1 - chosen["floor"] * (1 - cell.amount)
    elif chosen["max_amount"] is not None:
        pruning["max_amount"] = chosen["max_amount"]
    if chosen["biases"]:
        pruning["include"] = [name for name, _, _ in selected]
    if pattern is None:
        scheduler = platon_prune.global_unstructured(model, **pruning)
    else:
        pairs = [(module, name) for _, module, name in selected]
        scheduler = platon_prune.semi_structured(pairs, **pruning)
    if frozen:
        scheduler.allow_other_length()
    return scheduler


def _select(model: nn.Module, chosen: Mapping[str, Any]) -> list[tuple[str, nn.Module, str]]:
    """(name, module, tensor name) of the weights, of a pattern those it fits; and of biases."""
    selected = list(find_tensors(model))
    pattern = Pattern.of(chosen["pattern"])
    if pattern is not None:
        return pattern.fitting(selected)
    if chosen["biases"]:
        selected += [
            (f"{name.removesuffix('weight')}bias", module, "bias")
            for name, module, _ in find_tensors(model)
            if getattr(module, "bias", None) is not None
        ]
    return selected


def _teaching(
    teacher: nn.Module, digits: _digits.Digits, share: float, temperature: float
) -> _digits.Loss | None:
    """The loss with a share of what a teacher says of the training digits; None without."""
    if not share:
        return None
    from platon_prune.integrations.recipes.distillation import distillation_loss

    with torch.no_grad():
        taught = teacher.eval()(digits.train_images).logits

    def loss(logits: Tensor, batch: Tensor) -> Tensor:
        labels = nn.functional.cross_entropy(logits, digits.train_labels[batch])
        distance = distillation_loss({"logits": logits}, {"logits": taught[batch]}, temperature)
        weighted: Tensor = (1 - share) * labels + share * distance
        return weighted

    return loss


def dense_of(
    training: _digits.Settings,
    digits: _digits.Digits,
    folder: Path,
    make: Callable[[_digits.Settings], nn.Module] = _digits.make_model,
    kind: str = "",
) -> _digits.Run:
    """The dense model of a seed: from the study's folder, or trained and left there.

    Args:
        training: Settings, the seed among them.
        digits: The data.
        folder: Of the study.
        make: Makes the model, with random weights.
        kind: What tells its file from that of another model; empty for the transformer.
    """
    decisive = dataclasses.asdict(training)
    for name in _NOT_SHARED - {"seed"} | {"fine_tuning_learning_rate"}:
        del decisive[name]
    # Only where they are asked for, so that models keep the names that they have.
    decisive |= {name: getattr(training, name) for name in _OF_DATA if getattr(training, name)}
    if kind:
        decisive["kind"] = kind
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "dense" / f"{key}.pt"
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model = make(training).to(digits.train_images.device)
        model.load_state_dict(saved["model"])
        return _digits.Run("dense", model, accuracies={training.steps: saved["accuracy"]})
    dense = _digits.train_dense(digits, training, _digits.unwatched, make)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save({"model": dense.model.state_dict(), "accuracy": dense.accuracy}, file)
    return dense


DIGITS = Recipe(
    "digits",
    run,
    title="accuracy on held-out digits (%)",
    columns={
        "regrown": "kept ones that had been pruned (%)",
        "returning": "kept ones that came back, per choice (%)",
        "empty_tensors": "empty tensors",
        "validation_accuracy": "on the validation part (%)",
        "state_bytes": "bytes kept for a weight",
        "step_ms": "processor time of a pruning step (ms)",
    },
    options=OPTIONS,
    shared_options=SHARED_OPTIONS,
    chosen_by="validation_accuracy",
    defaults=_defaults,
    extras=("sklearn", "transformers"),
    settings=settings,
    check=check,
    rivals=weight_rivals.RIVALS,
    subject=lambda settings: f"Handwritten digits, {settings['steps']} steps",
)
