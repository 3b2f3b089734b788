"""Torch-Pruning on any model: cut once to a number of multiply-adds, by a searched ratio."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_NUM_TRIALS = 9  # halvings of the ratio
_NEAR_ENOUGH = 0.005  # of the multiply-adds that should be left


@dataclass(frozen=True)
class Subject:
    """What torch-pruning must be told of a model.

    Args:
        example_inputs: What the model is traced with: a tensor, or keyword arguments.
        num_heads: Name of a query, key or value layer to its number of heads.
        kept_whole: Whether the layer of this name keeps all its outputs.
        output_transform: From what the model returns to what gradients are taken of.
        multiply_adds: Of a model's forward.
    """

    example_inputs: Any
    num_heads: Mapping[str, int]
    kept_whole: Callable[[str], bool]
    output_transform: Callable[[Any], Any]
    multiply_adds: Callable[[nn.Module], int]


def prune_one_shot(
    rival: str, dense: nn.Module, target: int, gradients: Mapping[str, Tensor], subject: Subject
) -> nn.Module:
    """A copy of a dense model, cut by torch-pruning to a number of multiply-adds.

    Scores are compared over all layers, each divided by the mean over its layer (torch-pruning's
    own default), and the ratio is searched; heads and channels go by the same one.

    Args:
        rival: One of :data:`~platon_prune.commands.study.rival_names.RIVALS`.
        dense: A trained model; not changed.
        target: The multiply-adds that should be left; the nearest that a ratio gives.
        gradients: What :func:`gradients_for` made of it.
        subject: What the model is.
    """
    low, high = 0.0, 1.0
    best, distance = dense, subject.multiply_adds(dense) - target
    for _ in range(_NUM_TRIALS):
        ratio = (low + high) / 2
        model = _pruned(rival, dense, gradients, ratio, subject)
        left = subject.multiply_adds(model)
        if abs(left - target) < distance:
            best, distance = model, abs(left - target)
        if distance <= _NEAR_ENOUGH * target:
            break
        low, high = (ratio, high) if left > target else (low, ratio)
    return best


def gradients_for(
    rival: str,
    dense: nn.Module,
    batches: Sequence[Any],
    samples: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
) -> dict[str, Tensor]:
    """What the rival's importance reads in ``.grad``, by the parameter's name.

    Args:
        rival: One of :data:`~platon_prune.commands.study.rival_names.RIVALS`.
        dense: A trained model; not changed.
        batches: What the gradient is a sum over.
        samples: Single examples, of which each has a gradient of its own, for the Hessian's
            diagonal.
        loss: From a model and a batch to its loss.
    """
    if rival == "tp-magnitude":
        return {}
    model = copy.deepcopy(dense).eval()
    model.zero_grad()
    if rival == "tp-taylor":
        for batch in batches:
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    # Its own accumulate_grad keeps the last sample alone, so the mean of squares is made here.
    squares: dict[str, Any] = {}
    for sample in samples:
        model.zero_grad()
        loss(model, sample).backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                squares[name] = squares.get(name, 0) + parameter.grad.square()
    return {name: total / len(samples) for name, total in squares.items()}


class KeepsTheBest:
    """An importance of torch-pruning by which the best head or channel of each layer stays.

    Without it a layer of which nothing would be left is passed over and stays whole, so that no
    ratio leads to small sizes.
    """

    def __init__(self, importance: Callable[..., Any], heads: Mapping[nn.Module, int]) -> None:
        self._importance = importance
        self._heads = heads

    def __call__(self, group: Any) -> Any:
        """One number a channel, as torch-pruning asks for it; None where it has none."""
        found = self._importance(group)
        if found is None:
            return None
        counts = [self._heads.get(item.dep.target.module, 1) for item in group]
        blocks = found.view(max(counts), -1) if max(counts) > 1 else found.view(-1, 1)
        blocks[blocks.mean(dim=1).argmax()] = torch.inf
        return found


def _pruned(
    rival: str, dense: nn.Module, gradients: Mapping[str, Tensor], ratio: float, subject: Subject
) -> nn.Module:
    import torch_pruning

    model = copy.deepcopy(dense)
    layers = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    importances = {
        "tp-taylor": torch_pruning.importance.GroupTaylorImportance,
        "tp-magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "tp-hessian": torch_pruning.importance.GroupHessianImportance,
    }
    heads = {layers[name]: count for name, count in subject.num_heads.items()}
    pruner = torch_pruning.pruner.BasePruner(
        model,
        subject.example_inputs,
        importance=KeepsTheBest(importances[rival](), heads),
        global_pruning=True,
        pruning_ratio=ratio,
        # One head of each layer stays; beyond that the threshold would be that of the best ones.
        head_pruning_ratio=min(ratio, 1 - 1 / max(heads.values(), default=1)),
        ignored_layers=[layer for name, layer in layers.items() if subject.kept_whole(name)],
        # Given even if empty: its default dicts are shared by all pruners of a process.
        num_heads=dict(heads),
        in_channel_groups={},
        out_channel_groups={},
        prune_num_heads=True,
        prune_head_dims=False,
        output_transform=subject.output_transform,
    )
    pruner.step()
    model.zero_grad()
    return model
