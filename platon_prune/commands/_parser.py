"""The parser of the commands: flags are taken with - and with _, and errors say what was typed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

# As platon_prune.criteria.CRITERIA, which can't be had without torch.
CRITERION_NAMES = (
    "platon", "sensitivity", "magnitude", "movement", "random", "fisher", "scaled_magnitude",
)  # fmt: skip


class CommandParser(argparse.ArgumentParser):
    """Reads ``--output-dir`` as ``--output_dir``, the one spelling that flags are declared in."""

    _typed: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, of flags in either spelling."""
        self._typed = args or ()
        return super().parse_known_args(None if args is None else underscored(args), namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, with flags as they were typed, and exit with status 2."""
        super().error(as_typed(message, self._typed))


def underscored(words: Sequence[str]) -> list[str]:
    """Words of a command line with the names of its flags in underscores.

    Args:
        words: As typed; those after a lone ``--`` are somebody else's, and stay.
    """
    own = words.index("--") if "--" in words else len(words)
    return [*map(_underscored, words[:own]), *words[own:]]


def as_typed(message: str, words: Sequence[str]) -> str:
    """A message with the names of flags in the spelling that its reader has typed them in."""
    for word in words:
        typed = word.partition("=")[0]
        if typed.startswith("--") and len(typed) > 2:
            for other in (_underscored(typed), f"--{typed[2:].replace('_', '-')}"):
                message = message.replace(other, typed)
    return message


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word  # a value, or -o
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
