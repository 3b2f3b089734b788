"""All tensors under one scheduler, over all processes: what they must agree on before a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from platon_prune.choice.granularity import Granularity
from platon_prune.criteria import Criterion
from platon_prune.history.changes import Change, bits_before, changes, changes_of
from platon_prune.masks.targets import Target
from platon_prune.scheduling import agreement
from platon_prune.scheduling.averages import Storage
from platon_prune.scheduling.outcomes import Outcomes
from platon_prune.scheduling.states import check_state
from platon_prune.scheduling.steps.device_votes import DeviceVotes
from platon_prune.scheduling.steps.learning import Settings
from platon_prune.scheduling.steps.recorded import Recorded
from platon_prune.scheduling.steps.told import Told
from platon_prune.scheduling.store import Store
from platon_prune.scheduling.tracked import TrackedTensor
from platon_prune.tensors.blocks import Scratch
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import is_sharded


class SelectedTensors(Recorded):
    """The tensors of one scheduler, in the order of the model; masks are put on all of them.

    Args:
        targets: The tensors to prune.
        criterion: What is remembered of them.
        masking: "step" or "window".
        storage: How it is kept.
        processes: Those that prune together.
        granularity: Says what each of them has to hold of a tensor.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        criterion: Criterion,
        masking: str,
        storage: Storage,
        processes: Processes,
        granularity: Granularity,
    ) -> None:
        self.criterion = criterion
        self.granularity = granularity
        self.processes = processes
        self.num_weights = 0  # in all processes, each counted once
        self._is_settled = False  # whether processes know who holds what
        self._is_checked = False  # whether the granularity can choose over the tensors as they lie
        self._tensors: list[TrackedTensor] = []
        self._ended: TrackedTensor | None = None  # the first whose mask is known to be gone
        self._before: list[Tensor] = []  # the masks before a choice whose values are to come back
        self._outcomes = Outcomes()
        self._told = Told()
        self._votes = DeviceVotes()
        scratch = Scratch()
        try:
            # Masks made in inference mode could not be updated in place outside it.
            with torch.inference_mode(False):
                for target in targets:
                    tensor = TrackedTensor(
                        target, masking, self.num_weights, scratch, granularity.puts_back
                    )
                    self._tensors.append(tensor)
                    self.num_weights += tensor.whole_numel
        except BaseException:
            for tensor in self._tensors:
                tensor.detach()  # all or nothing
            raise
        self._store = Store(self._tensors, criterion, storage, scratch)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: Any) -> Any:
        return self._tensors[index]

    def __iter__(self) -> Iterator[TrackedTensor]:
        return iter(self._tensors)

    def named(self, name: str) -> TrackedTensor:
        """The tensor that had this name before pruning.

        Raises:
            KeyError: If there is none.
        """
        for tensor in self._tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(
            f"name must be that of a pruned tensor before pruning, got {name!r}; there are: "
            + ", ".join(tensor.name for tensor in self._tensors)
        )

    # --- agreement of processes ---------------------------------------------------------------

    def require_agreement(self, settings: Settings) -> None:
        """Raise a ValueError everywhere if processes differ in a setting or the model."""
        storage = self._store.storage
        kept = {"state_dtype": str(storage.dtype), "offload_averages": storage.offload}
        agreement.require_same_settings(self.processes, {**settings, **kept}, self._tensors)

    def unsettle(self) -> None:
        """Note that a setting changed: the processes compare theirs again at the next step."""
        self._is_settled = False

    def locate(self) -> bool:
        """Find the tensors, which may have been sharded or moved since the last step.

        Returns:
            Whether the processes must :meth:`settle` before they choose.
        """
        if not self._store.is_seated():
            self._follow()
        return not self._is_settled

    def _follow(self) -> None:
        """Look for the tensors, and bring what is remembered of them to where they are."""
        self.require_running()
        # Whatever mode this is called in: what is made here is used for the rest of the run.
        with torch.inference_mode(False), torch.no_grad():
            moved = [tensor.locate() for tensor in self._tensors]
            self._store.seat()
        # Shards that moved may have other replicas and other owned slices.
        if any(moved):
            self._is_settled = self._is_checked = False

    def settle(self, settings: Settings) -> None:
        """Compare settings, and learn which shard each process holds; collective.

        From then on each entry is counted by one process: the owner of its slice.
        """
        self.require_agreement(settings)
        agreement.settle(self.processes, self._tensors)
        self._is_settled = True

    # --- masks --------------------------------------------------------------------------------

    def choose(self, amount: float, *, tells: bool) -> tuple[float | None, list[Change]]:
        """Let the granularity write the masks; collective. :meth:`accumulate_` then zeroes by them.

        Args:
            amount: What is due by the schedule.
            tells: Whether to count what left and came back.

        Returns:
            The threshold, and how each tensor changed.
        """
        scored = self._store.scored(self.processes)
        names = [(tensor.name, tensor.whole_numel) for tensor in self]
        is_alone = self.processes.size == 1
        line = scored.line if is_alone else None
        if line is not None and self.granularity.chooses_in_line(line):
            chosen = self.granularity.choose_in_line_(line, amount)
            return chosen.threshold, changes_of(names, chosen.counts.tolist(), tells)
        # Only where values come back: a byte an entry, until the weights have been read.
        masks = [tensor.mask.clone() for tensor in scored] if self.granularity.puts_back else []
        # Packed, an eighth of the masks, since all of them are kept until the choice is made.
        bits = bits_before(scored) if tells else None
        threshold = self.granularity.choose_(scored, amount, self.processes)
        self._before = masks
        return threshold, changes(scored, bits, self.processes)

    def apply_masks(self) -> None:
        """Zero what the masks prune, at all sites of each tensor."""
        for tensor in self._tensors:
            tensor.apply_mask()
            tensor.share_mask()

    def share_masks(self) -> None:
        """Bring the masks to all sites of each tensor, in a step, whose weights are zeroed."""
        if self.is_broken:  # perhaps since some are gone
            return
        for tensor in self._tensors:
            tensor.share_mask()

    def adopt_zeros(self) -> dict[str, int]:
        """Prune what is zero; how many entries of each tensor that are. Collective.

        Raises:
            ValueError: If there are none, or not the same in processes that hold the same shard.
        """
        counts = agreement.zeros(self.processes, self._tensors, self.require_running)
        if not any(counts):
            raise ValueError(
                f"model must have zeros that can be adopted, got none in {self.num_weights} "
                f"weights of {len(self)} tensors: load the pruned weights first, and name the "
                "tensors with include=[...]"
            )
        self.apply_masks()  # a negative zero is none
        return {tensor.name: count for tensor, count in zip(self, counts, strict=True)}

    def require_masks(self) -> None:
        """Raise a RuntimeError unless all tensors are still those that were set up."""
        ended = self.noticed_end()
        for tensor in self._tensors if ended is None else [ended]:
            tensor.require_mask()

    def require_running(self) -> None:
        """Raise a RuntimeError that says what can still be read if the run has ended."""
        ended = self.noticed_end()
        if ended is not None:
            raise RuntimeError(
                f"{ended.name} must carry its mask for this, but was finalized: of a run that has "
                "ended, its schedule, its history and the masks that it recorded can be read"
            )

    def noticed_end(self) -> TrackedTensor | None:
        """A tensor whose mask is gone, if any: then the run has ended, and nothing is kept of it.

        Masks are often finalized through the model, of which the scheduler is not told.
        """
        if self._ended is None:
            # Remembered: once ended, modules may be pruned anew by another scheduler.
            self._ended = next((tensor for tensor in self if tensor.is_finalized), None)
            if self._ended is not None:
                self._forget()
        return self._ended

    def detach(self) -> None:
        """Finalize every tensor, and free what was remembered of it."""
        for tensor in self._tensors:
            tensor.detach()
        self._forget()

    def _forget(self) -> None:
        for tensor in self._tensors:
            tensor.forget()
        self._store.forget()

    # --- what is read and saved ---------------------------------------------------------------

    def score(self, name: str, settings: Settings) -> Tensor:
        """The scores of a tensor; collective if the criterion looks at whole tensors.

        Returns:
            float32, of the weight's shape and placed as it is, a new tensor.
        """
        moved, tensor = self.locate(), self.named(name)
        if self.criterion.num_statistics and moved:
            self.settle(settings)  # else a replica would be counted more than once
        return self._store.score(tensor, self.processes)

    def sparsity(self, settings: Settings) -> float:
        """Measured fraction of zeros; collective if the model is sharded."""
        moved, sharded = self.locate(), any(is_sharded(t.parameter) for t in self._tensors)
        if moved and sharded:
            self.settle(settings)
        kept = torch.tensor(sum(tensor.count_kept(owned=sharded) for tensor in self._tensors))
        return 1 - int(self.processes.sum(kept) if sharded else kept) / self.num_weights

    def bytes(self) -> dict[str, int]:
        """What is kept in this process, by kind."""
        self.locate()
        rows = [tensor.bytes() for tensor in self._tensors]
        total = {kind: sum(row[kind] for row in rows) for kind in rows[0]}
        aside = {kind: size for kind, size in total.items() if kind != "mask"}
        return {"mask": total["mask"], **self._store.bytes(), **aside}

    def check_state(self, state: Any, settings: Settings) -> None:
        """Raise an error unless a saved state fits the tensors, as `states.check_state` tells."""
        self.require_masks()
        self.locate()
        check_state(state, settings, self.shapes(), self._tensors[0].expected_entries())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, by its name."""
        return {tensor.name: tuple(tensor.parameter.shape) for tensor in self._tensors}

    def masks(self) -> dict[str, Tensor]:
        """The mask of each tensor, by its name; what this process holds of it."""
        return {tensor.name: tensor.mask for tensor in self._tensors}
