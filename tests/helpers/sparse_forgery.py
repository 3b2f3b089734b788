"""Sparse files taken apart and put together again, with right checksums whatever they claim."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b'{"__metadata__":{"format":"platon_prune.sparse","header_crc32":"'


@dataclass
class Forgery:
    """The parts of a file: its header's entries, its index, its bytes."""

    metadata: dict[str, Any]
    index: dict[str, Any]
    entries: dict[str, dict[str, Any]]
    data: bytearray

    @classmethod
    def of(cls, path: Path) -> Forgery:
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        metadata = header.pop("__metadata__")
        index = json.loads(metadata.pop("index"))
        return cls(metadata, index, header, bytearray(content[end:]))

    def put(self, key: str, data: bytes) -> None:
        """Replace an entry's bytes and put its offsets, length and checksum right."""
        old_begin, old_end = self.entries[key]["data_offsets"]
        self.data[old_begin:old_end] = data
        moved = len(data) - (old_end - old_begin)
        for entry in self.entries.values():
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = [
                begin + moved * (begin >= old_end and begin > old_begin),
                end + moved * (end >= old_end),
            ]
        if moved:
            self.entries[key]["shape"] = [len(data)]
        name, _, part = key.partition("#")
        self.index["records"][name]["parts"][part.split(".")[0] or "dense"][1] = crc32(data)

    def get(self, key: str) -> bytes:
        begin, end = self.entries[key]["data_offsets"]
        return bytes(self.data[begin:end])

    def write(self, path: Path) -> None:
        index = self.index if isinstance(self.index, str) else json.dumps(self.index)
        metadata = {**self.metadata, "header_crc32": "00000000", "index": index}
        header = json.dumps(
            {"__metadata__": metadata, **self.entries}, separators=(",", ":")
        ).encode()
        write_with_checksum(path, header, bytes(self.data))


def write_with_checksum(path: Path, header: bytes, data: bytes) -> None:
    """A file with this header, whose checksum is put in."""
    assert header.startswith(MAGIC + b"00000000")
    header = MAGIC + crc32(header).encode() + header[len(MAGIC) + 8 :]
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def crc32(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"
