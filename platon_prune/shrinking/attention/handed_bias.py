"""Attention that is handed a position bias of all heads of the model, as ALiBi: it takes its own.

The model goes on making the bias for as many heads as its config says. An attention that has fewer
notes which of them they are, and takes their entries out of what it is handed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.bias_spellings import HANDED_BIAS, OF_EVERY_EXAMPLE, HandedBias
from platon_prune.shrinking.attention.own_heads import OwnHeads, set_own_heads_
from platon_prune.spellings import NUM_HEADS


class _OfHanded(OwnHeads):
    """Whose forward is handed the bias, in arguments that its class is known by."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = type(self).__bases__[1]
        kwargs |= dict(zip(_arguments(base), args, strict=False))
        handed = _handed(base.__name__)
        assert handed is not None and self.bias_heads is not None
        for name, dim in handed.heads.items():
            if kwargs.get(name) is not None:
                batch = kwargs["hidden_states"].shape[0]
                kwargs[name] = _taken(kwargs[name], dim, batch, self.bias_heads)
        return super().forward(**kwargs)


@cache
def _handed(name: str) -> HandedBias | None:
    return next((handed for handed in HANDED_BIAS if handed.in_class == name), None)


def _arguments(cls: Any) -> list[str]:
    """Names of the arguments of a class's forward, in their order."""
    return list(inspect.signature(cls.forward).parameters)[1:]


def _taken(bias: Tensor, dim: int, batch: int, heads: Tensor) -> Tensor:
    """The entries of some heads."""
    if dim == OF_EVERY_EXAMPLE and bias.ndim == 4:
        dim = 1  # examples have a dimension of their own
    if dim == OF_EVERY_EXAMPLE:
        of_each = bias.reshape(batch, -1, *bias.shape[1:])
        return of_each.index_select(1, heads).flatten(0, 1)
    # A mask of one entry is the same for all heads.
    return bias if bias.shape[dim] == 1 else bias.index_select(dim, heads)


# --- which modules, and what they have ----------------------------------------------------------


def handed_paths(model: nn.Module) -> list[str]:
    """Names of the attentions that are handed a bias of all heads."""
    return [path for path, module in model.named_modules() if _is_handed(model, path, module)]


def _is_handed(model: nn.Module, path: str, module: nn.Module) -> bool:
    handed = _handed(type(module).__name__)
    if handed is None:
        return False
    config = _config_above(model, path)
    return not handed.if_config or bool(getattr(config, handed.if_config, False))


def _config_above(model: nn.Module, path: str) -> Any:
    """The config of an attention, or of the innermost module that holds it and has one."""
    while True:
        config = getattr(model.get_submodule(path), "config", None)
        if config is not None or not path:
            return config
        path = path.rpartition(".")[0]


def _num_heads(owner: Any) -> int:
    counts = (getattr(owner, name, None) for name in NUM_HEADS)
    return next((count for count in counts if type(count) is int), 0)


def heads_in_handed(model: nn.Module, path: str) -> Tensor:
    """Which heads of the bias are those of an attention, in its order; int64."""
    module: Any = model.get_submodule(path)
    if isinstance(module, OwnHeads) and module.bias_heads is not None:
        return module.bias_heads.cpu()
    return torch.arange(_num_heads(module))


def fits_handed(model: nn.Module, path: str, heads: Sequence[int]) -> bool:
    """Whether an attention can have these heads of the bias, given in ascending order."""
    count = _num_heads(_config_above(model, path))
    return len(heads) == _num_heads(model.get_submodule(path)) and heads[-1] < count


def left_in_handed(model: nn.Module, kept: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Which heads of the bias each attention keeps, of those that lose some.

    Args:
        model: Not changed.
        kept: Which of its heads each attention keeps, by its name; bool.
    """
    for path in handed_paths(model):
        if path in kept and not kept[path].all():
            yield path, heads_in_handed(model, path)[kept[path]]


def take_from_handed_(module: Any, heads: Sequence[int] | Tensor) -> None:
    """Note which heads of the bias are those of an attention."""
    set_own_heads_(module, _OfHanded, heads)
