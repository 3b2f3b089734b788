"""The README and the pages, and the blocks of code in them."""

import ast
import builtins
import re
import symtable
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


def imported_in(code):
    """The names that a block imports."""
    imports = (n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.Import, ast.ImportFrom)))
    return {(each.asname or each.name).split(".")[0] for one in imports for each in one.names}


def missing_in(code):
    """The names that a block uses and does not make, in its functions too."""
    top = symtable.symtable(code, "block", "exec")
    made = {
        each.get_name()
        for each in top.get_symbols()
        if each.is_assigned() or each.is_imported() or each.is_namespace()
    }
    used, tables = set(), [top]
    for table in tables:
        used |= {
            each.get_name()
            for each in table.get_symbols()
            if each.is_referenced() and (table is top or each.is_global())
        }
        tables += table.get_children()
    return used - made - set(dir(builtins))
