"""`Cutting`: the part of a scheduler by which what is pruned leaves the model during the run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from platon_prune.choice.granularity import Granularity
from platon_prune.history.changes import Change
from platon_prune.history.history import check_rows
from platon_prune.masks.targets import Target
from platon_prune.scheduling.averages import Storage
from platon_prune.scheduling.modes import in_plain_mode
from platon_prune.scheduling.notices import Notices
from platon_prune.scheduling.outcomes import Outcome
from platon_prune.scheduling.progress import Progress
from platon_prune.scheduling.recording import Recording
from platon_prune.scheduling.selected import SelectedTensors

# The state of each tensor by its name, as `TrackedTensor.state_dict` returns it.
States = Mapping[str, Mapping[str, Any]]


class Cutter(Protocol):
    """What knows how to make the model smaller; given to a scheduler by who sets pruning up."""

    cut_after: int | None

    def cut(self, optimizer: torch.optim.Optimizer | None) -> Any:
        """Take out all groups that are pruned now."""

    def cut_after_choice(self, optimizer: torch.optim.Optimizer) -> None:
        """Take out the groups that stayed out for ``cut_after`` choices."""

    def repeat(
        self, cuts: Sequence[Mapping[str, list[int]]], optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Take out again what the cuts of a saved state took out."""


class Cuts:
    """What was taken out so far, in the words of the model as it was in the beginning.

    Args:
        sizes: Name and number of entries of each tensor.

    Attributes:
        made: Of each cut, by kind and place, the numbers of the groups that stayed.
    """

    def __init__(self, sizes: Sequence[tuple[str, int]]) -> None:
        self.made: list[dict[str, list[int]]] = []
        self._sizes = dict(sizes)
        self._first_names = {name: name for name, _ in sizes}  # by what tensors are called now

    def add(self, stayed: dict[str, list[int]], called: Mapping[str, str]) -> None:
        """Note one cut.

        Args:
            stayed: See :attr:`made`.
            called: By what the tensors that are left are called now, what they were called before.
        """
        self.made.append(stayed)
        self._first_names = {new: self._first_names[old] for new, old in called.items()}

    def of_whole(self, changed: Sequence[Change]) -> list[Change]:
        """What a choice did, told of the whole tensors: what was cut out of them is pruned."""
        if not self.made:
            return list(changed)
        found = {self._first_names[change.name]: change for change in changed}
        return [
            Change(name, numel, found[name].kept, found[name].left, found[name].came_back)
            if name in found
            else Change(name, numel, 0, 0, 0)
            for name, numel in self._sizes.items()
        ]

    def without_history(self, state: Any) -> Any:
        """A state to be loaded without its history, which has been checked: it tells of the whole.

        Raises:
            ValueError: If it is of a model that was cut otherwise, or its history is damaged.
        """
        if not isinstance(state, Mapping):
            return state  # which is refused
        cuts = state.get("cuts")
        made = cuts.get("made") if isinstance(cuts, Mapping) else []
        if made != self.made:
            count = len(made) if isinstance(made, list) else 0
            raise ValueError(
                f"state must be of a model that was cut alike, got one of {count} cuts for one of "
                f"{len(self.made)}: call scheduler.cut_like(state) on the whole model first, then "
                "load the model, the optimizer and this"
            )
        if not self.made or state.get("history") is None:
            return state
        check_rows(state["history"], len(self._sizes))
        return {**state, "history": None}


class Weak:
    """An optimizer that is not kept alive, and left out of copies; None if there is none."""

    def __init__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)

    def __reduce__(self) -> Any:
        return type(self), ()  # a copy's model is another one

    def get(self) -> torch.optim.Optimizer | None:
        """The optimizer, if it is there still."""
        return None if self._optimizer is None else self._optimizer()


class Cutting:
    """The part of :class:`~platon_prune.PlatonScheduler` that makes the model smaller."""

    granularity: Granularity
    masking: str
    capturable: bool
    _optimizer: Weak
    _tensors: SelectedTensors
    _storage: Storage
    _notices: Notices
    _recording: Recording
    _progress: Progress
    _cuts: Cuts
    _cutter: Cutter | None
    _learn: Callable[[Sequence[Outcome]], None]

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer whose state is cut along: the one that was given or is followed."""
        return self._optimizer.get()

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        # A scheduler that is kept for its history must not keep the parameters alive.
        self._optimizer = Weak(optimizer)

    @in_plain_mode
    def cut(self, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Take what is pruned now out of the model, which is trained further; collective.

        As :func:`platon_prune.shrink` does, but masks, scores and windows of what is left go on. A
        group that was cut can't come back. Under DistributedDataParallel all processes make the
        same cut, and the model inside must be wrapped again. A sharded model (FSDP2) is refused:
        take all states over into a whole model, cut that, and shard it again.

        Args:
            optimizer: What it remembers is cut along; :attr:`optimizer` by default.

        Returns:
            What went, as a :class:`~platon_prune.ShrinkReport`.

        Raises:
            ValueError: If the optimizer's state can't be cut, or the model is sharded. Nothing is
                changed then.
            RuntimeError: If pruning was not set up by ``global_structured``, masks are recorded, or
                the run has ended.
        """
        return self._able_cutter().cut(self.optimizer if optimizer is None else optimizer)

    @in_plain_mode
    def cut_like(
        self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Make a whole model as small as it was when a state was saved, so that this can be loaded.

        Call it before anything is loaded, and before the model is sharded; of a state of an uncut
        model it does nothing.

        Args:
            state: What :meth:`state_dict` returned, or of that the entry "cuts" alone.
            optimizer: As for :meth:`cut`.

        Raises:
            ValueError: If the model was cut already or is sharded, or the state is of another one.
            RuntimeError: As for :meth:`cut`.
        """
        made = (state.get("cuts") or {}).get("made", [])
        if made == self._cuts.made:
            return
        if self._cuts.made:
            raise ValueError(
                f"scheduler must be of a whole model, got one after {len(self._cuts.made)} cuts: "
                "set pruning up on the model as it was in the beginning"
            )
        self._able_cutter(repeats=True).repeat(
            made, self.optimizer if optimizer is None else optimizer
        )

    def _able_cutter(self, repeats: bool = False) -> Cutter:
        """What cuts, or an error that says why nothing can be cut.

        Args:
            repeats: Whether it is what another run has cut.
        """
        self._tensors.require_running()
        if self._cutter is None:
            raise RuntimeError(
                "cut takes whole groups out of a model, which global_structured prunes, got a "
                f"scheduler of {self.granularity.name}: set pruning up with global_structured"
            )
        if self.capturable:
            raise RuntimeError(
                "a captured graph keeps the tensors that it was captured with, got a cut with "
                "capturable=True: shrink at the end"
            )
        if self._recording.is_on:
            raise RuntimeError(
                "masks can be recorded of tensors that keep their shape, got a cut: prune without "
                "mask_history and record_masks, or shrink at the end"
            )
        return self._cutter

    def _cut_if_due(self) -> None:
        """After a choice: cut by itself, if that is asked for."""
        if self._cutter is not None and self._cutter.cut_after is not None:
            assert self.optimizer is not None  # asked for before the first step
            self._able_cutter().cut_after_choice(self.optimizer)

    def _require_optimizer(self) -> None:
        """Raise a RuntimeError before a step if what cuts by itself knows no optimizer."""
        is_automatic = self._cutter is not None and self._cutter.cut_after is not None
        if is_automatic and self.optimizer is None:
            raise RuntimeError(
                "cut_after needs the optimizer, whose state is cut along, got none: give "
                "global_structured optimizer=..., set scheduler.optimizer, or use "
                "scheduler.step_with(optimizer)"
            )

    # --- for a cutter -------------------------------------------------------------------------

    def _let_go(self) -> dict[str, dict[str, Any]]:
        """Take the masks off for a cut; what was remembered of each tensor."""
        self._tensors.locate()
        self._learn(self._tensors.outcomes())
        states = {tensor.name: tensor.state_dict() for tensor in self._tensors}
        # They come back at once, which nobody is to be warned of.
        free, self._progress.is_length_free = self._progress.is_length_free, True
        self._tensors.detach()
        self._progress.is_length_free = free
        return states

    def _go_on(
        self,
        targets: Sequence[Target],
        granularity: Granularity,
        states: States,
        stayed: dict[str, list[int]],
        called: Mapping[str, str],
    ) -> None:
        """Put masks on what is left, with what was remembered of it."""
        self.granularity = granularity
        before = self._tensors
        self._tensors = SelectedTensors(
            targets, before.criterion, self.masking, self._storage, before.processes, granularity
        )
        # Sparsity goes on to be of all that there was: what is cut out counts as zero.
        self._tensors.num_weights = before.num_weights
        for tensor in self._tensors:
            tensor.warn_when_removed(self._progress.warn_of_early_end)
        self._tensors.locate()
        for tensor in self._tensors:
            tensor.load_state_dict(dict(states[tensor.name]))
        self._tensors.share_masks()
        self._notices.follow(
            granularity.may_empty, granularity.may_be_gone, granularity.without_gradient
        )
        self._recording = Recording(self._tensors)
        self._cuts.add(stayed, called)

    def _cuts_state(self) -> dict[str, Any]:
        """What a state says of cuts; nothing where there are none and none are to come."""
        is_automatic = self._cutter is not None and self._cutter.cut_after is not None
        if not self._cuts.made and not is_automatic:
            return {}
        out: Tensor = self.granularity.num_choices_out  # type: ignore[attr-defined]
        return {"cuts": {"made": list(self._cuts.made), "choices_out": out.clone()}}

    def _load_cuts_state(self, state: Mapping[str, Any]) -> None:
        out = (state.get("cuts") or {}).get("choices_out")
        if isinstance(out, Tensor):
            self.granularity.num_choices_out = out.clone()  # type: ignore[attr-defined]
