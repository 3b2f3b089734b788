"""`MaskHistory`: a file of the masks of every choice, as bits.

A header with the names and shapes of the tensors, then one record for each choice: the bits of all
masks, or those that changed since the record before, compressed. Records are only ever appended,
and each has a checksum. So a file that was cut off in the middle of a record still holds all those
before it, and a record can be told from another that a later run put in its place.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from platon_prune.history.mask_file import (
    CHANGES,
    HEAD_SIZE,
    WHOLE,
    MaskRecord,
    num_bytes,
    payload_of,
    read_header,
    record_at,
    scan,
    write_header,
)
from platon_prune.tensors.bits import pack_bits, to_bytes, unpack_bits_
from platon_prune.writing import move_to_free_name, refusing

# Changes compress better than whole masks, but are read only on top of all since the last whole
# one: a whole record now and then bounds how many that are.
_WHOLE_EVERY = 16


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
        self.records: list[MaskRecord] = []
        self._end = 0  # where the next record goes; 0 before there is a header
        self._lost: int | None = None  # from which step on masks could not be written
        self._last: Tensor | None = None  # the bits of the last record that was added here
        if shapes is None or self.path.exists():
            self._read(None if shapes is None else dict(shapes))

    @property
    def steps(self) -> list[int]:
        """At which steps masks were recorded; each holds until the next."""
        return [record.step for record in self.records if not record.is_gap]

    def masks(self, step: int) -> dict[str, Tensor]:
        """The masks after a step: name before pruning to bool tensor (True = kept), on the CPU.

        Raises:
            ValueError: If no masks were recorded by then, those of the step could not be written,
                or the file has been damaged or written by another run since.
        """
        index = sum(record.step <= step for record in self.records) - 1
        if index < 0:
            first = f"step {self.steps[0]} on" if self.steps else "no step yet"
            raise ValueError(f"masks must have been recorded by step {step}, but are from {first}")
        if self._lost is not None and step >= self._lost:
            raise ValueError(_missing(self._lost))
        if self.records[index].is_gap:
            raise ValueError(_missing(self.records[index].step))
        # From the last whole record on, every later one flips the bits that changed.
        begin = max(i for i in range(index + 1) if self.records[i].kind == WHOLE)
        bits: Tensor | None = None
        with self.path.open("rb") as file:
            for record in self.records[begin : index + 1]:
                recorded = payload_of(file, record, self._packed_size)
                if recorded is None:
                    raise ValueError(self._what_became_of(record))
                # The first is read before anything of the size that the header claims is made.
                bits = recorded if bits is None else bits.bitwise_xor_(recorded)
        assert bits is not None
        return self._unpacked(bits)

    def refresh(self) -> None:
        """Read anew what is in the file, which another run may have written since."""
        self.records, self._end, self._lost = [], 0, None
        if self.path.exists():
            self._read(self.shapes)

    def set_aside(self) -> str | None:
        """Move the file out of the way of another run if it holds more than a beginning.

        It gets a name that nothing has yet, so that what was set aside before stays.

        Returns:
            What to tell whoever wrote it; None if there is nothing to keep.
        """
        if not self.records or self.records[-1].step == 0:
            return None
        old = move_to_free_name(self.path, _names_beside(self.path))
        last, self.records, self._end = self.records[-1].step, [], 0
        return (
            f"{self.path} held masks of another run until step {last}, which are in {old} now: "
            "give each run a file of its own, or load the state of that run to go on with it"
        )

    def begin(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """MaskRecord the masks that a run has at a step, from which it goes on.

        What was recorded at that step and later is of a run that was given up, and is dropped.
        """
        self.records = [record for record in self.records if record.step < step]
        self._lost = None
        if self._end == 0:
            self._end = write_header(self.path, self.shapes)
        elif self.records:
            self._end = self.records[-1].end
        else:
            with self.path.open("rb") as file:
                read_header(file, self.path)
                self._end = file.tell()
        self._last = None
        self.add(step, masks)

    def add(self, step: int, masks: Mapping[str, Tensor]) -> list[MaskRecord]:
        """Append the masks of a choice, and before them that others are missing, if they are.

        Returns:
            The records that were written.

        Raises:
            OSError: If they can't be written, on a full disk for example; call :meth:`lose` then.
            RuntimeError: If another run has written the file since.
        """
        # In the order of the header, whatever the order of the dict.
        bits = torch.cat([pack_bits(masks[name]).cpu() for name in self.shapes])
        since = next((i for i, r in enumerate(self.records[::-1]) if r.kind == WHOLE), 0)
        kind, written, position = WHOLE, bits, self._end
        if self._last is not None and since < _WHOLE_EVERY - 1:
            kind, written = CHANGES, bits ^ self._last
        records, content = [], b""
        if self._lost is not None:
            records.append(record_at(position, WHOLE, self._lost, b""))
            content, position = records[0].head, records[0].end
        payload = zlib.compress(to_bytes(written), 1)
        records.append(record_at(position, kind, step, payload))
        # Not flushed to the disk at each choice: a record that a crash of the machine cuts off is
        # known by its checksum, and the run is resumed from an earlier step then.
        with refusing(self.path), self.path.open("r+b") as file:
            self._require_own(file)
            file.truncate(self._end)  # a record that was cut off, or one that is dropped
            file.seek(self._end)
            file.write(content + records[-1].head + payload)
        self.follow(records)
        self._last = bits
        return records

    def lose(self, step: int) -> None:
        """Learn that the masks of a choice could not be written: they are missing from then on.

        :meth:`masks` refuses their steps, and the next record that can be written says so in the
        file, where older releases take it for a damaged one.
        """
        self._lost = step if self._lost is None else self._lost
        self._last = None  # what the next record would be compared with is not in the file
        with contextlib.suppress(OSError):
            if self.path.stat().st_size > self._end > 0:
                os.truncate(self.path, self._end)

    def follow(self, records: Sequence[MaskRecord]) -> None:
        """Take over the index of new records, which this process or another has written.

        They replace those of the same step and later, which belong to a run that was given up.
        """
        kept = [record for record in self.records if record.step < records[0].step]
        self.records = [*kept, *records]
        self._end, self._lost = self.records[-1].end, None

    def _read(self, expected: dict[str, tuple[int, ...]] | None) -> None:
        with self.path.open("rb") as file:
            shapes = read_header(file, self.path)
            if expected is not None:
                _require_equal(shapes, expected, self.path)
            self.shapes, self._end = shapes, file.tell()
            self.records = scan(file, self._packed_size, os.fstat(file.fileno()).st_size)
        self._end = self.records[-1].end if self.records else self._end

    def _require_own(self, file: BinaryIO) -> None:
        """Raise a RuntimeError, before anything is written, if the last record has moved."""
        if not self.records:
            return
        last = self.records[-1]
        file.seek(last.start - HEAD_SIZE)
        if file.read(HEAD_SIZE) != last.head or file.seek(0, os.SEEK_END) < last.end:
            raise RuntimeError(
                f"{self.path} must be written by one run at a time, but another has changed it "
                f"since step {last.step} was recorded: give each run a file of its own"
            )

    def _what_became_of(self, record: MaskRecord) -> str:
        """Say where the masks of a record are now, if its file is not this run's any more."""
        beside = itertools.takewhile(Path.exists, _names_beside(self.path))
        for old in filter(Path.is_file, beside):
            with old.open("rb") as file:
                if payload_of(file, record, self._packed_size) is not None:
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
        return sum(num_bytes(shape) for shape in self.shapes.values())

    def _unpacked(self, bits: Tensor) -> dict[str, Tensor]:
        masks = {}
        for name, shape in self.shapes.items():
            part, bits = bits[: num_bytes(shape)], bits[num_bytes(shape) :]
            masks[name] = torch.empty(shape, dtype=torch.bool)
            unpack_bits_(masks[name], part)
        return masks


def _missing(step: int) -> str:
    return (
        f"masks must have been recorded to be read, but those from step {step} on could not be "
        "written, as on a full disk: ask for a step before it, or after the next choice"
    )


def _names_beside(path: Path) -> Iterator[Path]:
    """Names under which the files of earlier runs are kept: ``.old``, ``.old2`` and so on."""
    for number in itertools.count(1):
        yield path.with_name(f"{path.name}.old{number if number > 1 else ''}")


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
