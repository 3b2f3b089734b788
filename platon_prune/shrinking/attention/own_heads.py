"""Attention whose heads are some of those of a position bias, which has more: it notes which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.masks.made_classes import made_once


class OwnHeads(nn.Module):
    """Mixed into the class of an attention whose heads are some of those of the bias.

    The buffer ``bias_heads`` says which; None if the bias is not to be used (in T5's
    cross-attention it is all zeros, made by the first layer for its own number of heads).
    """

    bias_heads: Tensor | None

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class can't be found by its name, which is its base's; it is made again instead.
        return _new_instance, type(self).__bases__, self.__getstate__()  # type: ignore[no-untyped-call]


@made_once
def _class_for(base: Any, mixin: Any) -> Any:
    names = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base)(base.__name__, (mixin, base), names)


def _new_instance(mixin: Any, base: Any) -> nn.Module:
    cls = _class_for(base, mixin)
    return cls.__new__(cls)  # type: ignore[no-any-return]


def own_heads(model: nn.Module) -> dict[str, list[int] | None]:
    """What each module with heads of its own has of the bias, by its name."""
    return {
        path: None if module.bias_heads is None else module.bias_heads.tolist()
        for path, module in model.named_modules()
        if isinstance(module, OwnHeads)
    }


def set_own_heads_(module: Any, mixin: Any, heads: Sequence[int] | Tensor | None) -> None:
    """Note which heads of the bias are the module's; see :class:`OwnHeads`.

    Args:
        module: The attention.
        mixin: A subclass of :class:`OwnHeads` whose forward takes them.
        heads: In ascending order.
    """
    if not isinstance(module, OwnHeads):
        # The class is swapped, and not the module, which others may hold already.
        cls: Any = type(module)
        module.__class__ = _class_for(cls, mixin)
        module.register_buffer("bias_heads", None, persistent=False)
    index = None
    if heads is not None:
        device = next(module.parameters()).device
        index = torch.as_tensor(heads, dtype=torch.int64)
        index = index if device.type == "meta" else index.to(device)
    module.bias_heads = index


def clear_own_heads_(module: Any) -> None:
    """Make it an ordinary module, whose heads are all of those of the bias."""
    if isinstance(module, OwnHeads):
        module.__class__ = type(module).__bases__[1]  # type: ignore[assignment]
        del module._buffers["bias_heads"]
        module._non_persistent_buffers_set.discard("bias_heads")
