"""How the site reads the package: what a docstring refers to."""

from __future__ import annotations

import re
from typing import Any

import griffe

_REFERENCE = re.compile(r":(?:class|func|meth|mod|attr|exc):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """``:class:`name``` becomes a link to the name if it is on the site, and code if it is not."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that was just loaded."""
        if obj.docstring is None:
            return
        scope = obj if obj.is_class or obj.is_module or obj.parent is None else obj.parent

        def link(match: re.Match[str]) -> str:
            name = match.group(1)
            path = name if name.startswith("platon_prune.") else f"{scope.path}.{name}"
            shown = name.rpartition(".")[2]
            return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'

        text = _REFERENCE.sub(link, obj.docstring.value)
        # Under this name an example is shown as code; a source is a line of its own.
        text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
        obj.docstring.value = re.sub(r"^Source:\n +", "**Source:** ", text, flags=re.MULTILINE)
