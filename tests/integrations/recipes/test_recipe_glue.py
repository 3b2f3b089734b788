"""The recipe for GLUE, from local files, through the command line."""

import csv
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import pytest
import torch
from recipe_models import SELECTED, results, run, save_bert, save_sst2, save_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from platon_prune import MaskHistory
from platon_prune.integrations.recipes import tables
from platon_prune.integrations.recipes.glue import main
from platon_prune.integrations.recipes.glue_data import GlueArguments, read_splits
from platon_prune.integrations.recipes.glue_tasks import TASKS, find_task
from platon_prune.integrations.recipes.parsing import parse_arguments


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_sst2(tmp_path_factory.mktemp("sst2"))


def flags(bert, files, folder, *more):
    return [
        "--task_name", "sst2", "--model_name_or_path", bert, *files, "--output_dir", folder,
        "--max_seq_length", 16, "--pruning_window", 2, "--save_strategy", "no",
        "--learning_rate", 1e-2, *more,
    ]  # fmt: skip


TRAIN = ("--do_train", "--do_eval", "--max_steps", 12, "--logging_steps", 4)


def zeros_of(folder, names):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return sum(int((model.get_parameter(name) == 0).sum()) for name in names)


# --- end to end ---------------------------------------------------------------------------------


def test_a_run_says_how_far_its_metric_let_it_prune(bert, files, tmp_path, capsys):
    goal = ("--metric", "loss", "--max_drop", 100, "--eval_strategy", "steps", "--eval_steps", 4)
    assert run("glue", *flags(bert, files, tmp_path, *TRAIN, "--amount", 0.7, *goal)) == 0
    found = results(tmp_path)
    assert found["goal"].startswith("70 % pruned, loss ")
    assert found["goal"] in capsys.readouterr().out
    assert found["pruned_weights"] == round(0.7 * SELECTED)


def test_a_run_leaves_a_sparse_model_and_its_report(bert, files, tmp_path, capsys):
    assert run("glue", *flags(bert, files, tmp_path, *TRAIN, "--amount", 0.7, "--seed", 5)) == 0
    found = results(tmp_path)
    count = round(0.7 * SELECTED)
    assert found["selected_weights"] == SELECTED
    assert found["pruned_weights"] == count
    assert found["sparsity"] == pytest.approx(count / SELECTED, abs=1e-12)
    assert found["seed"] == 5
    assert found["metrics"]["train_steps"] == 12
    assert 0 <= found["metrics"]["eval_accuracy"] <= 1
    assert found["settings"]["pruning"]["amount"] == 0.7
    assert found["settings"]["training"]["max_steps"] == 12
    assert found["versions"]["torch"] == torch.__version__
    assert found["pruning_history"][-1]["sparsity"] == found["sparsity"]
    names = [layer["name"] for layer in found["layers"]]
    assert len(names) == 2 * 6
    assert zeros_of(tmp_path, names) == count
    assert (tmp_path / "report.png").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "[PAD]"
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["amount", "0.7", "(given)"] in lines
    assert ["total", str(SELECTED), f"{SELECTED - count:,}", "70.00%"] in lines
    assert f"measured, of {SELECTED:,} weights" in shown


def test_the_saved_model_evaluates_as_the_run_did(bert, files, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("glue", *flags(bert, files, first, *TRAIN, "--amount", 0.7)) == 0
    assert run("glue", *flags(first, files, second, "--do_eval")) == 0
    assert results(second)["sparsity"] == results(first)["sparsity"]
    for name in ("eval_loss", "eval_accuracy"):
        assert results(second)["metrics"][name] == results(first)["metrics"][name]
    assert "train_loss" not in results(second)["metrics"]


def test_a_run_tells_its_choices_keeps_their_masks_and_goes_on_from_the_zeros(
    bert, files, tmp_path
):
    first, second = tmp_path / "first", tmp_path / "second"
    steps = ("--pruning_warmup_steps", 2, "--pruning_cooldown_steps", 4)
    more = ("--do_train", "--max_steps", 12, *steps)
    kept = ("--pruning_mask_history", "--pruning_max_amount", 0.6)
    assert run("glue", *flags(bert, files, first, *more, *kept, "--amount", 0.5)) == 0
    found, masks = results(first), MaskHistory(first / "masks.bin")
    choices = found["pruning_choices"]
    assert [choice["step"] for choice in choices] == masks.steps[1:] == [4, 6, 8, 10, 12]
    assert choices[-1]["sparsity"] == found["sparsity"] == 0.5
    pruned = 0.0
    for choice in choices:  # the sparsity is what left, less what came back
        pruned += choice["left"] - choice["came_back"]
        assert choice["sparsity"] == pytest.approx(pruned, abs=1e-12)
    assert all(layer["sparsity"] <= 0.6 for layer in found["layers"])
    model = AutoModelForSequenceClassification.from_pretrained(first)
    for name, mask in masks.masks(12).items():
        assert not model.get_parameter(name)[~mask].any(), name

    more = (*more, "--amount", 0.7, "--pruning_initial_amount", "zeros", "--logging_steps", 1)
    assert run("glue", *flags(first, files, second, *more)) == 0
    at_step_1, *_, last = results(second)["pruning_history"]
    assert (at_step_1["step"], at_step_1["sparsity"]) == (1, 0.5)
    assert last["sparsity"] == pytest.approx(0.7, abs=1 / SELECTED)


def test_amount_0_trains_a_dense_model(bert, files, tmp_path, capsys):
    more = ("--amount", 0, "--criterion", "magnitude")
    assert run("glue", *flags(bert, files, tmp_path, *TRAIN, *more)) == 0
    assert results(tmp_path)["sparsity"] == 0
    assert results(tmp_path)["pruning_history"] == []
    assert "criterion, pruning_window will not be used" in capsys.readouterr().out


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "sensitivity", "random"])
def test_baselines_run_under_the_same_schedule(bert, files, tmp_path, criterion):
    more = ("--do_train", "--max_steps", 4, "--amount", 0.5, "--criterion", criterion)
    assert run("glue", *flags(bert, files, tmp_path, *more)) == 0
    assert results(tmp_path)["sparsity"] == 0.5


def test_patterns_take_biases_along(bert, files, tmp_path):
    more = ("--do_train", "--max_steps", 4, "--amount", 0.5)
    patterns = ("--pruning_include", "attention.self", "intermediate", "--pruning_exclude", "query")
    assert run("glue", *flags(bert, files, tmp_path, *more, *patterns)) == 0
    layers = {layer["name"]: layer for layer in results(tmp_path)["layers"]}
    assert "bert.encoder.layer.0.attention.self.key.bias" in layers
    assert not any("query" in name for name in layers)
    total = 2 * (2 * (16 * 16 + 16) + 16 * 32 + 32)
    assert results(tmp_path)["selected_weights"] == total
    assert results(tmp_path)["pruned_weights"] == total / 2


def test_a_preset_trains_with_adamax_and_is_recorded(bert, files, tmp_path, capsys):
    more = ("--preset", "sst2-10", "--do_train", "--max_steps", 6, "--warmup_steps", 1)
    steps = ("--pruning_warmup_steps", 1, "--pruning_cooldown_steps", 2, "--save_strategy", "steps")
    assert run("glue", *flags(bert, files, tmp_path, *more, *steps, "--save_steps", 6)) == 0
    found = results(tmp_path)
    assert found["settings"]["training"]["optim"] == "adamax"
    assert found["from_preset"]["pruning_beta2"] == 0.85
    assert found["pruned_weights"] == round(0.9 * SELECTED)
    shown = capsys.readouterr().out
    assert "(preset sst2-10)" in shown
    state = torch.load(tmp_path / "checkpoint-6" / "optimizer.pt", weights_only=True)
    assert {"exp_avg", "exp_inf"} <= state["state"][0].keys()  # of Adamax alone


def test_a_resumed_run_ends_as_an_uninterrupted_one(bert, files, tmp_path):
    more = (
        "--do_train", "--max_steps", 8, "--amount", 0.5, "--save_strategy", "steps",
        "--save_steps", 4,
    )  # fmt: skip
    whole = tmp_path / "whole"
    assert run("glue", *flags(bert, files, whole, *more)) == 0
    expected = AutoModelForSequenceClassification.from_pretrained(whole).state_dict()
    for where in (whole / "checkpoint-4", "true"):
        folder = tmp_path / f"resumed-{where == 'true'}"
        if where == "true":
            folder.mkdir()
            (whole / "checkpoint-4").rename(folder / "checkpoint-4")
        resumed = ("--resume_from_checkpoint", where)
        assert run("glue", *flags(bert, files, folder, *more, *resumed)) == 0
        found = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert results(folder)["pruning_choices"] == results(whole)["pruning_choices"]


def test_accumulated_micro_batches_train_as_one_batch(files, tmp_path):
    no_dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    model = save_bert(tmp_path / "model", **no_dropout)
    more = ("--do_train", "--max_steps", 3, "--amount", 0, "--optim", "sgd")
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        folder = tmp_path / str(batch)
        sizes = ("--per_device_train_batch_size", batch)
        steps = ("--gradient_accumulation_steps", accumulation)
        assert run("glue", *flags(model, files, folder, *more, *sizes, *steps)) == 0
        trained = AutoModelForSequenceClassification.from_pretrained(folder)
        found.append(trained.classifier.bias.detach())
    assert found[0].abs().max() > 1e-4  # it began at zero
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)


def test_predictions_of_a_test_file_are_written_and_measured(bert, files, tmp_path):
    test = tmp_path / "test.csv"
    test.write_text('sentence,label\n"good, fine",positive\nbad,0\n')
    more = ("--do_predict", "--test_file", test)
    assert run("glue", *flags(bert, [], tmp_path, *more)) == 0
    rows = list(csv.DictReader((tmp_path / "predictions_test.tsv").open(), delimiter="\t"))
    assert [row["index"] for row in rows] == ["0", "1"]
    right = [row["prediction"] for row in rows] == ["positive", "negative"]
    accuracy = sum(
        row["prediction"] == label
        for row, label in zip(rows, ["positive", "negative"], strict=True)
    )
    assert results(tmp_path)["metrics"]["test_accuracy"] == accuracy / 2
    assert right == (accuracy == 2)


def test_a_test_file_without_labels_is_predicted(bert, tmp_path):
    test = tmp_path / "test.tsv"
    test.write_text("sentence\tlabel\nthe film is good\t-1\n")
    assert run("glue", *flags(bert, [], tmp_path, "--do_predict", "--test_file", test)) == 0
    assert len((tmp_path / "predictions_test.tsv").read_text().splitlines()) == 2
    assert "test_accuracy" not in results(tmp_path)["metrics"]


def test_mnli_is_evaluated_matched_and_mismatched(bert, tmp_path):
    for name, label in (("matched", "entailment"), ("mismatched", "contradiction")):
        rows = [{"premise": "a film", "hypothesis": "a plot", "label": label}] * 3
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{name}.jsonl").write_text(text)
    status = run(
        "glue", "--task_name", "MNLI", "--model_name_or_path", bert, "--do_eval",
        "--ignore_mismatched_sizes", "--max_seq_length", 16, "--output_dir", tmp_path,
        "--validation_file", tmp_path / "matched.jsonl",
        "--validation_mismatched_file", tmp_path / "mismatched.jsonl",
    )  # fmt: skip
    assert status == 0
    metrics = results(tmp_path)["metrics"]
    # All rows of a file are the same, so they are all right or all wrong, and not both files.
    accuracies = (metrics["eval_accuracy"], metrics["eval_mm_accuracy"])
    assert accuracies in ((0, 0), (1, 0), (0, 1))


def test_stsb_is_a_regression(bert, tmp_path):
    lines = [f"the film\tthe plot is {w}\t{s}" for w, s in (("good", 4.5), ("bad", 0.5))] * 4
    (tmp_path / "train.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *lines]))
    status = run(
        "glue", "--task_name", "sts-b", "--model_name_or_path", bert, "--do_train", "--do_eval",
        "--ignore_mismatched_sizes", "--max_seq_length", 16, "--output_dir", tmp_path,
        "--train_file", tmp_path / "train.tsv", "--validation_file", tmp_path / "train.tsv",
        "--max_steps", 4, "--amount", 0.5, "--pruning_window", 2, "--save_strategy", "no",
    )  # fmt: skip
    assert status == 0
    assert {"eval_pearson", "eval_spearmanr"} <= results(tmp_path)["metrics"].keys()
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert config.problem_type == "regression" and config.num_labels == 1


def test_a_teacher_changes_what_is_learnt(bert, files, tmp_path):
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    teacher = save_bert(tmp_path / "teacher", initializer_range=0.5, **names)
    more = ("--do_train", "--max_steps", 4, "--amount", 0.5)
    weights = []
    for name, given in (("alone", ()), ("taught", ("--teacher_name_or_path", teacher))):
        folder = tmp_path / name
        assert run("glue", *flags(bert, files, folder, *more, *given)) == 0
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        weights.append(model.classifier.weight.detach())
    assert not torch.equal(*weights)
    assert results(tmp_path / "taught")["settings"]["distillation"] == {
        "teacher_name_or_path": teacher,
        "distillation_temperature": 2.0,
        "distillation_weight": 0.5,
    }


def test_the_settings_of_a_file_run_too(bert, files, tmp_path):
    settings = dict(
        task_name="sst2", model_name_or_path=bert, validation_file=files[3], do_eval=True,
        output_dir=str(tmp_path), max_seq_length=16, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert main([str(tmp_path / "settings.json")]) == 0
    assert results(tmp_path)["metrics"]["eval_accuracy"] >= 0


# --- the metrics, by hand -----------------------------------------------------------------------


def logits_of(classes, count=2):
    return [[float(number == chosen) for number in range(count)] for chosen in classes]


# Of 8 labels, 3 true positives, 1 false positive, 2 false negatives and 2 true negatives.
LABELS = [1, 1, 1, 0, 1, 1, 0, 0]
PREDICTIONS = [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("name", ["rte", "sst2", "qnli", "qqp", "mrpc"])
def test_accuracy_is_the_share_of_right_answers(name):
    assert TASKS[name].measure(logits_of(PREDICTIONS), LABELS)["accuracy"] == 5 / 8


def test_mnli_has_three_classes():
    logits = logits_of([0, 1, 2, 2], count=3)
    assert TASKS["mnli"].measure(logits, [0, 1, 2, 0]) == {"accuracy": 0.75}


@pytest.mark.parametrize("name", ["qqp", "mrpc"])
def test_f1_is_that_of_class_1(name):
    found = TASKS[name].measure(logits_of(PREDICTIONS), LABELS)
    f1 = 2 * 3 / (2 * 3 + 1 + 2)
    assert found["f1"] == pytest.approx(f1)
    assert found["combined_score"] == pytest.approx((5 / 8 + f1) / 2)


def test_cola_is_measured_by_matthews_correlation():
    found = TASKS["cola"].measure(logits_of(PREDICTIONS), LABELS)
    by_hand = (3 * 2 - 1 * 2) / ((3 + 1) * (3 + 2) * (2 + 1) * (2 + 2)) ** 0.5
    assert found == {"matthews_correlation": pytest.approx(by_hand)}


def test_stsb_is_measured_by_both_correlations():
    found = TASKS["stsb"].measure([[1.0], [2.0], [3.0], [8.0]], [1.0, 3.0, 2.0, 5.0])
    # Means 3.5 and 2.75; deviations -2.5 -1.5 -.5 4.5 and -1.75 .25 -.75 2.25.
    pearson = (4.375 - 0.375 + 0.375 + 10.125) / (29.0 * 8.75) ** 0.5
    spearman = 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert found["pearson"] == pytest.approx(pearson)
    assert found["spearmanr"] == pytest.approx(spearman)
    assert found["combined_score"] == pytest.approx((pearson + spearman) / 2)


def test_equal_predictions_correlate_with_nothing():
    assert TASKS["stsb"].measure([[1.0], [1.0]], [1.0, 2.0])["pearson"] == 0
    assert TASKS["cola"].measure(logits_of([1, 1]), [1, 0])["matthews_correlation"] == 0
    assert TASKS["mrpc"].measure(logits_of([0, 0]), [1, 1])["f1"] == 0


def test_the_eight_tasks_of_the_paper_are_known():
    assert set(TASKS) == {"mnli", "rte", "qqp", "sst2", "qnli", "stsb", "mrpc", "cola"}
    assert find_task("SST-2") is TASKS["sst2"] and find_task("STS-B") is TASKS["stsb"]


# --- files --------------------------------------------------------------------------------------

# With quotes, a comma, and a word that other readers take for a missing value.
ROWS = {"sentence": ['she said "fine', "good, very", "null", "nan"], "label": [1, 1, 0, 0]}


def write_rows(path):
    if path.suffix == ".parquet":
        datasets.Dataset.from_dict(ROWS).to_parquet(str(path))
    elif path.suffix in (".json", ".jsonl"):
        rows = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        with path.open("w", newline="") as file:
            is_tsv = path.suffix == ".tsv"
            dialect = dict(delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None) if is_tsv else {}
            writer = csv.writer(file, **dialect)
            writer.writerow(ROWS)
            writer.writerows(zip(*ROWS.values(), strict=True))


@pytest.mark.parametrize("ending", ["tsv", "csv", "json", "jsonl", "parquet"])
def test_every_format_is_read_alike(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    write_rows(path)
    splits = splits_of(tmp_path, "--validation_file", path, "--do_eval")
    assert splits["validation"].to_dict() == ROWS


def splits_of(folder, *flags, task="sst2"):
    arguments = parse_arguments(
        ["--task_name", task, "--output_dir", str(folder), *map(str, flags)],
        "glue", GlueArguments, description="", examples="",
    )  # fmt: skip
    return read_splits(arguments, find_task(task))


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("mnli", ("premise", "hypothesis")),
        ("mnli", ("sentence1", "sentence2")),
        ("qqp", ("question1", "question2")),
        ("qnli", ("question", "sentence")),
        ("rte", ("sentence1", "sentence2")),
        ("cola", ("sentence",)),
    ],
)
def test_columns_may_have_the_tasks_or_general_names(tmp_path, task, columns):
    path = tmp_path / "rows.tsv"
    path.write_text("\t".join(["id", *columns, "label"]) + "\n7\t" + "\t".join([*columns, "1"]))
    splits = splits_of(tmp_path, "--do_train", "--train_file", path, task=task)
    own = TASKS[task].columns
    row = dict(zip(own, columns, strict=True)) | {"label": 1}
    assert splits["train"].to_list() == [row]


def test_labels_may_be_names_or_numbers(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("sentence\tlabel\na\tpositive\na\t0\na\t1.5\n")
    with pytest.raises(ValueError, match="label must be .* got '1.5' in row 3"):
        splits_of(tmp_path, "--do_train", "--train_file", path)
    assert tables.class_numbers("f", ["Positive", "0", 1, 1.0], ("negative", "positive")) == [
        1, 0, 1, 1,
    ]  # fmt: skip


def test_a_limit_takes_the_first_examples(files, tmp_path):
    splits = splits_of(tmp_path, *files, "--do_train", "--max_train_samples", 3)
    assert len(splits["train"]) == 3 and "validation" not in splits


# --- errors before training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.tsv", None, "--train_file must be a file, got .* which does not exist"),
        ("rows.txt", "sentence\tlabel\n", "must end with .tsv, .csv, .json, .jsonl or .parquet"),
        ("rows.tsv", "", "must have column names and at least one row"),
        ("rows.tsv", "sentence\tlabel\n", "must have column names and at least one row"),
        ("rows.tsv", "text\tlabel\na\t1", "must have the columns sentence, and label, got text, l"),
        ("rows.tsv", "sentence\na", "must have the columns sentence, and label, got sentence"),
        ("rows.tsv", "sentence\tlabel\na\t1\na", "line 3 must have 2 fields, got 1"),
        ("rows.tsv", "label\tlabel\n1\t1", "its columns must have different names"),
        ("rows.tsv", "sentence\tlabel\na\t1\na\t2", "label must be one of 0 to 1 or negative, pos"),
        ("rows.tsv", "sentence\tlabel\na\t-1", "-1 marks an example without a label"),
        ("rows.json", '{"sentence": "a"}\n{', "line 2 must be JSON on its own"),
        ("rows.json", "[1]", r"line 1 must be an object \{...\}, got \[1\]"),
        ("rows.json", '{"sentence": 3, "label": 1}', "sentence must be text, got 3 in row 1"),
        ("rows.parquet", "no parquet", "must be a readable .parquet file"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        splits_of(tmp_path, "--do_train", "--train_file", tmp_path / name)


@pytest.mark.parametrize("label", ["5.1", "-0.1", "high", ""])
def test_scores_out_of_range_are_refused(tmp_path, label):
    (tmp_path / "rows.tsv").write_text(f"sentence1\tsentence2\tlabel\na\ta\t5\na\ta\t{label}\n")
    with pytest.raises(ValueError, match="label must be a number from 0 to 5, got .* in row 2"):
        splits_of(tmp_path, "--do_train", "--train_file", tmp_path / "rows.tsv", task="stsb")


def test_a_missing_file_for_what_is_to_be_done_is_named(files, tmp_path):
    with pytest.raises(ValueError, match="--validation_file must name a file"):
        splits_of(tmp_path, *files[:2], "--do_eval")


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="--task_name must be one of mnli, rte, .* got 'wnli'"):
        find_task("wnli")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--max_seq_length", 33), "--max_seq_length must be at most 32, the longest input"),
        (("--max_seq_length", 3), "--max_seq_length must be above 3, the special tokens"),
        (("--tokenizer_name", "nowhere"), "--tokenizer_name must be a tokenizer that can be load"),
        (("--model_name_or_path", "nowhere"), "--model_name_or_path must be a model"),
        (("--task_name", "mnli"), "must have the columns premise, hypothesis or sentence1"),
        (("--resume_from_checkpoint", "true"), "needs a complete checkpoint in --output_"),
        (("--resume_from_checkpoint", "nowhere"), "must be the folder of a checkpoint"),
        (("--pruning_include", "conv"), "include must match parameter names"),
        (("--pruning_warmup_steps", 9, "--pruning_cooldown_steps", 9), "must be less than"),
    ],
)
def test_settings_that_do_not_fit_end_the_command_with_a_message(
    bert, files, tmp_path, capsys, more, message
):
    wrong = flags(bert, files, tmp_path, "--do_train", "--max_steps", 12, *more)
    assert run("glue", *wrong) == 2
    shown = capsys.readouterr().err
    assert "platon-prune glue: " in shown and message in shown


def test_another_number_of_labels_is_refused_until_it_is_allowed(bert, tmp_path, capsys):
    (tmp_path / "rows.tsv").write_text("sentence1\tsentence2\tlabel\na\ta\t2\n")
    given = [
        "--task_name", "mnli", "--model_name_or_path", bert, "--max_seq_length", 16, "--do_eval",
        "--validation_file", tmp_path / "rows.tsv", "--output_dir", tmp_path,
    ]  # fmt: skip
    assert run("glue", *given) == 2
    assert "add --ignore_mismatched_sizes" in capsys.readouterr().err


def test_a_model_with_other_numbers_for_the_labels_is_not_evaluated(files, tmp_path, capsys):
    names = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
    model = save_bert(tmp_path / "model", **names)
    assert run("glue", *flags(model, files, tmp_path, "--do_eval")) == 2
    assert "must number its labels as the data does" in capsys.readouterr().err


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(files, tmp_path, capsys):
    model = save_bert(tmp_path / "model", pad=False, end=True, pad_token_id=None)
    assert run("glue", *flags(model, files, tmp_path / "out", "--do_eval")) == 0
    assert "padding with its end token [SEP]" in capsys.readouterr().out


def test_a_tokenizer_with_neither_is_refused(files, tmp_path, capsys):
    model = save_bert(tmp_path / "model", pad=False)
    assert run("glue", *flags(model, files, tmp_path / "out", "--do_eval")) == 2
    assert "the tokenizer must have a pad token" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(files, tmp_path, capsys):
    model = save_bert(tmp_path / "model", vocab_size=10)
    save_tokenizer(tmp_path / "tokenizer")
    assert run("glue", *flags(model, files, tmp_path / "out", "--do_eval")) == 2
    assert "embedding for each of the tokenizer's 16 tokens, got 10" in capsys.readouterr().err


def test_a_task_that_can_not_be_loaded_by_name_says_what_to_do(bert, tmp_path, capsys, monkeypatch):
    def unreachable(*arguments, **settings):
        assert arguments == ("nyu-mll/glue", "sst2")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert run("glue", *flags(bert, [], tmp_path, "--do_eval")) == 2
    assert "could not be loaded from the Hub (no network): give local" in capsys.readouterr().err


def test_a_task_by_name_has_the_splits_of_the_library(bert, tmp_path, monkeypatch):
    rows = {"sentence": ["good film", "bad plot"], "label": [1, 0], "idx": [0, 1]}
    loaded = {"validation": datasets.Dataset.from_dict(rows)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **settings: loaded)
    assert run("glue", *flags(bert, [], tmp_path, "--do_eval")) == 0
    assert results(tmp_path)["metrics"]["eval_accuracy"] in (0, 0.5, 1)
