"""Every command and flag that the README and the pages name exists, by the real parsers."""

import functools
import re
import shlex
import tomllib

import pytest
import yaml
from pages import PAGES, ROOT, blocks_of, name_of, pages_with, spans_of

from platon_prune import cli
from platon_prune.cli import COMMANDS, RECIPES
from platon_prune.integrations.recipes import arguments, clm, glue, image, parsing, squad, text
from platon_prune.integrations.recipes.authors_flags import AUTHORS_FLAGS

DATA = {
    "text": text.TextArguments,
    "clm": clm.ClmArguments,
    "glue": glue.GlueArguments,
    "squad": squad.SquadArguments,
    "image": image.ImageArguments,
}
PRESETS = {"glue": glue.GLUE_PRESETS, "squad": squad.SQUAD_PRESETS}
# Flags of other programs that the pages speak of.
FOREIGN = {
    "--nproc-per-node": "torchrun",
    "--fsdp_version": "accelerate launch",
    "--fp16": "trtexec",
    "--sparsity": "trtexec",
    "--recipe": "SparseML",
    "--distill_teacher": "SparseML",
    "--distill_temperature": "SparseML",
    **{f"--{flag}": "the authors' programs" for flag in AUTHORS_FLAGS},
}


@functools.cache
def parser_of(command):
    """The parser that ``platon-prune COMMAND`` reads its flags with."""
    if command in RECIPES:
        classes = (
            arguments.ModelArguments,
            DATA[command],
            arguments.PruningArguments,
            arguments.DistillationArguments,
            arguments.RecipeTrainingArguments,
        )
        return parsing._Parser(command, classes, "")
    parser = cli.parser_of(command)
    parser.allow_abbrev = False
    return parser


@functools.cache
def known_flags():
    flags = {
        flag
        for command in (*COMMANDS, *RECIPES)
        for flag in parser_of(command)._option_string_actions
    }
    return flags | {f"--{flag[2:].replace('_', '-')}" for flag in flags}  # taken as well


def commands_of(code):
    """The commands of a shell block as lists of words; those in a loop once for each value."""
    variable, values = "", [""]
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["for"]:
            variable, values = f"${words[1]}", [word.rstrip(";") for word in words[3:-1]]
        elif words == ["done"]:
            variable, values = "", [""]
        elif words:
            for value in values:
                yield [word.replace(variable, value) if variable else word for word in words]


def check_platon_prune(words):
    assert words and words[0] in (*COMMANDS, *RECIPES), f"no command {words[:1]}"
    command, *flags = words
    if flags and not flags[0].startswith("-") and command in RECIPES:
        assert flags[0].endswith((".yaml", ".json")), f"{flags[0]} is no file of settings"
        flags = flags[1:]
    try:
        if command in RECIPES:
            preset = parser_of(command).parse_given(flags).get("preset")
            assert preset is None or preset in PRESETS.get(command, {})
        else:
            parser_of(command).parse_args(flags)
    except SystemExit as error:
        assert error.code == 0, f"platon-prune {command} does not take {flags}"


def check_make(words):
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words)


def check_pip(words):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[0] == "install"
    name, _, extras = words[1].rstrip("]").partition("[")
    assert name in (".", project["name"])
    assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"])


def check_torchrun(words):
    rest = words[2:]  # after --nproc-per-node N
    if rest[:2] == ["-m", "platon_prune.cli"]:
        check_platon_prune(rest[2:])
    elif rest[0].startswith("docs/examples/"):
        check_python(rest)
    else:  # a script of the user's with the flags of TrainingArguments
        assert rest[0] == "train.py"
        check_platon_prune(["glue", *rest[1:]])


def check_trtexec(words):
    """Flags that TensorRT documents; the sizes are those of one set of inputs."""
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    shapes = [flags.pop(f"{end}Shapes") for end in ("min", "opt", "max")]
    assert flags.keys() == {"onnx", "saveEngine", "fp16", "sparsity"}
    assert len({re.sub(r"\d+", "", each) for each in shapes}) == 1


def check_python(words):
    """A script of this repository, from its root; flags are words that it looks for."""
    path, *flags = words
    text = (ROOT / path).read_text(encoding="utf-8")
    assert all(f'"{flag}"' in text for flag in flags)


CHECKS = {
    "platon-prune": check_platon_prune,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "torchrun": check_torchrun,
    "trtexec": check_trtexec,
}


@pytest.mark.parametrize("page", pages_with("sh", "bash"), ids=name_of)
def test_the_commands_of_a_page_are_taken_by_their_programs(page):
    for _, code in blocks_of(page, "sh", "bash"):
        for program, *words in commands_of(code):
            assert program in CHECKS, f"{program} is none of {', '.join(CHECKS)}"
            CHECKS[program](words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_flags_and_commands_within_the_text_of_a_page_exist(page):
    for span in spans_of(page):
        words = span.replace("=", " ").split()
        if words[0].split("/")[-1] == "platon-prune" and len(words) > 1 and words[1].islower():
            assert words[1] in (*COMMANDS, *RECIPES), span
        if words[0].startswith("--") or words[0].split("/")[-1] == "platon-prune":
            flags = {word.rstrip(",") for word in words if re.match(r"--\w", word)}
            assert flags <= known_flags() | set(FOREIGN) | {"--help", "--version"}, span


@pytest.mark.parametrize("page", pages_with("yaml"), ids=name_of)
def test_the_settings_of_a_file_on_a_page_are_flags_of_a_recipe(page):
    for _, code in blocks_of(page, "yaml"):
        assert set(yaml.safe_load(code)) <= set(parser_of("glue").destinations)


@pytest.mark.parametrize(
    "command",
    ["platon-prune glu", "platon-prune glue --amout 0.9", "platon-prune bench --repeats x"],
)
def test_a_command_that_does_not_exist_is_found(command):
    (words,) = commands_of(command)
    with pytest.raises(AssertionError):
        check_platon_prune(words[1:])
