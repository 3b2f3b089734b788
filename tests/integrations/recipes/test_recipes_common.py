"""What the recipes share: flags, files of settings, presets, distillation, the report."""

import argparse
import dataclasses
import importlib
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from pages import ROOT
from recipe_models import save_bert
from torch import nn
from transformers import TrainingArguments

import platon_prune
from platon_prune import cli
from platon_prune.integrations.recipes import common, figure, report
from platon_prune.integrations.recipes.arguments import (
    DistillationArguments,
    ModelArguments,
    PruningArguments,
    RecipeTrainingArguments,
)
from platon_prune.integrations.recipes.authors_flags import AUTHORS_FLAGS
from platon_prune.integrations.recipes.distillation import RecipeTrainer, distillation_loss
from platon_prune.integrations.recipes.glue_data import GlueArguments
from platon_prune.integrations.recipes.image import ImageArguments
from platon_prune.integrations.recipes.loading import load_teacher
from platon_prune.integrations.recipes.parsing import parse_arguments
from platon_prune.integrations.recipes.presets import GLUE_PRESETS, SQUAD_PRESETS


def parse(*flags, recipe="glue", data=GlueArguments, presets=GLUE_PRESETS):
    return parse_arguments(
        [*map(str, flags)], recipe, data, description="d", examples="  e", presets=presets
    )


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [GlueArguments, ImageArguments])
def test_no_flag_has_the_name_of_another_or_of_a_training_argument(data):
    taken = {field.name for field in dataclasses.fields(TrainingArguments)}
    for cls in (ModelArguments, data, PruningArguments, DistillationArguments):
        names = {field.name for field in dataclasses.fields(cls)}
        assert not names & taken
        taken |= names


def test_the_flags_of_the_issue_exist():
    arguments = parse(
        "--criterion", "magnitude", "--amount", "0", "--teacher_name_or_path", "t",
        "--pruning_warmup_steps", "5", "--pruning_cooldown_steps", "0.25",
        "--pruning_initial_amount", "0", "--pruning_beta1", ".8", "--pruning_beta2", ".9",
        "--pruning_window", "4", "--pruning_masking", "window",
        "--pruning_include", "query", "key", "--pruning_exclude", "layer.0",
    )  # fmt: skip
    assert arguments.pruning.is_dense
    assert arguments.distillation.teacher_name_or_path == "t"
    assert arguments.pruning.callback() == dict(
        amount=0, criterion="magnitude", warmup_steps=5, cooldown_steps=0.25, initial_amount=0,
        beta1=0.8, beta2=0.9, window=4, masking="window", include=["query", "key"],
        exclude=["layer.0"],
    )  # fmt: skip


def test_limits_masks_and_zeros_are_those_of_the_python_interface():
    pruning = parse(
        "--pruning_max_amount", "0.9", "--pruning_mask_history", "--pruning_initial_amount", "zeros"
    ).pruning
    assert pruning.callback("runs/a") == dict(
        amount=0.9, criterion="platon", initial_amount="zeros", warmup_steps=0.1,
        cooldown_steps=0.3, beta1=0.85, beta2=0.95, window=10, masking="step", include=None,
        exclude=None, max_amount=0.9, mask_history=Path("runs/a/masks.bin"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "amount"), [("0", 0), ("0.0", 0), ("0.25", 0.25), ("500", 500), ("5e2", 500)]
)
def test_an_initial_amount_is_a_fraction_or_a_count(text, amount):
    found = parse("--pruning_initial_amount", text).pruning.callback()["initial_amount"]
    assert found == amount
    assert isinstance(found, float if amount == 0.25 else int)


def test_amount_and_criterion_may_also_be_written_with_the_prefix_and_with_dashes():
    arguments = parse(
        "--pruning_amount", "0.5", "--pruning_criterion", "random", "--learning-rate", 1
    )
    assert arguments.pruning.amount == 0.5
    assert arguments.pruning.criterion == "random"
    assert arguments.training.learning_rate == 1
    assert arguments.given == {"amount", "criterion", "learning_rate"}


def test_a_schedule_is_handed_on_to_the_callback(capsys):
    arguments = parse("--pruning_schedule", "once", "--criterion", "scaled_magnitude")
    settings = arguments.pruning.callback()
    assert (settings["schedule"], settings["criterion"]) == ("once", "scaled_magnitude")
    with pytest.raises(SystemExit, match="2"):
        parse("--pruning_schedule", "cosine")
    assert "invalid choice: 'cosine'" in capsys.readouterr().err


def test_a_metric_and_how_far_it_may_fall_are_handed_on_to_the_callback():
    settings = parse(
        "--metric", "eval_accuracy", "--max_drop", "0.01", "--baseline", "0.9", "--patience", "2"
    ).pruning.callback()
    wanted = dict(metric="eval_accuracy", max_drop=0.01, baseline=0.9, patience=2)
    assert wanted.items() <= settings.items()
    assert not wanted.keys() & parse().pruning.callback().keys()


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        (["--amount", "0.98"], "bert on sst2: platon, amount 0.98"),
        # The metric decides how much of it.
        (
            ["--amount", "0.98", "--metric", "eval_accuracy", "--max_drop", "0.01"],
            "bert on sst2: platon, amount at most 0.98",
        ),
        (
            ["--pruning_granularity", "structured", "--pruning_budget", "latency"]
            + ["--pruning_speedup", "1.5"],  # a third of the time goes
            "bert on sst2: platon, amount 0.3333",
        ),
        (["--amount", "0"], "bert on sst2: dense"),
    ],
)
def test_the_title_of_a_picture_says_how_much_was_to_be_pruned(flags, title):
    arguments = parse(*flags)
    arguments.model.model_name_or_path = "models/bert"
    assert common.title_of(arguments, "sst2") == title


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_drop", "0.01"], "given together, got --max_drop alone: add --metric"),
        (["--metric", "f1"], "given together, got --metric alone: add --max_drop"),
        (["--metric", "f1", "--max_drop", "-1"], "--max_drop must be at least 0 and finite, got"),
        (["--metric", "f1", "--max_drop", "1", "--patience", "0"], "--patience must be at least 1"),
        (["--baseline", "0.9"], "--baseline must go with --metric and --max_drop"),
    ],
)
def test_flags_of_a_metric_that_can_not_work_are_refused_by_name(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(*flags)


def test_a_normalizer_is_handed_on_to_the_callback_of_heads_and_neurons():
    heads = ("--pruning_granularity", "structured")
    assert parse(*heads, "--pruning_normalizer", "none").pruning.callback()["normalizer"] == "none"
    assert parse(*heads, "--pruning_kinds", "heads").pruning.callback()["kinds"] == ["heads"]
    # What is not given stays the library's own, which is the flag's default.
    assert "normalizer" not in parse(*heads).pruning.callback()
    default = inspect.signature(platon_prune.global_structured).parameters["normalizer"].default
    assert parse(*heads).pruning.pruning_normalizer == default


def test_a_scope_is_handed_on_to_the_callback(capsys):
    n_of_m = ("--pruning_granularity", "semi_structured")
    assert parse("--pruning_scope", "layer").pruning.callback()["scope"] == "layer"
    assert parse(*n_of_m, "--pruning_scope", "layer").pruning.callback()["scope"] == "layer"
    assert "scope" not in parse("--pruning_scope", "global").pruning.callback()
    with pytest.raises(SystemExit, match="2"):
        parse("--pruning_scope", "tensor")
    assert "invalid choice: 'tensor'" in capsys.readouterr().err


def test_whole_numbers_are_counts_and_what_is_below_one_a_fraction():
    pruning = PruningArguments(amount=5000.0, pruning_warmup_steps=100.0)
    assert (pruning.amount, pruning.pruning_warmup_steps) == (5000, 100)
    assert isinstance(pruning.amount, int) and isinstance(pruning.pruning_warmup_steps, int)
    assert isinstance(PruningArguments(pruning_warmup_steps=0.5).pruning_warmup_steps, float)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--amount", "1.5"], r"--amount must be a fraction of the weights in \[0, 1\).*got 1.5"),
        (["--pruning_warmup_steps", "-1"], "--pruning_warmup_steps must be .* got -1"),
        (["--pruning_beta2", "1"], r"--pruning_beta2 must be in \[0, 1\), got 1"),
        (["--pruning_window", "0"], "--pruning_window must be at least 1, got 0"),
        (
            ["--pruning_initial_amount", "all"],
            r"--pruning_initial_amount must be a fraction of .* or zeros, got 'all'",
        ),
        (["--pruning_initial_amount", "inf"], "--pruning_initial_amount must be .* got inf"),
        (["--pruning_initial_amount", "1e400"], "--pruning_initial_amount must be .* got inf"),
        (["--pruning_initial_amount", "nan"], "--pruning_initial_amount must be .* got nan"),
        (["--amount", "inf"], "--amount must be .* got inf"),
        (["--amount", "nan"], "--amount must be .* got nan"),
        (["--pruning_cooldown_steps", "1e400"], "--pruning_cooldown_steps must be .* got inf"),
        (["--pruning_initial_amount", "1.5"], "--pruning_initial_amount must be .* got 1.5"),
        (
            ["--pruning_initial_amount", "zeros", "--pruning_masking", "window"],
            "--pruning_masking must be step for --pruning_initial_amount zeros, got window",
        ),
        (["--pruning_normalizer", "cost"], "--pruning_normalizer cost must go with --pruning_gran"),
        (
            ["--pruning_granularity", "structured", "--pruning_scope", "layer", "--amount", "0.5"],
            "--pruning_scope layer must go with --pruning_granularity unstructured or semi_struct",
        ),
        (["--shrink"], "--shrink must go with --pruning_granularity structured, got unstructured"),
        (["--pruning_kinds", "heads"], "--pruning_kinds heads must go with --pruning_granularity"),
        (
            ["--pruning_granularity", "structured", "--pruning_kinds", "heads", "rows"],
            "--pruning_kinds must be some of heads, neurons, channels, experts, blocks; got rows",
        ),
        (["--pruning_max_amount", "1.2"], r"--pruning_max_amount must be .* \[0, 1\], got 1.2"),
        (["--distillation_temperature", "0"], "--distillation_temperature must be above 0, got 0"),
        (["--distillation_weight", "2"], r"--distillation_weight must be in \[0, 1\], got 2"),
        (
            ["--preset", "mnli-11"],
            "--preset must be one of glue's presets .*mnli-10.*got 'mnli-11'",
        ),
        (["settings.toml"], "settings must be flags or a .json, .yaml or .yml file"),
        (["settings.json"], "file of settings must exist, got settings.json"),
        (["--load_best_model_at_end", "--do_train"], "load_best_model_at_end"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(*flags)


@pytest.mark.case
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pruning_amont", "0.9"], "there is no --pruning_amont: did you mean --pruning_amount?"),
        (["--learn", "0.1"], "there is no --learn"),
        (["--initial_warmup", "1"], "no --initial_warmup: did you mean --pruning_warmup_steps?"),
        (["--final-warmup=1"], "no --final-warmup: did you mean --pruning_cooldown_steps?"),
        (["--deltaT", "1"], "there is no --deltaT: did you mean --pruning_window?"),
        (["--final_threshold", "1"], "there is no --final_threshold: did you mean --amount?"),
        (["--amount", "most"], "invalid float value: 'most'"),
        (["--criterion", "taylor"], "invalid choice: 'taylor'"),
        (
            ["--do_eval", "true", "stray"],
            "a value must follow the flag that it is for, got 'stray'",
        ),
    ],
)
def test_unknown_flags_and_values_end_the_command_with_a_hint(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(*flags)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason", "unused"),
    [
        (["--do_train", "--amount", 0], "--amount 0 trains a dense model",
         "criterion, pruning_mask_history, pruning_max_amount"),
        (["--do_eval"], "nothing is pruned without --do_train",
         "pruning_mask_history, pruning_max_amount"),
        (["--do_eval", "--amount", 0], "nothing is pruned without --do_train",
         "pruning_mask_history, pruning_max_amount"),
        (["--do_eval", "--metric", "f1", "--max_drop", 1], "nothing is pruned without --do_train",
         "max_drop, metric, pruning_mask_history, pruning_max_amount"),
    ],
)  # fmt: skip
def test_flags_of_pruning_that_a_run_does_not_use_are_named(flags, reason, unused, capsys):
    given = ["--criterion", "platon", "--pruning_mask_history", "--pruning_max_amount", 0.95,
             "--pruning_include", "query"]  # fmt: skip
    common.begin(parse("--model_name_or_path", "m", *flags, *given))
    assert f"\n{reason}: {unused} will not be used\n" in capsys.readouterr().out


def test_a_run_that_prunes_leaves_no_flag_unused(capsys):
    common.begin(parse("--model_name_or_path", "m", "--do_train", "--pruning_mask_history"))
    assert "will not be used" not in capsys.readouterr().out


# --- files of settings --------------------------------------------------------------------------

SETTINGS = {
    "task_name": "rte",
    "amount": 0.75,
    "pruning_include": ["query", "key"],
    "do_train": True,
    "do_eval": False,
    "learning_rate": "3e-5",  # what YAML reads 3e-5 as
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "teacher_name_or_path": None,
}


@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
def test_a_file_of_settings_says_what_flags_say(tmp_path, ending):
    path = tmp_path / f"settings.{ending}"
    if ending == "json":
        path.write_text(json.dumps(SETTINGS))
    else:
        path.write_text(
            "task_name: rte\namount: 0.75\npruning_include: [query, key]\ndo_train: true\n"
            "do_eval: false\nlearning_rate: 3e-5\nlr_scheduler_kwargs: {num_cycles: 2}\n"
            "teacher_name_or_path:\n"
        )
    arguments = parse(path)
    assert arguments.data.task_name == "rte"
    assert arguments.pruning.amount == 0.75
    assert arguments.pruning.pruning_include == ["query", "key"]
    assert arguments.training.do_train is True
    assert arguments.training.do_eval is False
    assert arguments.training.learning_rate == 3e-5
    assert arguments.training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert arguments.distillation.teacher_name_or_path is None
    assert arguments.given == set(SETTINGS) - {"teacher_name_or_path"}


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"preset": "rte-10", "learning_rate": 0.5, "seed": 7}))
    arguments = parse(path, "--seed", 8)
    assert arguments.training.seed == 8
    assert arguments.training.learning_rate == 0.5
    assert arguments.training.num_train_epochs == 20


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "must be valid JSON"),
        ("a.yaml", "a: [", "must be valid YAML"),
        ("a.json", "[1]", "must hold names and values.* got a list"),
        ("a.json", '{"amont": 1}', "there is no amont: did you mean amount?"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(tmp_path / name)


# --- presets ------------------------------------------------------------------------------------

# The table of the issue, typed by hand:
# density, beta2, warm-up steps, t_i, t_f, learning rate, batch size, epochs.
AUTHORS_SETTINGS = {
    "mnli-20": (0.20, 0.95, 5400, 5400, 27000, 8e-5, 32, 8),
    "mnli-15": (0.15, 0.90, 5400, 5400, 27000, 8e-5, 32, 8),
    "mnli-10": (0.10, 0.85, 5400, 5400, 27000, 8e-5, 32, 8),
    "rte-20": (0.20, 0.95, 200, 200, 1200, 1e-4, 16, 20),
    "rte-15": (0.15, 0.65, 200, 200, 1200, 1e-4, 16, 20),
    "rte-10": (0.10, 0.95, 200, 200, 1200, 1e-4, 16, 20),
    "qqp-20": (0.20, 0.85, 5400, 5400, 27000, 1e-4, 32, 10),
    "sst2-10": (0.10, 0.85, 1000, 1000, 5000, 8e-5, 32, 6),
    "qnli-10": (0.10, 0.90, 2000, 2000, 12000, 1e-4, 32, 10),
    "stsb-10": (0.10, 0.85, 500, 500, 2500, 1e-4, 16, 15),
    "mrpc-10": (0.10, 0.95, 300, 300, 900, 1e-4, 8, 10),
    "cola-10": (0.10, 0.95, 500, 500, 1500, 1e-4, 32, 15),
    "squad-10": (0.10, 0.95, 5400, 5400, 27000, 3e-5, 16, 10),
}


def test_there_is_a_preset_for_each_row_of_the_authors_settings():
    assert {**GLUE_PRESETS, **SQUAD_PRESETS}.keys() == AUTHORS_SETTINGS.keys()


@pytest.mark.parametrize("name", AUTHORS_SETTINGS)
def test_a_preset_fills_in_the_authors_settings(name):
    arguments = parse("--preset", name, presets={**GLUE_PRESETS, **SQUAD_PRESETS})
    pruning, training = arguments.pruning, arguments.training
    density, beta2, warmup, t_i, t_f, learning_rate, batch, epochs = AUTHORS_SETTINGS[name]
    assert pruning.amount == pytest.approx(1 - density, abs=1e-12)
    assert (pruning.pruning_beta1, pruning.pruning_beta2) == (0.85, beta2)
    assert pruning.pruning_window == 10
    assert (pruning.pruning_warmup_steps, pruning.pruning_cooldown_steps) == (t_i, t_f)
    assert training.warmup_steps == warmup
    assert training.learning_rate == learning_rate
    assert training.per_device_train_batch_size == batch
    assert training.num_train_epochs == epochs
    is_squad = name.startswith("squad")
    assert training.optim == ("adamw_torch" if is_squad else "adamax")
    assert arguments.data.task_name == (None if is_squad else name.split("-")[0])


def test_the_docs_have_the_same_table():
    text = (ROOT / "docs" / "recipes.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    table = {row[0]: [float(cell) for cell in row[1:9]] for row in rows if row and "-" in row[0]
             and row[0] in AUTHORS_SETTINGS}  # fmt: skip
    assert table == {
        name: [pytest.approx(1 - density), beta2, t_i, t_f, warmup, rate, batch, epochs]
        for name, (density, beta2, warmup, t_i, t_f, rate, batch, epochs) in (
            AUTHORS_SETTINGS.items()
        )
    }


def test_flags_win_over_the_preset_even_when_they_equal_the_default():
    arguments = parse(
        "--preset", "mnli-10", "--pruning_beta2", "0.95", "--learning_rate", "5e-5",
        "--optim", "adamw_torch_fused", "--pruning_warmup_steps", "0.1",
    )  # fmt: skip
    assert arguments.pruning.pruning_beta2 == 0.95
    assert arguments.training.learning_rate == 5e-5
    assert arguments.training.optim == "adamw_torch_fused"
    assert arguments.pruning.pruning_warmup_steps == 0.1
    assert arguments.pruning.pruning_cooldown_steps == 27000
    assert "pruning_beta2" not in arguments.from_preset
    assert arguments.from_preset["per_device_train_batch_size"] == 32


# --- distillation -------------------------------------------------------------------------------


def _divergence(teacher, student):
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def test_distillation_is_the_divergence_at_the_temperature_times_its_square():
    # Halved by T = 2, the logits are ln 3, 0 and 0, 0: probabilities 3/4, 1/4 and 1/2, 1/2.
    teacher = torch.tensor([[2 * math.log(3), 0.0], [0.0, 0.0]])
    student = torch.zeros(2, 2)
    expected = 4 * (_divergence((0.75, 0.25), (0.5, 0.5)) + 0) / 2
    found = distillation_loss({"logits": student}, {"logits": teacher}, 2.0)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_distillation_averages_over_both_heads_of_question_answering():
    teacher = {
        "start_logits": torch.tensor([[math.log(3), 0.0]]),
        "end_logits": torch.zeros(1, 2),
    }
    student = {
        "loss": torch.tensor(1.0),
        "start_logits": torch.zeros(1, 2),
        "end_logits": torch.tensor([[0.0, math.log(4)]]),
    }
    expected = (_divergence((0.75, 0.25), (0.5, 0.5)) + _divergence((0.5, 0.5), (0.2, 0.8))) / 2
    assert distillation_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_of_one_number_is_its_squared_difference():
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [5.0]])
    found = distillation_loss({"logits": student}, {"logits": teacher}, 3.0)
    assert found.item() == pytest.approx((1 + 9) / 2)


def test_a_teacher_with_other_outputs_is_refused():
    with pytest.raises(ValueError, match=r"shape of the model's, got \(2, 3\) and \(2, 2\)"):
        distillation_loss({"logits": torch.zeros(2, 2)}, {"logits": torch.zeros(2, 3)}, 1.0)


class Fixed(nn.Module):
    """Returns the logits it was made with."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, labels=None):
        loss = None if labels is None else nn.functional.cross_entropy(self.logits, labels)
        return {"loss": loss, "logits": self.logits}


def _trainer(tmp_path, **flags):
    student, teacher = Fixed([[0.0, 0.0]]), Fixed([[math.log(3), 0.0]])
    args = RecipeTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    distillation = DistillationArguments(distillation_temperature=1.0, **flags)
    return RecipeTrainer(model=student, args=args, teacher=teacher, distillation=distillation)


def test_the_loss_is_the_weighted_sum_of_the_labels_and_the_teacher(tmp_path):
    trainer = _trainer(tmp_path, distillation_weight=0.25)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, {"labels": torch.tensor([0])})
    expected = 0.75 * math.log(2) + 0.25 * _divergence((0.75, 0.25), (0.5, 0.5))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    # The slope of the divergence is q - p, that of the labels q - 1.
    loss.backward()
    slope = 0.75 * (0.5 - 1) + 0.25 * (0.5 - 0.75)
    assert trainer.model.logits.grad[0, 0].item() == pytest.approx(slope, rel=1e-6)
    assert trainer.teacher.logits.grad is None and not trainer.teacher.training


def test_evaluation_knows_no_teacher(tmp_path):
    trainer = _trainer(tmp_path, distillation_weight=0.25)
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, {"labels": torch.tensor([0])})
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 3}, "teacher's num_labels must be the model's, got 3 and 2"),
        ({"vocab_size": 40}, "teacher's vocab_size must be the model's, got 40 and 16"),
        ({"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}, "number its labels"),
    ],
)
def test_a_teacher_that_does_not_fit_the_model_is_refused(tmp_path, changes, message):
    from transformers import AutoModelForSequenceClassification

    folder = save_bert(tmp_path / "teacher", **changes)
    own = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    student = AutoModelForSequenceClassification.from_pretrained(
        save_bert(tmp_path / "student", **own)
    )
    arguments = parse("--do_train", "--teacher_name_or_path", folder)
    with pytest.raises(ValueError, match=message):
        load_teacher(arguments, AutoModelForSequenceClassification, student)


# --- the optimizer ------------------------------------------------------------------------------


def test_adamax_is_torchs_with_the_flags_of_adam(tmp_path):
    args = RecipeTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, optim="adamax", learning_rate=0.25,
        adam_beta1=0.5, adam_beta2=0.75, adam_epsilon=1e-4, weight_decay=0.125,
    )  # fmt: skip
    optimizer = RecipeTrainer(model=Fixed([[0.0, 0.0]]), args=args).create_optimizer()
    assert type(optimizer) is torch.optim.Adamax
    first = optimizer.param_groups[0]
    assert (first["lr"], first["betas"], first["eps"]) == (0.25, (0.5, 0.75), 1e-4)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.125, 0.0}


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="adamaxx"):
        parse("--optim", "adamaxx")


# --- the report ---------------------------------------------------------------------------------


def test_the_selection_counts_what_the_patterns_name():
    model = nn.ModuleDict({"query": nn.Linear(2, 3), "value": nn.Linear(2, 3)})
    pruning = PruningArguments(pruning_include=["query", "value"], pruning_exclude=["value.b"])
    names = report.selected_names(model, pruning)
    assert names == ["query.weight", "query.bias", "value.weight"]
    with torch.no_grad():
        model["query"].weight[0] = 0
        model["query"].bias[:] = 0
    table = report.measure(model, names)
    assert [row.sparsity for row in table][:2] == [pytest.approx(1 / 3), 1.0]
    assert table.total.numel == 15 and table.total.kept == 4 + 0 + 6


def test_json_is_valid_whatever_the_numbers_are(tmp_path):
    import numpy as np

    content = {
        "a": math.nan,
        "b": [math.inf, 1.5],
        "c": (1, 2),
        "d": np.float32(0.5),
        "e": tmp_path,
    }
    report.write_json(content, tmp_path / "new" / "results.json")
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert found == {"a": None, "b": [None, 1.5], "c": [1, 2], "d": 0.5, "e": str(tmp_path)}


def test_a_figure_is_drawn_of_a_dense_run_too(tmp_path):
    table = report.measure(nn.Linear(2, 2), ["weight"])
    figure.save_report("t", table, [], [], "eval_accuracy", tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_a_short_run_shows_the_choices_and_the_loss_and_fits_a_phone(
    tmp_path, monkeypatch
):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **settings: drawn.append(self))
    choices = [
        {"step": 2, "amount": 0.4, "sparsity": 0.3},
        {"step": 4, "amount": 0.5, "sparsity": 0.5},
    ]
    log = [{"step": 4, "train_loss": 1.25}]
    table = report.measure(nn.Linear(2, 2), ["weight"])
    figure.save_report("t", table, choices, log, "eval_accuracy", tmp_path / "report.png")
    of = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    measured = of["sparsity (%)"].get_lines()[1]
    assert list(measured.get_xdata()) == [2, 4] and list(measured.get_ydata()) == [30, 50]
    assert list(of["loss"].get_lines()[0].get_ydata()) == [1.25]
    assert drawn[0].get_figwidth() <= 7.5


# --- the command line ---------------------------------------------------------------------------


def test_the_overview_lists_the_recipes_without_loading_transformers():
    code = (
        "import sys; from platon_prune import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print('transformers' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip().endswith("False")
    for name in ("glue", "squad", "image"):
        assert f"\n    {name} " in shown.stdout


@pytest.mark.parametrize("recipe", ["glue", "image"])
def test_the_help_of_a_recipe_explains_its_flags(recipe, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([recipe, "--help"])
    shown = capsys.readouterr().out
    assert "examples:\n  platon-prune " + recipe in shown
    for flag in ("--model_name_or_path", "--amount, --pruning_amount", "--do_train", "--preset"):
        assert flag in shown


def test_a_missing_extra_is_named_with_what_to_install(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError("No module named 'datasets'", name="datasets")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main(["glue"]) == 2
    shown = capsys.readouterr().err
    assert "glue needs datasets" in shown
    assert "pip install 'platon-prune[transformers,plots]'" in shown


def test_an_error_of_another_library_keeps_its_traceback(monkeypatch):
    from platon_prune.integrations.recipes import glue

    monkeypatch.setattr(glue, "main", lambda flags: argparse.Namespace(**json.loads("{")))
    with pytest.raises(json.JSONDecodeError):
        cli.main(["glue"])


def test_a_run_that_would_do_nothing_says_so(capsys):
    assert cli.main(["glue", "--task_name", "sst2", "--model_name_or_path", "m"]) == 2
    assert "there is nothing to do: give --do_train, --do_eval" in capsys.readouterr().err


def test_a_run_without_a_model_says_so(capsys):
    assert cli.main(["glue", "--task_name", "sst2", "--do_eval"]) == 2
    assert "--model_name_or_path must name a model" in capsys.readouterr().err


def test_the_docs_show_the_table_that_hints_are_taken_from():
    page = (ROOT / "docs" / "from_authors.md").read_text()
    rows = re.findall(r"^\| `--(\w+)` \| `--(\w+)` \|", page, re.MULTILINE)
    assert dict(rows) == AUTHORS_FLAGS


def test_help_shows_our_flags_first_and_all_of_the_trainers_only_when_asked(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["glue", "--help"])
    short = capsys.readouterr().out
    groups = [short.index(f"\n{title}") for title in ("model:", "data:", "pruning:", "training (")]
    assert groups == sorted(groups)
    assert "--learning_rate" in short and "--ddp_timeout" not in short and "--help-all" in short
    for flag in ("--help-all", "--help_all"):
        with pytest.raises(SystemExit, match="0"):
            cli.main(["glue", flag])
        assert "--ddp_timeout" in capsys.readouterr().out


def test_flags_of_recipes_are_taken_in_any_spelling():
    one = parse("--pruning-warmup_steps", "5", "--pruning-amount=0.5", "--output-dir", "a-b")
    assert one.pruning.pruning_warmup_steps == 5 and one.pruning.amount == 0.5
    assert one.training.output_dir == "a-b" and parse("--amounts", "0.5").pruning.amount == 0.5


def test_an_output_dir_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = ["--task_name", "sst2", "--model_name_or_path", "no-such-model", "--do_train"]
    assert cli.main(["glue", *flags, "--output-dir", str(tmp_path / "file" / "x")]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1 and printed.out == ""
    assert "--output-dir must be a folder" in printed.err
