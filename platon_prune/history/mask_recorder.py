"""`MaskRecorder`: writes the masks of each choice into a file, from one of several processes.

The process of rank 0 writes. The others are sent the index of what it wrote, so that each of them
can read the file, and recognises a record that another run has put there since.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from platon_prune.history.mask_file import MaskRecord
from platon_prune.history.mask_history import MaskHistory
from platon_prune.tensors.collectives import Processes

T = TypeVar("T")


class MaskRecorder:
    """Writes the masks of a scheduler's choices into a file.

    Args:
        history: The file.
        processes: Those that prune together.

    Attributes:
        has_begun: Whether the masks that the run goes on from have been recorded.
        note: A sentence to warn the user with once, or None.
    """

    def __init__(self, history: MaskHistory, processes: Processes) -> None:
        self.has_begun = False
        self.note: str | None = None
        self._is_resumed = False
        self._history = history
        self._processes = processes

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copy of a run does not write into its file

    def begin(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """MaskRecord the masks with which a run begins, or from which it resumes; collective."""

        def write() -> tuple[str | None, list[MaskRecord]]:
            # Another run may have written the file since this one was set up.
            self._history.refresh()
            is_new = step == 0 and not self._is_resumed
            note = self._history.set_aside() if is_new else None
            self._history.begin(step, masks)
            return note, self._history.records

        self.note, records = self._of_first(write)
        self._history.follow(records)
        self.has_begun = True

    def restart(self) -> None:
        """Note that a state was loaded: the run goes on with its file instead of a new one."""
        self.has_begun = False
        self._is_resumed = True

    def add(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """MaskRecord the masks that a choice made; collective.

        Raises:
            OSError: If it can't be written. The run may go on; :meth:`masks` refuses the steps
                that are missing then, in every process.
        """
        try:
            # Their index alone is sent: where the masks are in the file, not the masks.
            records = self._of_first(lambda: self._history.add(step, masks))
        except BaseException:
            self._history.lose(step)
            raise
        self._history.follow(records)

    def masks(self, step: int) -> dict[str, Tensor]:
        """The recorded masks that held after a step; any process may read them."""
        return self._history.masks(step)

    def _of_first(self, write: Callable[[], T]) -> T:
        """Write in the process of rank 0, and return in all of them what it made.

        If it fails there, all raise an error, so that none waits in a later collective.
        """
        writes = self._processes.rank == 0
        made = self._processes.all_or_none(
            "recording masks", write if writes else lambda: None, lambda _: None
        )
        of_first = self._processes.gather(made)[0]
        assert of_first is not None  # rank 0 always writes something
        return of_first


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise an error that says what to do if no file can be written at a path.

    Raises:
        TypeError: If it is no path.
        IsADirectoryError: If it is a folder.
        FileNotFoundError: If it lies in no folder.
        PermissionError: If that can't be written to.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"the file of masks must be a path, got {path!r}")
    # Now, at set-up: the first record may be hours away.
    whole = Path(path).absolute()
    if whole.is_dir():
        raise IsADirectoryError(
            f"the file of masks must be a file, got the folder {whole}: name a file in it"
        )
    if not whole.parent.is_dir():
        raise FileNotFoundError(
            f"the file of masks must lie in a folder that exists, got {whole}: create "
            f"{whole.parent} first"
        )
    if not os.access(whole.parent, os.W_OK):
        raise PermissionError(
            f"the file of masks must lie in a folder that can be written to, got {whole}: give "
            "another path"
        )


def checked_step(step: int, last_step: int) -> int:
    """Check a step whose masks a user asks for, and return it as a plain int.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it was not taken.
    """
    if isinstance(step, bool) or not isinstance(step, Integral):
        raise TypeError(f"step must be a whole number of steps, or None, got {step!r}")
    if not 0 <= step <= last_step:
        raise ValueError(f"step must be in [0, {last_step}], those taken, got {step}")
    return int(step)
