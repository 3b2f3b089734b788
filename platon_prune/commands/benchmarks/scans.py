"""The demo's data: scans of handwritten digits, split, and made noisy or few where a study asks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from platon_prune.commands.benchmarks.demo_settings import Settings

NUM_CLASSES = 10
_NUM_SCANS = 1797  # that scikit-learn has


@dataclass(frozen=True)
class Digits:
    """Images (float32, N x 1 x 8 x 8, normalised by the training part) and their labels.

    The validation part is empty unless the settings set a share of the training part aside.
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


def load_digits(settings: Settings, device: str = "cpu") -> Digits:
    """Split scikit-learn's scans, each class in proportion, by the seed; all of it on a device."""
    from sklearn.datasets import load_digits as load_scans

    # They come with scikit-learn, so that the demo needs no network.
    scans = load_scans()
    rest, held_out = _split((scans.images, scans.target), settings.held_out, settings.seed)
    train, validation = _split(rest, settings.validation, settings.seed)
    if settings.examples:
        # The other digits are thrown away: what few examples do is what the setting is for.
        train, _ = _split(train, len(train[1]) - settings.examples, settings.seed)
    images = [
        torch.tensor(part[0], dtype=torch.float32).unsqueeze(1)
        for part in (train, held_out, validation)
    ]
    labels = [torch.tensor(part[1]) for part in (train, held_out, validation)]
    labels[0] = _mislabelled(labels[0], settings.label_noise, settings.seed)
    # Of the training part alone: the held-out digits must not be looked at.
    mean, std = images[0].mean(), images[0].std()
    images = [((part - mean) / std).to(device) for part in images]
    labels = [part.to(device) for part in labels]
    return Digits(images[0], labels[0], images[1], labels[1], images[2], labels[2])


def num_training(settings: Settings) -> int:
    """How many digits there are to train on, before ``examples`` takes some of them."""
    rest = _NUM_SCANS - math.ceil(settings.held_out * _NUM_SCANS)
    return rest - math.ceil(settings.validation * rest)


def _split(part: tuple[Any, Any], size: float, seed: int) -> tuple[tuple[Any, Any], ...]:
    """A part without so much (a share, or a count) of each class, and that; 0 takes nothing."""
    from sklearn.model_selection import train_test_split

    images, labels = part
    if not size:
        return part, (images[:0], labels[:0])
    first, second, of_first, of_second = train_test_split(
        images, labels, test_size=size, random_state=seed, stratify=labels
    )
    return (first, of_first), (second, of_second)


def _mislabelled(labels: Tensor, share: float, seed: int) -> Tensor:
    """Labels of which a share, drawn by the seed, is that of another class."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    shifts = torch.randint(1, NUM_CLASSES, (len(chosen),), generator=generator)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + shifts) % NUM_CLASSES
    return noisy
