"""What the authors' users look for in a recipe: their warm-up, dropout, lengths, several tasks."""

import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from recipe_models import results, run, save_bert, save_sst2
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

import platon_prune
from platon_prune import PruningWarning
from platon_prune.groups.latency import LatencyTable, PlaceTime
from platon_prune.integrations.recipes.authors_warmup import misread_warmup
from platon_prune.integrations.recipes.glue_data import GlueArguments
from platon_prune.integrations.recipes.loading import load_model, set_dropout
from platon_prune.integrations.recipes.parsing import parse_arguments
from platon_prune.integrations.recipes.presets import GLUE_PRESETS
from platon_prune.pruning import structured

HEADS = ("--pruning_granularity", "structured")
LATENCY = ("--pruning_budget", "latency")


def parse(*flags):
    return parse_arguments(
        [*map(str, flags)], "glue", GlueArguments, description="", examples="", presets=GLUE_PRESETS
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def sst2(tmp_path_factory):
    return save_sst2(tmp_path_factory.mktemp("sst2"))


def short(bert, folder, *more):
    return [
        "--model_name_or_path", bert, "--output_dir", folder, "--max_seq_length", 16,
        "--pruning_window", 2, "--save_strategy", "no", "--do_train", "--max_steps", 4,
        "--amount", 0.5, *more,
    ]  # fmt: skip


# --- pruning ------------------------------------------------------------------------------------


def test_a_beta1_of_0_is_refused_by_the_name_of_its_flag():
    with pytest.raises(ValueError, match="^--pruning_beta1 must be above 0 for --criterion platon"):
        parse("--pruning_beta1", 0)
    # Where no score of PLATON's is computed it is a setting like another.
    for more in (["--criterion", "sensitivity"], ["--amount", 0]):
        assert parse("--pruning_beta1", 0, *more).pruning.pruning_beta1 == 0


def test_a_limit_for_each_layer_of_heads_and_neurons_holds(bert, sst2, tmp_path):
    heads = ("--pruning_granularity", "structured", "--pruning_max_amount", 0.5)
    flags = short(bert, tmp_path, "--task_name", "sst2", *sst2, *heads, "--shrink")
    with pytest.warns(PruningWarning, match="at their floor"):
        assert run("glue", *flags) == 0
    found = results(tmp_path)
    assert found["settings"]["pruning"]["pruning_max_amount"] == 0.5
    # Half of each place may go, and half of all weights must: so it is half of each.
    sparsities = {layer["name"]: layer["sparsity"] for layer in found["layers"]}
    assert sparsities and set(sparsities.values()) == {0.5}
    # And so it is cut out, beside the model with zeros, with a tokenizer of its own.
    counts = {(row["before"], row["after"]) for row in found["shrunk"]["places"]}
    assert counts == {(2, 1), (32, 16)}
    small, whole = (
        pipeline("text-classification", model=model, tokenizer=str(tmp_path / "shrunk"))
        for model in (platon_prune.load(tmp_path / "shrunk"), str(tmp_path))
    )
    assert small.model.num_parameters() == found["shrunk"]["parameters_after"]
    assert small("a fine film")[0]["score"] == pytest.approx(whole("a fine film")[0]["score"])


# --- their warm-up ------------------------------------------------------------------------------


# Steps of their runs: examples of the task's training data / batch * epochs.
@pytest.mark.parametrize(
    ("task", "steps", "total"),
    [
        ("mnli", 5400, 98_176), ("rte", 200, 3_120), ("qqp", 5400, 113_710), ("QNLI", 2000, 32_740),
        ("SST-2", 1000, 12_630), ("sts-b", 500, 5_400), ("mrpc", 300, 4_590), ("cola", 500, 4_020),
    ],
)  # fmt: skip
def test_warm_up_steps_with_the_authors_value_for_a_task_are_told_to_be_the_learning_rates(
    task, steps, total
):
    told = misread_warmup(parse("--task_name", task, "--warmup_steps", steps), total)
    assert told.startswith(f"--warmup_steps {steps} is the warm-up of the learning rate alone")
    assert "begins after 0.1 of the run" in told
    assert f"give --pruning_warmup_steps {steps} " in told
    # The answer ends it, whichever value is meant.
    for warmup in (steps, 0.1):
        more = ("--warmup_steps", steps, "--pruning_warmup_steps", warmup)
        assert misread_warmup(parse("--task_name", task, *more), total) is None


@pytest.mark.parametrize(
    ("flags", "total"),
    [
        ((), 12_630),
        (("--warmup_steps", 600), 12_630),  # 5 %, and no value of theirs
        (("--warmup_steps", 0.08), 12_630),
        (("--warmup_steps", 0.5), 12_630),  # as a share it is surely the learning rate's
        (("--warmup_steps", 5400), 98_176),  # of another task
        (("--warmup_steps", 1000), 100_000),  # theirs, but a hundredth of this run
        (("--preset", "sst2-10"), 12_630),
        (("--preset", "sst2-10", "--warmup_steps", 1000), 12_630),  # as the preset has it
        (("--preset", "sst2-10", "--warmup_steps", 700), 12_630),
    ],
)
def test_ordinary_warm_up_steps_are_not_warned_about(flags, total):
    assert misread_warmup(parse("--task_name", "sst2", *flags), total) is None


@pytest.mark.parametrize(
    ("flags", "total", "begins"),
    [
        (("--warmup_steps", 300), 1000, "0.1 of the run"),
        (("--preset", "sst2-10", "--warmup_steps", 2000), 12_630, "1000 steps"),
    ],
)
def test_warm_up_steps_that_another_part_of_a_run_must_be_meant_by_are_warned_about(
    flags, total, begins
):
    told = misread_warmup(parse("--task_name", "sst2", *flags), total)
    assert f"while pruning begins after {begins}:" in told


def test_a_run_warns_of_them_once_unless_it_is_dense(bert, sst2, tmp_path):
    flags = ("--task_name", "sst2", *sst2, "--warmup_steps", 2, "--criterion", "random")
    with pytest.warns(PruningWarning, match="--warmup_steps 2 is the warm-up") as caught:
        assert run("glue", *short(bert, tmp_path / "a", *flags)) == 0
    assert len(caught) == 1
    assert run("glue", *short(bert, tmp_path / "b", *flags, "--amount", 0)) == 0


# --- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"]),
        ("distilbert", ["dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"]),
        ("gpt2", ["resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"]),
        ("t5", ["dropout_rate", "classifier_dropout"]),
    ],
)
def test_one_flag_sets_every_dropout_that_a_config_has_and_nothing_else(kind, names):
    config = AutoConfig.for_model(kind)
    before = dict(vars(config))
    set_dropout(config, 0.25)
    changed = {name for name, value in vars(config).items() if value != before[name]}
    assert changed == set(names) and all(getattr(config, name) == 0.25 for name in names)


def test_what_drops_layers_or_paths_is_no_dropout():
    config = AutoConfig.for_model("opt", layerdrop=0.1)
    set_dropout(config, 0.25)
    assert (config.layerdrop, config.dropout) == (0.1, 0.25)
    with pytest.raises(ValueError, match="--dropout must go with a model that has .* for convnext"):
        set_dropout(AutoConfig.for_model("convnext"), 0.25)


def test_a_model_is_trained_and_saved_with_the_dropout_that_was_given(bert):
    arguments = parse("--model_name_or_path", bert, "--dropout", 0.25)
    model = load_model(arguments, AutoModelForSequenceClassification)
    shares = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert shares == {0.25} and model.config.hidden_dropout_prob == 0.25


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_a_dropout_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"^--dropout must be in \[0, 1\), got "):
        parse("--dropout", share)


@pytest.mark.parametrize("flag", ["--hidden_dropout_prob", "--attention-probs-dropout-prob"])
def test_the_authors_flags_of_dropout_lead_to_it(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(flag, 0.1)
    assert f"there is no {flag}: did you mean --dropout?" in capsys.readouterr().err


# --- several tasks ------------------------------------------------------------------------------


def test_several_tasks_run_one_after_the_other_and_again_only_what_is_left(
    bert, sst2, tmp_path, capsys
):
    train, validation = Path(sst2[1]).read_text(), Path(sst2[3]).read_text()
    for task in ("sst2", "cola"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "train.tsv").write_text(train)
        (tmp_path / task / "dev.tsv").write_text(validation)
    files = ("--train_file", tmp_path / "{task}" / "train.tsv", "--validation_file",
             tmp_path / "{task}" / "dev.tsv", "--do_eval", "--criterion", "random")  # fmt: skip
    flags = short(bert, tmp_path / "runs", "--task_name", "sst2", "CoLA", "sst-2", *files)
    assert run("glue", *flags) == 0
    shown = capsys.readouterr().out
    one, other = (results(tmp_path / "runs" / task) for task in ("sst2", "cola"))
    assert one["settings"]["data"]["task_name"] == "sst2"
    assert other["settings"]["data"]["train_file"] == str(tmp_path / "cola" / "train.tsv")
    last = [line.split() for line in shown.splitlines()[-3:]]
    assert last[0] == ["task", "measured", "sparsity", "steps"]
    measured = f"{one['metrics']['eval_accuracy']:.4f}"
    assert last[1] == ["sst2", "eval_accuracy", measured, "50.00%", "4"]
    measured = f"{other['metrics']['eval_matthews_correlation']:.4f}"
    assert last[2] == ["cola", "eval_matthews_correlation", measured, "50.00%", "4"]

    written = (tmp_path / "runs" / "sst2" / "results.json").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "runs" / "cola")
    assert run("glue", *flags) == 0
    assert "sst2 is resumed: it has ended" in capsys.readouterr().out
    assert (tmp_path / "runs" / "sst2" / "results.json").stat().st_mtime_ns == written
    assert results(tmp_path / "runs" / "cola")["sparsity"] == other["sparsity"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--train_file", "train.tsv"), "--train_file must have {task} in its name where"),
        (("--train_file", "{task}.tsv"), "'{task}.tsv', of which sst2.tsv is missing: add it, or"),
        (("--resume_from_checkpoint", "true"), "--resume_from_checkpoint must go with one task"),
        (("--task_name", "sst2", "imdb"), "--task_name must be one of mnli"),
    ],
)
def test_what_several_tasks_cannot_share_is_said_before_the_first_run(
    bert, tmp_path, capsys, more, message
):
    flags = short(bert, tmp_path / "runs", "--task_name", "sst2", "cola", *more)
    assert run("glue", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_file_of_settings_may_list_several_tasks(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("task_name: [rte, mrpc]\n")
    assert parse(path).data.task_name == "rte mrpc"
    assert parse(path, "--task_name", "cola").data.task_name == "cola"


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pruning_budget", "macs"), "--pruning_budget macs must go with --pruning_granularity"),
        ((*HEADS, "--pruning_speedup", 1.5), "--pruning_speedup must go with --pruning_budget lat"),
        ((*HEADS, *LATENCY, "--pruning_speedup", 1), "--pruning_speedup must be a number above 1"),
        ((*HEADS, *LATENCY, "--pruning_speedup", 2, "--amount", 0.5), "must stand instead of --am"),
    ],
)
def test_budgets_that_do_not_fit_are_refused_by_the_names_of_their_flags(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(*flags)


def test_a_speedup_is_of_the_time_that_a_batch_of_the_data_takes(bert, sst2, tmp_path, monkeypatch):
    seen = []

    def measure(model, groups, floors, inputs):
        seen.append({name: tuple(value.shape) for name, value in inputs.items()})
        rows = [PlaceTime(each.name, each.kind, each.size, 1, 10**9, 0) for each in groups]
        return LatencyTable(10**9 * len(rows), tuple(rows))

    monkeypatch.setattr(structured, "measure_latency", measure)
    flags = short(bert, tmp_path, "--task_name", "sst2", *sst2, *HEADS, *LATENCY)
    at = flags.index("--amount")
    flags[at : at + 2] = ["--pruning_speedup", 1.25]
    assert run("glue", *flags) == 0
    (shapes,) = seen
    assert set(shapes) == {"input_ids", "attention_mask"}  # and no labels
    pruning = results(tmp_path)["settings"]["pruning"]
    assert (pruning["pruning_speedup"], pruning["amount"]) == (1.25, pytest.approx(0.2))
