"""The README and the pages, and the blocks of code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks_of(page, *languages):
    """(first line, code) of each block in one of the languages."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        if match.group(1) in languages:
            yield text[: match.start(2)].count("\n") + 1, match.group(2)


def spans_of(page):
    """The pieces of code within the prose and the tables."""
    return _SPAN.findall(_BLOCK.sub("", page.read_text()))


def pages_with(*languages):
    return [page for page in PAGES if any(blocks_of(page, *languages))]
