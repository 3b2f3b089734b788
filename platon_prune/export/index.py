"""The index of a sparse file: what each tensor is, which parts it has, what is tied to what."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from platon_prune.export.codec import CODECS, FORMS, MAX_RATIO, Encoded, part_sizes
from platon_prune.export.container import CODES, Slot, parse_json, refuse
from platon_prune.foreign import is_shape, is_size

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in CODES}
_CRC = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One stored tensor; ``parts`` maps a part's name to its codec and its checksum."""

    dtype: str
    shape: tuple[int, ...]
    form: str
    count: int
    parts: Mapping[str, tuple[str, str]]

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its dtype."""
        return _DTYPES[self.dtype]

    def key(self, name: str, part: str) -> str:
        """Where the container has a part of the tensor called ``name``."""
        codec = self.parts[part][0]
        if (part, codec) == ("dense", "raw"):
            return name  # as in any safetensors file
        return f"{name}#{part}" if codec == "raw" else f"{name}#{part}.{codec}"

    def slot_of(self, part: str, num_bytes: int) -> tuple[str, tuple[int, ...]]:
        """What the container says of a part that is stored in ``num_bytes``: dtype and shape."""
        if part == "bitmask" or self.parts[part][0] != "raw":
            return "U8", (num_bytes,)
        return CODES[self.torch_dtype], self.shape if part == "dense" else (self.count,)


@dataclass
class Index:
    """Everything about a file but its bytes.

    Args:
        records: Stored tensors by name.
        tied: Names of tensors that are the same as a stored one, and that one's name.
        order: All names, in the model's order.
        non_persistent: Those of them that are buffers which the model's state dict leaves out.
        versions: Versions of the modules, as a state dict's ``_metadata`` has them.
    """

    records: dict[str, TensorRecord] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    non_persistent: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)

    def stored_name(self, name: str) -> str:
        """Under which name the tensor called ``name`` is stored."""
        return self.tied.get(name, name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of the state dict."""
        left_out = set(self.non_persistent)
        return {
            name: self.records[self.stored_name(name)].shape
            for name in self.order
            if name not in left_out
        }

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self), separators=(",", ":"))


def record_of(tensor: torch.Tensor, encoded: Encoded) -> TensorRecord:
    """The record of a tensor that is stored in this form."""
    return TensorRecord(
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
        encoded.form,
        encoded.count,
        {part.name: (part.codec, part.crc32) for part in encoded.parts},
    )


def read_index(text: str, slots: Mapping[str, Slot], path: str, file_size: int) -> Index:
    """Read an index and check that it fits the container's entries.

    Args:
        text: What :meth:`Index.to_json` made.
        slots: The container's entries.
        path: What to call the file in errors.
        file_size: Its length in bytes, which bounds what the index may cost.

    Raises:
        ValueError: If a tensor can't be what the index says.
    """
    content = parse_json(text, path, file_size)
    if content.keys() != {"records", "tied", "order", "non_persistent", "versions"}:
        refuse(path, "an index without its five parts")
    for key, kind in (("records", dict), ("tied", dict), ("versions", dict)):
        if not isinstance(content[key], kind):
            refuse(path, f"an index whose {key} are not named")
    for key in ("order", "non_persistent"):
        names = content[key]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            refuse(path, f"an index whose {key} is not a list of names")
    if not all(is_size(version) for version in content["versions"].values()):
        refuse(path, "versions of modules that are not numbers")
    records = {
        name: _record(name, entry, slots, path) for name, entry in content["records"].items()
    }
    index = Index(**(content | {"records": records}))
    if not all(isinstance(name, str) and name in records for name in index.tied.values()):
        refuse(path, "tensors tied to none that is stored")
    every = {*records, *index.tied}
    if (
        len(every) != len(records) + len(index.tied)
        or sorted(every) != sorted(index.order)
        or not every.issuperset(index.non_persistent)
    ):
        refuse(path, "names that do not fit its tensors")
    used = {record.key(name, part) for name, record in records.items() for part in record.parts}
    if used != set(slots) or len(used) != sum(len(record.parts) for record in records.values()):
        refuse(path, "data that belongs to no tensor, or to two")
    return index


def _record(name: str, entry: Any, slots: Mapping[str, Slot], path: str) -> TensorRecord:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "form", "count", "parts"}:
        refuse(path, f"no description of {name}")
    dtype, shape, form, count = (entry[key] for key in ("dtype", "shape", "form", "count"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        refuse(path, f"{name} of dtype {dtype!r}")
    if not is_shape(shape):
        refuse(path, f"{name} of a shape that no tensor can have")
    if not isinstance(form, str) or form not in FORMS:
        refuse(path, f"{name} in form {form!r}")
    if not is_size(count) or count > math.prod(shape):
        refuse(path, f"{name} with {count!r} values for shape {shape}")
    record = TensorRecord(
        dtype, tuple(shape), form, count, _parts(name, entry["parts"], form, path)
    )
    _check_sizes(name, record, slots, path)
    return record


def _parts(name: str, parts: Any, form: str, path: str) -> dict[str, tuple[str, str]]:
    if not isinstance(parts, dict) or tuple(parts) != FORMS[form]:
        refuse(path, f"{name} without the parts of form {form!r}")
    for part in parts.values():
        if not (
            isinstance(part, list)
            and len(part) == 2
            and all(isinstance(word, str) for word in part)
            and part[0] in CODECS
            and _CRC.fullmatch(part[1])
        ):
            refuse(path, f"{name} without codec and checksum")
    return {part: (codec, crc) for part, (codec, crc) in parts.items()}


def _check_sizes(name: str, record: TensorRecord, slots: Mapping[str, Slot], path: str) -> None:
    """That what a tensor promises is there, before anything is allocated for it."""
    sizes = part_sizes(record.form, record.count, record.torch_dtype, record.shape)
    for part, size in sizes.items():
        slot = slots.get(record.key(name, part))
        if slot is None:
            refuse(path, f"no {part} of {name}")
        stored = slot.end - slot.begin
        if (slot.code, slot.shape) != record.slot_of(part, stored):
            refuse(path, f"a {part} of {name} that is {slot.code} of shape {slot.shape}")
        if record.parts[part][0] == "raw" and stored != size:
            refuse(path, f"a {part} of {name} of {stored:,} bytes instead of {size:,}")
        if size > MAX_RATIO * stored:
            refuse(path, f"{stored:,} bytes that promise {size:,} for the {part} of {name}")
