"""Files that are no sparse files, or damaged, or lie: a ValueError, and nothing else happens."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import zstandard
from sparse_forgery import MAGIC, Forgery, write_with_checksum
from tiny import sample
from torch import Tensor, nn

import platon_prune

TENSORS = {
    "weight": torch.where(torch.arange(100) % 5 == 0, sample(100), 0).view(20, 5),
    "bias": sample(6, seed=1),
    "tied": torch.empty(0),
    "count": torch.tensor(3),
    "blank": torch.zeros(11),
    "steps": torch.arange(300),  # which zstd compresses
}


def model() -> nn.Module:
    module = nn.Module()
    for name, tensor in TENSORS.items():
        module.register_buffer(name, tensor.clone())
    module.register_buffer("tied", module.weight)
    return module


def write(path: Path, compression: str | None = None) -> Path:
    platon_prune.save(model(), path, compression=compression)
    return path


def read(path: Path) -> dict[str, Tensor]:
    return dict(platon_prune.load(path))


def is_as_saved(state: dict[str, Tensor]) -> bool:
    expected = model().state_dict()
    return list(state) == list(expected) and all(
        state[name].dtype == value.dtype and torch.equal(state[name], value)
        for name, value in expected.items()
    )


@pytest.fixture(params=[None, "zstd"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "model", request.param)


# --- of another kind ----------------------------------------------------------------------------


def _legacy(path: Path) -> None:
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "empty file"),
    "one byte": (lambda p: p.write_bytes(b"\1"), "something else"),
    "text": (lambda p: p.write_text("weights " * 100), "something else"),
    "safetensors": (
        lambda p: safetensors.torch.save_file({"a": torch.ones(3)}, p),
        "safetensors.torch.load_file",
    ),
    "torch.save": (lambda p: torch.save({"a": torch.ones(3)}, p), "torch.load"),
    "old torch.save": (_legacy, "torch.load"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "torch.load"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_named_and_refused(kind: str, tmp_path: Path) -> None:
    make, advice = FOREIGN[kind]
    make(tmp_path / "file")
    with pytest.raises(ValueError, match=f"must be a file written by platon_prune.save.*{advice}"):
        platon_prune.load(tmp_path / "file")


def test_a_pickle_that_would_run_code_does_not_run_it(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "file").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError):
        platon_prune.load(tmp_path / "file")
    assert not (tmp_path / "ran").exists()


def test_a_path_without_a_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        platon_prune.load(tmp_path / "none")


def test_a_later_format_is_refused_with_both_versions(path: Path) -> None:
    forgery = Forgery.of(path)
    forgery.metadata |= {"format_version": "2", "platon_prune_version": "9.1"}
    forgery.write(path)
    with pytest.raises(ValueError, match=r"format version 1, got '2'.*platon_prune 9\.1"):
        platon_prune.load(path)


# --- damaged ------------------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_is_refused_when_it_is_opened(path: Path) -> None:
    content = path.read_bytes()
    lengths = [
        *range(0, 100),
        *range(100, len(content), 7),
        *range(len(content) - 50, len(content)),
    ]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError):
            platon_prune.load(path)


def test_a_file_with_something_behind_it_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="instead of"):
        platon_prune.load(path)


def test_a_flipped_bit_in_any_byte_of_the_data_is_found(path: Path) -> None:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in range(start, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="does not match its checksum"):
            read(path)


def test_a_flipped_bit_in_any_byte_of_the_header_is_found_when_the_file_is_opened(
    path: Path,
) -> None:
    content = path.read_bytes()
    for position in range(8 + int.from_bytes(content[:8], "little")):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError):
            platon_prune.load(path)


def test_random_damage_is_an_error_or_changes_nothing(path: Path) -> None:
    content = path.read_bytes()
    assert is_as_saved(read(path))
    rng = random.Random(0)
    unharmed = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        elif rng.random() < 0.2:
            start = rng.randrange(len(damaged))
            del damaged[start : start + rng.randrange(20)]
        path.write_bytes(damaged)
        try:
            state = read(path)
        except ValueError:
            continue
        assert is_as_saved(state)
        unharmed += 1
    assert unharmed < 20  # flips that undo each other, and nothing deleted


def test_damage_with_right_checksums_is_a_valueerror_or_a_state_dict(path: Path) -> None:
    # Beyond the checksums: what a file may say if somebody means harm.
    original = Forgery.of(path)
    header = json.dumps({"i": original.index, "e": original.entries})
    rng = random.Random(0)
    numbers = [m.span() for m in re.finditer(r"\d+|\"[a-z0-9_]+\"", header)]
    words = ["0", "-1", "1", "8", "9" * 18, "9" * 30, '"weight"', '"dense"', '"zstd"', "null", "[]"]
    for _ in range(300):
        text = header
        begin, end = rng.choice(numbers)
        text = text[:begin] + rng.choice(words) + text[end:]
        try:
            changed = json.loads(text)
            forgery = Forgery(original.metadata, changed["i"], changed["e"], original.data)
        except (ValueError, KeyError):
            continue
        forgery.write(path)
        try:
            state = read(path)
        except ValueError:
            continue
        assert sum(tensor.nbytes for tensor in state.values()) < 20_000


def test_a_damaged_file_leaves_the_model_as_it_was(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    target = model()
    with torch.no_grad():
        for buffer in target.buffers():
            buffer.fill_(7)
    with pytest.raises(ValueError, match="checksum"):
        target.load_state_dict(platon_prune.load(path))
    assert all((buffer == 7).all() for buffer in target.buffers())


# --- files that lie, with right checksums -------------------------------------------------------

SHAPES = {
    "terabytes": [10**6, 10**6],
    "more than memory has addresses": [1 << 62, 4],
    "more than 64 bits": [1 << 64],
    "none of too many": [0, 1 << 62, 1 << 62],
    "negative": [-20, -5],
    "a fraction": [20.0, 5],
    "true": [True, 100],
    "text": ["20", 5],
    "no list": 100,
    "too many dimensions": [1] * 100 + [20, 5],
    "too many large dimensions": [1 << 62] * 10_000,
    "a byte more": [105],
}


@pytest.mark.parametrize("name", ["weight", "bias", "blank"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_that_the_data_does_not_bear_out_is_refused_at_once(
    kind: str, name: str, path: Path
) -> None:
    forgery = Forgery.of(path)
    forgery.index["records"][name]["shape"] = SHAPES[kind]
    if name in forgery.entries:
        forgery.entries[name]["shape"] = SHAPES[kind]
    forgery.write(path)
    with pytest.raises(ValueError):
        platon_prune.load(path)


@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1, 100_000_001, 0, 1, 70])
def test_a_header_of_a_length_that_can_not_be_is_refused(length: int, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(ValueError):
        platon_prune.load(path)


@pytest.mark.parametrize(
    "rest",
    [b'"}}' + b" " * 99, b'","a":' + b"[" * 100_000, b'"', b'"},"a":1,"a":2}', b'"},"\xff":1}'],
    ids=["no index", "deep", "cut", "names twice", "not text"],
)
def test_a_header_that_is_not_what_it_should_be_is_refused(rest: bytes, path: Path) -> None:
    write_with_checksum(path, MAGIC + b"00000000" + rest, b"")
    with pytest.raises(ValueError):
        platon_prune.load(path)


def test_a_bitmask_with_more_or_fewer_bits_than_values_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    for bits in (b"\xff" * 13, b"\0" * 13):
        forgery = Forgery.of(path)
        forgery.put("weight#bitmask", bits)
        forgery.write(path)
        with pytest.raises(ValueError, match="weight.*for 20 values"):
            read(path)


def test_bits_behind_the_last_entry_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    forgery = Forgery.of(path)
    packed = bytearray(forgery.get("weight#bitmask"))
    assert packed[12] < 16  # 100 entries: the last byte has four
    packed[12] |= 0x10
    forgery.put("weight#bitmask", bytes(packed))
    forgery.write(path)
    with pytest.raises(ValueError, match="weight"):
        read(path)


def zstd_forgery(tmp_path: Path) -> tuple[Path, Forgery, str]:
    """A file with a compressed tensor called ``a`` of 8000 bytes."""
    path = tmp_path / "model"
    module = nn.Module()
    module.register_buffer("a", torch.arange(1000) + 1)
    platon_prune.save(module, path, compression="zstd")
    forgery = Forgery.of(path)
    assert list(forgery.entries) == ["a#dense.zstd"]
    return path, forgery, "a#dense.zstd"


def _streamed(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()  # a frame that does not tell its size
    return compressor.compress(data) + compressor.flush()


BOMBS: dict[str, Callable[[], bytes]] = {
    "a frame of a gigabyte": lambda: zstandard.compress(b"\0" * 10) [:4] + b"\xe0"
    + (1 << 30).to_bytes(8, "little") + b"\0" * 100,
    "a frame of more": lambda: zstandard.compress(b"\0" * 5_000_000),
    "a frame of less": lambda: zstandard.compress(b"\0" * 7_999) + b"\0" * 100,
    "an unknown size": lambda: _streamed(b"\0" * 100_000),
    "two frames": lambda: zstandard.compress(b"\0" * 8000) * 2,
    "rubbish behind": lambda: zstandard.compress(b"\0" * 8000) + b"\1" * 100,
    "no frame": lambda: b"\1" * 500,
    "nothing": lambda: b"",
    "half a frame": lambda: zstandard.compress(random.Random(0).randbytes(8000))[:5000],
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_compressed_data_must_be_one_frame_of_exactly_the_promised_size(
    kind: str, tmp_path: Path
) -> None:
    path, forgery, key = zstd_forgery(tmp_path)
    forgery.put(key, BOMBS[kind]())
    forgery.write(path)
    with pytest.raises(ValueError):
        read(path)


@pytest.mark.parametrize(
    ("kind", "size"), [("a frame of a gigabyte", 1 << 30), ("a frame of more", 5_000_000)]
)
def test_a_frame_that_promises_more_is_not_decompressed(
    kind: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, forgery, key = zstd_forgery(tmp_path)
    forgery.put(key, BOMBS[kind]())
    forgery.write(path)
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    with pytest.raises(ValueError, match=f"compressed data of {size:,} bytes where 8,000 belong"):
        read(path)


def test_a_small_file_can_not_promise_a_large_tensor(tmp_path: Path) -> None:
    path, forgery, key = zstd_forgery(tmp_path)
    forgery.put(key, zstandard.compress(b"\0" * (1 << 24)))
    forgery.index["records"]["a"] |= {"shape": [1 << 21], "count": 1 << 21}
    forgery.write(path)
    with pytest.raises(ValueError, match="bytes that promise 16,777,216"):
        platon_prune.load(path)


CHANGES: dict[str, Callable[[Forgery], object]] = {
    "unknown dtype": lambda f: f.index["records"]["weight"].update(dtype="float31"),
    "dtype of another size": lambda f: f.index["records"]["weight"].update(dtype="float64"),
    "dtype that is no name": lambda f: f.index["records"]["weight"].update(dtype=["float32"]),
    "unknown form": lambda f: f.index["records"]["weight"].update(form="csr"),
    "form of another": lambda f: f.index["records"]["weight"].update(form="dense"),
    "more values": lambda f: f.index["records"]["weight"].update(count=21),
    "more values than entries": lambda f: f.index["records"]["weight"].update(count=101),
    "negative count": lambda f: f.index["records"]["weight"].update(count=-1),
    "no checksum": lambda f: f.index["records"]["bias"]["parts"]["dense"].pop(),
    "another checksum": lambda f: f.index["records"]["bias"]["parts"].update(
        dense=["raw", "zzzzzzzz"]
    ),
    "unknown codec": lambda f: f.index["records"]["bias"]["parts"].update(dense=["gz", "0" * 8]),
    "no parts": lambda f: f.index["records"]["weight"].update(parts={}),
    "a record that is none": lambda f: f.index["records"].update(bias=3),
    "a record too few": lambda f: f.index["records"].pop("bias"),
    "a record too many": lambda f: f.index["records"].update(more=f.index["records"]["bias"]),
    "tied to nothing": lambda f: f.index["tied"].update(tied="none"),
    "tied to what is tied": lambda f: f.index["tied"].update(tied="tied"),
    "tied to a number": lambda f: f.index["tied"].update(tied=[1]),
    "tied and stored": lambda f: f.index["tied"].update(bias="weight"),
    "a name twice": lambda f: f.index["order"].append("bias"),
    "a name missing": lambda f: f.index["order"].pop(),
    "a name that is none": lambda f: f.index["order"].append(3),
    "left out but not there": lambda f: f.index["non_persistent"].append("none"),
    "versions without numbers": lambda f: f.index["versions"].update({"": "1"}),
    "a part of the index missing": lambda f: f.index.pop("versions"),
    "a part of the index of another type": lambda f: f.index.update(records=[]),
    "metadata that is not text": lambda f: f.metadata.update(more=3),
    "overlapping entries": lambda f: f.entries["bias"].update(data_offsets=[0, 24]),
    "offsets the wrong way round": lambda f: f.entries["bias"].update(data_offsets=[24, 0]),
    "offsets beyond the end": lambda f: f.entries["bias"].update(data_offsets=[0, 1 << 50]),
    "an entry too many": lambda f: f.entries.update(
        more={"dtype": "U8", "shape": [0], "data_offsets": [len(f.data)] * 2}
    ),
    "an entry that is none": lambda f: f.entries.update(bias=[]),
    "an entry of unknown dtype": lambda f: f.entries["bias"].update(dtype="F31"),
    "an entry too few": lambda f: f.entries.pop("bias"),
    "a gap": lambda f: f.data.extend(b"1234"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_header_that_contradicts_itself_is_refused_when_the_file_is_opened(
    kind: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "model")
    forgery = Forgery.of(path)
    CHANGES[kind](forgery)
    forgery.write(path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        platon_prune.load(path)


def test_a_forgery_without_a_change_is_read(path: Path) -> None:
    Forgery.of(path).write(path)
    assert is_as_saved(read(path))


# --- what is refused, and what is left, when saving ---------------------------------------------


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> object:
        return {"anything": 1}


def _with(tensor: Tensor) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer("other", tensor)
    return module


UNSAVEABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "extra state": (lambda: WithExtraState(2, 2), "_extra_state must be a tensor, got dict"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "weight must have values"),
    "sparse": (lambda: _with(torch.eye(3).to_sparse()), "other must be a plain dense tensor"),
    "complex128": (lambda: _with(torch.zeros(3, dtype=torch.complex128)), "got torch.complex128"),
    "lazy": (lambda: nn.LazyLinear(3), "weight must be a plain dense tensor"),
}


@pytest.mark.parametrize("kind", UNSAVEABLE)
def test_what_can_not_be_saved_is_named_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    build, message = UNSAVEABLE[kind]
    with pytest.raises(ValueError, match=message):
        platon_prune.save(build(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compression must be None or \"zstd\", got 'gzip'"):
        platon_prune.save(nn.Linear(2, 2), tmp_path / "model", compression="gzip")
    with pytest.raises(TypeError, match="model must be an nn.Module, got dict"):
        platon_prune.save({}, tmp_path / "model")
    with pytest.raises(ValueError, match="path must be a file for a Linear, got the folder"):
        platon_prune.save(nn.Linear(2, 2), tmp_path)
    with pytest.raises(FileNotFoundError):
        platon_prune.save(nn.Linear(2, 2), tmp_path / "none" / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "platon_prune.export.codec.pack_bits"])
def test_a_save_that_fails_leaves_the_old_file(
    where: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model")
    old = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise error("no space left")

    monkeypatch.setattr(where, fail)
    with pytest.raises(error, match="no space left"):
        write(path, "zstd")
    monkeypatch.undo()
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    write(path, "zstd")
    assert path.read_bytes() != old and is_as_saved(read(path))
