"""The bytes of a file of masks: a header with names and shapes, then one record for each choice.

Whatever a file claims, no more is read than it has, and no more is allocated than its bytes can
become.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from platon_prune.foreign import is_shape, read_json
from platon_prune.tensors.bits import from_bytes
from platon_prune.writing import replacing

Shapes = dict[str, tuple[int, ...]]

WHOLE, CHANGES = b"W", b"C"  # all bits, or those that differ from the record before

_MAGIC = b"PLATONM1"
_SIZE = struct.Struct("<II")  # of the header, and its checksum
_RECORD = struct.Struct("<cQQI")  # kind, step, size of what follows, checksum of it all
HEAD_SIZE = _RECORD.size
_MAX_HEADER = 1 << 26
_MAX_RECORDS = 1_000_000  # each costs a reader 200 bytes; no run chooses so often
_MOST_EXPANDED = 1032  # what one byte of zlib can become


@dataclass(frozen=True, slots=True)
class MaskRecord:
    """Where the masks of one choice are in the file, and how to know them again.

    A record without a payload says that the masks from its step on could not be written.
    """

    kind: bytes
    step: int
    start: int  # of its payload in the file
    size: int
    checksum: int

    @property
    def head(self) -> bytes:
        """What the file has before its payload."""
        return _RECORD.pack(self.kind, self.step, self.size, self.checksum)

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.start + self.size

    @property
    def is_gap(self) -> bool:
        """Whether it stands for masks that are missing."""
        return not self.size


def record_at(position: int, kind: bytes, step: int, payload: bytes) -> MaskRecord:
    """The record that is written at a position of the file."""
    start = position + HEAD_SIZE
    return MaskRecord(kind, step, start, len(payload), _checksum(kind, step, payload))


def num_bytes(shape: tuple[int, ...]) -> int:
    """What the bits of one mask take."""
    return (torch.Size(shape).numel() + 7) // 8


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Begin a file, in place of what is there; where its first record goes.

    Raises:
        OSError: If it can't be written; what was there is whole then.
    """
    header = json.dumps([[name, list(shape)] for name, shape in shapes.items()]).encode()
    content = _MAGIC + _SIZE.pack(len(header), zlib.crc32(header)) + header
    with replacing(path) as file:  # so that there is no file with half of one
        file.write(content)
    return len(content)


def read_header(file: BinaryIO, path: Path) -> Shapes:
    """Name and shape of each tensor; leaves the file where its records begin.

    Raises:
        ValueError: If it is another file, or its header is damaged or claims what can't be.
    """
    try:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it begins otherwise")
        size, checksum = _SIZE.unpack(file.read(_SIZE.size))
        header = file.read(size) if size <= _MAX_HEADER else b""
        if len(header) != size or zlib.crc32(header) != checksum:
            raise ValueError("its header is damaged")
        return _shapes_in(read_json(header, kind=list))
    except (ValueError, struct.error) as error:
        raise ValueError(
            f"{path} must be a file of masks that a scheduler recorded, got another ({error}): "
            "give another path"
        ) from error


def scan(file: BinaryIO, packed_size: int, file_size: int) -> list[MaskRecord]:
    """All complete records from where the file is, up to the first that is not one.

    Args:
        file: Behind its header.
        packed_size: Bytes of all bits together, as the header has it.
        file_size: Of the whole file.
    """
    records: list[MaskRecord] = []
    most = packed_size + packed_size // 1000 + 1024  # what zlib makes of bits at the worst
    while len(records) < _MAX_RECORDS and len(head := file.read(HEAD_SIZE)) == HEAD_SIZE:
        kind, step, size, checksum = _RECORD.unpack(head)
        start = file.tell()
        # Looked at first, for memory is taken before a byte is read.
        if size > min(most, file_size - start) or not _can_be(records, kind, step):
            break
        if 0 < size * _MOST_EXPANDED < packed_size:
            break
        payload = file.read(size)
        if len(payload) != size or _checksum(kind, step, payload) != checksum:
            break
        records.append(MaskRecord(kind, step, start, size, checksum))
    return records


def payload_of(file: BinaryIO, record: MaskRecord, packed_size: int) -> Tensor | None:
    """The bits of a record, uint8; None if they are not in the file any more."""
    file.seek(record.start)
    payload = file.read(record.size)
    if _checksum(record.kind, record.step, payload) != record.checksum:
        return None
    try:
        data = zlib.decompressobj().decompress(payload, packed_size + 1)
    except zlib.error:
        return None
    return from_bytes(data) if len(data) == packed_size else None


def _can_be(before: list[MaskRecord], kind: bytes, step: int) -> bool:
    if not before:
        return kind == WHOLE
    return kind in (WHOLE, CHANGES) and step > before[-1].step


def _checksum(kind: bytes, step: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_RECORD.pack(kind, step, len(payload), 0)))


def _shapes_in(header: object) -> Shapes:
    assert isinstance(header, list)
    shapes: Shapes = {}
    for entry in header:
        if not (isinstance(entry, list) and len(entry) == 2 and is_shape(entry[1])):
            raise ValueError("its header has a tensor of a shape that none can have")
        if not isinstance(entry[0], str) or entry[0] in shapes:
            raise ValueError("its header has a name twice, or none")
        shapes[entry[0]] = tuple(entry[1])
    return shapes
