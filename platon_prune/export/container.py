"""The container: a safetensors file that is written tensor by tensor and read without trust.

Any safetensors reader opens it. Ours accepts only what :func:`platon_prune.save` wrote: it knows
the file by the first bytes of the header, and the header by a checksum of its own.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import torch

from platon_prune.foreign import is_shape, is_size, read_json

FORMAT = "platon_prune.sparse"
FORMAT_VERSION = "1"

# What safetensors calls the dtypes; a dtype that is not here can't be saved.
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ITEM_SIZES = {code: dtype.itemsize for dtype, code in CODES.items()}

_MAGIC = f'{{"__metadata__":{{"format":"{FORMAT}","header_crc32":"'.encode()
_NO_CRC = b"0" * 8
MAX_HEADER = 100_000_000  # as the safetensors library has it
# More than any model has; each costs a reader half a kilobyte, whatever few bytes it describes.
_MAX_ENTRIES = 100_000
_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """One entry of the container: where its bytes are, and what they claim to be."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


class ContainerWriter:
    """Writes entries one after another, and the header, which tells their sizes, at the end.

    Args:
        file: Open for writing, at its start.
        header_space: Bytes to keep free for the header; it must fit.
    """

    def __init__(self, file: BinaryIO, header_space: int) -> None:
        self._file = file
        self._space = -(-header_space // 8) * 8
        self._entries: dict[str, dict[str, Any]] = {}
        self._end = 0
        file.seek(_LENGTH + self._space)

    def add(self, key: str, code: str, shape: Iterable[int], data: memoryview | bytes) -> None:
        """Append one entry's bytes."""
        if key in self._entries:
            raise ValueError(
                f"names of tensors must not be those of another's parts, got {key!r}: rename it"
            )
        begin, self._end = self._end, self._end + len(data)
        offsets = [begin, self._end]
        if len(self._entries) == _MAX_ENTRIES:
            raise ValueError(
                f"a file must hold at most {_MAX_ENTRIES:,} tensors, got more: save parts of the "
                "model to files of their own"
            )
        self._entries[key] = {"dtype": code, "shape": list(shape), "data_offsets": offsets}
        self._file.write(data)

    def finish(self, metadata: dict[str, str]) -> None:
        """Write the header into the space kept for it."""
        known = {
            "format": FORMAT,
            "header_crc32": _NO_CRC.decode(),
            "format_version": FORMAT_VERSION,
        }
        content = {"__metadata__": known | metadata, **self._entries}
        header = json.dumps(content, separators=(",", ":")).encode().ljust(self._space)
        assert header.startswith(_MAGIC) and len(header) == self._space
        if len(header) > MAX_HEADER:
            raise ValueError(
                f"the header must stay under {MAX_HEADER:,} bytes, got {len(header):,}: save "
                "parts of the model to files of their own"
            )
        position = len(_MAGIC)
        crc = f"{zlib.crc32(header):08x}".encode()
        self._file.seek(0)
        self._file.write(len(header).to_bytes(_LENGTH, "little"))
        self._file.write(header[:position] + crc + header[position + len(crc) :])


def read_header(file: BinaryIO, size: int, path: str) -> tuple[dict[str, str], dict[str, Slot]]:
    """Read and check the header, and that the file holds exactly what it lists.

    Args:
        file: Open for reading, at its start.
        size: Length of the file.
        path: What to call it in errors.

    Returns:
        The metadata and the entries; positions in these are positions in the file.

    Raises:
        ValueError: If the file is of another kind, or damaged.
    """
    head = file.read(_LENGTH + len(_MAGIC))
    if head[_LENGTH:] != _MAGIC:
        _refuse_foreign(head, size, path)
    length = int.from_bytes(head[:_LENGTH], "little")
    if length > MAX_HEADER:
        refuse(path, f"a header of {length:,} bytes")
    if length > size - _LENGTH:
        refuse(path, f"{size:,} bytes, less than its header needs")
    header = head[_LENGTH:] + file.read(length - len(_MAGIC))
    position = len(_MAGIC)
    digits = header[position : position + len(_NO_CRC)]
    blank = header[:position] + _NO_CRC + header[position + len(_NO_CRC) :]
    if len(header) != length or digits != f"{zlib.crc32(blank):08x}".encode():
        refuse(path, "a header that does not match its checksum")
    if header.count(b'"data_offsets"') > _MAX_ENTRIES:
        refuse(path, f"more than {_MAX_ENTRIES:,} tensors")
    content = parse_json(header, path, size)
    metadata = content.pop("__metadata__")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} must have format version {FORMAT_VERSION}, got "
            f"{metadata.get('format_version')!r}, written by platon_prune "
            f"{metadata.get('platon_prune_version')}: read it with that version"
        )
    if not all(isinstance(value, str) for value in metadata.values()):
        refuse(path, "metadata that is not text")
    return metadata, _slots(content, _LENGTH + length, size, path)


def parse_json(text: bytes | str, path: str, file_size: int) -> dict[str, Any]:
    """A JSON object of a file of so many bytes, or a ValueError; see :func:`read_json`."""
    try:
        content: dict[str, Any] = read_json(text, file_size)
        return content
    except ValueError as error:
        refuse(path, f"a header that is not what save wrote ({error})")


def refuse(path: str, got: str) -> NoReturn:
    """Raise the error for a file of ours that is damaged."""
    raise ValueError(
        f"{path} must be as platon_prune.save wrote it, got {got}: it is truncated or corrupted; "
        "save the model again or fetch another copy"
    )


def _slots(content: dict[str, Any], start: int, size: int, path: str) -> dict[str, Slot]:
    slots = {key: _slot(entry, start, path) for key, entry in content.items()}
    end = start
    for slot in slots.values():
        # In this order, so that what is read for one is never read for another.
        if slot.begin != end or slot.end < end:
            refuse(path, "tensors that leave gaps or overlap")
        end = slot.end
        if math.prod(slot.shape) * _ITEM_SIZES[slot.code] != slot.end - slot.begin:
            refuse(path, f"{slot.end - slot.begin:,} bytes for a tensor of shape {slot.shape}")
    if end != size:
        refuse(path, f"{size:,} bytes instead of the {end:,} that its header lists")
    return slots


def _slot(entry: Any, start: int, path: str) -> Slot:
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if (
            isinstance(code, str)
            and code in _ITEM_SIZES
            and is_shape(shape)
            and isinstance(offsets, list)
            and len(offsets) == 2
            and all(map(is_size, offsets))
        ):
            return Slot(code, tuple(shape), start + offsets[0], start + offsets[1])
    refuse(path, "a header with an entry that is not a tensor's")


def _refuse_foreign(head: bytes, size: int, path: str) -> NoReturn:
    length = int.from_bytes(head[:_LENGTH], "little")
    if not size:
        got = "an empty file: save the model again"
    elif head[_LENGTH : _LENGTH + 1] == b"{" and length <= size - _LENGTH:
        got = "another safetensors file: read it with safetensors.torch.load_file"
    elif head.startswith((b"PK", b"\x80")):
        got = "a pickle, as torch.save writes: read it with torch.load(path, weights_only=True)"
    else:
        got = "something else, or a damaged one: check the path, or save the model again"
    raise ValueError(f"{path} must be a file written by platon_prune.save, got {got}")
