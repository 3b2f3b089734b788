"""Attention whose layers share one position bias, as T5's: each layer takes its own heads of it.

The first layer of a stack has a table with a column for each head; its bias goes on from layer to
layer. When layers keep different heads, the table keeps those of any layer, and each layer notes
which of the columns are its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.bias_spellings import ANY_SHARED_BIAS, SHARED_BIAS
from platon_prune.shrinking.attention.handed_bias import (
    fits_handed,
    handed_paths,
    left_in_handed,
    take_from_handed_,
)
from platon_prune.shrinking.attention.own_heads import OwnHeads, clear_own_heads_, set_own_heads_
from platon_prune.shrinking.removable import Place
from platon_prune.shrinking.resize import cut_, refresh_sizes_
from platon_prune.spellings import OF_HEADS, OF_HEADS_ABOVE, OF_THE_INPUT

_CLASSES = (*SHARED_BIAS.sharing, *SHARED_BIAS.owning)
TABLE = SHARED_BIAS.table
_OF_ONE_LAYER = tuple(f".{key.removeprefix('../')}" for key in (*OF_HEADS, *OF_HEADS_ABOVE))


class _OfShared(OwnHeads):
    """Whose forward may be given the bias of the whole stack, or makes it."""

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


# --- which modules, and what they have ----------------------------------------------------------


def stacks(model: nn.Module) -> list[list[str]]:
    """Names of the self-attention modules that share a table, for each table of the model.

    The one with the table comes first.
    """
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if type(module).__name__ in _CLASSES and path.endswith(SHARED_BIAS.self_attention):
            key = _stack_of(path) if type(module).__name__ in SHARED_BIAS.sharing else path
            found.setdefault(key, []).append(path)
    return [sorted(paths, key=lambda path: not _has_table(model, path)) for paths in found.values()]


def _cross_attentions(model: nn.Module) -> list[str]:
    return [
        path
        for path, module in model.named_modules()
        if type(module).__name__ in _CLASSES and path.endswith(SHARED_BIAS.cross_attention)
    ]


def _stack_of(path: str) -> str:
    return re.split(rf"(?:^|\.){SHARED_BIAS.blocks}\.", path)[0]


def query_of(path: str) -> str:
    """The weight whose rows tell the heads of a module; of T5's, none is fused."""
    return f"{path}.{SHARED_BIAS.query}.weight"


def _has_table(model: nn.Module, path: str) -> bool:
    return hasattr(model.get_submodule(path), TABLE)


def heads_fit(model: nn.Module, path: str, heads: list[int] | None) -> bool:
    """Whether a module can have these columns of its table as heads; see :class:`OwnHeads`."""
    if heads is None:
        return path in _cross_attentions(model)
    if not heads or any(a >= b for a, b in zip(heads, heads[1:], strict=False)):
        return False
    if path in handed_paths(model):
        return fits_handed(model, path, heads)
    for paths in stacks(model):
        if path in paths:
            num_columns = getattr(model.get_submodule(paths[0]), TABLE).weight.shape[1]
            module: Any = model.get_submodule(path)
            return bool(len(heads) == module.n_heads and heads[-1] < num_columns)
    return False


def heads_of_bias(model: nn.Module, path: str) -> Tensor:
    """Which columns of the table are the heads of a module, in its order; int64."""
    module: Any = model.get_submodule(path)
    if isinstance(module, OwnHeads) and module.bias_heads is not None:
        return module.bias_heads.cpu()
    return torch.arange(module.n_heads)


def without_unknown(model: nn.Module, places: Sequence[Place]) -> list[Place]:
    """The places, but with all heads kept that may have a column in a table that is not known."""
    # One that an attention has for itself is cut with its heads, or stays with all of them.
    names = (name.removesuffix("_orig") for name, _ in model.named_parameters())
    if not any(
        re.search(ANY_SHARED_BIAS, name)
        for name in names
        if not f".{name}".endswith(_OF_ONE_LAYER)
        and not any(f".{part}." in name for part in OF_THE_INPUT)
    ):
        return list(places)
    paths = [path for paths in stacks(model) for path in paths] + _cross_attentions(model)
    known = {query_of(path) for path in paths}
    handed = handed_paths(model)
    return [
        place.keeping_all("its heads may share a position bias in a way that is not known")
        if place.groups.kind == "heads"
        and not place.kept.all()
        and place.groups.name not in handed
        and known.isdisjoint(member.name for member in place.groups.members)
        else place
        for place in places
    ]


def tables(model: nn.Module) -> set[str]:
    """Names of the tables."""
    return {f"{paths[0]}.{TABLE}.weight" for paths in stacks(model)}


def left_heads(model: nn.Module, places: Sequence[Place]) -> dict[str, Tensor]:
    """For each self-attention module, which columns of the table are the heads that it keeps."""
    of_query = {member.name: place for place in places for member in place.groups.members}
    left = {}
    for path in (path for paths in stacks(model) for path in paths):
        place = of_query.get(query_of(path))
        heads = heads_of_bias(model, path)
        left[path] = heads if place is None else heads[place.kept]
    kept = {place.groups.name: place.kept for place in places if place.groups.kind == "heads"}
    return left | dict(left_in_handed(model, kept))


def have_same_heads(model: nn.Module, heads: dict[str, Tensor]) -> bool:
    """Whether the layers of each stack are left with the same columns of their table."""
    return all(heads[path].equal(heads[paths[0]]) for paths in stacks(model) for path in paths)


# --- changing them ------------------------------------------------------------------------------


def set_heads_of_bias_(model: nn.Module, path: str, heads: Sequence[int] | Tensor | None) -> None:
    """Note which heads of its bias a module has, as :func:`heads_fit` allows them."""
    module = model.get_submodule(path)
    if heads is not None and path in handed_paths(model):
        take_from_handed_(module, heads)
    else:
        set_own_heads_(module, _OfShared, heads)


def share_bias_(model: nn.Module, heads: dict[str, Tensor], also: Any) -> None:
    """Cut each table to the heads that any layer of its stack keeps, and tell the layers.

    Args:
        model: After its heads were cut.
        heads: For each self-attention module, which columns of the table are its heads.
        also: Called with the table and what stays of it, just before it is cut.
    """
    for path in handed_paths(model):
        if path in heads:
            take_from_handed_(model.get_submodule(path), heads[path])
    for paths in stacks(model):
        table = getattr(model.get_submodule(paths[0]), TABLE)
        union = torch.unique(torch.cat([heads[path] for path in paths]))
        if union.numel() < table.weight.shape[1]:
            also(table.weight, {1: union})
            cut_(table.weight, {1: union})
            refresh_sizes_(table)
        for path in paths:
            # Where the columns lie now that the table is cut.
            own = torch.searchsorted(union, heads[path])
            if own.numel() == union.numel():
                clear_own_heads_(model.get_submodule(path))
            else:
                set_own_heads_(model.get_submodule(path), _OfShared, own)
    # The first layer makes zeros for its own number of heads; layers with another can't take them.
    cross = [model.get_submodule(path) for path in _cross_attentions(model)]
    differ = len({module.n_heads for module in cross}) > 1
    for module in cross:
        if differ and type(module).__name__ in SHARED_BIAS.sharing:
            set_own_heads_(module, _OfShared, None)
        else:
            clear_own_heads_(module)
