"""Every Python block in the README and the pages runs as it stands; what they point at exists."""

import re
import warnings

import pytest
import torch
from pages import PAGES, ROOT, blocks_of, imported_in, missing_in, name_of, pages_with

import platon_prune

README = ROOT / "README.md"


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_blocks_of_a_page_run_top_to_bottom_in_one_namespace(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__page__"}
    for line, code in blocks_of(page, "python"):
        # Empty lines bring the line numbers of a traceback in step with the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_a_block_that_needs_nothing_of_the_ones_before_it_brings_its_imports(page):
    imported = set()
    for line, code in blocks_of(page, "python"):
        missing = missing_in(code)
        assert not missing or missing - imported, f"line {line} lacks the imports of {missing}"
        imported |= imported_in(code)


def readme_blocks():
    return [pytest.param(*block, id=f"line {block[0]}") for block in blocks_of(README, "python")]


@pytest.mark.parametrize(("line", "code"), readme_blocks())
def test_every_block_of_the_readme_runs_alone(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * (line - 1) + code, str(README), "exec"), {"__name__": "__page__"})


def test_the_trainer_of_the_front_page_warns_of_nothing_and_prints_what_it_says(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = (code for _, code in blocks_of(ROOT / "docs" / "index.md", "python"))
    code = next(code for code in blocks if "PlatonCallback" in code)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", platon_prune.PruningWarning)
        exec(code, {"torch": torch, "platon_prune": platon_prune})
    assert not [each for each in said if each.category is platon_prune.PruningWarning]
    promised = re.search(r"print\(.*\)  # (.+)", code).group(1)
    assert capsys.readouterr().out.splitlines()[-1] == promised == "90.0%"


def test_the_readme_has_code_and_its_pictures_and_pages_exist():
    assert any(blocks_of(README, "python"))
    assert re.search(r"!\[[^\]]*\]\([^)]+\)", README.read_text())
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README.read_text())
    assert targets
    missing = [target for target in targets if not (ROOT / target).is_file()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_language_it_is_in_unless_it_is_output(page):
    # "py" is not run: it needs a compiler, or a package that the tests do without.
    known = {"python", "py", "sh", "bash", "yaml", "bibtex", ""}
    languages = re.findall(r"^```(\S+)", page.read_text(), re.MULTILINE)
    assert set(languages) <= known
    for _, code in blocks_of(page, ""):
        assert not re.search(r"^(platon-prune|pip|make|import) ", code, re.MULTILINE)
