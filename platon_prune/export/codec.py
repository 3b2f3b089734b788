"""How one tensor becomes bytes and comes back: dense, or the bits of what is kept and its values.

Zeros are entries whose bits are all 0, so a negative zero is a value, and every bit comes back.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from platon_prune.extras import need
from platon_prune.tensors.bits import pack_bits, unpack_bits_
from platon_prune.tensors.blocks import count_true, slices

FORMS = {"dense": ("dense",), "bitmask": ("bitmask", "values")}
CODECS = ("raw", "zstd")

# A part is compressed to 1/128 of its size at best, or it is stored as it is. So a small file can't
# promise to become a large one.
MAX_RATIO = 128

# The lowest level is the best one here, too: bits and mantissas have no repeats to be found.
_LEVEL = 1

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class DamagedDataError(ValueError):
    """Bytes that are not those of the tensor they are read for."""


@dataclass(frozen=True)
class Part:
    """Bytes of a tensor as they are stored."""

    name: str
    codec: str
    data: memoryview | bytes

    @property
    def crc32(self) -> str:
        """Checksum of what is stored."""
        return f"{zlib.crc32(self.data):08x}"


@dataclass(frozen=True)
class Encoded:
    """A tensor in one of its forms."""

    form: str
    count: int
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return sum(len(part.data) for part in self.parts)


def encode(tensor: Tensor, compression: str | None) -> Encoded:
    """Bring a tensor to the form that takes less space.

    Args:
        tensor: Any shape, a dtype of :data:`~platon_prune.export.container.CODES`, on any device.
        compression: "zstd" or None.

    Returns:
        The smaller of its two forms; the dense one if they are equal.
    """
    return min(_forms(_integers(tensor), compression), key=lambda encoded: encoded.num_bytes)


def decode(
    form: str,
    count: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    read: Callable[[str], tuple[str, bytearray]],
) -> Tensor:
    """The tensor that :func:`encode` was given, on the CPU.

    Args:
        form: One of :data:`FORMS`.
        count: Number of values of the form "bitmask".
        dtype: Its dtype.
        shape: Its shape.
        read: Codec and stored bytes of a part.

    Raises:
        DamagedDataError: If the bytes are not those of such a tensor.
    """
    integer, numel = _INTEGER_OF_SIZE[dtype.itemsize], _numel(shape)
    sizes = part_sizes(form, count, dtype, shape)
    if form == "dense":
        flat = _unpacked(*read("dense"), sizes["dense"], integer)
    else:
        packed = _unpacked(*read("bitmask"), sizes["bitmask"], torch.uint8)
        mask = torch.empty(numel, dtype=torch.bool, device="cpu")
        unpack_bits_(mask, packed)
        if count_true(mask) != count or (numel % 8 and int(packed[-1]) >> numel % 8):
            raise DamagedDataError(
                f"a bitmask of {count_true(mask):,} entries for {count:,} values"
            )
        values = _unpacked(*read("values"), sizes["values"], integer)
        flat = _scattered(values, mask)
    return flat.view(dtype).view(shape)


def part_sizes(form: str, count: int, dtype: torch.dtype, shape: tuple[int, ...]) -> dict[str, int]:
    """Number of bytes of each part of a form before compression."""
    numel = _numel(shape)
    if form == "dense":
        return {"dense": numel * dtype.itemsize}
    return {"bitmask": -(-numel // 8), "values": count * dtype.itemsize}


def require_zstd() -> Any:
    """The zstandard package, or an ImportError that says how to install it."""
    return need("zstandard", who="a file compressed with zstd", extra="files")


def _forms(flat: Tensor, compression: str | None) -> Iterator[Encoded]:
    kept = flat.ne(0)
    count = count_true(kept)
    dense = Encoded("dense", flat.numel(), (_part("dense", flat, compression),))
    yield dense
    is_worth_trying = -(-flat.numel() // 8) + count * flat.itemsize < dense.num_bytes
    if is_worth_trying or (compression is not None and count < flat.numel()):
        bits = _part("bitmask", pack_bits(kept), compression)
        values = _part("values", _selected(flat, kept, count), compression)
        yield Encoded("bitmask", count, (bits, values))


# Both in pieces: torch's own functions make an index of eight bytes for each entry first.


def _selected(flat: Tensor, kept: Tensor, count: int) -> Tensor:
    values, start = flat.new_empty(count), 0
    for piece in slices(flat.numel(), flat.device):
        chosen = flat[piece].masked_select(kept[piece])
        values[start : start + chosen.numel()] = chosen
        start += chosen.numel()
    return values


def _scattered(values: Tensor, mask: Tensor) -> Tensor:
    flat, start = values.new_zeros(mask.numel()), 0
    for piece in slices(mask.numel(), mask.device):
        stop = start + count_true(mask[piece])
        flat[piece].masked_scatter_(mask[piece], values[start:stop])
        start = stop
    return flat


def _part(name: str, flat: Tensor, compression: str | None) -> Part:
    raw = _bytes_of(flat)
    if compression is not None and len(raw):
        compressor = require_zstd().ZstdCompressor(level=_LEVEL)
        small: bytes = compressor.compress(_bytes_of(_by_planes(flat)))
        if len(small) < len(raw) <= MAX_RATIO * len(small):
            return Part(name, "zstd", small)
    return Part(name, "raw", raw)


def _unpacked(codec: str, data: bytearray, size: int, integer: torch.dtype) -> Tensor:
    if codec == "zstd":
        return _from_planes(_decompressed(data, size), integer)
    return _flat_tensor(data, integer)


def _decompressed(data: bytearray, size: int) -> bytearray:
    """Decompress one frame that says, and has, exactly ``size`` bytes."""
    zstandard = require_zstd()
    try:
        promised = zstandard.frame_content_size(data)
        if promised != size:
            raise DamagedDataError(f"compressed data of {promised:,} bytes where {size:,} belong")
        decompressor = zstandard.ZstdDecompressor()
        plain: bytes = decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedDataError(f"data that zstd can't decompress ({error})") from None
    if len(plain) != size:
        raise DamagedDataError(f"compressed data of {len(plain):,} bytes where {size:,} belong")
    return bytearray(plain)


def _by_planes(flat: Tensor) -> Tensor:
    """All first bytes, then all second ones and so on: the bytes of exponents compress well."""
    return flat.view(torch.uint8).view(-1, flat.itemsize).t().contiguous().view(-1)


def _from_planes(data: bytearray, integer: torch.dtype) -> Tensor:
    planes = _flat_tensor(data, torch.uint8).view(integer.itemsize, -1)
    return planes.t().contiguous().view(-1).view(integer)


def _integers(tensor: Tensor) -> Tensor:
    """The entries' bits, in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.resolve_conj().resolve_neg().view(_INTEGER_OF_SIZE[tensor.itemsize])


def _bytes_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous tensor, without a copy and without NumPy."""
    num_bytes = flat.numel() * flat.itemsize
    array = (ctypes.c_ubyte * num_bytes).from_address(flat.data_ptr() if num_bytes else 0)
    array._tensor = flat  # type: ignore[attr-defined]  # alive as long as the view of it
    return memoryview(array).cast("B")


def _flat_tensor(data: bytearray, dtype: torch.dtype) -> Tensor:
    return (
        torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype, device="cpu")
    )


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
