"""Folders of images, their classes, and how images are varied; PIL is all it needs."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from platon_prune.integrations.recipes.files import shown, shown_names, shown_path

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
# What a Mac's zip and a network drive leave beside the images; hidden names are skipped too.
_NO_IMAGES = ("__MACOSX", "@eaDir")


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
        raise ValueError(
            f"{flag} must be a folder, got {shown_path(folder)!r}, which is none: check its name"
        )
    own = sorted(p.name for p in root.iterdir() if p.is_dir() and _is_visible([p.name]))
    if not own:
        raise ValueError(
            f"{flag} must have one folder of images per class, got none in {shown_path(folder)!r}"
        )
    names = list(own if classes is None else classes)
    unknown = [name for name in own if name not in names]
    if unknown:
        raise ValueError(
            f"{flag} must have the classes of the training images ({shown_names(names)}), got "
            f"{shown_names(unknown)} as well: remove or rename these folders"
        )
    paths: list[str] = []
    labels: list[int] = []
    for name in own:
        files = sorted(_images_in(root / name))
        if not files:
            raise ValueError(
                f"{flag}: each class must have images ({', '.join(ENDINGS)}), got none in "
                f"{shown_path(root / name)}: add some, or remove the folder"
            )
        paths += map(str, files)
        labels += [names.index(name)] * len(files)
    features = datasets.Features(
        {"image": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)


def _images_in(folder: Path) -> Iterable[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in ENDINGS and _is_visible(path.relative_to(folder).parts):
            yield path


def _is_visible(parts: Sequence[str]) -> bool:
    """Whether no part of a path is hidden, as ``._0.png`` and ``.ipynb_checkpoints`` are."""
    return not any(part.startswith(".") or part in _NO_IMAGES for part in parts)


def check_images(flag: str, images: datasets.Dataset) -> None:
    """Open every image once, so that a broken one is found now and not after hours of training.

    Args:
        flag: For errors.
        images: Their paths in a column ``image``, or a data set's own images.

    Raises:
        ValueError: If one can't be read as an image, or is larger than PIL allows; names it.
    """
    if isinstance(images.features["image"], datasets.Image):
        # Undecoded, since datasets decodes without telling which image is broken.
        images = images.cast_column("image", datasets.Image(decode=False))
    elif images.features["image"] != datasets.Value("string"):
        raise ValueError(
            f"{flag}: the column of images must have images or their paths, got "
            f"{shown(images.features['image'])}: choose another --image_column"
        )
    with ThreadPoolExecutor() as threads:
        # In order, so that the first of several is named every time.
        found = threads.map(_reason_against, range(1, len(images) + 1), images["image"])
        reasons = [reason for reason in found if reason]
    if reasons:
        more = f" ({len(reasons)} files can't be read)" if len(reasons) > 1 else ""
        raise ValueError(f"{flag}: {reasons[0]}{more}")


def _reason_against(row: int, image: Any) -> str | None:
    try:
        if isinstance(image, str):
            _opened(image, quick=True)
        elif image is None:
            raise ValueError(f"row {row} must have an image, got none: remove it")
        else:
            path = image["path"]
            name = f"the image of row {row}" + (f" ({shown_path(path)})" if path else "")
            content = image["bytes"]
            _opened(path if content is None else io.BytesIO(content), quick=True, name=name)
    except ValueError as error:
        return str(error)
    return None


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
            f"labels must be whole numbers from 0, got {shown(min(labels, key=str))}: choose "
            "another --label_column"
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
                f"{split}: label must be from 0 to {len(names) - 1}, got {shown(label)} in row "
                f"{row}: remove or correct it"
            )


def pixels(image: Any, augmentation: str = "none") -> Any:
    """Open an image, make it RGB, and vary it by torch's random numbers.

    Args:
        image: A path, or an image of PIL's.
        augmentation: "crop" takes a random part of 8 to 100 % of the area and 3:4 to 4:3 in shape,
            and mirrors half of them; "flip" only mirrors; "none" does neither.

    Raises:
        ValueError: If the file is no image, is too large, or has values that are neither of 8 nor
            of 16 bits.
    """
    from PIL import ImageOps

    name = image if isinstance(image, str) else "an image of the data set"
    image = _to_8_bits(name, _opened(image) if isinstance(image, str) else image).convert("RGB")
    if augmentation == "crop":
        image = image.crop(_random_box(*image.size))
    if augmentation != "none" and _uniform(0, 1) < 0.5:
        image = ImageOps.mirror(image)
    return image


def _opened(file: str | io.BytesIO, quick: bool = False, name: str = "") -> Any:
    """The decoded image of a file; a ValueError in one sentence if that fails.

    Args:
        file: Its path, or its content.
        quick: Whether a small version will do, which JPEG decodes several times as fast.
        name: What errors call it, if not by its path.
    """
    from PIL import Image

    path = file if isinstance(file, str) else ""
    name = name or shown_path(path)
    try:
        with Image.open(file) as opened:
            if quick:
                opened.draft(None, (1, 1))
            opened.load()
            return opened.copy()
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"{name} must be an image of at most {most:,} pixels, PIL's limit: make it smaller, or "
            "cut it into parts"
        ) from None
    # Broken files end PIL's decoders in errors of many types: SyntaxError, struct.error, ...
    except Exception as error:
        reason = (str(error).replace(path, name) if path else str(error))[:100]
        raise ValueError(f"{name} must be an image: remove or replace it ({reason})") from error


def _to_8_bits(name: str, image: Any) -> Any:
    """Grey values of 16 bits scaled to 8; PIL's ``convert`` would clip most of them to white."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 65535:
        raise ValueError(
            f"{name} must have values of 8 or 16 bits, got {shown(float(low))} to "
            f"{shown(float(high))} (PIL's mode {image.mode}): convert it"
        )
    # Rounded, so that 65535 becomes 255 and black stays black.
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


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
