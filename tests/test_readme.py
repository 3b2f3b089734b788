"""Every Python block in the README and the pages runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks_of(page):
    """(first line, code) of each block."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield text[: match.start(1)].count("\n") + 1, match.group(1)


def pages_with_code():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if any(blocks_of(page))]


@pytest.mark.parametrize("page", pages_with_code(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_top_to_bottom_in_one_namespace(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__page__"}
    for line, code in blocks_of(page):
        # Empty lines bring the line numbers of a traceback in step with the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def test_the_readme_has_code_and_its_picture_exists():
    readme = ROOT / "README.md"
    assert any(blocks_of(readme))
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme.read_text())
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
