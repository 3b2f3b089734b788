"""Shares: the same fraction of every tensor, in whole numbers that add up exactly."""

import math
from fractions import Fraction

import pytest

from platon_prune.choice.shares import shares_of

SIZES = (1, 257, 8, 1031, 64, 3, 420, 0, 2)
TOTAL = sum(SIZES)


@pytest.mark.parametrize("count", [0, 1, 17, TOTAL // 3, TOTAL // 2, TOTAL - 9, TOTAL - 1, TOTAL])
def test_shares_add_up_and_none_is_an_entry_away_from_its_fraction(count):
    shares = shares_of(count, SIZES)
    assert sum(shares) == count
    for share, size in zip(shares, SIZES, strict=True):
        exact = Fraction(count * size, TOTAL)
        assert share in (math.floor(exact), math.ceil(exact))


@pytest.mark.parametrize(
    ("count", "sizes", "shares"),
    [
        (350, (200, 400, 100), [100, 200, 50]),
        (9, (7, 3, 5), [4, 2, 3]),  # 4.2, 1.8 and 3
        (14, (10, 10, 10), [5, 5, 4]),  # of equals the first
        (0, (0, 0), [0, 0]),
    ],
)
def test_what_is_missing_goes_where_most_is_missing(count, sizes, shares):
    assert shares_of(count, sizes) == shares


def test_rounding_empties_a_tensor_only_where_no_other_can_lose_one_more():
    assert shares_of(8, (2, 8)) == [1, 7]  # 1.6 and 6.4
    assert shares_of(9, (2, 8)) == [2, 7]  # 1.8 and 7.2: either is emptied by one more
    assert shares_of(9, (2, 4, 4)) == [2, 4, 3]  # 1.8, 3.6, 3.6: two of them must be


@pytest.mark.parametrize(
    ("caps", "shares"),
    [
        ((10, 10, 20), [5, 5, 10]),
        ((2, 10, 20), [2, 6, 12]),  # 18 of the other 30: 0.6 of each
        ((2, 5, 20), [2, 5, 13]),  # and so the second gets to its cap
        ((0, 0, 20), [0, 0, 20]),
    ],
)
def test_what_a_cap_saves_is_lost_by_the_others_in_equal_fractions(caps, shares):
    assert shares_of(20, (10, 10, 20), caps) == shares


@pytest.mark.parametrize("caps", [(0, 200, 8, 700, 64, 3, 420, 0, 0), tuple(s // 2 for s in SIZES)])
def test_with_caps_the_sum_is_as_exact_and_who_is_below_its_cap_loses_as_much_as_any(caps):
    for count in (0, 5, sum(caps) // 2, sum(caps) - 1, sum(caps)):
        shares = shares_of(count, SIZES, caps)
        assert sum(shares) == count
        assert all(share <= cap for share, cap in zip(shares, caps, strict=True))
        for share, size, cap in zip(shares, SIZES, caps, strict=True):
            for other, its_size in zip(shares, SIZES, strict=True):
                # But for the rounding of both.
                assert share == cap or (other - 1) * size < (share + 1) * its_size
