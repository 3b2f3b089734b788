"""``platon-prune image``: fine-tune and prune a model that classifies images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, EvalPrediction

from platon_prune.integrations.recipes.common import (
    begin,
    load,
    load_model,
    load_teacher,
    run,
    title_of,
)
from platon_prune.integrations.recipes.distillation import RecipeTrainer
from platon_prune.integrations.recipes.fields import setting
from platon_prune.integrations.recipes.glue_tasks import accuracy
from platon_prune.integrations.recipes.image_data import (
    check_classes,
    check_images,
    class_names,
    pixels,
    read_folder,
)
from platon_prune.integrations.recipes.loading import load_data_set
from platon_prune.integrations.recipes.parsing import Arguments, parse_arguments

DESCRIPTION = """Fine-tune a model that classifies images and prune it meanwhile (PLATON).

Needs a model and images: folders with one folder per class, or a data set by name. The pruned
model, results.json and report.png are written to --output_dir."""
EXAMPLES = """  platon-prune image --model_name_or_path google/vit-base-patch16-224-in21k \\
      --train_dir flowers/train --validation_dir flowers/validation --amount 0.9 \\
      --do_train --do_eval --output_dir flowers-10
  platon-prune image --model_name_or_path google/vit-base-patch16-224-in21k \\
      --dataset_name cifar10 --image_column img --train_val_split 0.1 --do_train --do_eval
  platon-prune image settings.yaml --seed 1"""


@dataclass
class ImageArguments:
    """Where the images are, and how they are varied."""

    _argument_group_name = "data"

    train_dir: str | None = setting("Folder to train on, with one folder of images per class.")
    validation_dir: str | None = setting("Folder to evaluate on, with the same classes.")
    dataset_name: str | None = setting("Data set on the Hub, instead of folders.")
    dataset_config_name: str | None = setting("Its configuration, if it has several.")
    image_column: str = setting("Its column of images.", "image")
    label_column: str = setting("Its column of labels.", "label")
    train_val_split: float | None = setting(
        "Share of the training images to evaluate on where there are no others, in (0, 1)."
    )
    augmentation: Literal["crop", "flip", "none"] = setting(
        "How training images are varied: crop (a random part, perhaps mirrored), flip, or none.",
        "crop",
    )
    max_train_samples: int | None = setting("Train on this many images only.")
    max_eval_samples: int | None = setting("Evaluate on this many images only.")

    def __post_init__(self) -> None:
        if self.dataset_name is not None and (self.train_dir or self.validation_dir):
            raise ValueError(
                "the images must be given by --dataset_name or by --train_dir and "
                "--validation_dir, got both: leave one out"
            )
        if self.train_val_split is not None and not 0 < self.train_val_split < 1:
            raise ValueError(f"--train_val_split must be in (0, 1), got {self.train_val_split}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe with these flags (those of the process by default).

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If flags, images, labels and model do not go together; before any training.
    """
    arguments = parse_arguments(
        argv, "image", ImageArguments, description=DESCRIPTION, examples=EXAMPLES
    )
    if arguments.training.do_predict:
        raise ValueError(
            "image knows no --do_predict: give --do_eval and the images with their classes"
        )
    # The transform below reads the column of images, which the model's forward does not name.
    arguments.training.remove_unused_columns = False
    if not begin(arguments):
        return 0
    splits, classes = read_splits(arguments)
    processor = load(
        "--model_name_or_path must be a model with an image processor",
        AutoImageProcessor.from_pretrained,
        arguments.model.tokenizer_name or arguments.model.model_name_or_path or "",
        **arguments.model.loading(),
    )
    model = load_model(
        arguments,
        AutoModelForImageClassification,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        problem_type="single_label_classification",
    )
    _check_size(processor, model)
    data = arguments.data
    transformed = {
        split: images.with_transform(
            _Transform(processor, data.augmentation if split == "train" else "none")
        )
        for split, images in splits.items()
    }
    trainer = RecipeTrainer(
        model=model,
        args=arguments.training,
        train_dataset=transformed.get("train"),
        eval_dataset=transformed.get("validation"),
        processing_class=processor,
        data_collator=_collate,
        compute_metrics=_measure,
        teacher=load_teacher(arguments, AutoModelForImageClassification, model),
        distillation=arguments.distillation,
    )

    def evaluate() -> dict[str, float]:
        metrics: dict[str, float] = trainer.evaluate()
        return metrics

    name = data.dataset_name or "images"
    run(trainer, arguments, evaluate, title=title_of(arguments, name), metric="eval_accuracy")
    return 0


def read_splits(
    arguments: Arguments[ImageArguments],
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Find the images that the run needs, as columns ``image`` and ``label``, and the classes.

    Raises:
        ValueError: If a folder, a column or a class is missing.
    """
    data, training = arguments.data, arguments.training
    found = _from_hub(arguments) if data.dataset_name else _from_folders(arguments)
    if training.do_eval and "validation" not in found and data.train_val_split and "train" in found:
        halves = found["train"].train_test_split(data.train_val_split, seed=training.seed)
        found |= {"train": halves["train"], "validation": halves["test"]}
    for split, wanted, flags in (
        ("train", training.do_train, "--train_dir or --dataset_name"),
        ("validation", training.do_eval, "--validation_dir or --train_val_split"),
    ):
        if wanted and split not in found:
            raise ValueError(f"there must be images for {split}, got none: give {flags}")
    # Of all splits that were found, since a run that only evaluates numbers them as training did.
    names = class_names(found)
    limits = {"train": data.max_train_samples, "validation": data.max_eval_samples}
    wanted_splits = {"train": training.do_train, "validation": training.do_eval}
    chosen = {
        split: images.select(range(min(limits[split] or len(images), len(images))))
        for split, images in found.items()
        if wanted_splits.get(split)
    }
    for split, images in chosen.items():
        check_classes(split, images, names)
        check_images(split, images)
    return chosen, names


def _from_folders(arguments: Arguments[ImageArguments]) -> dict[str, datasets.Dataset]:
    data = arguments.data
    found = {}
    if data.train_dir is not None:
        found["train"] = read_folder("--train_dir", data.train_dir)
    if data.validation_dir is not None:
        classes = class_names(found) if found else None
        found["validation"] = read_folder("--validation_dir", data.validation_dir, classes)
    return found


def _from_hub(arguments: Arguments[ImageArguments]) -> dict[str, datasets.Dataset]:
    data = arguments.data
    loaded = load_data_set(arguments, data.dataset_name or "", data.dataset_config_name)
    columns = {data.image_column: "image", data.label_column: "label"}
    found = {}
    for split, images in loaded.items():
        missing = [name for name in columns if name not in images.column_names]
        if missing:
            raise ValueError(
                f"--dataset_name {data.dataset_name} must have the columns {', '.join(columns)}, "
                f"got {', '.join(images.column_names)}: name them with --image_column and "
                "--label_column"
            )
        renamed = {old: new for old, new in columns.items() if old != new}
        found[split] = images.select_columns(list(columns)).rename_columns(renamed)
    # Many data sets have but these two splits.
    if "validation" not in found and "test" in found and not data.train_val_split:
        found["validation"] = found["test"]
    return found


class _Transform:
    """Batches of images to batches of pixels."""

    def __init__(self, processor: Any, augmentation: str) -> None:
        self.processor = processor
        self.augmentation = augmentation

    def __call__(self, examples: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        images = [pixels(image, self.augmentation) for image in examples["image"]]
        values = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(values), "label": list(examples["label"])}


def _collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["label"] for example in examples]),
    }


def _measure(outcome: EvalPrediction) -> dict[str, float]:
    logits = outcome.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": accuracy(np.argmax(logits, axis=-1), outcome.label_ids)}


def _check_size(processor: Any, model: Any) -> None:
    """Compare the size of the images that the processor makes with what the model reads."""
    wanted = getattr(model.config, "image_size", None)
    made = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
    height = made.get("height")
    if isinstance(wanted, int) and height is not None and height != wanted:
        raise ValueError(
            f"the image processor must make images of {wanted} pixels, the model's size, got "
            f"{height}: use the processor that was saved with the model"
        )
