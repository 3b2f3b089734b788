"""`NamePatterns`: which tensors a list of substrings names: include, exclude and limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True)
class NamePatterns:
    """Substrings of tensor names; a name that has one of them matches.

    Args:
        argument: What the user's argument is called, for messages.
        substrings: In the order given; where there are none, nothing matches.
    """

    argument: str
    substrings: tuple[str, ...] = ()

    @classmethod
    def of(cls, argument: str, given: str | Sequence[str] | None) -> NamePatterns:
        """Check what a user passed; None is no substring at all.

        Raises:
            TypeError: If it holds anything but strings.
            ValueError: If ``include`` is given and empty.
        """
        if given is None:
            return cls(argument)
        # A lone string is one substring, not a sequence of letters.
        is_one = isinstance(given, str) or not isinstance(given, Iterable)
        listed: tuple[object, ...] = (given,) if is_one else tuple(given)
        if not all(isinstance(substring, str) for substring in listed):
            raise TypeError(f"{argument} must hold substrings of parameter names, got {given!r}")
        if argument == "include" and not listed:
            raise ValueError(
                "include must name at least one substring, got none: leave it out for the default "
                "selection"
            )
        return cls(argument, cast(tuple[str, ...], listed))

    def matches(self, *names: str) -> bool:
        """Whether one of the names has one of the substrings."""
        return any(substring in name for substring in self.substrings for name in names)

    def matching(self, name: str) -> list[str]:
        """The substrings that a name has."""
        return [substring for substring in self.substrings if substring in name]

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """The substrings that none of the names has."""
        listed = list(names)
        return [each for each in self.substrings if not any(each in name for name in listed)]

    def require_matches(self, names: Iterable[str], what: str) -> None:
        """Raise a ValueError if one of the substrings is in none of the names.

        Args:
            names: All that there are; the first is shown as an example.
            what: What they are names of, such as "pruned tensors".
        """
        listed = list(names)
        for substring in self.unmatched(listed):
            example = listed[0] if listed else f"nothing: there are no {what}"
            raise ValueError(
                f"{self.argument} must match names of {what}, but {substring!r} matches none; they "
                f"look like {example}"
            )
