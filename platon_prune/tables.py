"""Rows of text as a table: for a terminal, or as HTML for a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

# What a terminal, a mail or a page of documentation shows without folding lines.
WIDTH = 100
_LEAST = 20  # of a name, of which less would tell nothing


def table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells in columns, the first flush left, the others flush right.

    Where a line would be wider than ``WIDTH``, names in the first column lose their middles.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    spare = WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)
    widths[0] = min(widths[0], max(spare, _LEAST))
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else _shortened(cell, width).ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            # No spaces at line ends: outputs are compared and pasted.
        ).rstrip()
        for line in lines
    )


def html_table(lines: Sequence[Sequence[str]]) -> str:
    """The same as an HTML table, whose first line is its head; without colours of its own."""
    # What a notebook does not style is aligned here, and nothing else: it may be dark or light.
    rows = []
    for number, line in enumerate(lines):
        tag = "td" if number else "th"
        cells = "".join(
            f'<{tag} style="text-align:{"right" if i else "left"}">{html.escape(cell)}</{tag}>'
            for i, cell in enumerate(line)
        )
        rows.append(f"<tr>{cells}</tr>")
    head, body = rows[0], "".join(rows[1:])
    # Wider than a phone, it scrolls by itself and not with the page.
    return (
        f'<div style="overflow-x:auto"><table><thead>{head}</thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def rounded(value: Any, digits: int = 6) -> Any:
    """Plain values with their floats cut to so many digits, which no measurement exceeds."""
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _shortened(name: str, width: int) -> str:
    """A name without its middle: its end tells layers apart, its beginning the parts of a model."""
    if len(name) <= width:
        return name
    end = 2 * (width - 3) // 3
    return f"{name[: width - 3 - end]}...{name[-end:]}"
