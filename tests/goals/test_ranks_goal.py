"""A run with ``max_drop`` over several processes: they go back together, or not at all."""

import math

import goal_jobs
import goal_run
import numpy as np
import pytest
import rank_jobs
import ranks

AT = [7, 8, 12, 13, 18, 24]  # both times that it goes back, and the end
LAYOUTS = [(rank_jobs.fsdp, 2), (rank_jobs.hsdp, 4), (rank_jobs.tp, 2), (rank_jobs.fsdp_tp, 4)]


@pytest.fixture(scope="module")
def alone():
    found, said = goal_jobs.results(rank_jobs.alone, AT)
    assert said.endswith("gave 0 after its cool-down")
    return found, said


def _assert_as_alone(answers, alone, at=AT):
    for found, said in answers:
        assert said == alone[1]
        for step, result in zip(at, found, strict=True):
            expected = alone[0][AT.index(step)]
            assert not rank_jobs.differences(result, expected), step


def test_two_replicas_go_where_one_process_goes():
    values = {30: 0.0, 50: 0.0}
    expected, said, end = goal_run.replica(values)
    assert end == 50 and said.endswith("gave 0 after its cool-down")
    for weights, sentence, step in ranks.run(2, goal_run.replica, values):
        assert (sentence, step) == (said, end)
        assert all(np.array_equal(one, other) for one, other in zip(weights, expected, strict=True))


@pytest.mark.parametrize(("layout", "size"), LAYOUTS)
def test_shards_go_where_one_process_goes_bit_by_bit(layout, size, alone):
    _assert_as_alone(ranks.run(size, goal_jobs.results, layout, AT), alone)


@pytest.mark.parametrize("runs", [goal_jobs.Groups, goal_jobs.GroupsByTime, goal_jobs.NOfM])
def test_shards_go_back_by_groups_and_by_n_of_m_too(runs):
    expected = goal_jobs.results(rank_jobs.alone, AT, runs)
    assert "0 after its cool-down" in expected[1]
    _assert_as_alone(ranks.run(2, goal_jobs.results, rank_jobs.fsdp, AT, runs), expected)


@pytest.mark.parametrize(
    ("before", "size", "after", "other", "step"),
    [
        (rank_jobs.fsdp, 2, rank_jobs.fsdp, 2, 13),
        (rank_jobs.fsdp, 2, rank_jobs.fsdp_tp, 4, 8),
        (rank_jobs.tp, 2, rank_jobs.copies, 1, 18),
        (rank_jobs.copies, 2, rank_jobs.fsdp, 3, 12),
    ],
)
def test_a_distributed_checkpoint_resumes_in_any_layout(
    tmp_path, before, size, after, other, step, alone
):
    ranks.run(size, goal_jobs.save, tmp_path, before, step)
    at = [each for each in AT if each >= step]
    _assert_as_alone(ranks.run(other, goal_jobs.resume, tmp_path, after, at), alone, at)


@pytest.mark.parametrize("layout", [rank_jobs.fsdp, rank_jobs.tp])
def test_shards_go_on_with_the_states_of_one_process(layout, alone):
    state = goal_jobs.whole_state(13)
    at = [each for each in AT if each >= 13]
    _assert_as_alone(ranks.run(2, goal_jobs.resume_from_whole, state, layout, at), alone, at)


def test_each_process_keeps_its_own_shards_of_a_state():
    answers = ranks.run(2, goal_jobs.bytes_of_states, rank_jobs.fsdp)
    numel = answers[0][2]
    assert [number for number, _, _ in answers] == [2, 2]
    assert sum(held for _, held, _ in answers) == numel


def test_processes_that_report_different_values_are_refused_in_all_of_them():
    for kind, message in ranks.errors_of(2, goal_run.replica, {}, 0.25):
        assert kind == "ValueError"
        assert "value must be the same in all processes, got 1.0, 1.25" in message


@pytest.mark.parametrize(
    ("first", "second", "kinds", "says"),
    [
        ((1.0, True), (math.nan, True), ["ValueError"] * 2, "the same in all processes, got 1.0, "),
        ((math.nan, True), (1.0, True), ["ValueError"] * 2, "the same in all processes, got nan, "),
        ((1.0, True), (None, True), ["RuntimeError", "TypeError"], "value must be a number"),
        ((1.0, False), (1.0, True), ["RuntimeError"] * 2, "must be given the optimizer"),
    ],
)
def test_what_one_process_alone_can_not_report_is_an_error_in_all(first, second, kinds, says):
    errors = ranks.errors_of(2, goal_jobs.report, [first, second])
    assert [kind for kind, _ in errors] == kinds
    assert all(says in message for _, message in errors)
