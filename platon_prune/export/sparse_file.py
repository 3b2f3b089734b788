"""One sparse file: written tensor by tensor, read lazily."""

from __future__ import annotations

import json
import os
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from torch import Tensor

from platon_prune.export.codec import DamagedDataError, decode, encode, require_zstd
from platon_prune.export.container import ContainerWriter, read_header, refuse
from platon_prune.export.effective import NamedTensor
from platon_prune.export.index import Index, read_index, record_of
from platon_prune.version import __version__


def write_tensors(
    file: BinaryIO,
    tensors: Sequence[NamedTensor],
    compression: str | None,
    versions: Mapping[str, int],
    sizes: str = "",
    saved: str = "",
) -> None:
    """Write tensors; no more than one of them is encoded at a time.

    Args:
        file: Open for writing, at its start.
        tensors: What to write; a tied one is written once.
        compression: "zstd" or None.
        versions: See :class:`~platon_prune.export.index.Index`.
        sizes: What :meth:`~platon_prune.export.size_record.SizeRecord.to_json` made.
        saved: What the config beside it says of the save that wrote both.
    """
    index = Index(versions=dict(versions))
    first: dict[Any, str] = {}
    about = {"platon_prune_version": __version__}
    about |= {key: text for key, text in (("sizes", sizes), ("saved", saved)) if text}
    space = _header_space(tensors, index) + len(json.dumps(about))
    writer = ContainerWriter(file, space)
    for entry in tensors:
        index.order.append(entry.name)
        if not entry.persistent:
            index.non_persistent.append(entry.name)
        stored = first.setdefault(entry.identity, entry.name)
        if stored != entry.name:
            index.tied[entry.name] = stored
            continue
        encoded = encode(entry.value(), compression)
        record = index.records[entry.name] = record_of(entry.tensor, encoded)
        for part in encoded.parts:
            code, shape = record.slot_of(part.name, len(part.data))
            writer.add(record.key(entry.name, part.name), code, shape, part.data)
    writer.finish(about | {"index": index.to_json()})


def _header_space(tensors: Sequence[NamedTensor], index: Index) -> int:
    """An upper bound, for the sizes are known only when everything is written.

    The name of a tensor stands in it at most six times: as the key of its record or its tie, as a
    tie's target, in two lists, and as the container's keys of two parts. A size has at most 20
    digits, and is in the record and in the container. Around them are less than 600 characters.
    """
    names = sum(6 * len(_as_json_in_json(entry.name)) for entry in tensors)
    sizes = sum(2 * 21 * entry.tensor.dim() + 600 for entry in tensors)
    return 1000 + len(_as_json_in_json(index.to_json())) + names + sizes


def _as_json_in_json(text: str) -> str:
    return json.dumps(json.dumps(text))


class SparseStateDict(Mapping[str, Tensor]):
    """The state dict in a sparse file: a tensor is read and decoded when it is asked for.

    ``model.load_state_dict`` takes it as it is; ``dict(...)`` decodes everything.

    Args:
        path: A file that :func:`platon_prune.save` wrote.

    Raises:
        ValueError: If it is another file, or a damaged one. Reading a tensor raises it, too, if
            the tensor's bytes are damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = open(path, "rb")  # noqa: SIM115  # read from as long as this object lives
        self._close = weakref.finalize(self, self._file.close)
        try:
            size = os.fstat(self._file.fileno()).st_size
            metadata, self._slots = read_header(self._file, size, self.path)
            self.index = read_index(metadata.get("index", ""), self._slots, self.path, size)
            if any(slot_key.endswith(".zstd") for slot_key in self._slots):
                require_zstd()
        except BaseException:
            self._close()
            raise
        self.saved = metadata.get("saved", "")  # which save wrote it: see model_folder
        self.sizes = metadata.get("sizes", "")  # as text, for a model to make sense of
        self._shapes = self.index.shapes()
        self._lock = threading.Lock()
        # Tied tensors share memory as long as one of them is in use.
        self._decoded: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()
        self._tied_to = set(self.index.tied.values())
        # Where nn.Module looks for the versions of its parts.
        self._metadata = OrderedDict(
            (name, {"version": version}) for name, version in self.index.versions.items()
        )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        return self.tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors in {self.path}>"

    def tensor(self, name: str) -> Tensor:
        """Decode a tensor, or a buffer that the state dict leaves out."""
        stored = self.index.stored_name(name)
        tensor = self._decoded.get(stored)
        if tensor is None:
            tensor = self._decode(stored)
            if stored in self._tied_to:
                self._decoded[stored] = tensor
        return tensor

    def stored_bytes(self, name: str) -> int:
        """What a tensor, or the one that it is tied to, takes in the file."""
        stored = self.index.stored_name(name)
        record = self.index.records[stored]
        slots = [self._slots[record.key(stored, part)] for part in record.parts]
        return sum(slot.end - slot.begin for slot in slots)

    def _decode(self, name: str) -> Tensor:
        record = self.index.records[name]

        def read(part: str) -> tuple[str, bytearray]:
            codec, crc = record.parts[part]
            data = self._read(record.key(name, part))
            if f"{zlib.crc32(data):08x}" != crc:
                refuse(self.path, f"a {part} of {name} that does not match its checksum")
            return codec, data

        try:
            return decode(record.form, record.count, record.torch_dtype, record.shape, read)
        except DamagedDataError as error:
            refuse(self.path, f"for {name} {error}")

    def _read(self, key: str) -> bytearray:
        slot = self._slots[key]
        data = bytearray(slot.end - slot.begin)
        with self._lock:
            self._file.seek(slot.begin)
            if self._file.readinto(data) != len(data):
                refuse(self.path, f"an end of the file before that of {key}")
        return data
