"""The short version of the fuzzer: damage is refused, or makes no difference."""

import fuzz_files
import pytest


@pytest.mark.parametrize("name", fuzz_files.READERS)
def test_random_damage_is_refused_or_makes_no_difference(name):
    seen = fuzz_files.fuzz(name, examples=1000, seed=1)
    assert seen["refused"] > 900
