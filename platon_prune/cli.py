"""The command line: finds the subcommand and hands over."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from platon_prune.version import __version__

# Each is a module of platon_prune.commands with HELP, add_arguments(parser) and run(arguments).
# A command imports what it needs inside its functions, so that --help is quick and needs no extra.
COMMANDS = ("demo", "bench", "deploy", "inspect", "export", "scale", "study", "architectures")
# Each is a module of platon_prune.integrations.recipes with main(argv), which reads its own flags.
# It is imported only when it is chosen, since it needs transformers.
RECIPES = {
    "text": "Fine-tune and prune a model on a file of texts: classes, labels or numbers.",
    "clm": "Fine-tune and prune a causal language model, on texts or chats.",
    "glue": "Fine-tune and prune a model on a task of GLUE, by name or from local files.",
    "squad": "Fine-tune and prune a model that answers questions, on SQuAD.",
    "image": "Fine-tune and prune a model that classifies images.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``platon-prune`` with these arguments (those of the process by default).

    Returns:
        The exit status: 0, or 2 where arguments or the installation do not allow the command.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    if flags and flags[0] in RECIPES:
        return _run(flags[0], "transformers,plots", lambda: _run_recipe(flags[0], flags[1:]))
    parser = argparse.ArgumentParser(
        prog="platon-prune",
        description="PLATON pruning for PyTorch and transformers.",
        epilog="platon-prune COMMAND --help shows the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    for name in COMMANDS:
        module = importlib.import_module(f"platon_prune.commands.{name}")
        modules[name] = module
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
    for name, text in RECIPES.items():
        subparsers.add_parser(name, help=text, add_help=False)
    arguments = parser.parse_args(flags)
    return _run(arguments.command, "all", lambda: modules[arguments.command].run(arguments))


def _run_recipe(name: str, flags: Sequence[str]) -> int:
    module = importlib.import_module(f"platon_prune.integrations.recipes.{name}")
    status: int = module.main(flags)
    return status


def _run(name: str, extra: str, command: Callable[[], int]) -> int:
    """Run a command; what its user can mend is said in one line."""
    try:
        return command()
    except ModuleNotFoundError as error:
        print(
            f"platon-prune {name} needs {error.name}, which is not installed: "
            f"pip install 'platon-prune[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError) as error:
        if not _is_own(error):
            raise
        said = getattr(error, "strerror", None) or error  # without the number of a system's error
        print(f"platon-prune {name}: {said}", file=sys.stderr)
        return 2


def _is_own(error: BaseException) -> bool:
    """Whether this package raised it; any other library's needs its traceback to be understood."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = "" if last is None else last.tb_frame.f_globals.get("__name__", "")
    return str(module).split(".")[0] == "platon_prune"


if __name__ == "__main__":
    sys.exit(main())
