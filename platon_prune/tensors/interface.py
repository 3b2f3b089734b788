"""What a step does to weights, gradients and windows, whoever carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar

from torch import Tensor

from platon_prune.criteria import Formula
from platon_prune.tensors.capture import Capture

_Each = TypeVar("_Each")
BackendName = Literal["plain", "foreach", "triton"]


class Operands(NamedTuple):
    """What a step reads and writes of one tensor beside its gradient; all on one device.

    Args:
        weight: float32, float64, float16 or bfloat16; any shape and strides.
        mask: Bool, of the same shape, contiguous; False is pruned.
        window: Sum of the samples so far: float32 or bfloat16, of the same shape, contiguous; None
            where the criterion keeps none.
    """

    weight: Tensor
    mask: Tensor
    window: Tensor | None


class FixedList(list[_Each]):
    """A list, of operands or of gradients, of which none moves in memory as long as it lives.

    A backend may look at them once and keep what it saw. Whoever made the list makes a new one
    when a tensor has moved: for operands that is rare, gradients are new at each step.

    Attributes:
        beside: Of gradients the list of their operands, place by place, where that is known.
        unread: Of gradients whether no value may be read, since what is done with them may be
            recorded in a graph and done again.
        capture: What belongs to the graph that is being recorded from them; None if none is.
    """

    beside: FixedList[Operands] | None = None
    unread: bool = False
    capture: Capture | None = None

    # By identity: what was seen of a list is forgotten with it.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class Backend(Protocol):
    """Carries out a step over many tensors of one device; never waits for the device."""

    name: BackendName

    def flag_non_finite_(self, gradients: Sequence[Tensor | None], flag: Tensor) -> None:
        """Set ``flag`` to 1 if an entry of a gradient is not finite; leave it as it is otherwise.

        Args:
            gradients: Dense, on the flag's device; None for one that is not there.
            flag: float32, one entry; 0 before the first call of a step.
        """

    def accumulate_(
        self,
        tensors: Sequence[Operands],
        gradients: Sequence[Tensor | None] | None,
        formula: Formula,
        flag: Tensor | None,
        masking: bool | Tensor,
    ) -> None:
        """Add this step's samples to the windows, then zero what the masks prune.

        The product is in float32 whatever the dtypes, and so is the sum, rounded to the window's
        dtype once. The weight is read before it is zeroed, and zeroed to +0 whatever it was.

        Args:
            tensors: All tensors of a device.
            gradients: Of each of them, of its shape, dense, of any dtype that a weight may have; a
                None adds nothing to its window, and one None for all adds nothing to any.
            formula: The sample.
            flag: Where its entry is not 0, no window is changed; None if all is known to be finite.
            masking: Whether to zero. Where only the device knows, float32 of one entry, not 0 if
                so: then no value is read, and no temporary is used that others use too.
        """

    def count_digits_(self, keys: Tensor, counts: Tensor, high: Tensor | None) -> None:
        """Count 16-bit digits of integers, for a histogram.

        Args:
            keys: int32 of any values, one-dimensional and contiguous.
            counts: int64 of 65,536 entries, to which is added.
            high: None to count the high digit, ``(key >> 16) + 32768``; else an int64 tensor of one
                entry on the device: of the keys with this high digit, count ``key & 0xFFFF``.
        """
