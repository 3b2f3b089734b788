"""Attention whose layers share one position bias, as T5's: each layer takes its own heads of it.

The first layer of a stack has a table with a column for each head; its bias goes on from layer to
layer. When layers keep different heads, the table keeps those of any layer, and each layer notes
which of the columns are its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.resize import cut_, refresh_sizes_

_CLASSES = ("T5Attention", "MT5Attention")
TABLE = "relative_attention_bias"


class _OwnHeads(nn.Module):
    """Mixed into the class of an attention whose heads are some of those of the bias.

    The buffer ``bias_heads`` says which; None if the bias is not to be used (in cross-attention
    it is all zeros, made by the first layer for its own number of heads).
    """

    bias_heads: Tensor | None

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class can't be found by its name, which is its base's; it is made again instead.
        return _new_instance, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[no-untyped-call]

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        whole = position_bias
        if self.bias_heads is None:
            position_bias = None
        else:
            if whole is None:
                whole = self._whole_bias(hidden_states, past_key_values)
            position_bias = whole.index_select(1, self.bias_heads)
        output, own, *rest = super().forward(
            hidden_states,
            *args,
            position_bias=position_bias,
            past_key_values=past_key_values,
            **kwargs,
        )
        return output, own if whole is None else whole, *rest

    def _whole_bias(self, hidden_states: Tensor, cache: Any) -> Tensor:
        length, past = hidden_states.shape[1], 0
        keys = length
        if cache is not None:
            past = cache.get_seq_length(self.layer_idx)
            keys, _ = cache.get_mask_sizes(length, self.layer_idx)
        if isinstance(past, Tensor):
            past = past.clone()  # a static cache counts in place
        return self.compute_bias(  # type: ignore[no-any-return,operator]
            length, keys, device=hidden_states.device, past_seen_tokens=past
        )


@functools.cache
def _class_for(base: type[nn.Module]) -> Any:
    names = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base)(base.__name__, (_OwnHeads, base), names)


def _new_instance(base: type[nn.Module]) -> nn.Module:
    cls: type[nn.Module] = _class_for(base)
    return cls.__new__(cls)


# --- which modules, and what they have ----------------------------------------------------------


def stacks(model: nn.Module) -> list[list[str]]:
    """Names of the self-attention modules that share a table, for each table of the model.

    The one with the table comes first.
    """
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if type(module).__name__ in _CLASSES and path.endswith("SelfAttention"):
            found.setdefault(_stack_of(path), []).append(path)
    return [sorted(paths, key=lambda path: not _has_table(model, path)) for paths in found.values()]


def cross_attentions(model: nn.Module) -> dict[str, list[str]]:
    """Names of the cross-attention modules of each stack."""
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if type(module).__name__ in _CLASSES and path.endswith("EncDecAttention"):
            found.setdefault(_stack_of(path), []).append(path)
    return found


def _stack_of(path: str) -> str:
    return re.split(r"(?:^|\.)block\.", path)[0]


def _has_table(model: nn.Module, path: str) -> bool:
    return hasattr(model.get_submodule(path), TABLE)


def own_heads(model: nn.Module) -> dict[str, list[int] | None]:
    """What each module with heads of its own has of the bias, by its name."""
    return {
        path: None if module.bias_heads is None else module.bias_heads.tolist()
        for path, module in model.named_modules()
        if isinstance(module, _OwnHeads)
    }


def heads_of_bias(model: nn.Module, path: str) -> Tensor:
    """Which columns of the table are the heads of a module, in its order; int64."""
    module: Any = model.get_submodule(path)
    if isinstance(module, _OwnHeads) and module.bias_heads is not None:
        return module.bias_heads.cpu()
    return torch.arange(module.n_heads)


# --- changing them ------------------------------------------------------------------------------


def set_own_heads_(module: Any, heads: Sequence[int] | Tensor | None) -> None:
    """Note which columns of the table are the module's heads; see :class:`_OwnHeads`."""
    if not isinstance(module, _OwnHeads):
        module.__class__ = _class_for(type(module))
        module.register_buffer("bias_heads", None, persistent=False)
    index = None
    if heads is not None:
        device = next(module.parameters()).device
        index = torch.as_tensor(heads, dtype=torch.int64)
        index = index if device.type == "meta" else index.to(device)
    module.bias_heads = index


def clear_own_heads_(module: Any) -> None:
    """Make it an ordinary module, whose heads are all of those of the bias."""
    if isinstance(module, _OwnHeads):
        module.__class__ = type(module).__mro__[2]
        del module._buffers["bias_heads"]
        module._non_persistent_buffers_set.discard("bias_heads")


def share_bias_(model: nn.Module, heads: dict[str, Tensor], also: Any) -> None:
    """Cut each table to the heads that any layer of its stack keeps, and tell the layers.

    Args:
        model: After its heads were cut.
        heads: For each self-attention module, which columns of the table are its heads.
        also: Called with the table and what stays of it, just before it is cut.
    """
    for paths in stacks(model):
        table = getattr(model.get_submodule(paths[0]), TABLE)
        union = torch.cat([heads[path] for path in paths]).unique()
        if union.numel() < table.weight.shape[1]:
            also(table.weight, {1: union})
            cut_(table.weight, {1: union})
            refresh_sizes_(table)
        for path in paths:
            own = torch.searchsorted(union, heads[path])
            if own.numel() == union.numel():
                clear_own_heads_(model.get_submodule(path))
            else:
                set_own_heads_(model.get_submodule(path), own)
    for paths in cross_attentions(model).values():
        counts = {model.get_submodule(path).n_heads for path in paths}
        for path in paths:
            module = model.get_submodule(path)
            if len(counts) > 1:
                set_own_heads_(module, None)
            else:
                clear_own_heads_(module)
