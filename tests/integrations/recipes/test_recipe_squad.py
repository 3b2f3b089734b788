"""The squad recipe from the command line to its files, with a tiny model made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from squad_files import article, byte_tokenizer, question, rivers, write_model, write_squad
from transformers import AutoModelForQuestionAnswering

from platon_prune.integrations.recipes.squad import main
from platon_prune.integrations.recipes.squad.data import read_squad
from platon_prune.integrations.recipes.squad.metrics import squad_v1_scores


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    return rivers(tmp_path_factory.mktemp("train") / "train.json", 24)


@pytest.fixture(scope="module")
def validation_file(tmp_path_factory):
    return rivers(tmp_path_factory.mktemp("validation") / "dev.json", 5)


def _flags(model, output, **changes):
    settings = {
        "model_name_or_path": model,
        "output_dir": str(output),
        "max_seq_length": 48,
        "doc_stride": 12,
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "learning_rate": 0.01,
        "amount": 0.75,
        "pruning_window": 2,
        "pruning_warmup_steps": 2,
        "pruning_cooldown_steps": 3,
        "logging_steps": 4,
        "report_to": "none",
        "use_cpu": True,
        **changes,
    }
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


def _read(folder, name="results.json"):
    return json.loads((Path(folder) / name).read_text())


def test_training_evaluation_and_files_from_one_command(
    tmp_path, model, train_file, validation_file
):
    files = {"train_file": train_file, "validation_file": validation_file}
    flags = _flags(model, tmp_path, save_steps=6, eval_strategy="steps", eval_steps=6, **files)
    assert main([*flags, "--do_train", "--do_eval"]) == 0
    results = _read(tmp_path)

    finetuned = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    weights = [m.weight for m in finetuned.bert.encoder.modules() if isinstance(m, torch.nn.Linear)]
    size = sum(weight.numel() for weight in weights)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == round(0.75 * size)
    assert results["pruned_weights"] == zeros
    assert results["sparsity"] == zeros / size
    assert finetuned.qa_outputs.weight.count_nonzero() == 32

    predictions = _read(tmp_path, "predictions.json")
    nbest = _read(tmp_path, "nbest_predictions.json")
    golds = {}
    for entry in json.loads(Path(validation_file).read_text())["data"]:
        for asked in entry["paragraphs"][0]["qas"]:
            golds[asked["id"]] = [answer["text"] for answer in asked["answers"]]
    assert predictions == {name: entries[0]["text"] for name, entries in nbest.items()}
    scores = squad_v1_scores(predictions, golds)
    assert results["metrics"]["eval_exact_match"] == scores["exact_match"]
    assert results["metrics"]["eval_f1"] == scores["f1"]
    assert results["metrics"]["eval_loss"] > 0
    assert not (tmp_path / "null_odds.json").exists()
    assert (tmp_path / "report.png").stat().st_size > 0
    logged = [entry["step"] for entry in results["log"] if "eval_f1" in entry]
    assert logged[:2] == [6, 12]

    # Resuming from the middle ends at the same weights.
    again = tmp_path / "again"
    resumed = _flags(model, again, save_steps=6, eval_strategy="steps", eval_steps=6, **files)
    checkpoint = str(tmp_path / "checkpoint-6")
    assert main([*resumed, "--do_train", "--resume_from_checkpoint", checkpoint]) == 0
    for name, weight in AutoModelForQuestionAnswering.from_pretrained(again).state_dict().items():
        assert torch.equal(weight, finetuned.state_dict()[name])


def test_version_2_distilled_by_name_with_predictions_for_questions_without_answers(
    tmp_path, model
):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, number in (("train", 12), ("validation", 6)):
        path = rivers(tmp_path / f"{split}.json", number, unanswerable=2)
        read_squad(path).to_json(folder / f"{split}.jsonl")
    test_file = rivers(tmp_path / "test.json", 3, answers=False)
    flags = _flags(
        model,
        tmp_path / "out",
        dataset_name=folder,
        cache_dir=tmp_path / "cache",
        test_file=test_file,
        version_2_with_negative=True,
        null_score_diff_threshold=-100,
        teacher_name_or_path=write_model(tmp_path / "teacher", seed=1),
        max_steps=8,
        n_best_size=3,
        train_sampling_strategy="group_by_length",
    )
    assert main([*flags, "--do_train", "--do_eval", "--do_predict"]) == 0
    metrics = _read(tmp_path / "out")["metrics"]
    # At a threshold this low nothing is answered: right for 2 questions of 6.
    assert metrics["eval_exact"] == pytest.approx(100 / 3)
    assert metrics["eval_NoAns_f1"] == 100
    assert metrics["eval_HasAns_total"] == 4
    assert set(_read(tmp_path / "out", "predictions.json").values()) == {""}
    assert len(_read(tmp_path / "out", "null_odds.json")) == 6
    predicted = _read(tmp_path / "out", "predict_nbest_predictions.json")
    assert list(predicted) == ["q0", "q1", "q2"]
    assert all(len(entries) == 4 for entries in predicted.values())
    assert not any(name.startswith("predict_") for name in metrics)


def test_a_dense_model_is_evaluated_alike_whatever_the_batches(tmp_path, model, validation_file):
    found = []
    for name, size, pad, order in (("a", 1, False, "random"), ("b", 3, True, "group_by_length")):
        flags = _flags(
            model,
            tmp_path / name,
            validation_file=validation_file,
            per_device_eval_batch_size=size,
            pad_to_max_length=pad,
            train_sampling_strategy=order,
            max_seq_length=30,
            doc_stride=8,
            amount=0,
            max_eval_samples=4,
        )
        assert main([*flags, "--do_eval"]) == 0
        found.append(_read(tmp_path / name, "nbest_predictions.json"))
        assert _read(tmp_path / name)["sparsity"] == 0
    assert list(found[0]) == ["q0", "q1", "q2", "q3"]
    for name, entries in found[0].items():
        for one, other in zip(entries, found[1][name], strict=True):
            assert one["start_logit"] == pytest.approx(other["start_logit"], abs=1e-4)
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--do_train needs questions: give --train_file"),
        ({"train_file": "none.json"}, "--train_file must be .* got none.json: there is no such"),
        ({"train_file": "list"}, "where the file is a list of 1"),
        ({"train_file": "empty"}, "--train_file must hold answers .* got 3 questions"),
        ({"train_file": "some"}, "4 questions of which 1 have none .*q0.*: add the flag"),
        ({"train_file": "good", "max_seq_length": 65}, "--max_seq_length must be at most 64"),
        ({"train_file": "good", "doc_stride": 40}, r"doc_stride must be less .* got 40 \(question"),
        ({"train_file": "long"}, "the longest question .* got 12"),
        ({"train_file": "good", "model_name_or_path": "gone"}, "--model_name_or_path must"),
        ({"train_file": "good", "tokenizer_name": "gone"}, "--tokenizer_name must be a tokenizer"),
        ({"train_file": "good", "tokenizer_name": "bytes"}, "embedding for each of the tokenizer"),
        ({"train_file": "good", "null_score_diff_threshold": 1}, "needs --version_2_with_negative"),
        ({"train_file": "good", "max_train_samples": 0}, "--max_train_samples must be at least 1"),
        ({"train_file": "good", "n_best_size": 0}, "--n_best_size must be at least 1"),
        ({"train_file": "good", "preset": "mnli-10"}, "--preset must be one of squad's"),
    ],
)
def test_mistakes_are_named_before_training_starts(tmp_path, model, train_file, changes, message):
    (tmp_path / "list.json").write_text("[{}]")
    asked = question("a", "long " * 40, ("sea", 3))
    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    places = {
        "good": train_file,
        "list": str(tmp_path / "list.json"),
        "empty": rivers(tmp_path / "empty.json", 3, answers=False),
        "some": rivers(tmp_path / "some.json", 4, unanswerable=1),
        "long": write_squad(tmp_path / "long.json", article("by sea", asked)),
        "bytes": str(tmp_path / "bytes"),
        "gone": str(tmp_path / "gone"),
    }
    output = tmp_path / "out"
    changes = {name: places.get(value, value) for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        main([*_flags(model, output, **changes), "--do_train"])
    assert not (output / "results.json").exists()


def test_evaluation_needs_answers_and_all_logits(tmp_path, model, validation_file):
    some = rivers(tmp_path / "some.json", 4, unanswerable=1)
    with pytest.raises(ValueError, match="--validation_file must give every question an answer"):
        main([*_flags(model, tmp_path, validation_file=some), "--do_eval"])
    with pytest.raises(ValueError, match="--do_eval needs questions: give --validation_file"):
        main([*_flags(model, tmp_path), "--do_eval"])
    for name in ("prediction_loss_only", "batch_eval_metrics"):
        flags = _flags(model, tmp_path, validation_file=validation_file, **{name: True})
        with pytest.raises(ValueError, match=f"--{name} must be False to find answers"):
            main([*flags, "--do_eval"])


def test_a_run_that_would_do_nothing_says_so(tmp_path, model):
    with pytest.raises(ValueError, match="nothing to do: give --do_train"):
        main(_flags(model, tmp_path))


def test_help_shows_the_flags_of_the_transformers_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--dataset_name", "--doc_stride", "--null_score_diff_threshold", "--preset"):
        assert flag in shown
