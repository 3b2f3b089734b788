"""`PruningWarning`, and the one way in which the library warns: at the line of its user."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# Whose lines are no user's: a step may be called by torch's hooks, or by a trainer's loop.
_FRAMEWORKS = frozenset(
    {
        __name__.partition(".")[0],
        "accelerate",
        "lightning",
        "lightning_fabric",
        "pytorch_lightning",
        "torch",
        "transformers",
    }
)


class PruningWarning(UserWarning):
    """Something that pruning can live with but its user should know."""

    @classmethod
    def warn(cls, message: str) -> None:
        """Give a warning that points at the nearest line outside the library and its frameworks.

        Args:
            message: One sentence, without a full stop.
        """
        # Not a stacklevel: how many frames lie between depends on who calls a step (a loop, an
        # optimizer's hook, a learning-rate scheduler that wraps the optimizer, a trainer).
        frame = _line_of_user(sys._getframe(1))
        if frame is None:
            # A command whose frames are all ours: a name that no source line can be read of.
            warnings.warn_explicit(message, cls, "<platon_prune>", 1)
            return
        names = frame.f_globals
        warnings.warn_explicit(
            message,
            cls,
            frame.f_code.co_filename,
            frame.f_lineno,
            module=names.get("__name__"),
            # Here Python remembers what a module was warned about, to say it once.
            registry=names.setdefault("__warningregistry__", {}),
        )


def _line_of_user(frame: FrameType | None) -> FrameType | None:
    while frame is not None and _is_framework(frame):
        frame = frame.f_back
    return frame


def _is_framework(frame: FrameType) -> bool:
    # By the package as well: a module of ours that is run (python -m) is called "__main__".
    names = (frame.f_globals.get("__name__"), frame.f_globals.get("__package__"))
    return any((name or "").partition(".")[0] in _FRAMEWORKS for name in names) or (
        frame.f_code.co_filename.startswith("<frozen ")
    )
