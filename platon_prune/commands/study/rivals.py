"""Torch-Pruning as a rival on the digits: what it is told of the study's networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from platon_prune.commands.benchmarks import digits as _digits
from platon_prune.commands.study import one_shot
from platon_prune.commands.study.networks import EXAMPLE, multiply_adds
from platon_prune.commands.study.rival_names import RIVALS as RIVALS
from platon_prune.commands.study.rival_names import is_installed as is_installed

_NUM_SAMPLES = 128  # of which each has a gradient of its own, for the Hessian's diagonal


def require_installed(rival: str) -> None:
    """Raise a ValueError that says what to install, unless torch-pruning is there."""
    if not is_installed():
        raise ValueError(
            f"torch-pruning must be installed for {rival}: pip install 'platon-prune[structured]', "
            "or leave it out of --criteria"
        )


def prune_one_shot(
    rival: str,
    dense: nn.Module,
    target: int,
    num_heads: Mapping[str, int],
    kept_whole: Callable[[str], bool],
    digits: _digits.Digits,
    batches: Sequence[Tensor],
) -> nn.Module:
    """A copy of a dense model, cut by torch-pruning to a number of multiply-adds.

    Args:
        rival: One of :data:`RIVALS`.
        dense: A trained model.
        target: The multiply-adds that should be left; the nearest that a ratio gives.
        num_heads: Name of a query, key or value layer to its number of heads.
        kept_whole: Whether the layer of this name keeps all its outputs.
        digits: The data.
        batches: Positions of the digits that scores are taken on, batch by batch.
    """

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        output = _digits.logits_of(model(digits.train_images[batch]))
        return nn.functional.cross_entropy(output, digits.train_labels[batch])

    samples = torch.cat(list(batches))[:_NUM_SAMPLES].split(1)  # type: ignore[no-untyped-call]
    gradients = one_shot.gradients_for(rival, dense, batches, samples, loss)
    device = next(dense.parameters()).device
    subject = one_shot.Subject(
        torch.zeros(EXAMPLE, device=device), num_heads, kept_whole, _digits.logits_of, multiply_adds
    )
    return one_shot.prune_one_shot(rival, dense, target, gradients, subject)
