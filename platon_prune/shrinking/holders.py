"""The modules that hold layers which are cut, and the sizes that these modules keep beside them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from platon_prune.groups.layers import child
from platon_prune.masks.default_selection import is_named
from platon_prune.shrinking.named import find, output_dim, plain_names
from platon_prune.shrinking.own_config import counts_in_config
from platon_prune.spellings import (
    ATTENTION,
    COUNTS,
    EXPERTS,
    HIDDEN_SIZE,
    KEY_VALUE_COUNTS,
    OF_HEADS,
    OWN_MATRICES,
    QUERIES_OF_A_KEY,
)

# What is kept of a tensor: for each dimension that is cut, the indices that stay; int64, sorted.
Kept = Mapping[int, Tensor]

_NAMES = "|".join(HIDDEN_SIZE)
# They show where a forward puts its heads together, or takes queries from what is fused.
_TO_HIDDEN_SIZE = re.compile(rf"(?:reshape|view)\([^()]*?(self\.)?\b({_NAMES})\)")
_QUERIES_OF_FUSED = re.compile(rf"split\(\((self\.)({_NAMES}),")
# Read once for each class, and forgotten with it.
_OWN_WIDTHS: WeakKeyDictionary[Any, frozenset[str] | None] = WeakKeyDictionary()
# Parameters of modules that are no layers, and along which dimension they may be cut.
HELD = {
    (key.rpartition(".")[2], dim) for key, dim in OF_HEADS.items() if not key.endswith(".weight")
} | {item for spelling in OWN_MATRICES for item in spelling.holds.items()}


def has_fixed_width(cls: Any) -> bool:
    """Whether an attention puts its heads together to the hidden size instead of what they have.

    Some of transformers' do, so they can't run with fewer heads. It shows in the forward alone.
    """
    return own_widths(cls) is None


def own_widths(cls: Any) -> frozenset[str] | None:
    """Attributes of an attention by which it puts its heads together, such as "embed_dim".

    Returns:
        None if it does so by a width that is also that of its input.
    """
    # The source is read because nothing else tells: no attribute does, to try it takes arguments
    # that only the model knows, and a list of such classes (35 in transformers 5) would age. Where
    # there is no source, the heads are taken for free ones.
    if cls not in _OWN_WIDTHS:
        try:
            source = inspect.getsource(cls.forward)
        except (OSError, TypeError):
            source = ""
        found = _TO_HIDDEN_SIZE.findall(source) + _QUERIES_OF_FUSED.findall(source)
        # One that is read elsewhere, too, may be compared with the input.
        is_own = all(
            of_self and len(re.findall(rf"self\.{name}\b", source)) == found.count((of_self, name))
            for of_self, name in found
        )
        _OWN_WIDTHS[cls] = frozenset(name for _, name in found) if is_own else None
    return _OWN_WIDTHS[cls]


# --- their sizes --------------------------------------------------------------------------------


def scaled_sizes(
    parent: nn.Module, before: int, after: int, keys_stay: bool = False
) -> dict[str, int] | None:
    """What a module must note when the outputs of its projections go from ``before`` to ``after``.

    Args:
        parent: Any module; not changed.
        before: Outputs that it has.
        after: Outputs that it is left with.
        keys_stay: Whether these are queries only, and its one key-value head stays.

    Returns:
        New values of its attributes; None if one of them would not be a whole number.
    """
    of_heads = list(COUNTS["heads"].in_modules)
    if keys_stay:
        of_heads = [QUERIES_OF_A_KEY, *(name for name in of_heads if name not in KEY_VALUE_COUNTS)]
    # Heads first: an attention may keep the width of a feed-forward layer that it does not have.
    names = [name for name in of_heads if _is_count(parent, name)]
    if names:
        names += [name for name in own_widths(type(parent)) or () if _is_count(parent, name)]
    names = names or [name for name in COUNTS["neurons"].in_modules if _is_count(parent, name)]
    return _scaled({name: getattr(parent, name) for name in names}, before, after)


def _scaled(counts: Mapping[str, int], before: int, after: int) -> dict[str, int] | None:
    # Together: a forward multiplies and divides these numbers by each other.
    scaled = {name: divmod(count * after, before) for name, count in counts.items()}
    if any(rest or not size for size, rest in scaled.values()):
        return None
    return {name: size for name, (size, _) in scaled.items()}


def _is_count(module: nn.Module, name: str) -> bool:
    return type(getattr(module, name, None)) is int


def queries_alone(
    model: nn.Module, kept: Mapping[str, Kept], holder: str
) -> tuple[int, int] | None:
    """Of an attention whose queries are cut but not its keys, the outputs of queries.

    Args:
        model: Before it is cut.
        kept: What stays, by names of tensors.
        holder: The path of the attention.

    Returns:
        How many there are, and how many stay; None of any other module.
    """
    for spelling in ATTENTION:
        writes = _cut_along(model, kept, f"{child(holder, spelling.writes)}.weight", outputs=False)
        of_keys = next(projection for projection in spelling.reads if "key" in projection.parts)
        key = f"{child(holder, of_keys.name)}.weight"
        reads = [f"{child(holder, projection.name)}.weight" for projection in spelling.reads]
        if writes is None or not all(_has(model, name) for name in reads):
            continue
        rows = _cut_along(model, kept, key, outputs=True)
        # Where keys are fused with queries, these are all that is cut of the matrix.
        is_so = rows is None or (
            "query" in of_keys.parts and rows[0] - rows[1] == writes[0] - writes[1]
        )
        return writes if is_so else None
    return None


def _has(model: nn.Module, name: str) -> bool:
    try:
        return find(model, name) is not None
    except ValueError:
        return False


def _cut_along(
    model: nn.Module, kept: Mapping[str, Kept], name: str, outputs: bool
) -> tuple[int, int] | None:
    """How many outputs or inputs a linear layer has and keeps; None if they are not cut."""
    if name not in kept:
        return None
    module, key = find(model, name)
    dim = output_dim(module)
    dim = dim if outputs or dim is None else 1 - dim
    if dim is None or dim not in kept[name]:
        return None
    return plain_names(module)[key].shape[dim], kept[name][dim].numel()  # type: ignore[union-attr]


def noted_sizes(
    model: nn.Module, kept: Mapping[str, Kept]
) -> Iterator[tuple[nn.Module, dict[str, int], dict[str, int]]]:
    """The modules that hold what is cut, the sizes they must note, and those of their config."""
    done: set[str] = set()
    for name, indices in kept.items():
        module, key = find(model, name)
        path = name.rpartition(".")[0]
        dim = output_dim(module)
        if dim is not None:
            path = path.rpartition(".")[0]
        elif is_named(module, "", EXPERTS):
            dim = next((dim for dim in indices if dim), None)  # whole experts are counted apart
        elif (key, *indices) in HELD:
            dim = next(iter(indices))  # the module itself holds what is cut
        if dim is None or dim not in indices or key.endswith("bias") or path in done:
            continue
        done.add(path)
        parent = model.get_submodule(path)
        before = plain_names(module)[key].shape[dim]  # type: ignore[union-attr]
        after = indices[dim].numel()
        counts = counts_in_config(parent)
        queries = queries_alone(model, kept, path)
        if queries is not None:
            before, after = queries
            counts = {name: n for name, n in counts.items() if name not in KEY_VALUE_COUNTS}
        sizes = scaled_sizes(parent, before, after, queries is not None)
        in_config = _scaled(counts, before, after)
        if sizes is None or in_config is None:
            raise ValueError(
                f"{path} must be left with whole heads, got {after} of {before} outputs of "
                f"{name}: cut whole heads"
            )
        yield parent, sizes, in_config
