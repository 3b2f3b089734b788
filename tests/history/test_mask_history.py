"""The masks of every choice come back from the file, whatever happened to the run."""

import copy
import warnings

import pytest
import rank_jobs
import ranks
import torch
import torch.distributed as dist
from torch import nn

import platon_prune
from platon_prune import MaskHistory, PruningWarning
from platon_prune.history import mask_history


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3))


class _Run:
    """Given gradients; choices at 4, 6, ... 20 and the masks after each step."""

    def __init__(self, path=None, **settings):
        self.model = _model()
        settings = dict(amount=0.7, total_steps=20, warmup_steps=3, window=2) | settings
        self.scheduler = platon_prune.global_unstructured(
            self.model, mask_history=path, **dict(warmup_steps=0, cooldown_steps=0) | settings
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.masks = {0: self.scheduler.masks()}

    def to(self, until):
        while self.scheduler.last_step < until:
            generator = torch.Generator().manual_seed(self.scheduler.last_step)
            for parameter in self.model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.optimizer.step()
            self.scheduler.step()
            self.masks[self.scheduler.last_step] = self.scheduler.masks()
        return self

    def save(self):
        parts = (self.model, self.optimizer, self.scheduler)
        return copy.deepcopy([part.state_dict() for part in parts])

    def load(self, states):
        for part, state in zip((self.model, self.optimizer, self.scheduler), states, strict=True):
            part.load_state_dict(state)
        return self


CHOICES = [4, 6, 8, 10, 12, 14, 16, 18, 20]


def _assert_same(masks, expected):
    assert masks.keys() == expected.keys()
    for name, mask in expected.items():
        assert masks[name].dtype == torch.bool and torch.equal(masks[name], mask), name


@pytest.mark.parametrize("whole_every", [1, 3, 100])
def test_the_masks_after_every_step_come_back(tmp_path, monkeypatch, whole_every):
    monkeypatch.setattr(mask_history, "_WHOLE_EVERY", whole_every)
    run = _Run(tmp_path / "masks").to(20)
    assert any(not torch.equal(run.masks[4][n], run.masks[20][n]) for n in run.masks[4])
    for step, expected in run.masks.items():
        _assert_same(run.scheduler.masks(step), expected)
    _assert_same(run.scheduler.masks(), run.masks[20])
    file = MaskHistory(tmp_path / "masks")
    assert file.steps == [0, *CHOICES]
    assert file.shapes == {"0.weight": (9, 7), "2.weight": (3, 9)}
    _assert_same(file.masks(13), run.masks[12])


def test_recording_changes_nothing_in_the_run(tmp_path):
    recorded, plain = _Run(tmp_path / "masks").to(20), _Run().to(20)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, recorded.model.get_parameter(name))


def test_a_file_of_n_choices_takes_at_most_an_eighth_of_a_byte_for_a_weight_and_choice(tmp_path):
    model = nn.Linear(1000, 100)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.9, total_steps=20, window=1, criterion="magnitude",
        mask_history=tmp_path / "masks", warmup_steps=0, cooldown_steps=0
    )  # fmt: skip
    for _ in range(20):
        scheduler.step()
    assert (tmp_path / "masks").stat().st_size < 21 * 100_000 / 8


# --- resuming -----------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_its_file_and_what_came_after_is_dropped(tmp_path):
    first = _Run(tmp_path / "masks").to(9)
    states = first.save()
    first.to(15)
    resumed = _Run(tmp_path / "masks").load(states)
    assert MaskHistory(tmp_path / "masks").steps == [0, 4, 6, 8, 10, 12, 14]  # until it steps
    resumed.to(11)
    assert MaskHistory(tmp_path / "masks").steps == [0, 4, 6, 8, 9, 10]
    resumed.to(20)
    for step in range(21):
        _assert_same(resumed.scheduler.masks(step), (first.masks | resumed.masks)[step])


def test_a_run_that_starts_anew_begins_its_file_anew_and_keeps_the_other(tmp_path):
    path = tmp_path / "masks"
    first = _Run(path).to(15)
    content = path.read_bytes()
    again = _Run(path)
    assert path.read_bytes() == content  # it may be resumed yet
    with pytest.warns(PruningWarning, match=r"until step 14.* are in .*masks.old now") as caught:
        again.to(1)
    assert caught[0].filename == __file__
    again.to(5)
    assert MaskHistory(path).steps == [0, 4]
    assert (tmp_path / "masks.old").read_bytes() == content
    _assert_same(MaskHistory(tmp_path / "masks.old").masks(15), first.masks[14])
    _assert_same(again.scheduler.masks(4), again.masks[4])


def test_a_warning_of_the_other_file_that_is_an_error_comes_once_the_step_is_done(tmp_path):
    _Run(tmp_path / "masks").to(15)
    again = _Run(tmp_path / "masks")
    with pytest.raises(PruningWarning):
        again.to(1)
    assert again.scheduler.last_step == 1
    again.to(20)
    assert MaskHistory(tmp_path / "masks").steps == [0, *CHOICES]


def _again(path, until, **settings):
    """Another run with the file of one before."""
    run = _Run(path, **settings)
    with pytest.warns(PruningWarning, match="masks of another run"):
        run.to(1)
    return run.to(until)


def test_the_files_of_all_runs_before_are_kept(tmp_path):
    path = tmp_path / "masks"
    runs = [_Run(path, amount=0.7).to(15)]
    runs += [_again(path, 15, amount=amount) for amount in (0.6, 0.5, 0.4)]
    for run, name in zip(runs, ("masks.old", "masks.old2", "masks.old3", "masks"), strict=True):
        _assert_same(MaskHistory(tmp_path / name).masks(15), run.masks[14])


def test_masks_that_another_run_has_replaced_are_refused_and_said_to_be_kept(tmp_path):
    path = tmp_path / "masks"
    first = _Run(path).to(20)
    reader = MaskHistory(path)
    first.scheduler.remove()
    second = _again(path, 20, amount=0.4)
    third = _again(path, 20, amount=0.5)
    for read, old in (
        (first.scheduler.masks, "masks.old,"),
        (reader.masks, "masks.old,"),
        (second.scheduler.masks, "masks.old2,"),
    ):
        with pytest.raises(ValueError, match=f"another by now: those of this one are in .*{old}"):
            read(13)
    _assert_same(third.scheduler.masks(13), third.masks[12])


def test_the_masks_that_a_run_starts_from_are_read_though_another_run_wrote_the_same(tmp_path):
    first = _Run(tmp_path / "masks").to(1)
    second = _Run(tmp_path / "masks").to(12)
    _assert_same(first.scheduler.masks(0), first.masks[0])
    _assert_same(second.scheduler.masks(11), second.masks[10])


def test_masks_that_a_resumed_run_has_replaced_are_refused(tmp_path):
    first = _Run(tmp_path / "masks").to(9)
    states = first.save()
    first.to(15)
    resumed = _Run(tmp_path / "masks").load(states)
    resumed.optimizer.param_groups[0]["lr"] = 1.0
    resumed.to(20)
    _assert_same(first.scheduler.masks(9), first.masks[8])
    with pytest.raises(ValueError, match="step 10 .*was damaged or written by another run"):
        first.scheduler.masks(10)


def test_two_runs_at_once_do_not_write_into_each_others_masks(tmp_path):
    path = tmp_path / "masks"
    first, second = _Run(path), _Run(path, amount=0.4)  # when there is no file yet
    first.to(9)
    with pytest.warns(PruningWarning, match="until step 8"):
        second.to(1)
    second.to(9)
    content = path.read_bytes()
    with pytest.raises(RuntimeError, match="by one run at a time.*give each run a file"):
        first.to(10)
    assert path.read_bytes() == content
    _assert_same(MaskHistory(tmp_path / "masks.old").masks(9), first.masks[8])
    _assert_same(second.to(12).scheduler.masks(11), second.masks[10])


def test_every_flipped_bit_of_recorded_masks_is_noticed_by_who_has_the_file_open(tmp_path):
    path = tmp_path / "masks"
    run = _Run(path).to(6)
    run.scheduler.remove()
    content, record = path.read_bytes(), MaskHistory(path).records[-1]
    for position in range(record.start, record.end):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="step 6 .*damaged"):
            run.scheduler.masks(6)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="step 6 .*damaged"):
        run.scheduler.masks(6)


def test_a_run_that_ended_before_its_first_choice_leaves_nothing_worth_keeping(tmp_path):
    _Run(tmp_path / "masks").to(3)
    _Run(tmp_path / "masks").to(5)  # a warning would be an error
    assert MaskHistory(tmp_path / "masks").steps == [0, 4]
    assert not (tmp_path / "masks.old").exists()


def test_a_run_that_is_resumed_from_before_its_first_step_drops_what_came_after(tmp_path):
    first = _Run(tmp_path / "masks")
    states = first.save()
    first.to(9)
    _Run(tmp_path / "masks").load(states).to(5)
    assert MaskHistory(tmp_path / "masks").steps == [0, 4]
    assert not (tmp_path / "masks.old").exists()


def test_the_set_up_of_a_second_run_alone_changes_no_file(tmp_path):
    _Run(tmp_path / "masks").to(15)
    _Run(tmp_path / "masks")
    assert [file.name for file in tmp_path.iterdir()] == ["masks"]


def test_recording_may_begin_in_the_middle(tmp_path):
    run = _Run().to(7)
    run.scheduler.record_masks(tmp_path / "masks")
    run.to(12)
    assert MaskHistory(tmp_path / "masks").steps == [7, 8, 10, 12]
    _assert_same(run.scheduler.masks(7), run.masks[7])
    with pytest.raises(ValueError, match="by step 6, but are from step 7 on"):
        run.scheduler.masks(6)


def test_a_copy_of_the_run_leaves_the_file_alone(tmp_path):
    run = _Run(tmp_path / "masks").to(5)
    copy.deepcopy(run).to(20)
    assert MaskHistory(tmp_path / "masks").steps == [0, 4]
    _assert_same(run.to(8).scheduler.masks(6), run.masks[6])


# --- crashes and damage -------------------------------------------------------------------------


def test_cut_off_anywhere_all_complete_records_are_read_and_a_resumed_run_goes_on(tmp_path):
    path, cut = tmp_path / "masks", tmp_path / "cut"
    run = _Run(path).to(6)
    states = run.save()
    run.to(8)
    content = path.read_bytes()
    ends = [len(content)]
    for step in (6, 4, 0):  # where the records of 8, 6 and 4 begin
        shorter = MaskHistory(path)
        shorter.records = [r for r in shorter.records if r.step <= step]
        ends.insert(0, shorter.records[-1].end)
    for size in range(ends[0], len(content) + 1):
        cut.write_bytes(content[:size])
        steps = [step for step, end in zip((0, 4, 6, 8), ends, strict=True) if end <= size]
        file = MaskHistory(cut)
        assert file.steps == steps
        _assert_same(file.masks(99), run.masks[steps[-1]])
    cut.write_bytes(content[: ends[1] + 5])
    resumed = _Run(cut).load(states).to(20)
    assert MaskHistory(cut).steps == [0, 4, 6, *range(8, 21, 2)]
    _assert_same(resumed.scheduler.masks(9), run.masks[8])


def test_every_flipped_bit_of_the_last_record_is_noticed(tmp_path):
    path = tmp_path / "masks"
    run = _Run(path).to(6)
    content = path.read_bytes()
    begin = MaskHistory(path).records[-2].end
    for position in range(begin, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert MaskHistory(path).steps == [0, 4]
    _assert_same(MaskHistory(path).masks(6), run.masks[4])


@pytest.mark.parametrize("content", [b"", b"PLATONM1", b"something else entirely", b"\0" * 100])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "masks"
    path.write_bytes(content)
    for make in (MaskHistory, _Run):
        with pytest.raises(ValueError, match="must be a file of masks"):
            make(path)
    assert path.read_bytes() == content


def test_a_damaged_header_is_refused(tmp_path):
    path = tmp_path / "masks"
    _Run(path).to(4)
    content = path.read_bytes()
    for position in range(8, 40):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="must be a file of masks"):
            MaskHistory(path)


def test_the_file_of_another_model_is_refused_and_the_model_is_untouched(tmp_path):
    _Run(tmp_path / "masks").to(4)
    other = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 4))
    with pytest.raises(ValueError, match=r"1.weight has shape \(4, 9\) here and absent"):
        platon_prune.global_unstructured(
            other,
            amount=0.5,
            total_steps=20,
            mask_history=tmp_path / "masks",
            warmup_steps=0,
            cooldown_steps=0,
        )
    assert list(other.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("none/masks", FileNotFoundError, r"must lie in a folder that exists.*none.*create"),
        ("file/masks", FileNotFoundError, r"must lie in a folder that exists"),
        (".", IsADirectoryError, "must be a file, got the folder"),
    ],
)
def test_a_path_that_can_not_be_a_file_is_refused_at_set_up(tmp_path, path, error, message):
    (tmp_path / "file").write_text("")
    model = _model()
    with pytest.raises(error, match=message):
        platon_prune.global_unstructured(
            model,
            amount=0.5,
            total_steps=20,
            mask_history=tmp_path / path,
            warmup_steps=0,
            cooldown_steps=0,
        )
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_folder_that_can_not_be_written_to_is_refused_at_set_up(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as for no superuser
    with pytest.raises(PermissionError, match="must lie in a folder that can be written to"):
        _Run(tmp_path / "masks")


@pytest.mark.parametrize("path", [True, 3])
def test_something_that_is_no_path_is_refused_at_set_up(path):
    with pytest.raises(TypeError, match=f"must be a path, got {path}"):
        _Run(path)


def test_masks_are_read_as_before_once_the_model_is_finalized(tmp_path):
    run = _Run(tmp_path / "masks").to(20)
    run.scheduler.remove()
    for step in (0, 9, 20):
        _assert_same(run.scheduler.masks(step), run.masks[step])
    _assert_same(run.scheduler.masks(), run.masks[20])


def test_what_needs_the_masks_of_a_finalized_model_says_what_can_still_be_read(tmp_path):
    scheduler = _Run().to(20).scheduler
    scheduler.remove()
    with pytest.raises(ValueError, match="masks of step 20 must have been recorded"):
        scheduler.masks()
    all_of_it = scheduler.sparsity, scheduler.memory, scheduler.state_dict
    for read in (*all_of_it, lambda: scheduler.score("0.weight")):
        with pytest.raises(RuntimeError, match="was finalized: of a run that has ended, its sched"):
            read()
    assert scheduler.history[-1].step == 20


def test_masks_of_a_step_that_was_not_taken_or_recorded_are_refused(tmp_path):
    with pytest.raises(ValueError, match="call record_masks"):
        _Run().to(5).scheduler.masks(4)
    run = _Run(tmp_path / "masks").to(5)
    for step in (-1, 6):
        with pytest.raises(ValueError, match="step"):
            run.scheduler.masks(step)
    with pytest.raises(FileNotFoundError):
        MaskHistory(tmp_path / "none")


def test_a_file_that_is_gone_is_said_to_be_gone(tmp_path):
    run = _Run(tmp_path / "masks").to(5)
    (tmp_path / "masks").unlink()
    with pytest.raises(FileNotFoundError):
        run.scheduler.masks(4)


# --- over processes -----------------------------------------------------------------------------


def _record(folder, layout):
    run = rank_jobs.Run(layout)
    run.scheduler.record_masks(folder / "masks")
    run.to(13)
    return {name: mask.clone() for name, mask in run.scheduler.masks(9).items()}


def _record_in_a_folder_that_the_first_lacks(folder):
    model = _model()
    path = folder / str(dist.get_rank()) / "masks"
    try:
        platon_prune.global_unstructured(
            model, amount=0.5, total_steps=20, mask_history=path, warmup_steps=0, cooldown_steps=0
        )
    finally:
        assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_folder_that_the_process_that_writes_lacks_is_an_error_in_all(tmp_path):
    (tmp_path / "1").mkdir()
    first, other = ranks.errors_of(2, _record_in_a_folder_that_the_first_lacks, tmp_path)
    assert first[0] == "FileNotFoundError" and "in a folder that exists" in first[1]
    assert other[0] == "RuntimeError" and "process 0: FileNotFoundError" in other[1]


def test_of_copies_the_first_process_writes_and_all_can_read(tmp_path):
    expected = rank_jobs.Run().to(9).scheduler.masks()
    for found in ranks.run(2, _record, tmp_path, rank_jobs.copies):
        _assert_same(found, expected)
    assert MaskHistory(tmp_path / "masks").steps == [0, 4, 8, 12]


def _record_in_a_folder_of_its_own(folder):
    rank_jobs.Run(rank_jobs.copies).scheduler.record_masks(folder / str(dist.get_rank()) / "masks")


def test_recording_that_begins_later_is_refused_in_all_processes_too(tmp_path):
    (tmp_path / "1").mkdir()
    first, other = ranks.errors_of(2, _record_in_a_folder_of_its_own, tmp_path)
    assert first[0] == "FileNotFoundError" and "in a folder that exists" in first[1]
    assert other[0] == "RuntimeError" and "process 0: FileNotFoundError" in other[1]


def _record_after_another_run(path):
    run = rank_jobs.Run(rank_jobs.copies, amount=0.4)
    run.scheduler.record_masks(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PruningWarning)
        with pytest.raises(PruningWarning, match="masks of another run"):
            run.step()
    return run.to(13).scheduler.masks(9)


def _record_twice(path):
    first = rank_jobs.Run(rank_jobs.copies)
    first.scheduler.record_masks(path)
    first.to(13).scheduler.remove()
    second = _record_after_another_run(path)
    with pytest.raises(ValueError, match=r"of another by now: .*masks.old,"):
        first.scheduler.masks(9)
    return second


def test_a_warning_that_is_an_error_is_one_in_all_processes_and_each_knows_its_own_masks(tmp_path):
    expected = rank_jobs.Run(amount=0.4).to(9).scheduler.masks()
    for found in ranks.run(2, _record_twice, tmp_path / "masks"):
        _assert_same(found, expected)


def _record_where_the_file_vanishes(path):
    run = rank_jobs.Run(rank_jobs.copies)
    run.scheduler.record_masks(path)
    run.to(7)
    if dist.get_rank() == 0:
        path.unlink()
    run.step()


def test_a_file_that_can_not_be_written_any_more_stops_all_processes(tmp_path):
    first, other = ranks.errors_of(2, _record_where_the_file_vanishes, tmp_path / "masks")
    assert first[0] == "FileNotFoundError"
    assert other[0] == "RuntimeError" and "process 0: FileNotFoundError" in other[1]


def test_a_sharded_model_is_refused_in_every_process(tmp_path):
    for error in ranks.errors_of(2, _record, tmp_path, rank_jobs.fsdp):
        assert error is not None and error[0] == "ValueError" and "sharded" in error[1]
