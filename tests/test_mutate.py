"""The short version of the mutations: refused, or harmless."""

import mutate
import pytest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("what", "examples"), [("states", 60), ("folders", 20)])
def test_what_is_changed_at_random_is_refused_or_harmless(what, examples):
    seen = mutate.WHAT[what](examples, seed=1)
    assert any("refused" in kind for kind in seen)
