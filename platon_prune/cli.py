"""The command line: finds the subcommand and hands over."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from platon_prune.commands._parser import CommandParser, as_typed
from platon_prune.extras import how_to_install
from platon_prune.version import __version__
from platon_prune.warning import PruningWarning

# Each is a module of platon_prune.commands with HELP, add_arguments(parser) and run(arguments).
# What they import at their top is no torch and no extra: --help and wrong flags answer at once.
COMMANDS = (
    "demo", "bench", "deploy", "inspect", "export", "scale", "memory", "study", "architectures",
    "curve",
)  # fmt: skip
# Each is a module of platon_prune.integrations.recipes with main(argv), which reads its own flags.
# It is imported only when it is chosen, since it needs transformers.
RECIPES = {
    "text": "Fine-tune and prune a model on a file of texts: classes, labels or numbers.",
    "clm": "Fine-tune and prune a causal language model, on texts or chats.",
    "glue": "Fine-tune and prune a model on a task of GLUE, by name or from local files.",
    "squad": "Fine-tune and prune a model that answers questions, on SQuAD.",
    "image": "Fine-tune and prune a model that classifies images.",
}
_STOPPED = 130  # what shells take for "ended by Ctrl-C"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``platon-prune`` with these arguments (those of the process by default).

    Returns:
        The exit status: 0, also where nobody reads the output any more; 2 where arguments or the
        installation do not allow the command; 130 if it was stopped by Ctrl-C.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _main(flags)
        finally:
            # Here, where a closed pipe can be told from an error; at the exit it is a traceback.
            if sys.stdout is not None:  # as in a process that has none
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return _STOPPED
    except BrokenPipeError:
        if not _leave_closed_pipe():
            raise
        return 0


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command, by its name among ``COMMANDS``."""
    module = importlib.import_module(f"platon_prune.commands.{name}")
    parser = CommandParser(prog=f"platon-prune {name}", description=module.HELP)
    module.add_arguments(parser)
    return parser


def _main(flags: list[str]) -> int:
    name = flags[0] if flags else ""
    if name in RECIPES:
        return _run(flags, "transformers,plots", lambda: _run_recipe(name, flags[1:]))
    if name in COMMANDS:
        arguments = parser_of(name).parse_args(flags[1:])
        return _run(flags, "all", lambda: _run_command(name, arguments))
    if name == "--":  # before a command, what some releases of Python take away and others refuse
        return _main(flags[1:])
    _front_parser().parse_args(flags)
    raise AssertionError("a command that is none was let pass")


def _front_parser() -> argparse.ArgumentParser:
    """The parser of what is no command: it lists them."""
    parser = argparse.ArgumentParser(
        prog="platon-prune",
        description="PLATON pruning for PyTorch and transformers.",
        epilog="platon-prune COMMAND --help shows the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module: Any = importlib.import_module(f"platon_prune.commands.{name}")
        subparsers.add_parser(name, help=module.HELP)
    for name, text in RECIPES.items():
        subparsers.add_parser(name, help=text)
    return parser


def _run_command(name: str, arguments: argparse.Namespace) -> int:
    status: int = importlib.import_module(f"platon_prune.commands.{name}").run(arguments)
    return status


def _run_recipe(name: str, flags: Sequence[str]) -> int:
    module = importlib.import_module(f"platon_prune.integrations.recipes.{name}")
    status: int = module.main(flags)
    return status


def _run(flags: Sequence[str], extra: str, command: Callable[[], int]) -> int:
    """Run a command; what its user can mend is said in one line."""
    name = flags[0]
    # Where torchao is installed, transformers imports it: it tells of each kernel that does not fit
    # the machine, before the first line of ours.
    for logger in ("torchao", "torch.utils._pytree"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        with _warnings_in_words(name):
            return command()
    except ModuleNotFoundError as error:
        print(
            f"platon-prune {name} needs {error.name}, which is not installed: "
            f"{how_to_install(error.name, extra)}",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) or not _is_own(error):
            raise
        said = getattr(error, "strerror", None) or error  # without the number of a system's error
        print(f"platon-prune {name}: {as_typed(str(said), flags)}", file=sys.stderr)
        return 2


@contextmanager
def _warnings_in_words(name: str) -> Iterator[None]:
    """Print the library's warnings as a line of the command, without a place in its code."""
    ordinary = warnings.formatwarning

    def line_of(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        if issubclass(category, PruningWarning):
            return f"platon-prune {name}: warning: {message}\n"
        return ordinary(message, category, *where, **more)

    # Only how they look: filters, and what a caller records, stay as they are.
    warnings.formatwarning = line_of
    try:
        yield
    finally:
        warnings.formatwarning = ordinary


def _leave_closed_pipe() -> bool:
    """Whether the reader of our output has gone; if so, nothing more is written to it."""
    if not _has_lost_its_reader(sys.stdout):
        return False
    # Python flushes once more at the exit, which would fail again.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return True


def _has_lost_its_reader(stream: TextIO) -> bool:
    try:
        stream.flush()  # what could not be written may be held still, or be lost already
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # errors are always told
    except BrokenPipeError:
        return True
    except (AttributeError, OSError):  # Windows has no poll; what stands in for a stream no number
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _is_own(error: BaseException) -> bool:
    """Whether this package raised it; any other library's needs its traceback to be understood."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = "" if last is None else last.tb_frame.f_globals.get("__name__", "")
    return str(module).split(".")[0] == "platon_prune"


if __name__ == "__main__":
    sys.exit(main())
