"""What all recipes do alike: begin, train with pruning, evaluate, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

import platon_prune
from platon_prune.integrations.hf_trainer import PlatonCallback
from platon_prune.integrations.recipes.arguments import SHRUNK
from platon_prune.integrations.recipes.authors_warmup import WarmupHint
from platon_prune.integrations.recipes.distillation import RecipeTrainer
from platon_prune.integrations.recipes.figure import can_draw, save_report
from platon_prune.integrations.recipes.loading import load as load
from platon_prune.integrations.recipes.loading import load_model as load_model
from platon_prune.integrations.recipes.loading import load_teacher as load_teacher
from platon_prune.integrations.recipes.parsing import Arguments
from platon_prune.integrations.recipes.report import (
    choices_of,
    measure,
    results_of,
    selected_names,
    write_json,
)
from platon_prune.integrations.recipes.run_again import (
    deciding_settings,
    is_finished,
    last_checkpoint,
    look_for_a_run,
    remember,
)
from platon_prune.integrations.writing import require_folder

Evaluate = Callable[[], Mapping[str, float]]


def begin(arguments: Arguments[Any]) -> bool:
    """Check what needs no data, print the settings that were chosen, and set the seed.

    Returns:
        Whether there is something to do: a run that has ended with the same settings is not run
        again.

    Raises:
        ValueError: If the run would do nothing, lacks a model or the checkpoint to resume from, or
            would write into the folder of a run with other settings.
    """
    training = arguments.training
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ValueError(
            "there is nothing to do: give --do_train, --do_eval or --do_predict (or several)"
        )
    if arguments.model.model_name_or_path is None:
        raise ValueError(
            "--model_name_or_path must name a model, got nothing: give the folder of a saved "
            "model or a name on the Hub"
        )
    require_folder("--output_dir", training.output_dir or ".")
    if training.resume_from_checkpoint is not None:
        training.resume_from_checkpoint = _checkpoint(arguments)
    arguments.deciding = deciding_settings(arguments)
    if training.do_train and training.resume_from_checkpoint is None:
        told = look_for_a_run(arguments)
        if told is not None:
            say(arguments, told)
            if is_finished(Path(training.output_dir or ".")):
                return False
    if not torch.accelerator.is_available():
        training.dataloader_pin_memory = False  # it would only warn
    _print_settings(arguments)
    if not can_draw():
        say(arguments, "report.png will not be drawn: pip install matplotlib")
    set_seed(training.seed)
    return True


def run(
    trainer: RecipeTrainer,
    arguments: Arguments[Any],
    evaluate: Evaluate | None = None,
    *,
    title: str,
    metric: str,
    details: Callable[[], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train with pruning, evaluate, and write the report into ``--output_dir``.

    Args:
        trainer: With its model not yet pruned.
        arguments: Settings of the run.
        evaluate: Returns metrics, of ``--do_eval`` and ``--do_predict`` both.
        title: Of the figure.
        metric: Which metric the figure shows over the steps, such as ``eval_accuracy``.
        details: Returns what else belongs into ``results.json``, once all was measured.

    Returns:
        What was written to ``results.json``.
    """
    training, pruning = arguments.training, arguments.pruning
    names = selected_names(_model(trainer), pruning)
    metrics: dict[str, float] = {}
    callback = None
    if training.do_train:
        if not pruning.is_dense:
            trainer.add_callback(WarmupHint(arguments))
            settings = pruning.callback(training.output_dir)
            if pruning.pruning_budget != "parameters":
                settings["example_inputs"] = example_batch(trainer)
            callback = PlatonCallback(**settings).install(trainer)
        if trainer.is_world_process_zero():
            remember(arguments.deciding, Path(training.output_dir or "."))
        started = time.perf_counter()
        output = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        metrics["train_loss"] = output.training_loss
        metrics["train_seconds"] = time.perf_counter() - started
        metrics["train_steps"] = trainer.state.global_step
        if trainer.is_fsdp_enabled:
            # Of a sharded state dict the trainer writes no model at the end.
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model()
    if evaluate is not None and (training.do_eval or training.do_predict):
        metrics |= evaluate()
    table = measure(_model(trainer), names)
    history = [] if callback is None else callback.history
    choices = [] if callback is None else choices_of(callback.scheduler)
    results: dict[str, Any] = results_of(
        arguments, metrics, table, history, choices, trainer.state.log_history
    )
    results |= {} if details is None else details()
    results |= _goal_of(callback)
    if trainer.is_world_process_zero():
        if pruning.shrink and training.do_train and not pruning.is_dense:
            results |= _save_shrunk(trainer, Path(training.output_dir or "."))
        folder = Path(training.output_dir or ".")
        write_json(results, folder / "results.json")
        if can_draw():
            log = trainer.state.log_history
            # The choices are there however seldom the trainer logs.
            save_report(title, table, choices or history, log, metric, folder / "report.png")
        _print_results(metrics, table, folder, trained=training.do_train)
        if "goal" in results:
            print(results["goal"])
    return results


def _goal_of(callback: PlatonCallback | None) -> dict[str, str]:
    """What came of --max_drop, if it was given."""
    goal = None if callback is None or callback.scheduler is None else callback.scheduler.goal
    return {} if goal is None else {"goal": str(goal)}


def _save_shrunk(trainer: RecipeTrainer, folder: Path) -> dict[str, Any]:
    """Cut what was pruned out of the model that a run has saved, and save what is left.

    Args:
        trainer: Of the run, after ``save_model``.
        folder: That of the run.

    Returns:
        What belongs into ``results.json``.
    """
    # Read back instead of copied: the trainer's own may be sharded, wrapped or on a GPU.
    cls: Any = type(_model(trainer))
    model = cls.from_pretrained(folder).eval()
    report = platon_prune.shrink(model)
    platon_prune.save(model, folder / SHRUNK)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(folder / SHRUNK)
    print(f"\n{report}\n\nthe shrunk model is in {folder / SHRUNK}")
    places = [
        {"name": row.name, "kind": row.kind, "before": row.before, "after": row.after}
        for row in report.places
    ]
    return {
        "shrunk": {
            "parameters_before": report.parameters_before,
            "parameters_after": report.parameters_after,
            "places": places,
        }
    }


def example_batch(trainer: RecipeTrainer) -> dict[str, Any]:
    """The first batch that a trainer evaluates on, or trains on if it has nothing else.

    Args:
        trainer: With its data.

    Returns:
        What the model is given but its labels: deployed, it computes no loss.
    """
    # The seed of a loader is drawn; the run must be what it is without this batch.
    with torch.random.fork_rng():
        if trainer.eval_dataset is None:
            loader = trainer.get_train_dataloader()
        else:
            several = isinstance(trainer.eval_dataset, dict)
            loader = trainer.get_eval_dataloader(
                next(iter(trainer.eval_dataset)) if several else None
            )
        batch = next(iter(loader))
    return {key: value for key, value in batch.items() if key not in trainer.label_names}


def _model(trainer: RecipeTrainer) -> nn.Module:
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    return model


def _checkpoint(arguments: Arguments[Any]) -> str:
    """The folder to resume from; true stands for the last complete one in ``--output_dir``."""
    wanted = arguments.training.resume_from_checkpoint or ""
    if wanted.lower() in ("true", "last"):
        folder = arguments.training.output_dir or "."
        found = last_checkpoint(arguments)
        if found is None:
            raise ValueError(
                f"--resume_from_checkpoint {wanted} needs a complete checkpoint in --output_dir, "
                f"found none in {folder}: give its folder, or leave the flag out to start anew"
            )
        return str(found)
    if not Path(wanted).is_dir():
        raise ValueError(
            f"--resume_from_checkpoint must be the folder of a checkpoint, or true for the last "
            f"one in --output_dir, got {wanted!r}, which is no folder"
        )
    return wanted


def _print_settings(arguments: Arguments[Any]) -> None:
    """Print what decides the run, and who chose it."""
    pruning = arguments.pruning
    chosen: dict[str, Any] = {}
    for part in (arguments.model, arguments.data, pruning, arguments.distillation):
        chosen |= vars(part)
    training = arguments.training
    chosen |= {
        name: getattr(training, name)
        for name in ("learning_rate", "per_device_train_batch_size", "num_train_epochs", "seed")
    }
    for name in (*arguments.from_preset, *sorted(arguments.given)):
        chosen.setdefault(name, getattr(training, name, None))
    # What is left at its default is worth a line only where it decides the numbers.
    quiet = {*vars(arguments.model), *vars(arguments.data), *vars(arguments.distillation)}
    quiet |= {"pruning_n", "pruning_m", "pruning_state_dtype", "pruning_offload_averages"}
    quiet |= {"pruning_scope"}
    quiet |= set() if training.do_train else set(chosen)
    width = max(map(len, chosen))
    for name, value in chosen.items():
        source = "default"
        if name in arguments.given:
            source = "given"
        elif name in arguments.from_preset:
            source = f"preset {pruning.preset}"
        if source != "default" or (value is not None and name not in quiet):
            typed = getattr(value, "value", value)  # of a choice the word, not the name of its enum
            say(arguments, f"{name:<{width}}  {typed}  ({source})")
    _print_unused(arguments)


def _print_unused(arguments: Arguments[Any]) -> None:
    """Print which flags of pruning were given to a run that does not prune."""
    if not arguments.training.do_train:
        reason = "nothing is pruned without --do_train"
        shown = {"criterion"}  # in the title of the report
    elif arguments.pruning.is_dense:
        reason, shown = "--amount 0 trains a dense model", set()
    else:
        return
    shown |= {"pruning_include", "pruning_exclude"}  # the report counts what they select
    unused = sorted(
        name
        for name in arguments.given - shown
        if name.startswith("pruning_")
        or name in ("criterion", "shrink", "metric", "max_drop", "baseline", "patience")
    )
    if unused:
        say(arguments, f"{reason}: {', '.join(unused)} will not be used")


def _print_results(
    metrics: Mapping[str, float], table: Any, folder: Path, *, trained: bool
) -> None:
    print(f"\n{table}\n")
    for name, value in metrics.items():
        print(f"{name} = {value:.4f}" if isinstance(value, float) else f"{name} = {value}")
    print(f"sparsity = {table.total.sparsity:.6f} (measured, of {table.total.numel:,} weights)")
    print(f"\nresults.json{' and the model are' if trained else ' is'} in {folder}")


def say(arguments: Arguments[Any], text: str) -> None:
    """Print a line, in one process of many."""
    if arguments.training.process_index == 0:
        print(text)


def title_of(arguments: Arguments[Any], task: str) -> str:
    """One line that says what was run, for the figure."""
    pruning = arguments.pruning
    name = Path(arguments.model.model_name_or_path or "").name
    most = "" if pruning.max_drop is None else "at most "
    how = (
        "dense"
        if pruning.is_dense
        else f"{pruning.criterion}, amount {most}{round(pruning.amount, 4):g}"
    )
    return f"{name} on {task}: {how}"
