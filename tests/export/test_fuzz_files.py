"""The short version of the fuzzer: damage is refused, or does no harm."""

import fuzz_files
import pytest

# Where every byte has a checksum, nearly all damage must be found.
LEAST_REFUSED = {"sparse file": 900, "sparse file with zstd": 900}


@pytest.mark.parametrize("name", fuzz_files.READERS)
def test_random_damage_is_refused_or_does_no_harm(name):
    seen = fuzz_files.fuzz(name, examples=1000, seed=1)
    assert seen.total() == 1000 and seen["refused"] >= LEAST_REFUSED.get(name, 1)
