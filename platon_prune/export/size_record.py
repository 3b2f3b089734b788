"""What a shrunk model has that its class would build larger: recorded when saved, cut when loaded.

The record is plain JSON: the shapes of tensors that are smaller, and which heads of a shared
position bias a layer has. It is not trusted: it can only make layers of the class smaller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from platon_prune.export.container import parse_json, refuse
from platon_prune.foreign import is_size
from platon_prune.shrinking.attention.head_bias import heads_fit, set_heads_of_bias_
from platon_prune.shrinking.attention.own_heads import own_heads
from platon_prune.shrinking.named import find, named_parameter
from platon_prune.shrinking.resize import check_sizes, refusal, resize_

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class SizeRecord:
    """The difference between a model and what its class builds.

    Args:
        shapes: Of each smaller tensor, by its name.
        own_heads: Of each module with heads of its own, which of the shared bias they are; None if
            it takes none of the bias.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    own_heads: dict[str, list[int] | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.shapes or self.own_heads)

    def to_json(self) -> str:
        """As it stands in a file; empty if there is nothing to tell."""
        return json.dumps(asdict(self), separators=(",", ":")) if self else ""


def read_sizes(text: str, path: str) -> SizeRecord:
    """Read what :meth:`SizeRecord.to_json` made.

    Args:
        text: What the file has; may be empty.
        path: What to call it in errors.

    Raises:
        ValueError: If it is something else.
    """
    content = parse_json(text, path, len(text)) if text else {"shapes": {}, "own_heads": {}}
    if content.keys() != {"shapes", "own_heads"} or not all(
        isinstance(part, dict) for part in content.values()
    ):
        refuse(path, "a record of sizes without its two parts")
    for value in content["shapes"].values():
        if not isinstance(value, list) or not all(is_size(size) and size for size in value):
            refuse(path, "a size that no layer can have")
    for value in content["own_heads"].values():
        if value is not None and not (isinstance(value, list) and all(map(is_size, value))):
            refuse(path, "heads that are not numbers")
    return SizeRecord(
        {name: tuple(shape) for name, shape in content["shapes"].items()}, content["own_heads"]
    )


def record_of_sizes(model: nn.Module, shapes: Shapes, whole: nn.Module) -> SizeRecord:
    """What of a model is smaller than in another one of its class.

    Args:
        model: Says which heads of a shared bias its layers have.
        shapes: Of its tensors, without masks.
        whole: What its class builds.
    """
    smaller = {
        name: shapes[name]
        for name, parameter in whole.named_parameters(remove_duplicate=False)
        if name in shapes and parameter.shape != shapes[name]
        if _can_be_cut_to(whole, name, parameter, shapes[name])
    }
    return SizeRecord(smaller, own_heads(model))


def _can_be_cut_to(model: nn.Module, name: str, parameter: Tensor, shape: tuple[int, ...]) -> bool:
    if len(shape) != parameter.dim():
        return False
    module, key = find(model, name)
    return all(
        new == old or (0 < new < old and refusal(module, key, dim, name) is None)
        for dim, (new, old) in enumerate(zip(shape, parameter.shape, strict=True))
    )


def apply_sizes_(model: nn.Module, sizes: SizeRecord, path: str) -> None:
    """Make the layers of a whole model as small as a record says; what of them stays is arbitrary.

    Args:
        model: What the class builds; on the meta device or not.
        sizes: As read from a file.
        path: What to call that in errors.

    Raises:
        ValueError: If the model can't have these sizes.
    """
    kept = {}
    for name, shape in sizes.shapes.items():
        try:
            parameter = named_parameter(*find(model, name))
        except (ValueError, KeyError):
            refuse(path, f"a size of {name}, which the model does not have")
        if not _can_be_cut_to(model, name, parameter, shape):
            refuse(
                path, f"{name} of shape {shape}, which can't be cut from {tuple(parameter.shape)}"
            )
        kept[name] = {
            dim: torch.arange(size)
            for dim, size in enumerate(shape)
            if size != parameter.shape[dim]
        }
    try:
        check_sizes(model, kept)
    except ValueError as error:
        refuse(path, f"sizes that its layers can't have together ({error})")
    resize_(model, kept)
    for name, heads in sizes.own_heads.items():
        if not heads_fit(model, name, heads):
            refuse(path, f"heads of {name} that it can't have")
        set_heads_of_bias_(model, name, heads)
