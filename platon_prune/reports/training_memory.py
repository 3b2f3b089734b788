"""What training with pruning takes of a GPU's memory: bytes for each weight, by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch

from platon_prune.criteria import Criterion, Platon
from platon_prune.scheduling.averages import Storage
from platon_prune.tables import table

# At a choice: blocks of scores and averages, and the masks of before, packed. Blocks have a largest
# size, so that smaller models than of a billion weights take up to twice as much.
CHOICE_BYTES = 1
_GIGA = 1e9
GPUS = (24, 48, 80, 141)  # GB


@dataclass(frozen=True)
class ModelSize:
    """The size of a model.

    Args:
        name: What to call it.
        parameters: All of its parameters, which are all trained.
        selected: Those of them that pruning selects.
    """

    name: str
    parameters: int
    selected: int


# Llama 3.2 1B and 3B, and Llama 2 7B: embeddings, norms and the output layer are not selected.
MODELS = (
    ModelSize("1 B", 1_235_814_400, 973_078_528),
    ModelSize("3 B", 3_212_749_824, 2_818_572_288),
    ModelSize("7 B", 6_738_415_616, 6_476_005_376),
)


@dataclass(frozen=True)
class TrainingMemory:
    """Settings of a training that decide how much memory it takes, but for activations.

    Args:
        dtype: Of the weights, and so of gradients and of AdamW's two averages. Autocast leaves it
            as it is.
        state_dtype: As for :func:`platon_prune.global_unstructured`.
        offload_averages: Likewise.
        criterion: Likewise, as an instance.
    """

    dtype: torch.dtype = torch.float32
    state_dtype: torch.dtype = torch.float32
    offload_averages: bool = False
    criterion: Criterion = field(default_factory=Platon)

    def on_device(self, size: ModelSize) -> dict[str, int]:
        """Bytes on the GPU, kind by kind; the last one only while a choice is made."""
        each = self.dtype.itemsize * size.parameters
        averages = self._averages(size)
        return {
            "weights": each,
            "gradients": each,
            "AdamW": 2 * each,
            "mask": size.selected,
            "window": self._remembered(size).get("window", 0),
            "averages": 0 if self.offload_averages else averages,
            "a choice": CHOICE_BYTES * size.selected,
        }

    def on_host(self, size: ModelSize) -> int:
        """Bytes of the averages in host memory."""
        return self._averages(size) if self.offload_averages else 0

    def _remembered(self, size: ModelSize) -> dict[str, int]:
        return Storage(self.state_dtype).bytes(self.criterion, size.selected)

    def _averages(self, size: ModelSize) -> int:
        return sum(n for name, n in self._remembered(size).items() if name != "window")

    @property
    def name(self) -> str:
        """The settings of pruning in words."""
        words = ["bfloat16 state"] if self.state_dtype == torch.bfloat16 else []
        words += ["offloaded"] if self.offload_averages else []
        return ", ".join(words) or "default"


SETTINGS = tuple(
    TrainingMemory(dtype, state, offload)
    for dtype, offload, state in product(
        (torch.float32, torch.bfloat16), (False, True), (torch.float32, torch.bfloat16)
    )
)


def gigabytes(size: ModelSize, setting: TrainingMemory) -> float:
    """GB (10⁹ bytes) on the GPU, without activations."""
    return sum(setting.on_device(size).values()) / _GIGA


def kinds_table(settings: Sequence[TrainingMemory] = SETTINGS) -> str:
    """Bytes for each weight of each kind and setting."""
    one = ModelSize("", 1, 1)
    kinds: Mapping[str, int] = settings[0].on_device(one)
    lines = [("weights in", "pruning", *kinds, "together", "on the host")]
    for setting in settings:
        each = setting.on_device(one)
        numbers = (*each.values(), sum(each.values()), setting.on_host(one))
        lines.append((_dtype_of(setting), setting.name, *map(str, numbers)))
    return table(lines)


def models_table(
    models: Sequence[ModelSize] = MODELS,
    gpus: Sequence[float] = GPUS,
    settings: Sequence[TrainingMemory] = SETTINGS,
) -> str:
    """What each model takes by each setting, and what it leaves of each GPU for activations."""
    heads = (f"of {gpu:g}" for gpu in gpus)
    lines = [("model", "weights in", "pruning", "GB", *heads)]
    for model, setting in product(models, settings):
        taken = gigabytes(model, setting)
        left = (f"{gpu - taken:.1f}" if taken < gpu else "-" for gpu in gpus)
        lines.append((model.name, _dtype_of(setting), setting.name, f"{taken:.1f}", *left))
    return table(lines)


def _dtype_of(setting: TrainingMemory) -> str:
    return str(setting.dtype).removeprefix("torch.")
