"""The dimension of a weight that its inputs lie along, and whether n:m groups fit into it."""

from __future__ import annotations

from torch import Tensor, nn

from platon_prune.masks.default_selection import is_conv1d, is_named
from platon_prune.spellings import DECLARES_TRANSPOSED, TRANSPOSED_EXPERTS


def input_dim(module: nn.Module, weight: Tensor) -> int:
    """Return the dimension of a weight that a product with the layer's inputs sums over, from 0.

    Of convolutions the input channels, per kernel position. Where nothing else is known it is the
    last dimension, as in ``torch.nn.functional.linear``.

    Args:
        module: What holds the weight.
        weight: The weight, of two dimensions at least.
    """
    # Transposed convolutions are (in, out / groups, kernel), the others (out, in / groups, kernel).
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return 0
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1
    # A linear layer that keeps its weight as (in, out), as GPT-2 does.
    if is_conv1d(module):
        return 0
    if weight.ndim == 3 and _multiplies_from_the_right(module):
        return 1
    return weight.ndim - 1


def _multiplies_from_the_right(module: nn.Module) -> bool:
    """Whether fused experts lie as (experts, in, out), as those of GPT-OSS and Llama 4 do."""
    # What transformers notes on the experts that its own kernels may run.
    declared = getattr(module, DECLARES_TRANSPOSED, False) is True
    return declared or is_named(module, "transformers", TRANSPOSED_EXPERTS)


def reason_against_groups(module: nn.Module, weight: Tensor, m: int) -> str | None:
    """Say why a weight can't be cut into groups of m along its inputs; None if it can.

    Args:
        module: What holds the weight.
        weight: The weight.
        m: Neighbours in a group.
    """
    if weight.ndim < 2:
        return f"has shape {tuple(weight.shape)} and so no dimension of inputs"
    dim = input_dim(module, weight)
    size, per = weight.shape[dim], "inputs"
    # Its dimension of inputs runs through all groups, and no n:m group may straddle two of them.
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
        size, per = size // module.groups, f"inputs in each of {module.groups} groups"
    if size % m:
        return f"has {size} {per} (dimension {dim} of {tuple(weight.shape)}), not a multiple of {m}"
    return None
