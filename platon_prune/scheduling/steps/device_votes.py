"""`DeviceVotes`: the votes of processes that exchange on a device, where they stay for a window.

Nobody waits for a vote that all will read later. So what stands in the way in one process is kept
there, and raised in all of them at the next vote that all of them read: an error before it would
leave the others waiting.
"""

from __future__ import annotations

import torch
from torch import Tensor

from platon_prune.scheduling.agreement import FAILED, SKIPS, Decision, require_agreed
from platon_prune.scheduling.gradients import StepGradients
from platon_prune.tensors.collectives import Processes, sent
from platon_prune.tensors.shards import is_sharded

# So many votes lie ready; a window that is longer is read in between.
_CAPACITY = 256
# State, settle, -settle, lies apart, step, -step: of a number with both signs the maxima are its
# largest and its smallest value.
_COLUMNS = 6


class DeviceVotes:
    """Votes of a scheduler's steps, on the device that its processes exchange on.

    A vote is read at once by a process in which a window ends or masks are chosen, or that has to
    settle; and, whatever it does, by all at the last of as many votes as a window has steps. Only
    at a vote that all of them read may they raise.

    Attributes:
        is_apart: Whether gradients of this model have to be redistributed, for which all wait.
        is_broken: Whether something is known to be amiss, so that nothing may be chosen any more.
    """

    def __init__(self) -> None:
        self.is_apart = False
        self.is_broken = False
        self._error: Exception | None = None  # of this process, until all may raise
        self._rows: Tensor | None = None
        self._num_unread = 0
        self._known: list[list[int]] = []  # those that were read, since all of them did
        self._since = 0  # votes since all of them read one

    def agree(
        self,
        processes: Processes,
        step: int,
        found: StepGradients,
        *,
        error: Exception | None,
        settle: bool,
        reads: bool,
        window: int,
    ) -> tuple[Decision, StepGradients]:
        """Vote, as :func:`~platon_prune.scheduling.agreement.agree` does; wait only if it is read.

        Args:
            processes: Those that prune together.
            step: Number of the step that this process is about to take.
            found: Its gradients, and the flag of them.
            error: What stands in the way here.
            settle: Whether placements of tensors changed here.
            reads: Whether this step ends a window or chooses.
            window: Steps of a window.

        Returns:
            What was decided, as far as it was read, and the gradients. Their flag says on the
            device whether any process skips.

        Raises:
            RuntimeError: If all read this vote, and anything stood in the way anywhere since they
                last did, or the steps differed.
            Exception: ``error``, then or at a later vote.
        """
        apart = any(is_sharded(gradient) for gradient in found.each or ())
        if apart and not settle:
            error = error or RuntimeError(
                "gradients must be placed as they were at the first step, got one that is yet to "
                "be redistributed: run the same backward at every step"
            )
        if error is not None:
            self._error, found = self._error or error, StepGradients(None)
            self.is_broken = True
        state = FAILED if self._error is not None else SKIPS if found.each is None else 0
        row = self._vote(
            processes,
            [state, settle, -settle, apart, step, -step],
            found.flag if not state else None,
        )
        is_last = self._since >= window
        if not (settle or reads or is_last):
            if found.flag is not None:
                found.flag.copy_(row.narrow(0, 0, 1).ne(0), non_blocking=True)
            return Decision(False, False, False), found
        if found.flag is not None:
            found.flag.zero_()  # the next step uses it again
        return self._read(processes, step, found, settle=settle, reads=reads, is_last=is_last)

    def _vote(self, processes: Processes, numbers: list[int], flag: Tensor | None) -> Tensor:
        device = processes.on_device()
        assert device is not None
        if self._rows is None or self._num_unread == _CAPACITY:
            self._fetch()
            self._rows = torch.zeros((_CAPACITY, _COLUMNS), dtype=torch.int64, device=device)
        row = self._rows.select(0, self._num_unread)
        row.copy_(sent(numbers, device))
        if flag is not None:
            skips = flag.ne(0).to(device, torch.int64, non_blocking=True)
            row.narrow(0, 0, 1).add_(skips, alpha=SKIPS)
        processes.maximum_(row)
        self._num_unread += 1
        self._since += 1
        return row

    def _fetch(self) -> None:
        """Read what was not read yet; one wait."""
        if self._rows is not None and self._num_unread:
            self._known += self._rows.narrow(0, 0, self._num_unread).tolist()
        self._num_unread = 0

    def _read(
        self,
        processes: Processes,
        step: int,
        found: StepGradients,
        *,
        settle: bool,
        reads: bool,
        is_last: bool,
    ) -> tuple[Decision, StepGradients]:
        self._fetch()
        worst, _, minus_all_settle, any_apart, last, minus_first = self._known[-1]
        all_settle = minus_all_settle == -1
        # Of one schedule, all that are at the end of a window at the same step read this vote too.
        if is_last or all_settle or (reads and last == -minus_first):
            rows, error = self._known, self._error
            self._known, self._since, self._error, self.is_broken = [], 0, None, False
            for state, settles, minus_all_settle, _, last_step, minus_first_step in rows:
                require_agreed(error, state, last_step, minus_first_step, step)
                if settles and minus_all_settle != -1:
                    raise RuntimeError(
                        "processes must change how the model is sharded, or its schedule, at the "
                        f"same step, got some that did before step {step}: do it in all of them"
                    )
        elif any(_is_amiss(row) for row in self._known):
            self.is_broken = True
            return Decision(True, False, False), StepGradients(None)
        self.is_apart = self.is_apart or (all_settle and bool(any_apart))
        decision = Decision(worst == SKIPS, all_settle and settle, bool(any_apart))
        return decision, StepGradients(None if decision.skip else found.each)


def _is_amiss(row: list[int]) -> bool:
    return row[0] == FAILED or row[4] != -row[5] or bool(row[1] and row[2] != -1)
