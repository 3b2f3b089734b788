"""Folders of images, their classes, and how images are varied; PIL is all it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


def read_folder(flag: str, folder: str, classes: Sequence[str] | None = None) -> datasets.Dataset:
    """List a folder that has one folder of images per class.

    Args:
        flag: The flag that names it, for errors.
        folder: Its path.
        classes: Names of the classes, if others have set them; in alphabetical order otherwise.

    Returns:
        A data set with ``image``, opened when read, and ``label``.

    Raises:
        ValueError: If there is no such folder, no image in a class, or a class of its own.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"{flag} must be a folder, got {folder!r}, which is none: check its name")
    own = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not own:
        raise ValueError(f"{flag} must have one folder of images per class, got none in {folder!r}")
    names = list(own if classes is None else classes)
    unknown = [name for name in own if name not in names]
    if unknown:
        raise ValueError(
            f"{flag} must have the classes of the training images ({', '.join(names)}), got "
            f"{', '.join(unknown)} as well: remove or rename these folders"
        )
    paths: list[str] = []
    labels: list[int] = []
    for name in own:
        files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in ENDINGS)
        if not files:
            raise ValueError(
                f"{flag}: each class must have images ({', '.join(ENDINGS)}), got none in "
                f"{root / name}: add some, or remove the folder"
            )
        paths += map(str, files)
        labels += [names.index(name)] * len(files)
    features = datasets.Features(
        {"image": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)


def class_names(splits: Mapping[str, datasets.Dataset]) -> list[str]:
    """Names of the classes, of the training images if there are any.

    Raises:
        ValueError: If the labels have no names and are no whole numbers.
    """
    images = splits.get("train", next(iter(splits.values()), None))
    if images is None:
        raise ValueError(
            "there must be images, got none: give --train_dir and --validation_dir, or "
            "--dataset_name"
        )
    feature = images.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    labels = set(images.unique("label"))
    if not all(isinstance(label, int) and label >= 0 for label in labels):
        raise ValueError(
            f"labels must be whole numbers from 0, got {min(labels, key=str)!r}: choose another "
            "--label_column"
        )
    return [str(number) for number in range(max(labels) + 1)]


def check_classes(split: str, images: datasets.Dataset, names: Sequence[str]) -> None:
    """Check that every label is the number of a class.

    Raises:
        ValueError: If one is not; names the first such image.
    """
    for row, label in enumerate(images["label"], start=1):
        if not (isinstance(label, int) and 0 <= label < len(names)):
            raise ValueError(
                f"{split}: label must be from 0 to {len(names) - 1}, got {label!r} in row {row}: "
                "remove or correct it"
            )


def pixels(image: Any, augmentation: str = "none") -> Any:
    """Open an image, make it RGB, and vary it by torch's random numbers.

    Args:
        image: A path, or an image of PIL's.
        augmentation: "crop" takes a random part of 8 to 100 % of the area and 3:4 to 4:3 in shape,
            and mirrors half of them; "flip" only mirrors; "none" does neither.

    Raises:
        ValueError: If the file is no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(image, str):
        try:
            with Image.open(image) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{image} must be an image: remove or replace it ({error})") from error
    image = image.convert("RGB")
    if augmentation == "crop":
        image = image.crop(_random_box(*image.size))
    if augmentation != "none" and _uniform(0, 1) < 0.5:
        image = ImageOps.mirror(image)
    return image


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of an image; the whole if none is found that fits."""
    for _ in range(10):
        area = _uniform(0.08, 1) * width * height
        # Uniform in the logarithm, so that 3:4 is as likely as 4:3.
        shape = math.exp(_uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, ()))
            top = int(torch.randint(height - h + 1, ()))
            return left, top, left + w, top + h
    return 0, 0, width, height


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
