"""From the command line, a JSON or YAML file and a preset to the settings of a run."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import HfArgumentParser

from platon_prune.integrations.recipes.arguments import (
    DEFAULT_AMOUNTS,
    DistillationArguments,
    ModelArguments,
    PruningArguments,
    RecipeTrainingArguments,
)
from platon_prune.integrations.recipes.authors_flags import AUTHORS_FLAGS
from platon_prune.integrations.recipes.files import parse_json, read_text
from platon_prune.integrations.recipes.presets import Preset

DataT = TypeVar("DataT")
_NOT_GIVEN = object()
# Of the trainer's flags those that --help shows.
_OF_MOST_RUNS = {
    "bf16", "do_eval", "do_predict", "do_train", "eval_strategy", "fp16",
    "gradient_accumulation_steps", "learning_rate", "logging_steps", "lr_scheduler_type",
    "max_steps", "num_train_epochs", "optim", "output_dir", "per_device_eval_batch_size",
    "per_device_train_batch_size", "resume_from_checkpoint", "save_strategy", "seed", "use_cpu",
    "warmup_steps", "weight_decay",
}  # fmt: skip


@dataclasses.dataclass
class Arguments(Generic[DataT]):
    """All settings of a run.

    Args:
        recipe: Name of the subcommand.
        model: Which model.
        data: The recipe's own arguments.
        pruning: How it is pruned.
        distillation: From which teacher it learns.
        training: transformers' arguments.
        given: Names of the flags that the user gave, on the command line or in a file.
        from_preset: Names and values that came from the preset.
        deciding: The settings that decide the numbers, as they were when the run began.
    """

    recipe: str
    model: ModelArguments
    data: DataT
    pruning: PruningArguments
    distillation: DistillationArguments
    training: RecipeTrainingArguments
    given: frozenset[str]
    from_preset: dict[str, Any]
    deciding: dict[str, Any] = dataclasses.field(default_factory=dict)


def parse_arguments(
    argv: Sequence[str] | None,
    recipe: str,
    data_class: type[DataT],
    *,
    description: str,
    examples: str,
    presets: Mapping[str, Preset] | None = None,
) -> Arguments[DataT]:
    """Read the settings of a recipe.

    Args:
        argv: Flags, or the name of a JSON or YAML file with the same names, then flags that win
            over it; those of the process by default.
        recipe: Name of the subcommand.
        data_class: Dataclass of the recipe's own flags.
        description: What ``--help`` says first.
        examples: Commands, which ``--help`` shows below its first lines.
        presets: What ``--preset`` may name.

    Raises:
        ValueError: If the file can't be read, a name is unknown, or a value is out of range.
        SystemExit: After ``--help``, or if a flag is unknown or has a value of another type.
    """
    classes = (
        ModelArguments,
        data_class,
        PruningArguments,
        DistillationArguments,
        RecipeTrainingArguments,
    )
    flags = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(recipe, classes, f"{description}\n\nexamples:\n{examples}")
    if flags and not flags[0].startswith("-"):
        flags = [*_flags_of_file(Path(flags[0]), parser.destinations), *flags[1:]]
    given = parser.parse_given(flags)
    from_preset = {
        name: value
        for name, value in _preset_flags(recipe, given.get("preset"), presets or {}).items()
        if name not in given
    }
    chosen = {**from_preset, **given}
    if {"amount", "pruning_speedup"} <= given.keys():
        raise ValueError(
            "--pruning_speedup must stand instead of --amount, got both: leave one of them out"
        )
    if chosen.get("pruning_granularity") in DEFAULT_AMOUNTS:
        chosen.setdefault("amount", DEFAULT_AMOUNTS[chosen["pruning_granularity"]])
    model, data, pruning, distillation, training = (_make(cls, chosen) for cls in classes)
    return Arguments(
        recipe, model, data, pruning, distillation, training, frozenset(given), from_preset
    )  # type: ignore[arg-type]


def _make(cls: Any, chosen: Mapping[str, Any]) -> Any:
    """A dataclass from the settings that are its own."""
    own = {f.name: chosen[f.name] for f in dataclasses.fields(cls) if f.name in chosen}
    try:
        return cls(**own)
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(str(error)) from error


class _ShowHelp(argparse.Action):
    """``--help`` shows our flags and what most runs need of the trainer's; ``--help-all`` all."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        parser.shows_all = option not in ("-h", "--help")
        parser.print_help()
        parser.exit()


class _Parser(HfArgumentParser):
    """Tells what was given from what is a default, and suggests names for unknown flags."""

    shows_all = False

    def __init__(self, recipe: str, classes: Sequence[type], description: str) -> None:
        super().__init__(
            list(classes),  # type: ignore[arg-type]
            prog=f"platon-prune {recipe}",
            usage=f"platon-prune {recipe} [FILE.json | FILE.yaml] [--flag value ...]",
            description=description,
            epilog="--help-all shows every flag of transformers' TrainingArguments as well.",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        names = ("-h", "--help", "--help-all", "--help_all")
        shown = "show this, or with --help-all also every flag of the trainer"
        self.add_argument(
            *names, action=_ShowHelp, nargs=0, dest="help", default=argparse.SUPPRESS, help=shown
        )
        self.flags = frozenset(self._option_string_actions)
        self.destinations = {
            option.removeprefix("--"): action.dest
            for option, action in self._option_string_actions.items()
            if option.startswith("--") and action.dest != "help" and action.nargs != 0
        }

    def format_help(self) -> str:
        """As argparse's, of the trainer's flags only those that most runs need."""
        hidden = {
            action: action.help
            for group in self._action_groups
            if group.title == RecipeTrainingArguments._argument_group_name and not self.shows_all
            for action in group._group_actions
            if action.dest not in _OF_MOST_RUNS
        }
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, text in hidden.items():
                action.help = text

    def parse_given(self, flags: Sequence[str]) -> dict[str, Any]:
        """Names and values of the flags that are there; no defaults."""
        # A mark of our own stands for "not given", since a given value may equal the default.
        nothing = argparse.Namespace(**dict.fromkeys(self.destinations.values(), _NOT_GIVEN))
        namespace, unknown = self.parse_known_args(list(map(self._as_declared, flags)), nothing)
        for flag in unknown:
            if flag.startswith("--"):
                self.error(_unknown(flag.split("=")[0], [f"--{n}" for n in self.destinations]))
        if unknown:
            self.error(
                f"a value must follow the flag that it is for, got {unknown[0]!r} on its own"
            )
        return {name: value for name, value in vars(namespace).items() if value is not _NOT_GIVEN}

    def _as_declared(self, word: str) -> str:
        """A flag in the spelling that is known, whatever - and _ it was typed with."""
        name, equals, value = word.partition("=")
        declared = f"--{name[2:].replace('-', '_')}"
        is_other = name.startswith("--") and name not in self._option_string_actions
        return f"{declared}{equals}{value}" if is_other and declared in self.flags else word


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults, each flag under its first name, and the description as it is written."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        if action.nargs == 0 or not names:
            return super()._format_action_invocation(action)
        value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else "VALUE"
        value = {"?": f"[{value}]", "+": f"{value} ..."}.get(str(action.nargs), value)
        return ", ".join(names) + " " + value

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.default not in (None, argparse.SUPPRESS) and action.dest != "help"
        return text + " (default: %(default)s)" if shown and "%(default)" not in text else text


def _unknown(name: str, names: Sequence[str]) -> str:
    bare = name.removeprefix("--").replace("-", "_")
    same = name[: len(name) - len(bare)] + AUTHORS_FLAGS.get(bare, "")
    # What looks alike may mean something else: the authors' initial_warmup is no --warmup_steps.
    close = [same] if same in names else difflib.get_close_matches(name, names, n=1)
    return f"there is no {name}" + (f": did you mean {close[0]}?" if close else "; see --help")


def _flags_of_file(path: Path, destinations: Mapping[str, str]) -> list[str]:
    """The settings of a file as flags, so that both are read and checked alike."""
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(
            f"settings must be flags or a .json, .yaml or .yml file, got {str(path)!r}: begin "
            "flags with --"
        )
    if not path.is_file():
        raise ValueError(f"the file of settings must exist, got {path}: check its name")
    flags: list[str] = []
    for name, value in _read_settings(path).items():
        if name not in destinations:
            raise ValueError(f"{path}: {_unknown(str(name), list(destinations))}")
        # As text, so that a file is read by the types and the choices of the flags.
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            text = json.dumps(value) if isinstance(value, (dict, bool)) else str(value)
            flags.append(f"--{name}={text}")
    return flags


def _read_settings(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = read_text(path)
        settings = parse_json(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} must be valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path} must hold names and values, such as learning_rate: 0.0001, got a "
            f"{type(settings).__name__}"
        )
    return settings


def _preset_flags(recipe: str, name: str | None, presets: Mapping[str, Preset]) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in presets:
        known = ", ".join(presets) or "none for this recipe"
        raise ValueError(f"--preset must be one of {recipe}'s presets ({known}), got {name!r}")
    flags: dict[str, Any] = presets[name].flags()
    return flags
