"""`MaskHistory`: a file of the masks of every choice, as bits.

A header with the names and shapes of the tensors, then one record for each choice: the bits of all
masks, or what of them changed since the record before, compressed. A record is only ever appended,
and has a checksum: a file that was cut off in the middle of one holds all those before.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from platon_prune.bits import from_bytes, pack_bits, to_bytes, unpack_bits_

_MAGIC = b"PLATONM1"
_SIZE = struct.Struct("<II")  # of the header, and its checksum
_RECORD = struct.Struct("<cQQI")  # kind, step, size of what follows, checksum of it all
_WHOLE, _CHANGES = b"W", b"C"
_WHOLE_EVERY = 16  # so that a record is read from few others
_MAX_HEADER = 1 << 26


@dataclass(frozen=True)
class _Record:
    kind: bytes
    step: int
    start: int  # of its payload in the file
    size: int

    @property
    def end(self) -> int:
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
        self._records: list[_Record] = []
        self._last: Tensor | None = None  # the bits of the last record that was added here
        if shapes is not None and not self.path.exists():
            self.shapes = dict(shapes)
            self._end = 0  # where the next record goes; 0 before there is a header
            return
        with self.path.open("rb") as file:
            self.shapes = _read_header(file, self.path)
            self._end = file.tell()
            self._records = _scan(file, self._packed_size)
        self._end = self._records[-1].end if self._records else self._end
        if shapes is not None:
            _require_equal(self.shapes, dict(shapes), self.path)

    @property
    def steps(self) -> list[int]:
        """At which steps masks were recorded; each holds until the next."""
        return [record.step for record in self._records]

    def masks(self, step: int) -> dict[str, Tensor]:
        """The masks after a step: name before pruning to bool tensor (True = kept), on the CPU.

        Raises:
            ValueError: If no masks were recorded by then, or the file has been damaged since.
        """
        index = sum(record.step <= step for record in self._records) - 1
        if index < 0:
            first = f"step {self.steps[0]} on" if self._records else "no step yet"
            raise ValueError(f"masks must have been recorded by step {step}, but are from {first}")
        begin = max(i for i in range(index + 1) if self._records[i].kind == _WHOLE)
        bits = torch.zeros(self._packed_size, dtype=torch.uint8)
        with self.path.open("rb") as file:
            for record in self._records[begin : index + 1]:
                bits ^= _payload(file, record, self._packed_size, self.path)
        return self._unpacked(bits)

    def set_aside(self) -> str | None:
        """Move the file out of the way of another run if it holds more than a beginning.

        Returns:
            What to tell whoever wrote it; None if there is nothing to keep.
        """
        if not self._records or self._records[-1].step == 0:
            return None
        old = self.path.with_name(self.path.name + ".old")
        os.replace(self.path, old)
        last, self._records, self._end = self._records[-1].step, [], 0
        return (
            f"{self.path} held masks of another run until step {last}, which are in {old} now: "
            "give each run a file of its own, or load the state of that run to go on with it"
        )

    def begin(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """Record the masks that a run has at a step, from which it goes on.

        What was recorded at that step and later is of a run that was given up, and is dropped.
        """
        self._records = [record for record in self._records if record.step < step]
        if self._end == 0:
            self._end = _write_header(self.path, self.shapes)
        elif self._records:
            self._end = self._records[-1].end
        else:
            with self.path.open("rb") as file:
                _read_header(file, self.path)
                self._end = file.tell()
        self._last = None
        self.add(step, masks)

    def add(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """Append the masks of a choice."""
        bits = torch.cat([pack_bits(masks[name]).cpu() for name in self.shapes])
        since = next((i for i, r in enumerate(self._records[::-1]) if r.kind == _WHOLE), 0)
        if self._last is None or since >= _WHOLE_EVERY - 1:
            kind, written = _WHOLE, bits
        else:
            kind, written = _CHANGES, bits ^ self._last
        payload = zlib.compress(to_bytes(written), 1)
        head = _RECORD.pack(kind, step, len(payload), _checksum(kind, step, payload))
        with self.path.open("r+b") as file:
            file.truncate(self._end)  # a record that was cut off, or one that is dropped
            file.seek(self._end)
            file.write(head + payload)
        self._records.append(_Record(kind, step, self._end + len(head), len(payload)))
        self._end = self._records[-1].end
        self._last = bits

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


def require_place(path: str | os.PathLike[str]) -> None:
    """Raise an error that says what to do if no file can be written at a path.

    Raises:
        TypeError: If it is no path.
        IsADirectoryError: If it is a folder.
        FileNotFoundError: If it lies in no folder.
        PermissionError: If that can't be written to.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"the file of masks must be a path, got {path!r}")
    whole = Path(path).absolute()
    if whole.is_dir():
        raise IsADirectoryError(
            f"the file of masks must be a file, got the folder {whole}: name a file in it"
        )
    if not whole.parent.is_dir():
        raise FileNotFoundError(
            f"the file of masks must lie in a folder that exists, got {whole}: create "
            f"{whole.parent} first"
        )
    if not os.access(whole.parent, os.W_OK):
        raise PermissionError(
            f"the file of masks must lie in a folder that can be written to, got {whole}: give "
            "another path"
        )


def checked_step(step: int, last_step: int) -> int:
    """The step whose masks are asked for, if it is one of those taken.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it was not taken.
    """
    if isinstance(step, bool) or not isinstance(step, Integral):
        raise TypeError(f"step must be a whole number of steps, or None, got {step!r}")
    if not 0 <= step <= last_step:
        raise ValueError(f"step must be in [0, {last_step}], those taken, got {step}")
    return int(step)


class MaskRecorder:
    """Writes the masks of a scheduler's choices into a file.

    Args:
        history: The file.
        writes: Whether this process writes it.

    Attributes:
        has_begun: Whether the masks that the run goes on from have been recorded.
        note: What to tell who trains, once.
    """

    def __init__(self, history: MaskHistory, writes: bool) -> None:
        self.has_begun = False
        self.note: str | None = None
        self._is_resumed = False
        self._history = history
        self._writes = writes

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copy of a run does not write into its file

    def begin(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """Record what a run begins or goes on from."""
        self.has_begun = True
        if self._writes:
            if step == 0 and not self._is_resumed:
                self.note = self._history.set_aside()
            self._history.begin(step, masks)

    def restart(self) -> None:
        """The run goes on from a state of its own that was loaded."""
        self.has_begun = False
        self._is_resumed = True

    def add(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """Record what a choice made."""
        if self._writes:
            self._history.add(step, masks)

    def masks(self, step: int) -> dict[str, Tensor]:
        """What was recorded, by whichever process."""
        history = self._history if self._writes else MaskHistory(self._history.path)
        return history.masks(step)


# --- the file -----------------------------------------------------------------------------------


def _num_bytes(shape: tuple[int, ...]) -> int:
    return (torch.Size(shape).numel() + 7) // 8


def _checksum(kind: bytes, step: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_RECORD.pack(kind, step, len(payload), 0)))


def _write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    header = json.dumps([[name, list(shape)] for name, shape in shapes.items()]).encode()
    content = _MAGIC + _SIZE.pack(len(header), zlib.crc32(header)) + header
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)  # so that there is no file without one
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


def _scan(file: BinaryIO, packed_size: int) -> list[_Record]:
    """All complete records from where the file is."""
    records: list[_Record] = []
    most = packed_size + packed_size // 1000 + 1024  # what zlib makes of bits at the worst
    while len(head := file.read(_RECORD.size)) == _RECORD.size:
        kind, step, size, checksum = _RECORD.unpack(head)
        start = file.tell()
        if size > most or kind not in (_WHOLE, _CHANGES) or (not records and kind != _WHOLE):
            break
        payload = file.read(size)
        if len(payload) != size or _checksum(kind, step, payload) != checksum:
            break
        records.append(_Record(kind, step, start, size))
    return records


def _payload(file: BinaryIO, record: _Record, packed_size: int, path: Path) -> Tensor:
    file.seek(record.start)
    try:
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(file.read(record.size), packed_size + 1)
    except zlib.error:
        data = b""
    if len(data) != packed_size:
        raise ValueError(f"the masks of step {record.step} in {path} are damaged: record them anew")
    return from_bytes(data)


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
