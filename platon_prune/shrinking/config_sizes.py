"""What the config of a transformers model can say about sizes: the same in every layer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from platon_prune.shrinking.attention.handed_bias import handed_paths
from platon_prune.shrinking.attention.norms_over_heads import added_to_sums
from platon_prune.spellings import CONFIG_HEAD_SIZE, COUNTS, KEY_VALUE_HEADS, QUERY_HEADS

Shapes = Mapping[str, tuple[int, ...]]


def config_for(
    model: Any, config: Any, kind: str, count: int, shapes: Shapes, also: Collection[str] = ()
) -> Any | None:
    """A config that describes the model with ``count`` groups at every place of a kind.

    Args:
        model: A model of transformers; not changed.
        config: Its config, with what other kinds have changed of it.
        kind: "heads", "neurons" or "channels".
        count: Groups at each place that are to stay.
        shapes: What the tensors of these places will be.
        also: Names of other tensors that change with them; no further one may.

    Returns:
        A new config; None if no config can say it.
    """
    # A config of other heads makes another bias for them, as ALiBi's slopes.
    if kind == "heads" and handed_paths(model):
        return None
    now: Shapes | None = None
    # Built and compared, since what an entry means to a model is in its code alone.
    for changed in _candidates(config, kind, count):
        new = built_from(model, changed)
        built = _shapes_of(new)
        if new is None or any(built.get(name) != shape for name, shape in shapes.items()):
            continue
        # A norm over heads that were cut has another epsilon than the config tells.
        if any(
            abs(value - other) > 1e-6 * abs(other)
            for value, other in zip(
                added_to_sums(new, shapes).values(),
                added_to_sums(model, shapes).values(),
                strict=True,
            )
        ):
            continue
        # An entry may count other layers, too, which are not at these places (MobileBERT's).
        now = _shapes_of(built_from(model, config)) if now is None else now
        others = built.keys() - shapes.keys() - set(also)
        if now and all(built[name] == now.get(name) for name in others):
            return changed
    return None


def _candidates(config: Any, kind: str, count: int) -> Iterator[Any]:
    names = COUNTS[kind].in_configs if kind in COUNTS else ()
    # Some configs have a list, with an entry for each stage (SegFormer), or a fixed value.
    keys = [key for key in names if type(getattr(config, key, "")) in (int, type(None))]
    heads = getattr(config, QUERY_HEADS, None) or 1
    if type(heads) is not int:
        return
    # A group is a key-value head with all of its query heads; or one of them, if all read one.
    queries = heads // (getattr(config, KEY_VALUE_HEADS, None) or heads)
    if kind == "heads" and queries == heads > 1:
        keys, queries = [key for key in keys if key != KEY_VALUE_HEADS], 1
    # First as it is: elsewhere the size of a head is the hidden size by the heads.
    head_sizes = (None, *CONFIG_HEAD_SIZE) if kind == "heads" else (None,)
    # All of the entries, or one: a mixture of experts counts the neurons of each kind of layer.
    chosen = [keys, *([key] for key in keys if kind == "neurons" and len(keys) > 1)]
    for head_size, some in itertools.product(head_sizes, chosen if keys else ()):
        changed = copy.deepcopy(config)
        if head_size is not None:
            if getattr(config, head_size, None) is not None:
                continue
            setattr(changed, head_size, getattr(config, "hidden_size", 0) // heads)
        for key in some:
            setattr(changed, key, count * queries if key == QUERY_HEADS else count)
        yield changed


def built_from(model: Any, config: Any) -> Any | None:
    """A model without values that is built from a saved config; None if it can't be."""
    try:
        # As it would be read from a file: what it says must survive that, and its own checks.
        config = type(config).from_dict(config.to_dict())
        with torch.device("meta"):
            return type(model)(config)
    except Exception:  # configs check themselves in many ways
        return None


def _shapes_of(built: Any | None) -> dict[str, tuple[int, ...]]:
    if built is None:
        return {}
    return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}


def adopt_(model: Any, new: Any) -> None:
    """Change the model's config, and the copies of it that its parts have, to another's entries."""
    before, after = model.config.to_dict(), new.to_dict()
    changes = {key: value for key, value in after.items() if before.get(key) != value}
    # A part has a copy of the config, or the same object: each is changed once.
    configs = {id(config): config for module in model.modules() if (config := config_of(module))}
    for config in configs.values():
        for key, value in changes.items():
            if getattr(config, key, None) == before.get(key):
                setattr(config, key, value)


def config_of(module: Any) -> Any | None:
    """The config of a transformers model or of a part of one."""
    config = getattr(module, "config", None)
    return config if hasattr(config, "to_dict") and hasattr(config, "save_pretrained") else None
