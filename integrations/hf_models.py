"""A trainer wraps the model that it was given, and may fail to load checkpoints into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

T = TypeVar("T")


def bare(model: nn.Module) -> nn.Module:
    """The model under torch.compile's and a parallel wrapper."""
    # Wrappers nest in any order: a compiled model under DDP, or DDP compiled.
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def describe_in_config(model: nn.Module | None, pruning: dict[str, Any]) -> None:
    """Write how a model is pruned into its config, if it has one, which is saved with it."""
    config = getattr(model, "config", None)
    if config is not None:
        config.platon_prune = pruning


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a shard of the model's parameters, as DTensors."""
    from torch.distributed.tensor import DTensor

    return dist.is_initialized() and any(isinstance(p, DTensor) for p in model.parameters())


def is_distributed(args: TrainingArguments) -> bool:
    """Whether several processes train together."""
    return args.world_size > 1 and dist.is_initialized()


def of_first(value: T, args: TrainingArguments) -> T:
    """What the first process has, in all of them; collective."""
    values = [value]
    if is_distributed(args):
        dist.broadcast_object_list(values)
    return values[0]


def load_renamed(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint that is written under other names than those of the model's parameters.

    ``save_pretrained`` writes some models (ViT, mixtures of experts) under the names of earlier
    releases and ``from_pretrained`` takes these back, but a trainer that resumes reads the files by
    itself: it finds no weight of such a model, says so in a warning, and goes on with others.

    Args:
        model: The bare model, pruned under its own keys.
        folder: The checkpoint.
    """
    # The headers of the files are enough to see it; the weights are read only if they must be.
    names = _names_in(folder)
    if not isinstance(model, PreTrainedModel) or names <= model.state_dict().keys():
        return
    # from_pretrained knows the earlier names, and makes a model of its own to load into.
    saved = type(model).from_pretrained(folder, config=model.config, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


def _names_in(folder: Path) -> set[str]:
    """Names of the tensors in the files of ``save_pretrained``; none if there are no such files."""
    index, single = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFE_WEIGHTS_NAME
    if index.is_file():
        return set(json.loads(index.read_text())["weight_map"])
    if not single.is_file():
        return set()
    with safe_open(single, framework="pt") as file:
        return set(file.keys())
