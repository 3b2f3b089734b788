"""The short version of the soak: killed twice, and the same end."""

import soak


def test_a_run_that_was_killed_ends_as_one_that_never_was():
    soak.soak(steps=400, kills=2, seed=0, masking="step")
