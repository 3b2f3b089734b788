"""The recipe for texts of one's own: columns and labels that are found, and what is measured."""

import csv
import json
import os
import re

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import pytest
from recipe_models import SELECTED, results, run, save_bert
from transformers import AutoConfig

from platon_prune.integrations.recipes.text import labels as kinds
from platon_prune.integrations.recipes.text.columns import find_columns

ADJECTIVES = {"good": "good", "bad": "bad", "very": "mixed"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


def rows(count, **more):
    """Sentences of three classes, with a column that is no text."""
    words = list(ADJECTIVES)
    return [
        {
            "id": 1000 + n,
            "review": f"the film is {words[n % 3]}",
            "opinion": ADJECTIVES[words[n % 3]],
        }
        | {name: value(n) for name, value in more.items()}
        for n in range(count)
    ]  # fmt: skip


def save(path, rows):
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def flags(model, folder, *more):
    return [
        "--model_name_or_path", model, "--output_dir", folder, "--max_seq_length", 16,
        "--pruning_window", 2, "--save_strategy", "no", "--learning_rate", 1e-2,
        "--ignore_mismatched_sizes", *more,
    ]  # fmt: skip


TRAIN = ("--do_train", "--do_eval", "--max_steps", 6, "--amount", 0.5)


# --- end to end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_columns_and_classes_are_found_in_every_kind_of_file(bert, tmp_path, capsys, ending):
    file = save(tmp_path / f"rows.{ending}", rows(12))
    more = ("--do_eval", "--validation_file", file)
    assert run("text", *flags(bert, tmp_path / "out", *more)) == 0
    shown = capsys.readouterr().out
    assert "text: review; label: opinion (classification); not used: id" in shown
    assert "3 classes: bad 4 (33.3%), good 4 (33.3%), mixed 4 (33.3%)" in shown
    found = results(tmp_path / "out")
    assert found["task"]["classes"] == ["bad", "good", "mixed"]
    matrix = found["confusion"]["eval"]
    assert [sum(row) for row in matrix] == [4, 4, 4]
    right = sum(matrix[n][n] for n in range(3))
    assert found["metrics"]["eval_accuracy"] == right / 12
    names = {"accuracy", "macro_f1", "matthews_correlation"}
    assert {f"eval_{name}" for name in names} <= found["metrics"].keys()
    assert "eval_f1" not in found["metrics"] and "eval_combined_score" not in found["metrics"]


def test_a_run_leaves_a_sparse_model_that_knows_its_classes(bert, tmp_path, capsys):
    train = save(tmp_path / "train.csv", rows(24))
    folder = tmp_path / "out"
    split = ("--train_file", train, "--train_val_split", 0.25)
    assert run("text", *flags(bert, folder, *TRAIN, *split)) == 0
    assert results(folder)["pruned_weights"] == SELECTED / 2
    config = AutoConfig.from_pretrained(folder)
    assert config.label2id == {"bad": 0, "good": 1, "mixed": 2}
    assert config.problem_type == "single_label_classification"
    # Alone, the model says what the classes are: the file lacks two of them.
    few = save(tmp_path / "few.jsonl", [row for row in rows(6) if row["opinion"] == "mixed"])
    test = save(tmp_path / "test.csv", [{"review": "the film is good"}])
    given = ("--do_eval", "--validation_file", few, "--label_column", "opinion")
    assert run("text", *flags(folder, tmp_path / "eval", *given)) == 0
    assert [sum(row) for row in results(tmp_path / "eval")["confusion"]["eval"]] == [0, 0, 2]
    given = ("--do_predict", "--test_file", test)
    assert run("text", *flags(folder, tmp_path / "test", *given)) == 0
    lines = (tmp_path / "test" / "predictions_test.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and lines[1].split("\t")[1] in config.label2id


def test_two_classes_have_the_f1_of_the_second(bert, tmp_path, capsys):
    two = [row for row in rows(30) if row["opinion"] != "mixed"][:12]
    two += [{"id": 1, "review": "a film", "opinion": "bad"}] * 20
    file = save(tmp_path / "rows.csv", two)
    assert run("text", *flags(bert, tmp_path, "--do_eval", "--validation_file", file)) == 0
    found = results(tmp_path)
    (_, false_positives), (false_negatives, true_positives) = found["confusion"]["eval"]
    wanted = 2 * true_positives / max(1, 2 * true_positives + false_positives + false_negatives)
    assert found["metrics"]["eval_f1"] == pytest.approx(wanted)
    assert "bad alone is right in 81.2%, so read macro_f1" in capsys.readouterr().out


def test_lists_are_several_labels(bert, tmp_path):
    pair = [["good"], ["good", "long"], []]
    file = save(tmp_path / "rows.jsonl", rows(12, opinion=lambda n: pair[n % 3]))
    given = ("--train_file", file, "--validation_file", file)
    assert run("text", *flags(bert, tmp_path, *TRAIN, *given)) == 0
    found = results(tmp_path)
    assert found["task"]["task"] == "multi_label"
    assert AutoConfig.from_pretrained(tmp_path).problem_type == "multi_label_classification"
    assert {"eval_accuracy", "eval_macro_f1", "eval_micro_f1"} <= found["metrics"].keys()
    good, long = found["confusion"]["eval"]
    assert ([sum(row) for row in good], [sum(row) for row in long]) == ([4, 8], [8, 4])


def test_separated_labels_and_columns_of_0_and_1_are_several_labels_too(bert, tmp_path):
    pair = [("good", 1, 0), ("good|long", 1, 1), ("", 0, 0)]
    names = {"both": 0, "good": 1, "long": 2}
    file = save(
        tmp_path / "rows.csv",
        rows(6, **{name: (lambda n, i=i: pair[n % 3][i]) for name, i in names.items()}),
    )
    confusions = []
    for number, given in enumerate(
        (
            ("--label_column", "both", "--label_separator", "|"),
            ("--label_column", "good", "long"),
        )
    ):
        folder = tmp_path / str(number)
        given = (*given, "--text_columns", "review", "--do_eval", "--validation_file", file)
        assert run("text", *flags(bert, folder, *given)) == 0
        confusions.append(results(folder)["confusion"]["eval"])
    assert confusions[0] == confusions[1]
    assert [sum(row) for row in confusions[0][1]] == [4, 2]


def test_fractions_are_a_regression_of_pairs(bert, tmp_path):
    pairs = [
        {"premise": "the film", "hypothesis": f"a {w} plot", "score": s}
        for w, s in (("good", 0.9), ("bad", 0.125), ("very", 0.5))
    ] * 4
    file = save(tmp_path / "pairs.parquet", pairs)
    given = ("--train_file", file, "--validation_file", file)
    assert run("text", *flags(bert, tmp_path / "out", *TRAIN, *given)) == 0
    found = results(tmp_path / "out")
    assert found["task"] == {
        "text_columns": ["premise", "hypothesis"], "label_column": ["score"],
        "task": "regression", "classes": [],
    }  # fmt: skip
    assert {"eval_pearson", "eval_spearmanr"} <= found["metrics"].keys()
    assert found["confusion"] == {}


def test_a_data_set_by_name_keeps_the_names_of_its_classes(bert, tmp_path, monkeypatch):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a film"] * 4, "label": [0, 1] * 2}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: {"test": table})
    given = ("--dataset_name", "imdb", "--do_eval")
    assert run("text", *flags(bert, tmp_path, *given)) == 0
    assert results(tmp_path)["task"]["classes"] == ["no", "yes"]


# --- what is found ------------------------------------------------------------------------------


def columns_of(table, text=None, label=None, labelled=True):
    found = find_columns("f", list(table), table.__getitem__, text, label, labelled)
    return found.text, found.label


LONG = ["a long film of two hours", "one that is rather short", "it has no plot at all"] * 8
SHORT = ["red", "blue", "red"] * 8


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"id": list(range(24)), "sentence": SHORT, "label": [0, 1, 0] * 8},
         (("sentence",), ("label",))),
        ({"doc_id": LONG, "body": LONG, "colour": SHORT}, (("body",), ("colour",))),
        ({"notes": LONG, "date": ["2020-01-01 10:00:00"] * 24, "kind": [1, 2, 2] * 8},
         (("notes",), ("kind",))),
        ({"premise": LONG, "hypothesis": LONG, "label": SHORT, "url": ["http://a/b"] * 24},
         (("premise", "hypothesis"), ("label",))),
        ({"author": ["Ann Lee", "Bob Roe", "Cy Poe"] * 8, "words": LONG, "Label": SHORT},
         (("words",), ("Label",))),
        ({"文章": ["这是一部非常好看的电影"] * 24, "label": SHORT}, (("文章",), ("label",))),
    ],
)  # fmt: skip
def test_columns_are_found_by_name_and_content(table, expected):
    assert columns_of(table) == expected


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        ({"a": LONG, "b": LONG, "c": LONG, "label": SHORT}, {}, "got a, b, c: name them with --t"),
        ({"id": SHORT, "label": SHORT}, {}, "must have one or two columns of text, got id"),
        ({"text": LONG, "a": SHORT, "b": SHORT}, {}, "got a, b: name it with --label_column"),
        ({"text": LONG, "label": SHORT}, {"text": ["body"]}, "--text_columns must name columns"),
        ({"text": LONG, "label": SHORT}, {"label": ["y"]}, "--label_column must name columns of f"),
    ],
)
def test_what_is_not_clear_is_asked_for(table, given, message):
    with pytest.raises(ValueError, match=message):
        columns_of(table, **given)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["a", "b", "a"], "classification"),
        ([0, 1, 2], "classification"),
        (["0.0", "1.0"], "classification"),
        ([1, 2, 3, 4, 5] * 3, "classification"),
        ([True, False], "classification"),
        ([0.5, 1, 2], "regression"),
        (list(range(100)), "regression"),
        (list(range(100)) * 10, "classification"),
        ([["a"], []], "multi_label"),
    ],
)
def test_labels_are_what_they_look_like(labels, kind):
    assert kinds.kind_of(labels) == kind


def test_classes_are_the_same_from_text_and_numbers_and_in_the_order_of_numbers():
    assert kinds.classes_of("f", [10, 2.0, "1.0"] * 2) == ["1", "2", "10"]
    assert kinds.classes_of("f", [True, False]) == ["false", "true"]
    assert kinds.numbers_of("f", ["2", 2.0, 10], ["1", "2", "10"]) == [1, 1, 2]
    assert kinds.numbers_of("f", ["1", "no"], ["no", "yes"]) == [1, 0]


# --- errors before training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation", "more", "message"),
    [
        (rows(6), rows(6, opinion=lambda n: "new"), (), "must be one of bad, good, mixed, got 'n"),
        (rows(6, opinion=lambda n: "aba bb"[n].strip()), rows(6), (), "the first in row 4"),
        (rows(6, opinion=lambda n: "one"), rows(6), ("--label_column", "opinion"), "at least two"),
        (rows(60, opinion=lambda n: f"x{n}"), rows(6), ("--label_column", "opinion"), "few values"),
        (rows(6), rows(6), ("--task", "regression"), "label must be a number, got 'good' in row 1"),
        (rows(6), None, (), "give --validation_file .* or --train_val_split"),
        (rows(6), rows(6), ("--dataset_name", "imdb"), "got both: leave one out"),
        (rows(6), rows(6), ("--text_columns", "a", "b", "c"), "must be one or two columns, got 3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_training(
    bert, tmp_path, capsys, train, validation, more, message
):
    given = ["--train_file", save(tmp_path / "train.csv", train)]
    if validation:
        given += ["--validation_file", save(tmp_path / "dev.csv", validation)]
    assert run("text", *flags(bert, tmp_path / "out", *TRAIN, *given, *more)) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown), shown
    assert len(shown) < 330 and not (tmp_path / "out").exists()
