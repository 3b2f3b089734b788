"""The distribution: both packages are in the wheel and in an editable install."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import platon_prune

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy: building leaves files beside the sources.
    for name in ("platon_prune", "integrations", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", folder, source],
        check=True,
    )  # fmt: skip
    return next(folder.glob("platon_prune-*.whl"))


def test_the_wheel_holds_every_file_of_both_packages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, installed in (
        ("platon_prune", "platon_prune"),
        ("integrations", "platon_prune/integrations"),
    ):
        for path in (ROOT / package).rglob("*.py"):
            assert f"{installed}/{path.relative_to(ROOT / package)}" in names
    assert "platon_prune/py.typed" in names
    assert not any(name.startswith(("tests/", "integrations/", "docs/")) for name in names)


def test_an_installed_wheel_imports(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "import platon_prune, platon_prune.integrations, platon_prune.commands; "
        "print(platon_prune.__file__, platon_prune.integrations.__file__, platon_prune.__version__)"
    )
    printed = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.split()
    assert printed[0].startswith(str(tmp_path))
    assert printed[1] == str(tmp_path / "platon_prune" / "integrations" / "__init__.py")
    assert printed[2] == platon_prune.__version__


def test_the_install_under_test_has_the_integrations(tmp_path):
    code = "import platon_prune.integrations; print(platon_prune.integrations.__doc__)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "training frameworks" in result.stdout


def test_the_command_prints_its_version(tmp_path):
    command = Path(sys.executable).with_name("platon-prune")
    result = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.strip() == platon_prune.__version__
