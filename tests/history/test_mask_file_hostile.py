"""A file of masks that lies is refused before it costs anything; what is missing is said."""

import resource
import struct
import tracemalloc
import zlib
from contextlib import contextmanager

import pytest
import torch
from test_mask_history import _Run

from platon_prune import MaskHistory

RECORD = struct.Struct("<cQQI")
EMPTY = zlib.compress(bytes(10))


def _record(payload, step=0, kind=b"W", size=None, checksum=None):
    size = len(payload) if size is None else size
    head = RECORD.pack(kind, step, size, 0)
    checksum = zlib.crc32(payload, zlib.crc32(head)) if checksum is None else checksum
    return RECORD.pack(kind, step, size, checksum) + payload


def _write(path, header, *records):
    start = b"PLATONM1" + struct.pack("<II", len(header), zlib.crc32(header)) + header
    path.write_bytes(start + b"".join(records))
    return path


HOSTILE = {
    "a shape of 2^40": (b'[["w", [1099511627776]]]', _record(EMPTY)),
    "a record of 2^46 bytes": (b'[["w", [1125899906842624]]]', _record(b"abc", size=1 << 46)),
    "a record longer than the file": (b'[["w", [80]]]', _record(EMPTY, size=60)),
    "a record that expands too far": (b'[["w", [800000]]]', _record(EMPTY)),
    "a record of fewer bits": (b'[["w", [640]]]', _record(EMPTY)),
    "a record of more bits": (b'[["w", [8]]]', _record(EMPTY)),
    "a record that is not compressed": (b'[["w", [80]]]', _record(b"\0" * 10)),
    "a negative size": (b'[["w", [-8]]]', _record(EMPTY)),
    "a size that is NaN": (b'[["w", [NaN]]]', _record(EMPTY)),
    "a size that is text": (b'[["w", ["a"]]]', _record(EMPTY)),
    "a size that is true": (b'[["w", [true]]]', _record(EMPTY)),
    "a size beyond 64 bits": (b'[["w", [18446744073709551616]]]', _record(EMPTY)),
    "sizes whose product is": (b'[["w", [4294967296, 4294967296]]]', _record(EMPTY)),
    "too many dimensions": (b'[["w", [' + b"1," * 99 + b"80]]]", _record(EMPTY)),
    "a deep header": (b"[" * 100_000, b""),
    "a header of many entries": (b"[" + b"[]," * 2_000_000 + b"[]]", b""),
    "an object": (b'{"w": [80]}', _record(EMPTY)),
    "a name twice": (b'[["w", [40]], ["w", [40]]]', _record(EMPTY)),
    "no name": (b"[[[80], [80]]]", _record(EMPTY)),
    "a pair too short": (b'[["w"]]', _record(EMPTY)),
    "no text": (b'[["\xff", [80]]]', _record(EMPTY)),
    "an unknown kind": (b'[["w", [80]]]', _record(EMPTY, kind=b"X")),
    "changes of nothing": (b'[["w", [80]]]', _record(EMPTY, kind=b"C")),
}


@pytest.mark.case
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_lies_is_refused_and_little_memory_taken(tmp_path, kind):
    path = _write(tmp_path / "masks", *HOSTILE[kind])
    tracemalloc.start()
    with pytest.raises(ValueError) as caught:
        MaskHistory(path).masks(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value) and peak < 4 * path.stat().st_size + (32 << 20)


def test_a_file_that_does_not_lie_is_read(tmp_path):
    path = _write(tmp_path / "masks", b'[["w", [80]]]', _record(zlib.compress(b"\x01" * 10)))
    assert MaskHistory(path).masks(0)["w"].nonzero()[:, 0].tolist() == list(range(0, 80, 8))


def test_records_that_do_not_go_on_in_time_end_the_file(tmp_path):
    records = [_record(EMPTY, step) for step in (0, 4, 4, 8)]
    assert MaskHistory(_write(tmp_path / "masks", b'[["w", [80]]]', *records)).steps == [0, 4]


# --- a full disk ----------------------------------------------------------------------------------


@contextmanager
def _a_full_disk(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _run_with_a_gap(path, until=20):
    """Masks could not be written at the choices 10 and 12."""
    run = _Run(path).to(9)
    with _a_full_disk(path):
        for step in (10, 11, 12):
            try:
                run.to(step)
            except OSError:
                run.masks[step] = run.scheduler.masks()
                # The step is complete: counted, and its zeros are in the weights.
                assert run.scheduler.last_step == step
                for (name, mask), module in zip(
                    run.masks[step].items(), (run.model[0], run.model[2]), strict=True
                ):
                    assert not module.weight_orig[~mask].any(), name
    return run.to(until)


def _assert_right_or_refused(masks, run, steps, missing):
    for step in steps:
        if step in missing:
            with pytest.raises(ValueError, match="from step 10 on could not be written"):
                masks(step)
        else:
            for name, mask in masks(step).items():
                assert torch.equal(mask, run.masks[step][name]), (step, name)


@pytest.mark.case
@pytest.mark.parametrize("until", [12, 13, 14, 15, 20])
def test_masks_that_could_not_be_written_are_refused_and_all_others_are_right(tmp_path, until):
    path = tmp_path / "masks"
    run = _run_with_a_gap(path, until)
    _assert_right_or_refused(run.scheduler.masks, run, range(until), (10, 11, 12, 13))
    if until >= 14:  # the file says it too, from the next choice on
        _assert_right_or_refused(MaskHistory(path).masks, run, range(until), (10, 11, 12, 13))
        assert MaskHistory(path).steps == [0, 4, 6, 8, *range(14, until + 1, 2)]


def test_a_run_that_is_resumed_from_before_the_gap_has_none(tmp_path):
    path = tmp_path / "masks"
    states = _Run(path).to(9).save()
    _run_with_a_gap(tmp_path / "other")
    path.write_bytes((tmp_path / "other").read_bytes())
    resumed = _Run(path).load(states).to(20)
    _assert_right_or_refused(resumed.scheduler.masks, resumed, range(10, 20), ())


def test_a_disk_that_is_full_when_recording_begins_stops_the_step_before_it_changes_anything(
    tmp_path, monkeypatch
):
    run = _Run(tmp_path / "masks")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    with pytest.raises(OSError, match="make room"):
        run.to(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.scheduler.last_step == 0 and not list(tmp_path.iterdir())
    run.to(20)
    _assert_right_or_refused(run.scheduler.masks, run, range(20), ())


def test_the_file_set_aside_takes_the_name_of_no_link(tmp_path):
    path, target = tmp_path / "masks", tmp_path / "nowhere"
    _Run(path).to(15)
    (tmp_path / "masks.old").symlink_to(target)
    again = _Run(path)
    with pytest.warns(UserWarning, match="masks.old2 now"):
        again.to(1)
    assert (tmp_path / "masks.old").is_symlink() and not target.exists()


def test_a_file_named_as_the_header_used_to_be_written_is_left_alone(tmp_path):
    beside = tmp_path / "masks.new"
    beside.write_text("of somebody else")
    _Run(tmp_path / "masks").to(5)
    assert beside.read_text() == "of somebody else"
