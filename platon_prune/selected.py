"""All tensors under one scheduler, over all processes: what they must agree on before a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import prune

from platon_prune import agreement
from platon_prune.blocks import Scratch
from platon_prune.collectives import Processes
from platon_prune.criteria import Criterion
from platon_prune.gradients import all_finite
from platon_prune.granularity import Granularity
from platon_prune.shards import is_sharded
from platon_prune.targets import Target
from platon_prune.tracked import Storage, TrackedTensor

Settings = Mapping[str, Any]


class SelectedTensors(Sequence[TrackedTensor]):
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
        self._tensors: list[TrackedTensor] = []
        scratch = Scratch()
        try:
            with torch.inference_mode(False):
                for target in targets:
                    offset = self.num_weights
                    tensor = TrackedTensor(
                        target,
                        criterion,
                        masking,
                        storage,
                        offset,
                        scratch,
                        puts_back=granularity.puts_back,
                    )
                    self._tensors.append(tensor)
                    self.num_weights += tensor.whole_numel
        except BaseException:
            self.detach()  # all or nothing
            raise

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
        agreement.require_same_settings(self.processes, settings, self._tensors)

    def unsettle(self) -> None:
        """Make processes compare their settings again at the next step."""
        self._is_settled = False

    def place(self) -> bool:
        """Follow the tensors where they were sharded or moved; whether processes must settle."""
        moved = [tensor.place() for tensor in self._tensors]
        self._is_settled = self._is_settled and not any(moved)
        return not self._is_settled

    def settle(self, settings: Settings) -> None:
        """Find out which process holds what; collective."""
        self.require_agreement(settings)
        agreement.settle(self.processes, self._tensors)
        self._is_settled = True

    def agreed_gradients(
        self, step: int, settings: Settings, *, read: bool
    ) -> list[Tensor | None] | None:
        """The gradient of each tensor; None instead of the list if any process has to skip.

        Args:
            step: Number of the step that this process is about to take.
            settings: Its settings.
            read: Whether there are gradients to look at.

        Raises:
            RuntimeError: If no tensor has a gradient, a tensor is not pruned any more, or
                something is amiss in another process.
            ValueError: If the granularity can't choose over a tensor as it is sharded.
        """
        error, gradients, moved = None, None, False
        try:
            self.require_masks()
            moved = self.place()
            if moved:
                self._require_parts()
            if read:
                gradients = self._finite_gradients()
        except Exception as raised:
            error = raised
        outcome = agreement.vote(
            self.processes, step, error=error, gradients=gradients, settle=moved
        )
        if outcome.settle:
            self.settle(settings)
        if gradients is None or outcome.skip:
            return None
        if outcome.bring:
            return agreement.bring_gradients(self.processes, step, self._tensors, gradients)
        return gradients

    def _require_parts(self) -> None:
        for tensor in self._tensors:
            assert tensor.part is not None
            self.granularity.require_part(tensor.name, tensor.part)

    def _finite_gradients(self) -> list[Tensor | None] | None:
        """The gradient of each tensor; None instead of the list if one of them is not finite."""
        gradients = [tensor.gradient for tensor in self._tensors]
        if self.criterion.windowed and all(gradient is None for gradient in gradients):
            raise RuntimeError(
                f"{self._tensors[0].name} and all other pruned tensors have no gradient: call "
                "scheduler.step() after loss.backward() and before optimizer.zero_grad(), or "
                "pass skipped=True if the optimizer did not step"
            )
        # Those that lie elsewhere are looked at once all processes have voted to bring them.
        here = [gradient for gradient in gradients if not is_sharded(gradient)]
        return gradients if all_finite(here) else None

    # --- masks --------------------------------------------------------------------------------

    def apply_masks(self) -> None:
        """Zero what the masks prune."""
        for tensor in self._tensors:
            tensor.apply_mask()

    def require_masks(self) -> None:
        """Raise a RuntimeError unless all tensors are still those that were set up."""
        for tensor in self._tensors:
            tensor.require_mask()

    def detach(self) -> None:
        """Finalize every tensor."""
        for tensor in self._tensors:
            for module, name in tensor.target.sites:
                prune.remove(module, name)  # type: ignore[no-untyped-call]

    def sparsity(self, settings: Settings) -> float:
        """Measured fraction of zeros; collective if the model is sharded."""
        moved, sharded = self.place(), any(is_sharded(t.parameter) for t in self._tensors)
        if moved and sharded:
            self.settle(settings)
        kept = torch.tensor(sum(tensor.count_kept(own=sharded) for tensor in self._tensors))
        return 1 - int(self.processes.sum(kept) if sharded else kept) / self.num_weights
