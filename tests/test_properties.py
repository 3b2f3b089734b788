"""Whatever is built, set and called in whatever order: exact counts, zeros, equal copies.

1,500 random programs in the usual test run, of which two in three reach their final amount.
``PLATON_EXAMPLES=200000`` in the environment runs as many as it says, split over the parts, each of
which draws programs of its own.
"""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from program_machine import Machine
from programs import programs

PARTS = 4
EXAMPLES = int(os.environ.get("PLATON_EXAMPLES", "1500"))


@pytest.mark.filterwarnings("ignore::platon_prune.PruningWarning")
@pytest.mark.parametrize("part", range(PARTS))
def test_any_program_keeps_every_promise(part):
    folder = Path(tempfile.mkdtemp())

    @seed(part)
    @settings(
        max_examples=EXAMPLES // PARTS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def keeps_every_promise(program):
        Machine(program, folder).run()

    keeps_every_promise()
