"""Every Python block in the README and the pages runs as it stands; what they point at exists."""

import re

import pytest
import torch
from pages import PAGES, ROOT, blocks_of, name_of, pages_with


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_blocks_of_a_page_run_top_to_bottom_in_one_namespace(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__page__"}
    for line, code in blocks_of(page, "python"):
        # Empty lines bring the line numbers of a traceback in step with the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def test_the_readme_has_code_and_its_pictures_and_pages_exist():
    readme = ROOT / "README.md"
    assert any(blocks_of(readme, "python"))
    assert re.search(r"!\[[^\]]*\]\([^)]+\)", readme.read_text())
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", readme.read_text())
    assert targets
    missing = [target for target in targets if not (ROOT / target).is_file()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_language_it_is_in_unless_it_is_output(page):
    known = {"python", "sh", "bash", "yaml", "bibtex", ""}
    languages = re.findall(r"^```(\S+)", page.read_text(), re.MULTILINE)
    assert set(languages) <= known
    for _, code in blocks_of(page, ""):
        assert not re.search(r"^(platon-prune|pip|make|import) ", code, re.MULTILINE)
