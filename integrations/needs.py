"""A framework that is not installed, told with the commands that install it."""

from __future__ import annotations


def told(missing: ImportError, who: str, extra: str) -> ModuleNotFoundError:
    """The error to raise where an import at the top of a module fails.

    Args:
        missing: What Python raised.
        who: What needs the framework, as its user knows that.
        extra: Of platon-prune, which brings the framework.
    """
    # By the name that failed, since a framework may be there without what it needs itself.
    package = (missing.name or extra).partition(".")[0].replace("_", "-")
    return ModuleNotFoundError(
        f"{who} needs {package}, which is not installed: pip install {package}, or "
        f"pip install 'platon-prune[{extra}]'",
        name=missing.name,
    )
