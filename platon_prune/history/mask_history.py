"""`MaskHistory`: a file of the masks of every choice, as bits.

A header with the names and shapes of the tensors, then one record for each choice: the bits of all
masks, or those that changed since the record before, compressed. Records are only ever appended,
and each has a checksum. So a file that was cut off in the middle of a record still holds all those
before it, and a record can be told from another that a later run put in its place.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from platon_prune.tensors.bits import from_bytes, pack_bits, to_bytes, unpack_bits_

_MAGIC = b"PLATONM1"
_SIZE = struct.Struct("<II")  # of the header, and its checksum
_RECORD = struct.Struct("<cQQI")  # kind, step, size of what follows, checksum of it all
_WHOLE, _CHANGES = b"W", b"C"
# Changes compress better than whole masks, but are read only on top of all since the last whole
# one: a whole record now and then bounds how many that are.
_WHOLE_EVERY = 16
# A damaged size must not make a reader ask for gigabytes.
_MAX_HEADER = 1 << 26


@dataclass(frozen=True)
class Record:
    """The index of one record: where its masks are in the file, and the checksum they must have."""

    kind: bytes
    step: int
    start: int  # of its payload in the file
    size: int
    checksum: int

    @property
    def head(self) -> bytes:
        """The bytes before the payload, as they are in the file."""
        return _RECORD.pack(self.kind, self.step, self.size, self.checksum)

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.start + self.size


class MaskHistory:
    """The masks of every recorded choice of a run.

    Args:
        path: The file.
        shapes: Name and shape of each tensor; None to take them from the file.

    Attributes:
        path: The file.
        shapes: Name and shape of each tensor.

    Raises:
        FileNotFoundError: If there is no file, and no ``shapes`` to begin one with.
        ValueError: If it is not such a file, or of another model.
    """

    def __init__(
        self, path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        self.path = Path(path).absolute()
        self.shapes = dict(shapes or {})
        self.records: list[Record] = []
        self._end = 0  # where the next record goes; 0 before there is a header
        self._last: Tensor | None = None  # the bits of the last record that was added here
        if shapes is None or self.path.exists():
            self._read(None if shapes is None else dict(shapes))

    @property
    def steps(self) -> list[int]:
        """At which steps masks were recorded; each holds until the next."""
        return [record.step for record in self.records]

    def masks(self, step: int) -> dict[str, Tensor]:
        """The masks after a step: name before pruning to bool tensor (True = kept), on the CPU.

        Raises:
            ValueError: If no masks were recorded by then, or the file has been damaged or written
                by another run since.
        """
        index = sum(record.step <= step for record in self.records) - 1
        if index < 0:
            first = f"step {self.steps[0]} on" if self.records else "no step yet"
            raise ValueError(f"masks must have been recorded by step {step}, but are from {first}")
        # From the last whole record on, every later one flips the bits that changed.
        begin = max(i for i in range(index + 1) if self.records[i].kind == _WHOLE)
        bits = torch.zeros(self._packed_size, dtype=torch.uint8)
        with self.path.open("rb") as file:
            for record in self.records[begin : index + 1]:
                recorded = _payload(file, record, self._packed_size)
                if recorded is None:
                    raise ValueError(self._what_became_of(record))
                bits ^= recorded
        return self._unpacked(bits)

    def refresh(self) -> None:
        """Read anew what is in the file, which another run may have written since."""
        self.records, self._end = [], 0
        if self.path.exists():
            self._read(self.shapes)

    def set_aside(self) -> str | None:
        """Move the file out of the way of another run if it holds more than a beginning.

        It gets a name that no file has yet, so that what was set aside before stays.

        Returns:
            What to tell whoever wrote it; None if there is nothing to keep.
        """
        if not self.records or self.records[-1].step == 0:
            return None
        old = next(path for path in _names_beside(self.path) if not path.exists())
        os.replace(self.path, old)
        # The index is emptied with the file: records of the new one start at its beginning.
        last, self.records, self._end = self.records[-1].step, [], 0
        return (
            f"{self.path} held masks of another run until step {last}, which are in {old} now: "
            "give each run a file of its own, or load the state of that run to go on with it"
        )

    def begin(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """Record the masks that a run has at a step, from which it goes on.

        What was recorded at that step and later is of a run that was given up, and is dropped.
        """
        self.records = [record for record in self.records if record.step < step]
        if self._end == 0:
            self._end = _write_header(self.path, self.shapes)
        elif self.records:
            self._end = self.records[-1].end
        else:
            with self.path.open("rb") as file:
                _read_header(file, self.path)
                self._end = file.tell()
        self._last = None
        self.add(step, masks)

    def add(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """Append the masks of a choice.

        Raises:
            RuntimeError: If another run has written the file since.
        """
        # In the order of the header, whatever the order of the dict.
        bits = torch.cat([pack_bits(masks[name]).cpu() for name in self.shapes])
        since = next((i for i, r in enumerate(self.records[::-1]) if r.kind == _WHOLE), 0)
        if self._last is None or since >= _WHOLE_EVERY - 1:
            kind, written = _WHOLE, bits
        else:
            kind, written = _CHANGES, bits ^ self._last
        payload = zlib.compress(to_bytes(written), 1)  # the fastest level: it runs in a step
        start = self._end + _RECORD.size
        record = Record(kind, step, start, len(payload), _checksum(kind, step, payload))
        with self.path.open("r+b") as file:
            self._require_own(file)
            file.truncate(self._end)  # a record that was cut off, or one that is dropped
            file.seek(self._end)
            file.write(record.head + payload)
        self.follow([record])
        self._last = bits

    def follow(self, records: Sequence[Record]) -> None:
        """Take over the index of new records, which this process or another has written.

        They replace those of the same step and later, which belong to a run that was given up.
        """
        kept = [record for record in self.records if record.step < records[0].step]
        self.records = [*kept, *records]
        self._end = self.records[-1].end

    def _read(self, expected: dict[str, tuple[int, ...]] | None) -> None:
        with self.path.open("rb") as file:
            shapes = _read_header(file, self.path)
            if expected is not None:
                _require_equal(shapes, expected, self.path)
            self.shapes, self._end = shapes, file.tell()
            self.records = _scan(file, self._packed_size)
        self._end = self.records[-1].end if self.records else self._end

    def _require_own(self, file: BinaryIO) -> None:
        """Raise a RuntimeError, before anything is written, if the last record has moved."""
        if not self.records:
            return
        last = self.records[-1]
        file.seek(last.start - _RECORD.size)
        if file.read(_RECORD.size) != last.head or file.seek(0, os.SEEK_END) < last.end:
            raise RuntimeError(
                f"{self.path} must be written by one run at a time, but another has changed it "
                f"since step {last.step} was recorded: give each run a file of its own"
            )

    def _what_became_of(self, record: Record) -> str:
        """Say where the masks of a record are now, if its file is not this run's any more."""
        beside = itertools.takewhile(Path.exists, _names_beside(self.path))
        for old in filter(Path.is_file, beside):
            with old.open("rb") as file:
                if _payload(file, record, self._packed_size) is not None:
                    return (
                        f"{self.path} must hold masks of this run, but is of another by now: those "
                        f"of this one are in {old}, read them with MaskHistory"
                    )
        return (
            f"{self.path} must hold the masks of step {record.step} as they were recorded, but was "
            "damaged or written by another run: give each run a file of its own"
        )

    @property
    def _packed_size(self) -> int:
        return sum(_num_bytes(shape) for shape in self.shapes.values())

    def _unpacked(self, bits: Tensor) -> dict[str, Tensor]:
        masks = {}
        for name, shape in self.shapes.items():
            part, bits = bits[: _num_bytes(shape)], bits[_num_bytes(shape) :]
            masks[name] = torch.empty(shape, dtype=torch.bool)
            unpack_bits_(masks[name], part)
        return masks


# --- the file -----------------------------------------------------------------------------------


def _names_beside(path: Path) -> Iterator[Path]:
    """Names under which the files of earlier runs are kept: ``.old``, ``.old2`` and so on."""
    for number in itertools.count(1):
        yield path.with_name(f"{path.name}.old{number if number > 1 else ''}")


def _num_bytes(shape: tuple[int, ...]) -> int:
    return (torch.Size(shape).numel() + 7) // 8


def _checksum(kind: bytes, step: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_RECORD.pack(kind, step, len(payload), 0)))


def _write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    header = json.dumps([[name, list(shape)] for name, shape in shapes.items()]).encode()
    content = _MAGIC + _SIZE.pack(len(header), zlib.crc32(header)) + header
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)  # whole or not at all: a file without its header could not be read
    return len(content)


def _read_header(file: BinaryIO, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it begins otherwise")
        size, checksum = _SIZE.unpack(file.read(_SIZE.size))
        header = file.read(size) if size <= _MAX_HEADER else b""
        if len(header) != size or zlib.crc32(header) != checksum:
            raise ValueError("its header is damaged")
        return {name: tuple(shape) for name, shape in json.loads(header)}
    except (ValueError, TypeError, struct.error) as error:
        raise ValueError(
            f"{path} must be a file of masks that a scheduler recorded, got another ({error}): "
            "give another path"
        ) from error


def _scan(file: BinaryIO, packed_size: int) -> list[Record]:
    """Read the index of all complete records from the file's position on, up to a damaged one."""
    records: list[Record] = []
    most = packed_size + packed_size // 1000 + 1024  # what zlib makes of bits at the worst
    while len(head := file.read(_RECORD.size)) == _RECORD.size:
        kind, step, size, checksum = _RECORD.unpack(head)
        start = file.tell()
        if size > most or kind not in (_WHOLE, _CHANGES) or (not records and kind != _WHOLE):
            break
        # Read for its checksum: a size that fits may still be followed by garbage.
        payload = file.read(size)
        if len(payload) != size or _checksum(kind, step, payload) != checksum:
            break
        records.append(Record(kind, step, start, size, checksum))
    return records


def _payload(file: BinaryIO, record: Record, packed_size: int) -> Tensor | None:
    """Read the bits of a record; None if other bytes are in their place by now."""
    file.seek(record.start)
    payload = file.read(record.size)
    if _checksum(record.kind, record.step, payload) != record.checksum:
        return None
    try:
        # No more than fits: a few bytes of a foreign file may unpack to gigabytes.
        data = zlib.decompressobj().decompress(payload, packed_size + 1)
    except zlib.error:
        return None
    return from_bytes(data) if len(data) == packed_size else None


def _require_equal(
    found: dict[str, tuple[int, ...]], own: dict[str, tuple[int, ...]], path: Path
) -> None:
    if found == own and list(found) == list(own):
        return
    for name in [*own, *found]:
        if own.get(name) != found.get(name):
            raise ValueError(
                f"{path} must hold masks of the same model: {name} has shape "
                f"{own.get(name, 'absent')} here and {found.get(name, 'absent')} in the file; give "
                "another path"
            )
    raise ValueError(f"{path} must hold masks of the same model, got its tensors in another order")
