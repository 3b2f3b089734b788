"""Averaged weights in Lightning: the copies that its averaging callbacks keep, masked throughout.

An average over time is not zero where a weight was pruned only lately, and Lightning averages the
masks too, which are buffers. So the copy gets the masks of the model after every update.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from platon_prune import PlatonScheduler, PruningWarning, apply_masks

# EMAWeightAveraging is one of the former, which came with Lightning 2.6.
_AVERAGING = tuple(
    getattr(callbacks, name)
    for name in ("WeightAveraging", "StochasticWeightAveraging")
    if hasattr(callbacks, name)
)


def come_after_averages(own: Callback, trainer: Trainer, pl_module: LightningModule) -> None:
    """Let ``own`` act after the callbacks that average, and these copy a module that has masks.

    Args:
        own: The callback that has just put masks on, in its ``setup``.
        trainer: Its trainer, whose order of callbacks is changed.
        pl_module: The module with masks.
    """
    listed: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    place = listed.index(own)
    averaging = [i for i, each in enumerate(listed) if averages(each)]
    for i in averaging:
        # One that was set up before copied a module without masks: its tensors would be taken for
        # others, since Lightning pairs them by their order.
        if i < place and isinstance(listed[i], _AVERAGING):
            listed[i].setup(trainer, pl_module, "fit")
    last = max(averaging, default=-1)
    if last > place:
        # A new list: the trainer is walking through the old one.
        rest = [each for each in listed if each is not own]
        trainer.callbacks = [*rest[:last], own, *rest[last:]]  # type: ignore[attr-defined]


def mask_averages(trainer: Trainer, scheduler: PlatonScheduler) -> None:
    """Apply the masks to every copy that averages the weights, and give it these masks."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # What a callback of the user's averages may be another model, or only a part of this one.
        may_be_another = not isinstance(callback, _AVERAGING)
        for average in _copies(callback):
            with contextlib.suppress(*[ValueError] * may_be_another):
                apply_masks(average, scheduler)


def num_training_steps(trainer: Trainer, pl_module: LightningModule) -> float:
    """Optimizer steps of the run, without an epoch in which none is taken; -1 or inf if unknown."""
    added = sum(
        isinstance(each, callbacks.StochasticWeightAveraging)
        and each.pl_module_contains_batch_norm(pl_module)
        for each in trainer.callbacks  # type: ignore[attr-defined]
    )
    loop = trainer.fit_loop
    if not added or loop.max_epochs in (None, -1):
        return trainer.estimated_stepping_batches
    # Such a callback adds an epoch to the trainer's, to gather the statistics of batch norms.
    loop.max_epochs -= added
    try:
        return trainer.estimated_stepping_batches
    finally:
        loop.max_epochs += added


@torch.no_grad()
def restore_zeros(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero in a finalized module what was pruned, and warn if another callback had filled it in.

    Args:
        module: The module, which may have been changed since, even shrunk.
        masks: Those that it was finalized with, by the names of its parameters.
    """
    filled = 0
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        weight = parameters.get(name)
        if weight is not None and weight.shape == mask.shape:
            pruned = ~mask.to(weight.device)
            filled += int(weight.ne(0).logical_and_(pruned).sum())
            weight.masked_fill_(pruned, 0)
    if filled:
        PruningWarning.warn(
            f"{filled} pruned weights were filled in by another callback after the model was "
            "finalized, and are zero again: list it before PlatonLightningCallback, or call "
            "platon_prune.apply_masks(copy, callback.scheduler) on the weights that it keeps"
        )


def averages(callback: Callback) -> bool:
    """Whether a callback keeps an average of the weights."""
    return isinstance(callback, _AVERAGING) or any(True for _ in _copies(callback))


def _copies(callback: Callback) -> Iterator[nn.Module]:
    """The averages that a callback keeps: not any copy, which may be the teacher of the model."""
    is_known = isinstance(callback, _AVERAGING)
    for name, value in vars(callback).items():
        if isinstance(value, AveragedModel) or (
            is_known and name == "_average_model" and isinstance(value, nn.Module)
        ):
            yield value
