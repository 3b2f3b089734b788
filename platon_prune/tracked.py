"""One pruned tensor as the scheduler sees it: where it lives, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from platon_prune import bitmask
from platon_prune.blocks import Scratch, blocks, zero_pruned_
from platon_prune.criteria import Criterion, weight_times_grad
from platon_prune.method import (
    PlatonUnstructured,
    apply_mask_,
    attach,
    mask_of,
    method_of,
    weight_of,
)
from platon_prune.selection import ScoredTensor
from platon_prune.targets import Target


class TrackedTensor:
    """The window and the averages of one tensor, which carries its mask from here on.

    The tensor itself is looked up at each use: wrapping, loading or moving a model may replace it.

    Args:
        target: The tensor; masks are put on all its sites.
        criterion: Says what is remembered.
        masking: See :class:`~platon_prune.PlatonScheduler`.
        offset: Global position of its first entry.
        scratch: Temporaries, shared by all tensors.
    """

    def __init__(
        self, target: Target, criterion: Criterion, masking: str, offset: int, scratch: Scratch
    ) -> None:
        self.target = target
        self.criterion = criterion
        self.masking = masking
        self.offset = offset
        self.scratch = scratch
        self._had_gradient = False  # in the window so far
        self._methods: list[PlatonUnstructured] = []
        mask = None
        for module, name in target.sites:
            self._methods.append(
                attach(module, name, masking=masking, own_keys=target.own_keys, mask=mask)
            )
            mask = mask_of(module, name)
        # The float32 sum of the samples since the last window's end, and the averages.
        self._window = self._zeros() if criterion.windowed else None
        self._averages = tuple(self._zeros() for _ in criterion.averages)

    @property
    def name(self) -> str:
        """Its name before pruning."""
        return self.target.name

    @property
    def weight(self) -> Tensor:
        """The parameter, detached."""
        return weight_of(*self.target.sites[0]).detach()

    @property
    def gradient(self) -> Tensor | None:
        """The parameter's gradient, dense."""
        gradient = weight_of(*self.target.sites[0]).grad
        if gradient is None or gradient.layout == torch.strided:
            return gradient
        return gradient.to_dense()

    @property
    def mask(self) -> Tensor:
        """The mask at the first site."""
        return mask_of(*self.target.sites[0])

    @property
    def averages(self) -> tuple[Tensor, ...]:
        """The criterion's averages, on the weight's device."""
        self._follow(self.weight.device)
        return self._averages

    def require_mask(self) -> None:
        """Raise a RuntimeError unless the tensor is still the one that was set up."""
        first = None
        for (module, name), method in zip(self.target.sites, self._methods, strict=True):
            if method_of(module, name) is not method:
                raise RuntimeError(
                    f"{self.name} must carry the mask of this scheduler, but it was finalized or "
                    "pruned anew: finalize the rest with platon_prune.remove(model), or set "
                    "pruning up again to prune further"
                )
            weight = weight_of(module, name)
            first = weight if first is None else first
            if weight is not first:
                raise RuntimeError(
                    f"{self.name} must be one parameter shared by {len(self.target.sites)} modules "
                    "as it was at set-up, but they hold parameters of their own now: tie the "
                    "weights again after loading"
                )
            if weight.shape != mask_of(module, name).shape:
                raise RuntimeError(
                    f"{self.name} must keep its shape {tuple(mask_of(module, name).shape)}, got "
                    f"{tuple(weight.shape)}: finalize before changing a layer's size"
                )

    def take_in(
        self, gradient: Tensor | None, fold_over: int | None, restart: bool, apply_mask: bool
    ) -> bool:
        """Update everything in one walk, so that each block is read from memory once.

        Args:
            gradient: This step's gradient; None adds nothing to the window.
            fold_over: Fold the window into the averages, as the sum of so many samples, before
                this step joins it; None not to.
            restart: Whether to empty the window before this step joins it.
            apply_mask: Whether to zero what the mask prunes, after the weight has been read.

        Returns:
            Whether a window was folded in which the tensor never had a gradient.
        """
        weight = self.weight
        self._follow(weight.device)
        state = () if self._window is None else (self._window, *self._averages)
        operands = (weight, self.mask, *state)
        if gradient is not None:
            operands += (gradient,)
        for weight, mask, *rest in blocks(*operands):
            grad = rest.pop() if gradient is not None else None
            if rest:
                window, *averages = rest
                self._take_in_block(weight, grad, window, averages, fold_over, restart)
            if apply_mask:
                zero_pruned_(weight, mask, self.scratch)
        had_none = fold_over is not None and not self._had_gradient
        self._had_gradient = gradient is not None or (self._had_gradient and not restart)
        return had_none

    def _take_in_block(
        self,
        weight: Tensor,
        grad: Tensor | None,
        window: Tensor,
        averages: list[Tensor],
        fold_over: int | None,
        restart: bool,
    ) -> None:
        if fold_over is not None:
            # A sum that overflowed must not poison the averages for good.
            mean = window.div_(fold_over).nan_to_num_(nan=0.0)
            self.criterion.fold_(mean, averages)
        if restart:
            window.zero_()
        if grad is not None:
            product = self.scratch.like(weight, torch.float32)
            window.add_(self.criterion.sample_(weight_times_grad(weight, grad, product)))

    def apply_mask(self) -> None:
        """Zero what the mask prunes, and bring the mask to the other sites of a shared tensor."""
        apply_mask_(*self.target.sites[0], self.scratch)
        for module, name in self.target.sites[1:]:
            mask = mask_of(module, name)
            if mask is not self.mask:  # moving a model copies its buffers apart
                mask.copy_(self.mask)

    def scored(self) -> ScoredTensor:
        """What the global choice needs of it."""
        weight = self.weight.reshape(-1)
        averages = [average.view(-1) for average in self.averages]

        def score(index: slice | Tensor) -> Tensor:
            block = weight[index]
            out = self.scratch.like(block, torch.float32, role="score")
            return self.criterion.score(block, [average[index] for average in averages], out)

        return ScoredTensor(score, self.mask, self.offset)

    def score(self) -> Tensor:
        """All its scores: float32, of the weight's shape, a new tensor."""
        weight = self.weight
        out = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        return self.criterion.score(weight, self.averages, out)

    def state_dict(self) -> dict[str, Any]:
        """Copies of what is remembered, with the mask as bits."""
        state: dict[str, Any] = {
            "shape": list(self.mask.shape),
            "mask": bitmask.pack(self.mask),
            "had_gradient": self._had_gradient,
        }
        state |= {name: tensor.clone() for name, tensor in self._named_state()}
        if self.masking == "window":
            # What pruned weights trained to since the choice: a saved model may lack these.
            state["refilled"] = self.weight[~self.mask].clone()
        return state

    def expected_state(self) -> dict[str, tuple[int, ...] | None]:
        """The entries that :meth:`state_dict` has, with the shapes of those that have the weight's.

        ``mask`` stands for the weight's shape, though it is saved as bits.
        """
        shape = tuple(self.mask.shape)
        entries: dict[str, tuple[int, ...] | None] = {"mask": shape, "had_gradient": None}
        entries |= {name: shape for name, _ in self._named_state()}
        return entries | ({"refilled": None} if self.masking == "window" else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned for a tensor of this name and shape."""
        for module, name in self.target.sites:
            bitmask.unpack_(mask_of(module, name), state["mask"])
        for name, tensor in self._named_state():
            tensor.copy_(state[name])
        self._had_gradient = state["had_gradient"]
        weight = self.weight
        if self.masking == "window":
            weight[~self.mask] = state["refilled"].to(weight)
        else:
            self.apply_mask()

    def _named_state(self) -> Iterable[tuple[str, Tensor]]:
        self._follow(self.weight.device)
        if self._window is not None:
            yield "window", self._window
        yield from zip(self.criterion.averages, self._averages, strict=True)

    def _follow(self, device: torch.device) -> None:
        """Move what is remembered to the weight's device, if the model has been moved."""
        if self._window is not None and self._window.device != device:
            self._window = self._window.to(device)
            self._averages = tuple(average.to(device) for average in self._averages)

    def _zeros(self) -> Tensor:
        weight = self.weight
        return torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
