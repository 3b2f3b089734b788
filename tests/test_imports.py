"""The plan of the house: wings import one way only, and the package needs torch alone."""

import ast
import importlib
import inspect
import pickle
import subprocess
import sys

import pytest
from pages import ROOT

import platon_prune

GROUND = (
    "bias_spellings", "criteria", "example_inputs", "extras", "foreign", "mixtures",
    "name_patterns", "schedule", "spellings", "tables", "timing", "version", "warning", "writing",
)  # fmt: skip
# A wing imports from steps before its own; docs/contributing.md says what lives in each.
STEPS = [
    ("amounts",), GROUND, ("tensors",), ("choice",), ("masks", "history", "goals"),
    ("scheduling", "groups"),
    ("shrinking", "reports", "plots"), ("pruning", "runtimes", "export"),
    ("deploy", "studies"),
    ("commands",),
]  # fmt: skip
STEP_OF = {wing: step for step, wings in enumerate(STEPS) for wing in wings}
ANYTHING = ("__init__", "compat", "cli")  # may import anything
NEEDS_NO_EXTRA = {"torch", "platon_prune"} | set(sys.stdlib_module_names)
# Imported only by who asks for these kernels; nothing else may need it.
NEEDS = {"tensors.triton_kernels": {"triton"}, "runtimes.llvm_kernel": {"llvmlite"}}
PACKAGE = ROOT / "platon_prune"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "integrations" not in path.parts)
INTEGRATIONS = sorted((ROOT / "integrations").rglob("*.py"))


def _module(path):
    """Its name below the package: ``tensors.blocks``; of a wing's front page, ``tensors``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path) for path in FILES}


def _imports(path, everywhere=True):
    """Names of the modules that a file imports; only at its top level unless ``everywhere``."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_imports(path):
    """The modules of the package that a file imports, below the package."""
    for name in _imports(path):
        inner = name.removeprefix("platon_prune.")
        if inner != name or name == "platon_prune":
            yield inner if inner in MODULES else inner.rpartition(".")[0] or "__init__"


def test_imports_go_one_way_between_wings_and_in_no_circle():
    arrows = {_module(path): set(_own_imports(path)) - {_module(path)} for path in FILES}
    for file, names in arrows.items():
        own = file.split(".")[0]
        for name in names if own not in ANYTHING else ():
            wing = name.split(".")[0]
            is_below = wing == own or STEP_OF.get(wing, len(STEPS)) < STEP_OF[own]
            is_above = wing in (*ANYTHING, "integrations")
            assert is_below or (own == "commands" and is_above), f"{file} imports {name}"
    while arrows:  # what imports nothing that is left is taken away
        leaves = {file for file, names in arrows.items() if not names & arrows.keys()}
        assert leaves, f"these import each other in a circle: {sorted(arrows)}"
        arrows = {file: names for file, names in arrows.items() if file not in leaves}


def test_no_folder_holds_more_than_20_modules():
    for folder in {path.parent for path in [*FILES, *INTEGRATIONS]}:
        assert len(list(folder.glob("*.py"))) <= 20 + 1, f"{folder} wants another wing"


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_a_file_needs_torch_alone_to_be_imported(path):
    extra = NEEDS.get(_module(path), set())
    for name in _imports(path, everywhere=False):
        assert name.split(".")[0] in NEEDS_NO_EXTRA | extra, (
            f"{path.name} imports {name} at its top"
        )


def test_integrations_use_only_what_a_user_could_import():
    for path in INTEGRATIONS:
        for name in _imports(path):
            if name.startswith("platon_prune.") and not name.startswith(
                "platon_prune.integrations"
            ):
                assert name.split(".")[1] in platon_prune.__all__, f"{path.name} imports {name}"


def test_a_user_sees_the_public_names_only():
    assert dir(platon_prune) == sorted(platon_prune.__all__)
    modules = {name for name in dir(platon_prune) if inspect.ismodule(getattr(platon_prune, name))}
    assert modules == {"compat", "integrations", "plots"}


@pytest.mark.case
def test_a_star_import_brings_the_public_names_only():
    names: dict = {}
    exec("from platon_prune import *", names)
    assert names.keys() - {"__builtins__"} == set(platon_prune.__all__)


def test_the_names_for_type_checkers_are_those_that_a_user_gets():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and not node.orelse
                and isinstance(node.test, ast.Name))  # fmt: skip
    promised = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert promised.keys() | {"__version__"} == set(platon_prune.__all__)
    for name, module in promised.items():
        got = getattr(platon_prune, name)
        assert got is getattr(importlib.import_module(module), name), name


def test_a_name_is_loaded_on_its_first_use_and_kept():
    vars(platon_prune).pop("Choice", None)
    assert platon_prune.Choice is vars(platon_prune)["Choice"]


def test_a_name_that_does_not_exist_is_an_attribute_error_and_an_import_error():
    with pytest.raises(AttributeError, match="has no attribute 'prun'"):
        platon_prune.prun  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'prun'"):
        exec("from platon_prune import prun")


def test_a_module_of_the_package_is_an_attribute_as_it_was_before_names_were_lazy():
    assert platon_prune.schedule.CubicSchedule is platon_prune.CubicSchedule


def test_what_is_pickled_is_read_by_a_process_that_has_used_no_name_yet():
    pickled = pickle.dumps((platon_prune.Platon(0.5), platon_prune.Magnitude, platon_prune.remove))
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())[0])"
    result = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True)
    assert result.stdout.decode().strip() == str(platon_prune.Platon(0.5))


def test_a_function_is_not_imported_in_place_of_a_module():
    with pytest.raises(ModuleNotFoundError):
        import platon_prune.summary  # noqa: F401


def test_importing_the_package_loads_no_extra():
    code = (
        "import sys, platon_prune; "
        "extras = {'transformers', 'torch_pruning', 'sklearn', 'matplotlib', 'safetensors', "
        "'zstandard', 'triton'}; "
        "print(sorted(extras & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_no_file_outgrows_its_room():
    for path in [*FILES, *INTEGRATIONS]:
        assert len(path.read_text().splitlines()) <= 400, f"{path.name} wants splitting"
