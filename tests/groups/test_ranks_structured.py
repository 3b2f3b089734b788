"""Structured pruning over several processes."""

import pytest
import ranks
import structured_jobs


def test_copies_in_several_processes_choose_alike_and_drift_is_noticed():
    alone = structured_jobs.copies(False)
    assert ranks.run(2, structured_jobs.copies, False) == [alone, alone]
    for message in ranks.run(2, structured_jobs.copies, True):
        assert "the processes have drifted apart" in message


def test_under_ddp_all_processes_have_the_same_groups_and_weights():
    first, second = ranks.run(2, structured_jobs.ddp)
    assert first == second


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_sharded_tensors_are_refused(before):
    for message in ranks.run(2, structured_jobs.sharded, before):
        assert "must be whole in every process for structured pruning" in message


def test_under_ddp_all_processes_make_the_same_cut_and_go_on_once_wrapped_again():
    first, second = ranks.run(2, structured_jobs.cut_under_ddp)
    assert first == second and first[0]


def test_processes_that_train_together_do_not_cut_by_themselves():
    for message in ranks.run(2, structured_jobs.cut_by_itself):
        assert "call scheduler.cut() in all of them, and wrap the model again" in message
