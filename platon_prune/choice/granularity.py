"""Granularities turn scores and an amount into masks: which weights live or die together.

To add one, derive from :class:`Granularity`. The choice of single weights is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from platon_prune.choice import limits
from platon_prune.choice.limits import MaxAmount
from platon_prune.choice.one_walk import Chosen
from platon_prune.choice.scored import ScoredLine, ScoredTensor
from platon_prune.choice.selection import prune_smallest_, prune_smallest_of_line_
from platon_prune.choice.shares import shares_of
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import Shard

Scope = Literal["global", "layer"]
SCOPES: tuple[Scope, ...] = ("global", "layer")


class Granularity:
    """A granularity chooses the masks of all tensors of a scheduler together.

    Attributes:
        name: What it is called in settings and states.
        puts_back: Whether weights that come back get the values that they had when they went,
            because zeros of its kind have no gradient to grow by.
    """

    name: ClassVar[str]
    puts_back: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide its choices, as plain numbers and strings, for states."""
        return {"granularity": self.name}

    def sparsity_of(self, amount: float) -> float:
        """The fraction of zeros among all entries that an amount asks for."""
        return amount  # where the amount counts something else, the granularity says so

    @property
    def tolerance(self) -> float:
        """How far a choice may end from the sparsity that is asked for; 0 where it is exact."""
        return 0.0

    def may_be_gone(self, name: str) -> bool:
        """Whether it is meant that a choice leaves nothing of a tensor, as of a whole block's."""
        return False

    def may_empty(self, name: str) -> bool:
        """Whether a choice could leave nothing of a tensor; its user is warned before that."""
        return True

    def require_ready(self) -> None:
        """Raise a ValueError if a run can't begin with it, though one that is resumed may go on."""

    def state_dict(self) -> dict[str, Any]:
        """What its choices go by beside its settings, for the state of its scheduler.

        Returns:
            Empty, as most are made of their settings alone; or the entry "granularity" with plain
            numbers and strings.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            state: The state of a scheduler of the same settings.

        Raises:
            ValueError: If it is not what it needs; nothing is changed then.
        """

    def without_gradient(self, names: Sequence[str]) -> list[str]:
        """What to tell a user of tensors that had no gradient: by default their names."""
        return list(names)

    def require_shard(self, name: str, shard: Shard) -> None:
        """Raise a ValueError if the masks of a tensor can't be chosen over its shards.

        Args:
            name: The tensor's name.
            shard: The shard that this process holds.
        """
        # Nothing to refuse by default: single weights don't care who holds their neighbours.

    def chooses_in_line(self, line: ScoredLine) -> bool:
        """Whether :meth:`choose_in_line_` can choose over these tensors."""
        return False

    def choose_in_line_(self, line: ScoredLine, amount: float) -> Chosen:
        """Write the masks in place, where one process has all tensors in a line of entries.

        Args:
            line: All tensors of the scheduler.
            amount: As there.
        """
        raise NotImplementedError

    def choose_(
        self, tensors: Sequence[ScoredTensor], amount: float, processes: Processes
    ) -> float | None:
        """Write the masks in place.

        Args:
            tensors: Those of the scheduler, in its order; of a sharded one, this process's shard.
            amount: What is due by the schedule, in [0, 1]; of what, the granularity says.
            processes: Those that choose together; each calls this with the same amount.

        Returns:
            The threshold: the largest score pruned, of what the granularity compares; None if
            nothing was pruned.
        """
        raise NotImplementedError


def checked_scope(scope: Scope) -> Scope:
    """The scope.

    Raises:
        ValueError: If there is no such scope.
    """
    if scope not in SCOPES:
        raise ValueError(
            f'scope must be "global", to rank all tensors together, or "layer", got {scope!r}'
        )
    return scope


def scope_settings(scope: Scope) -> dict[str, Any]:
    """The scope as an entry of settings: none where it is global, as there was once no other."""
    return {} if scope == "global" else {"scope": scope}


class Unstructured(Granularity):
    """Each weight is chosen by itself: exactly ``round(amount * N)`` of all N entries are pruned.

    Args:
        max_amount: The largest fraction that a tensor may lose, in [0, 1]: one for all, or one for
            each substring of names; what exceeds it is pruned elsewhere.
        scope: "global" to rank the entries of all tensors together; "layer" to take the same
            fraction of each tensor, but for rounding and limits.
    """

    name: ClassVar[str] = "unstructured"

    def __init__(self, max_amount: MaxAmount | None = None, scope: Scope = "global") -> None:
        self.max_amount = None if max_amount is None else limits.checked(max_amount)
        self.scope = checked_scope(scope)

    @property
    def settings(self) -> dict[str, Any]:
        """Its name, and what is not as by default of limits and scope."""
        settings = super().settings | scope_settings(self.scope)
        if self.max_amount is None:
            return settings
        limit = self.max_amount
        # A plain dict, whatever mapping the user gave: a state is loaded with weights_only.
        return settings | {"max_amount": dict(limit) if isinstance(limit, Mapping) else limit}

    def may_empty(self, name: str) -> bool:
        """Whether no limit, nor its share, forbids that a choice leaves nothing of a tensor."""
        if self.scope == "layer":
            return False
        return self.max_amount is None or not limits.is_limited(self.max_amount, name)

    def chooses_in_line(self, line: ScoredLine) -> bool:
        """Without limits and shares, which are of single tensors."""
        return self.max_amount is None and self.scope == "global"

    def choose_in_line_(self, line: ScoredLine, amount: float) -> Chosen:
        """Prune the entries with the smallest scores of all tensors together."""
        # Rounded from the same total as elsewhere: in a line and tensor by tensor choose alike.
        return prune_smallest_of_line_(line, round(amount * line.numel))

    def choose_(
        self, tensors: Sequence[ScoredTensor], amount: float, processes: Processes
    ) -> float | None:
        """Prune the entries with the smallest scores, of all tensors together or of each."""
        sizes = [(tensor.name, tensor.whole_numel) for tensor in tensors]
        # In Python integers, from the sizes of whole tensors: the same in every process.
        count = round(amount * sum(size for _, size in sizes))
        caps = None if self.max_amount is None else limits.caps_of(self.max_amount, sizes)
        if self.scope == "layer":
            caps = shares_of(count, [size for _, size in sizes], caps)
        if caps is None:
            return prune_smallest_(tensors, count, processes)
        return limits.prune_smallest_within_(tensors, count, caps, processes)

    def require_room(self, sizes: Sequence[tuple[str, int]], amount: float) -> None:
        """Raise a ValueError if the limits leave less to prune than an amount, or match nothing.

        Args:
            sizes: Name and number of entries of each tensor.
            amount: The largest that will be due.
        """
        if self.max_amount is not None:
            limits.require_room(self.max_amount, sizes, amount)
