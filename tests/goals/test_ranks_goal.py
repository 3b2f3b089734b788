"""A run with ``max_drop`` over several processes: they go back together, or not at all."""

import goal_run
import numpy as np
import ranks


def test_two_replicas_go_where_one_process_goes():
    values = {30: 0.0, 50: 0.0}
    expected, said, end = goal_run.replica(values)
    assert end == 50 and said.endswith("gave 0 after its cool-down")
    for weights, sentence, step in ranks.run(2, goal_run.replica, values):
        assert (sentence, step) == (said, end)
        assert all(np.array_equal(one, other) for one, other in zip(weights, expected, strict=True))


def test_processes_that_report_different_values_are_refused_in_all_of_them():
    for kind, message in ranks.errors_of(2, goal_run.replica, {}, 0.25):
        assert kind == "ValueError"
        assert "value must be the same in all processes, got 1.0 to 1.25" in message
