"""The room plan: a file imports only from lower levels, and the package needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Every file of the package, by level; docs/contributing.md says what lives in each.
LEVELS = [
    {"version", "schedule", "criteria", "blocks", "collectives", "gradients"}
    | {"ordering", "shards", "tables", "timing", "coupled", "set_aside"}
    | {"resize", "config_sizes", "default_selection"},
    {"optimizer_states", "forms", "memory", "ranking", "targets", "lanes", "layouts", "bits"},
    {"selection", "masked", "input_dims", "mask_history"},
    {"removable", "pruned_class", "patterns", "dependencies", "limits", "changes"}
    | {"mask_recorder"},
    {"head_bias", "method", "groups", "costs", "history", "notices"},
    {"uniform", "averages", "granularity"},
    {"tracked", "states", "export", "n_of_m", "group_scores"},
    {"agreement", "coupled_choice"},
    {"selected"},
    {"scheduler"},
    {"shrink", "summary", "compat", "plots", "setting_up", "structure"},
    {"api", "semi_structured", "structured"},
    {"deploy"},
    {"__init__"},
    {"commands"},
    {"cli"},
]
FOLDERS = {"commands", "deploy", "export", "plots"}  # of files that may import each other
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
NEEDS_NO_EXTRA = {"torch", "platon_prune"} | set(sys.stdlib_module_names)


def _package_files():
    return sorted((ROOT / "platon_prune").rglob("*.py"))


def _room(path):
    relative = path.relative_to(ROOT / "platon_prune")
    return relative.parts[0].removesuffix(".py")


def _imports(path, everywhere=True):
    """Names of the modules that a file imports; only at its top level unless ``everywhere``."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _package_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_lower_levels(path):
    own = _room(path)
    assert own in LEVEL_OF, f"{path.name} has no level: give it one"
    for name in _imports(path):
        if name.split(".")[0] != "platon_prune":
            continue
        parts = name.split(".")
        room = parts[1] if len(parts) > 1 and parts[1] in LEVEL_OF else "__init__"
        if own == room and own in FOLDERS:
            continue
        assert LEVEL_OF[room] < LEVEL_OF[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", _package_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_needs_torch_alone_to_be_imported(path):
    for name in _imports(path, everywhere=False):
        assert name.split(".")[0] in NEEDS_NO_EXTRA, f"{path.name} imports {name} at its top"


def test_integrations_use_only_what_a_user_could_import():
    public = set(_public_names())
    for path in sorted((ROOT / "integrations").rglob("*.py")):
        for name in _imports(path):
            if name.startswith("platon_prune.") and not name.startswith(
                "platon_prune.integrations"
            ):
                assert name.split(".")[1] in public, f"{path.name} imports {name}"


def _public_names():
    for node in ast.parse((ROOT / "platon_prune" / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def test_importing_the_package_loads_no_extra():
    code = (
        "import sys, platon_prune; "
        "extras = {'transformers', 'torch_pruning', 'sklearn', 'matplotlib', 'safetensors', "
        "'zstandard'}; "
        "print(sorted(extras & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_no_file_outgrows_its_room():
    for path in [*_package_files(), *sorted((ROOT / "integrations").rglob("*.py"))]:
        assert len(path.read_text().splitlines()) <= 400, f"{path.name} wants splitting"
