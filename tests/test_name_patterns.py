"""Substrings of tensor names mean the same wherever they are given."""

import pytest

from platon_prune.name_patterns import NamePatterns

NAMES = ["encoder.0.weight", "encoder.0.bias", "head.weight"]


def test_a_name_matches_that_has_one_of_the_substrings():
    patterns = NamePatterns.of("include", ["bias", "head"])
    assert [patterns.matches(name) for name in NAMES] == [False, True, True]
    assert patterns.matches("nothing", "overhead") and not patterns.matches("nothing", "Bias")


def test_the_substrings_that_a_name_has_come_in_their_order():
    patterns = NamePatterns.of("include", ["weight", "code", "bias"])
    assert patterns.matching("encoder.0.weight") == ["weight", "code"]


@pytest.mark.parametrize("given", [None, [], ()])
def test_none_given_match_nothing(given):
    patterns = NamePatterns.of("exclude", given)
    assert not patterns.matches(*NAMES) and patterns.unmatched(NAMES) == []


def test_the_empty_substring_is_in_every_name():
    assert all(NamePatterns.of("include", "").matches(name) for name in NAMES)


def test_a_lone_string_is_one_substring():
    assert NamePatterns.of("exclude", "head").substrings == ("head",)


@pytest.mark.parametrize("given", [3, [3], ["head", None], b"head"])
def test_what_is_no_string_is_refused(given):
    with pytest.raises(TypeError, match="exclude must hold substrings of parameter names, got"):
        NamePatterns.of("exclude", given)


def test_an_include_of_nothing_is_refused():
    with pytest.raises(ValueError, match="include must name at least one substring, got none"):
        NamePatterns.of("include", [])


def test_one_that_is_in_no_name_is_refused_with_an_example():
    patterns = NamePatterns.of("exclude", ["head", "pooler"])
    assert patterns.unmatched(NAMES) == ["pooler"]
    message = "exclude must match names of layers, but 'pooler' matches none; they look like enc"
    with pytest.raises(ValueError, match=message):
        patterns.require_matches(NAMES, "layers")
    with pytest.raises(ValueError, match="look like nothing: there are no layers"):
        patterns.require_matches([], "layers")
