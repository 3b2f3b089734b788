"""A twin that shares a model's weights: it is cut, run and compared while the model stays as it is.

Only what is cut on the twin takes memory: its parameters are other objects over the same storage.
Its buffers are copies, so that batch norms of the model learn nothing from a trial.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.example_inputs import call_model
from platon_prune.groups.noted import forget_groups_
from platon_prune.masks.masked import mask_of, pruned_tensors, weight_of
from platon_prune.masks.routers import PassesOver
from platon_prune.mixtures import OUTPUTS_OF_EXPERTS
from platon_prune.shrinking.expert_counts import without_router_logits_
from platon_prune.spellings import OUTPUTS_OF_HEADS

# Outputs may differ by this much of the largest one, as sums in another order do; and by ten times
# the rounding of their dtype where that is coarser.
TOLERANCE = 1e-5
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def twin_of(model: nn.Module) -> nn.Module:
    """A copy without masks, in evaluation, whose parameters share the memory of the model's.

    Raises:
        Exception: Whatever a module raises that can't be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if type(parameter) is nn.Parameter:
                # `.data`, not `.detach()`: the twin's changes must not count as changes of a tensor
                # that a backward pass of the user still needs.
                memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
    for _, module, name in pruned_tensors(model):
        mask, weight = mask_of(module, name), weight_of(module, name)
        memo[id(mask)] = mask
        # Finalizing zeroes what the mask prunes; in masking "window" it is not zero already.
        zeroed = weight.data.masked_fill(~mask, 0)
        if not torch.equal(zeroed, weight.data):
            memo[id(weight)] = nn.Parameter(zeroed, requires_grad=False)
    twin = copy.deepcopy(model, memo)
    forget_groups_(twin)
    for _, module, name in list(pruned_tensors(twin)):
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    for module in twin.modules():
        # They are the user's, who would see calls that nobody made.
        for hooks in (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not isinstance(hook, PassesOver)]:
                del hooks[key]
    without_router_logits_(twin)
    return twin.eval()


@contextlib.contextmanager
def as_if_nothing_was_drawn(model: nn.Module) -> Iterator[None]:
    """Random numbers go on as if nothing was run inside, which says nothing."""
    cuda = [device for device in _devices(model) if device.type == "cuda"]
    numpy: Any = sys.modules.get("numpy")  # some models draw from it, in training
    states = random.getstate(), numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=cuda), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])


@contextlib.contextmanager
def as_if_nothing_happened(model: nn.Module) -> Iterator[None]:
    """As :func:`as_if_nothing_was_drawn`, and what runs inside is exact."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_if_nothing_was_drawn(model))
        for kind in {device.type for device in _devices(model)} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        # TensorFloat-32 rounds by a thousandth, in which a wrong cut could hide.
        stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False))
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)


def _devices(model: nn.Module) -> set[torch.device]:
    return {parameter.device for parameter in model.parameters()}


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Tensors of the model's output on example inputs, in evaluation; the same each time."""
    torch.manual_seed(0)
    return list(_tensors_in(call_model(model.eval(), inputs)))


def train_on(model: nn.Module, inputs: Any, weights: Sequence[Tensor] = ()) -> None:
    """Run a twin forward in training mode, and backward to some of its weights.

    Raises:
        Exception: Whatever the model raises.
    """
    torch.manual_seed(0)
    model.train()
    for weight in weights:
        weight.requires_grad_(weight.is_floating_point())
    with torch.enable_grad():
        outputs = list(_tensors_in(call_model(model, inputs)))
        losses = [output.float().sum() for output in outputs if output.requires_grad]
        wanted = [weight for weight in weights if weight.requires_grad]
        # Not `backward`: gradients of these weights alone, or they would fill a second model.
        if losses and wanted:
            torch.autograd.grad(torch.stack(losses).sum(), wanted, allow_unused=True)


def train_with_fixed_norms(model: nn.Module, inputs: Any, weights: Sequence[Tensor] = ()) -> None:
    """As :func:`train_on`, with batch norms as in evaluation: they refuse a single value."""
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]
    train_on(model, inputs, weights)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """How outputs differ by more than rounding, in words; None if they do not."""
    if len(found) != len(expected):
        return f"it gives {len(found)} outputs for {len(expected)}"
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return f"it gives outputs of shape {tuple(one.shape)} for {tuple(other.shape)}"
        if not other.is_floating_point():
            if not torch.equal(one, other):
                return "its outputs differ"
            continue
        largest = float(other.abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
        if not torch.allclose(one, other, rtol=0, atol=_rounding(other) * largest, equal_nan=True):
            gap = float((one - other).abs().max()) / (largest or 1.0)
            return f"its outputs differ by {gap:.1e} of the largest"
    return None


def _rounding(tensor: Tensor) -> float:
    return max(TOLERANCE, 10 * torch.finfo(tensor.dtype).eps)


def _tensors_in(output: Any) -> Iterator[Tensor]:
    """Tensors of an output but those that have an entry for each head or expert."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if key not in OUTPUTS_OF_HEADS and key not in OUTPUTS_OF_EXPERTS:
                yield from _tensors_in(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors_in(value)
    elif is_dataclass(output):
        yield from _tensors_in(vars(output))
