"""Whatever stops a write, the path holds the earlier file whole or the new one whole."""

import errno
import json
import os
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune import cli
from platon_prune.plots import accuracy_against_density
from platon_prune.studies import results
from platon_prune.writing import move_to_free_name, replacing, replacing_in, write_text


@contextmanager
def a_full_disk(after=16):
    """No file can grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _model():
    torch.manual_seed(0)
    return nn.Linear(40, 30)


def _inspect(path):
    source = path.parent.parent / "source.safetensors"
    if not source.exists():
        platon_prune.save(_model(), source)
    assert cli.main(["inspect", str(source), "--json", str(path)]) == 0


def _picture(path):
    accuracy_against_density({"a": {0.1: [0.5], 0.5: [0.9]}}, path)


def _bytes(path):
    with replacing(path) as file:
        file.write(b"new" * 1000)


def _torch(path):
    with replacing(path) as file:
        torch.save(_model().state_dict(), file)


WRITERS = {
    "bytes": _bytes,
    "text": lambda path: write_text(path, "new\n" * 1000),
    "torch.save": _torch,
    "a sparse file": lambda path: platon_prune.save(_model(), path),
    "a picture": _picture,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_on_a_full_disk_the_earlier_file_stays_whole_and_the_error_says_what_to_do(tmp_path, kind):
    path = tmp_path / "file.png"
    path.write_text("earlier")
    with a_full_disk(), pytest.raises(OSError, match="file.png must be where.*make room") as caught:
        WRITERS[kind](path)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "earlier" and os.listdir(tmp_path) == ["file.png"]
    WRITERS[kind](path)  # with room again
    assert path.stat().st_size > 16 and os.listdir(tmp_path) == ["file.png"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path, kind):
    other, path = tmp_path / "other", tmp_path / "file.png"
    other.write_text("of somebody else")
    path.symlink_to(other)
    WRITERS[kind](path)
    assert other.read_text() == "of somebody else" and not path.is_symlink()


def test_a_command_on_a_full_disk_says_so_in_one_line_with_status_2(tmp_path, capsys):
    path = tmp_path / "out" / "inspect.json"
    path.parent.mkdir()
    _inspect(path)
    content = path.read_text()
    with a_full_disk():
        source = str(tmp_path / "source.safetensors")
        assert cli.main(["inspect", source, "--json", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{path} must be where a file can be written" in error
    assert path.read_text() == content and os.listdir(path.parent) == [path.name]


def test_an_interrupted_write_leaves_the_earlier_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    write_text(path, "earlier")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "earlier" and os.listdir(tmp_path) == ["file"]


def test_an_error_of_who_writes_is_not_taken_for_one_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "out" / "f") as _:
        raise AssertionError("must not come so far")
    assert "must be where a file can be written" in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "file"):
        os.stat("/no/such/file")
    assert caught.value.filename == "/no/such/file"
    assert "must be where" not in str(caught.value)


def test_a_file_keeps_the_permissions_that_it_had(tmp_path):
    path = tmp_path / "file"
    write_text(path, "secret")
    path.chmod(0o600)
    write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_device_is_written_to_and_not_replaced():
    write_text("/dev/null", "nothing")
    assert not os.path.isfile("/dev/null")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)


# --- several files ------------------------------------------------------------------------------


def test_files_of_a_folder_are_moved_when_all_are_complete_and_the_last_one_last(
    tmp_path, monkeypatch
):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(b.name), replace(a, b)))
    with replacing_in(tmp_path / "out", last=("a",)) as beside:
        for name in "abc":
            (beside / name).write_text(name)
        assert [each.name for each in (tmp_path / "out").iterdir()] == [beside.name]
    assert moved == ["b", "c", "a"] and sorted(os.listdir(tmp_path / "out")) == ["a", "b", "c"]


def test_a_folder_that_could_not_be_filled_is_as_it_was(tmp_path):
    out = tmp_path / "out"
    for is_new in (True, False):
        with a_full_disk(), pytest.raises(OSError, match="make room"), replacing_in(out) as beside:
            (beside / "a").write_text("a")
            (beside / "b").write_bytes(bytes(1000))
        assert not out.exists() if is_new else os.listdir(out) == ["a"]
        out.mkdir(exist_ok=True)
        (out / "a").write_text("earlier")
    assert (out / "a").read_text() == "earlier"


def test_a_full_disk_that_a_library_in_rust_tells_of_is_told_likewise(tmp_path):
    from safetensors.torch import save_file

    out = tmp_path / "out"
    with a_full_disk(), pytest.raises(OSError, match="make room"), replacing_in(out) as beside:
        save_file(_model().state_dict(), beside / "model.safetensors")
    assert not out.exists()


def test_a_file_that_is_set_aside_takes_no_name_that_is_taken(tmp_path):
    (tmp_path / "file").write_text("to be moved")
    (tmp_path / "file.old").symlink_to(tmp_path / "nowhere")
    names = (tmp_path / f"file.old{number}" for number in ("", "2", "3"))
    assert move_to_free_name(tmp_path / "file", names) == tmp_path / "file.old2"
    assert (tmp_path / "file.old").is_symlink() and not (tmp_path / "nowhere").exists()
    assert (tmp_path / "file.old2").read_text() == "to be moved"


# --- what a study remembers ---------------------------------------------------------------------


def test_a_cell_that_could_not_be_written_is_missing_and_the_study_goes_on(tmp_path):
    results.append(tmp_path, {"key": "a", "value": 1})
    size = (tmp_path / results.RESULTS).stat().st_size
    with a_full_disk(size + 5), pytest.raises(OSError, match="results.jsonl must be.*make room"):
        results.append(tmp_path, {"key": "b", "value": 2})
    assert results.read(tmp_path).keys() == {"a"}
    results.append(tmp_path, {"key": "c", "value": 3})
    lines = (tmp_path / results.RESULTS).read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "c"]


def test_deploys_files_stay_whole_on_a_full_disk(tmp_path):
    from platon_prune.commands.deploy import _write

    report = SimpleNamespace(to_markdown=lambda: "new" * 100, to_json=lambda: {"new": "x" * 100})
    (tmp_path / "deploy.md").write_text("earlier")
    with a_full_disk(), pytest.raises(OSError, match="deploy.md must be where"):
        _write(report, tmp_path)
    assert (tmp_path / "deploy.md").read_text() == "earlier"
