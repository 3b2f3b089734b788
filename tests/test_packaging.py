"""The distribution: both packages are in the wheel and in an editable install."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import platon_prune

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    source = tmp_path_factory.mktemp("project") / "source"
    source.mkdir()
    # A copy: building leaves files beside the sources.
    for name in ("platon_prune", "integrations", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
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


# What a user may write under mypy --strict. Where a line is wrong, strict reports the comment as
# unused unless the types are seen: a package without types, or one not found, would be Any.
USERS_FILE = """
import torch
from torch import nn

import platon_prune
from platon_prune.integrations.granularities import check_granularity


def prune(model: nn.Linear) -> nn.Linear:
    scheduler = platon_prune.global_unstructured(model, amount=0.9, total_steps=1000)
    scheduler.step(skipped="no")  # type: ignore[arg-type]
    sparsity: str = scheduler.sparsity()  # type: ignore[assignment]
    print(sparsity, platon_prune.apply_masks(model).in_features)
    return platon_prune.remove(model).eval()


def use(model: nn.Linear) -> int:
    model.load_state_dict(platon_prune.load("model.safetensors"))
    platon_prune.load("folder").eval()
    print(platon_prune.shrink(model).parameters_after)
    return platon_prune.load_into(model, "model.safetensors").out_features


def bring_in(frameworks: nn.Module) -> None:
    check_granularity(1, 0.5)  # type: ignore[arg-type]
    platon_prune.remove(frameworks, torch.ones(1))  # type: ignore[call-arg]
"""

# Beside torch, what the package imports where it is used is not read: transformers takes minutes.
UNREAD = (
    "transformers", "datasets", "accelerate", "lightning", "torch_pruning", "matplotlib", "numpy",
    "onnx", "onnxruntime", "onnxscript", "openvino", "llvmlite", "safetensors", "sklearn",
    "zstandard", "sympy", "torchao",
)  # fmt: skip
SETTINGS = f"""
[mypy]
strict = true
follow_imports = silent
[mypy-{",".join(f"{name}.*" for name in UNREAD)}]
follow_imports = skip
ignore_missing_imports = true
"""


def _site_packages(folder):
    """Those of a new environment, which also sees the packages of the one that runs the tests."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    torch = next(path for path in sys.path if (Path(path) / "torch").is_dir())
    (packages / "tests.pth").write_text(f"{torch}\n")  # after the environment's own
    return packages


def _build_editable(source, folder):
    code = f"from setuptools.build_meta import build_editable as b; b({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source, capture_output=True)
    return next(folder.glob("platon_prune-*.whl"))


def test_a_users_strict_type_checker_sees_the_types_of_both_installs(source, wheel, tmp_path):
    (tmp_path / "users.py").write_text(USERS_FILE)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    for name, built in (("wheel", wheel), ("editable", _build_editable(source, tmp_path))):
        environment = tmp_path / name
        zipfile.ZipFile(built).extractall(_site_packages(environment))
        # The cache is the project's, where torch has been read before.
        result = subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable",
             environment / "bin" / "python", "--cache-dir", ROOT / ".mypy_cache" / "users",
             "users.py"],
            capture_output=True, text=True, cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},  # no MYPYPATH and no PYTHONPATH
        )  # fmt: skip
        assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"
