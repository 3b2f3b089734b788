"""What is said of a run that ends with fewer zeros than it was asked for."""

from platon_prune.integrations.shortfall import shortfall


def test_two_different_sparsities_never_read_the_same():
    assert "5.0% sparse, less than the 80.0% asked for: why" in shortfall(0.05, 0.8, "why")
    assert "89.98% sparse, less than the 90.00% asked for" in shortfall(0.8998, 0.9, "why")
    assert "89.999% sparse, less than the 90.000%" in shortfall(0.899992, 0.9, "why")
