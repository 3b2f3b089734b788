"""The command line: finds the subcommand and hands over."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from platon_prune.version import __version__

# Each is a module of platon_prune.commands with HELP, add_arguments(parser) and run(arguments).
# A command imports what it needs inside its functions, so that --help is quick and needs no extra.
COMMANDS = ("demo", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``platon-prune`` with these arguments (those of the process by default).

    Returns:
        The exit status: 0, or 2 where arguments or the installation do not allow the command.
    """
    parser = argparse.ArgumentParser(
        prog="platon-prune", description="PLATON pruning for PyTorch and transformers."
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    for name in COMMANDS:
        module = importlib.import_module(f"platon_prune.commands.{name}")
        modules[name] = module
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
    arguments = parser.parse_args(argv)
    try:
        status: int = modules[arguments.command].run(arguments)
    except ModuleNotFoundError as error:
        print(
            f"platon-prune {arguments.command} needs {error.name}, which is not installed: "
            "pip install 'platon-prune[all]'",
            file=sys.stderr,
        )
        return 2
    except ValueError as error:
        print(f"platon-prune {arguments.command}: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
