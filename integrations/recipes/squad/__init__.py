"""The squad recipe: fine-tune and prune a model that finds answers in a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from platon_prune.integrations.recipes.common import begin, load_model, load_teacher, run
from platon_prune.integrations.recipes.distillation import RecipeTrainer
from platon_prune.integrations.recipes.parsing import Arguments, parse_arguments
from platon_prune.integrations.recipes.presets import SQUAD_PRESETS
from platon_prune.integrations.recipes.squad.answers import Answers, find_answers
from platon_prune.integrations.recipes.squad.arguments import SquadArguments
from platon_prune.integrations.recipes.squad.checks import (
    check_sizes,
    load_tokenizer,
    refuse_settings_that_hide_logits,
    refuse_unanswered,
)
from platon_prune.integrations.recipes.squad.data import (
    load_squad,
    read_squad,
    training_questions,
)
from platon_prune.integrations.recipes.squad.metrics import squad_v1_scores, squad_v2_scores
from platon_prune.integrations.recipes.squad.windows import cut_questions, make_windows

DESCRIPTION = (
    "Fine-tune a model for question answering on SQuAD v1.1 or v2.0, or on data in their form, "
    "and prune it with PLATON meanwhile."
)
EXAMPLES = """\
  platon-prune squad --model_name_or_path bert-base-uncased --dataset_name squad \\
      --preset squad-10 --do_train --do_eval --output_dir out
  platon-prune squad --model_name_or_path my_model --train_file train-v2.0.json \\
      --validation_file dev-v2.0.json --version_2_with_negative --amount 0.8 \\
      --do_train --do_eval --output_dir out
"""
OFFSETS = ["question", "starts", "ends", "null"]
LABELS = ["start_positions", "end_positions"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe.

    Args:
        argv: Flags, or a JSON or YAML file and flags; those of the process by default.

    Returns:
        0.

    Raises:
        ValueError: If a setting, a file or the model does not allow the run; before it trains.
    """
    arguments = parse_arguments(
        argv,
        "squad",
        SquadArguments,
        description=DESCRIPTION,
        examples=EXAMPLES,
        presets=SQUAD_PRESETS,
    )
    if not begin(arguments):
        return 0
    refuse_settings_that_hide_logits(arguments)
    questions = _read_questions(arguments)
    tokenizer = load_tokenizer(arguments)
    most = arguments.data.max_query_length
    if most is not None:
        questions = {
            split: cut_questions(rows, tokenizer, most) for split, rows in questions.items()
        }
    model = load_model(arguments, AutoModelForQuestionAnswering)
    check_sizes(questions, tokenizer, model, arguments.data)
    teacher = load_teacher(arguments, AutoModelForQuestionAnswering, model)
    windows = {
        split: _windows_of(split, rows, tokenizer, arguments) for split, rows in questions.items()
    }
    scorers = {
        split: Scorer(rows, windows[split], arguments)
        for split, rows in questions.items()
        if split != "train"
    }
    trainer = SquadTrainer(
        model=model,
        args=arguments.training,
        train_dataset=windows.get("train"),
        eval_dataset=_for_model(windows.get("validation"), OFFSETS),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(
            tokenizer, pad_to_multiple_of=8 if arguments.training.fp16 else None
        ),
        compute_metrics=scorers.get("validation"),
        # What follows the two heads, such as an encoder's states, is not kept.
        preprocess_logits_for_metrics=lambda logits, labels: logits[:2],
        teacher=teacher,
        distillation=arguments.distillation,
    )

    def evaluate() -> dict[str, float]:
        metrics: dict[str, float] = {}
        if "validation" in scorers:
            metrics |= trainer.evaluate()
            scorers["validation"].save(trainer, "")
        if "test" in scorers:
            test: Any = _for_model(windows["test"], OFFSETS + LABELS)
            output = trainer.predict(test)
            scores = scorers["test"](output)
            metrics |= {f"predict_{name}": value for name, value in scores.items()}
            scorers["test"].save(trainer, "predict_")
        return metrics

    run(trainer, arguments, evaluate, title="SQuAD", metric="eval_f1")
    return 0


class SquadTrainer(RecipeTrainer):
    """A trainer that evaluates windows in their order, so that logits can be told apart."""

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        # Grouping by length, an option for training, would also shuffle what is evaluated.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


class Scorer:
    """Turns the logits of one split into answers, keeps them, and scores them.

    Args:
        questions: Columns id, context, answers.
        windows: Of these questions, with offsets.
        arguments: Settings of the run.
    """

    def __init__(
        self,
        questions: datasets.Dataset,
        windows: datasets.Dataset,
        arguments: Arguments[SquadArguments],
    ) -> None:
        self.questions = questions
        self.windows = windows
        self.settings = arguments.data.answers()
        training = arguments.training
        self.show_progress = not training.disable_tqdm and training.process_index == 0
        self.golds = {
            row["id"]: row["answers"]["text"] for row in questions.select_columns(["id", "answers"])
        }
        self.answers: Answers | None = None

    def __call__(self, output: Any) -> dict[str, float]:
        """Scores in percent; none for questions whose answers are not known."""
        self.answers = find_answers(
            self.questions,
            self.windows,
            output.predictions,
            self.settings,
            show_progress=self.show_progress,
        )
        predictions, scores = self.answers.predictions, {}
        if self.settings.version_2_with_negative and any(self.golds.values()):
            scores = squad_v2_scores(predictions, self.golds, self.answers.null_odds)
        elif all(self.golds.values()):
            scores = squad_v1_scores(predictions, self.golds)
        return scores

    def save(self, trainer: RecipeTrainer, prefix: str) -> None:
        """Write the last answers into ``--output_dir``, from one process."""
        if self.answers is not None and trainer.is_world_process_zero():
            self.answers.save(trainer.args.output_dir or ".", prefix)


def _read_questions(arguments: Arguments[SquadArguments]) -> dict[str, datasets.Dataset]:
    """The questions of each split that the run uses, from its file, else from the data set."""
    data, training = arguments.data, arguments.training
    found = {}
    for split, used, flag, most in (
        ("train", training.do_train, "train", data.max_train_samples),
        ("validation", training.do_eval, "eval", data.max_eval_samples),
        ("test", training.do_predict, "predict", data.max_predict_samples),
    ):
        if not used:
            continue
        file = getattr(data, f"{split}_file")
        argument = f"--{split}_file"
        if file is not None:
            questions = read_squad(file, argument)
        elif data.dataset_name is not None:
            questions = load_squad(
                data.dataset_name,
                data.dataset_config_name,
                split,
                cache_dir=arguments.model.cache_dir,
            )
            argument = f"the split {split!r} of --dataset_name {data.dataset_name}"
        else:
            raise ValueError(
                f"--do_{flag} needs questions: give {argument} (SQuAD JSON) or --dataset_name"
            )
        if most is not None:
            questions = questions.select(range(min(most, len(questions))))
        if split == "train":
            questions = training_questions(questions, argument)
        if split != "test" and not data.version_2_with_negative:
            refuse_unanswered(questions, argument)
        found[split] = questions
    return found


def _windows_of(
    split: str,
    questions: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Arguments[SquadArguments],
) -> datasets.Dataset:
    data = arguments.data
    with arguments.training.main_process_first(desc=f"tokenising {split}"):
        return make_windows(
            questions,
            tokenizer,
            max_seq_length=data.max_seq_length,
            doc_stride=data.doc_stride,
            pad_to_max_length=data.pad_to_max_length,
            with_offsets=split != "train",
            num_proc=data.preprocessing_num_workers,
            use_cache=not data.overwrite_cache,
            description=f"Tokenising {split}",
        )


def _for_model(windows: datasets.Dataset | None, without: list[str]) -> datasets.Dataset | None:
    return None if windows is None else windows.remove_columns(without)
