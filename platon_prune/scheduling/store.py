"""All that is remembered of the tensors of a scheduler, device by device, and their updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from platon_prune.choice.scored import Line, ScoredLine, ScoredTensor, ScoredTensors
from platon_prune.criteria import Criterion
from platon_prune.masks.masked import weight_of
from platon_prune.scheduling.averages import Averages, Storage
from platon_prune.scheduling.line_scores import line_scores
from platon_prune.scheduling.tracked import TrackedTensor
from platon_prune.tensors.backends import FixedList, Operands, address_of, backend_for
from platon_prune.tensors.blocks import Scratch, blocks
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import as_placed

_STRIDED = torch.strided  # looked up once, not for each gradient

# Where a tensor was when it was last looked for: a module's parameters or buffers, its key there,
# and itself. No named tuple: a bare one is taken apart in half the time.
_Seat = tuple[Mapping[str, Tensor | None], str, Tensor]


class _Share(NamedTuple):
    """The tensors of one device.

    Args:
        numbers: Which of the scheduler's tensors they are, in order.
        line: They in a line.
        averages: What is remembered of them; None if the criterion keeps nothing.
        operands: What a step touches of each; the same list until a tensor moves.
    """

    numbers: Sequence[int]
    line: Line
    averages: Averages | None
    operands: FixedList[Operands]


class Store:
    """Windows, averages and masks of all tensors, as flat memory and as tables for the backends.

    Args:
        tensors: In the order of the model.
        criterion: Says what is remembered.
        storage: How it is kept.
        scratch: Temporaries, shared by all tensors.
    """

    def __init__(
        self,
        tensors: Sequence[TrackedTensor],
        criterion: Criterion,
        storage: Storage,
        scratch: Scratch,
    ) -> None:
        self.criterion = criterion
        self.storage = storage
        self._tensors = tensors
        self._scratch = scratch
        self._shares: list[_Share] = []
        # The parameters; None if the tensors have to be looked for at each step.
        self._parameters: list[Tensor] | None = None
        # Where modules have them and the masks, shared ones several times.
        self._seats: list[_Seat] = []
        # Memory can move under a tensor that stays the same object: `.data = ...`.
        self._addressed: list[Tensor] = []
        self._addresses: list[int] = []

    # --- where the tensors are ----------------------------------------------------------------

    def is_seated(self) -> bool:
        """Whether all tensors are where they were, so that nothing has to be looked up."""
        if self._parameters is None:
            return False
        # Hundreds of tensors pass here at each step, so as little as can be is done for each.
        try:
            for holder, key, tensor in self._seats:
                if holder[key] is not tensor:
                    return False
        except KeyError:  # finalized
            return False
        return list(map(Tensor.data_ptr, self._addressed)) == self._addresses

    @property
    def is_whole(self) -> bool:
        """Whether this process holds all of every tensor, as of when they were last followed."""
        return self._parameters is not None

    def seat(self) -> None:
        """Follow the tensors to where they are; what is remembered of them comes along."""
        self._parameters = None
        weights = [tensor.weight for tensor in self._tensors]
        if any(weight.is_meta for weight in weights):
            return  # nothing is allocated for a model that has no values yet
        for tensor, weight in zip(self._tensors, weights, strict=True):
            if any(kept.numel() != weight.numel() for kept in tensor.remembered.values()):
                return  # of another size: the next step refuses it
        homes = {i: (weight.device, weight.numel()) for i, weight in enumerate(weights)}
        if homes != self._homes():
            self._move(homes)
        self._shares = [share._replace(operands=self._operands(share)) for share in self._shares]
        if not all(tensor.is_alone for tensor in self._tensors):
            return  # sharded tensors change hands in ways that seats do not show
        self._seats = [seat for tensor in self._tensors for seat in _seats_of(tensor)]
        self._addressed = [held for _, _, held in self._seats if address_of(held) is not None]
        self._addresses = [held.data_ptr() for held in self._addressed]
        self._parameters = [weight_of(*tensor.target.sites[0]) for tensor in self._tensors]

    def _homes(self) -> dict[int, tuple[torch.device, int]]:
        return {
            i: (share.line.device, size)
            for share in self._shares
            for i, size in zip(share.numbers, share.line.sizes, strict=True)
        }

    def _move(self, homes: Mapping[int, tuple[torch.device, int]]) -> None:
        by_device: dict[torch.device, list[int]] = {}
        for i, (device, _) in homes.items():
            by_device.setdefault(device, []).append(i)
        self._shares = []
        for device, numbers in by_device.items():
            line = Line([homes[i][1] for i in numbers], device)
            averages = None
            if self.criterion.windowed:
                averages = Averages(self.criterion, line, self.storage, self._scratch)
                for place, i in enumerate(numbers):
                    remembered = averages.of(place)
                    for name, values in self._tensors[i].remembered.items():
                        remembered[name].copy_(values)
                    self._tensors[i].remember(remembered, averages.finish)
            self._shares.append(_Share(numbers, line, averages, FixedList()))

    def _operands(self, share: _Share) -> FixedList[Operands]:
        operands: FixedList[Operands] = FixedList()
        for i in share.numbers:
            tensor = self._tensors[i]
            weight, window = tensor.weight, tensor.remembered.get("window")
            shaped = None if window is None else window.view(weight.shape)
            operands.append(Operands(weight, tensor.mask, shaped))
        return operands

    def forget(self) -> None:
        """Free all of it."""
        self._shares, self._seats, self._addressed, self._parameters = [], [], [], None

    @property
    def parameters(self) -> Sequence[Tensor]:
        """Those of the tensors, in order, while all of them are where they were."""
        return self._parameters or []

    @property
    def operands(self) -> Sequence[FixedList[Operands]]:
        """What a step touches, device by device; the same lists until a tensor moves."""
        return [share.operands for share in self._shares]

    @property
    def devices(self) -> list[torch.device]:
        """Where the tensors are."""
        return [share.line.device for share in self._shares]

    def bytes(self) -> dict[str, int]:
        """Memory of the windows and averages, whether they are allocated yet or not."""
        return self.storage.bytes(self.criterion, sum(t.weight.numel() for t in self._tensors))

    # --- a step -------------------------------------------------------------------------------

    def gradients(self) -> FixedList[Tensor | None]:
        """The gradient of each tensor; one that lies otherwise than its tensor as it is."""
        if self._parameters is None:
            return FixedList([tensor.gradient for tensor in self._tensors])
        gradients = FixedList([parameter.grad for parameter in self._parameters])
        for i, gradient in enumerate(gradients):
            if type(gradient) is not Tensor or gradient.layout is not _STRIDED:
                gradients[i] = None if gradient is None else self._tensors[i].gradient
        if len(self._shares) == 1:
            gradients.beside = self._shares[0].operands
        return gradients

    def flag_non_finite_(self, gradients: Sequence[Tensor | None], flag: Tensor) -> None:
        """Set a flag if an entry is not finite, wherever it is; nothing is waited for.

        Args:
            gradients: Of each tensor, those that lie here.
            flag: float32, one entry, 0, on the first device.
        """
        for share in self._shares:
            here = _of_share(gradients, share)
            if share.line.device == flag.device:
                backend_for(flag.device).flag_non_finite_(here, flag)
                continue
            own = torch.zeros(1, device=share.line.device)
            backend_for(own.device).flag_non_finite_(here, own)
            flag.add_(own.to(flag.device, non_blocking=True))

    def accumulate_(
        self,
        gradients: Sequence[Tensor | None] | None,
        flag: Tensor | None,
        masking: bool | Tensor,
    ) -> None:
        """Add a step's samples to the windows, unless the flag is set; then apply the masks.

        Args:
            gradients: Of each tensor, or None for all of them: nothing is added.
            flag: On the first device; None if it is known that all is finite.
            masking: Whether to zero what the masks prune; one entry if only the device knows.
        """
        for share in self._shares:
            device = share.line.device
            here = None if flag is None else flag.to(device, non_blocking=True)
            formula = self.criterion.formula
            added = None
            if gradients is not None and self.criterion.windowed:
                added = _of_share(gradients, share)
                if formula is None:
                    # A graph has temporaries of its own: see `Backend.accumulate_`.
                    scratch = Scratch() if isinstance(masking, Tensor) else self._scratch
                    self._sample_(share.operands, added, here, scratch)
                    added = None
            elif masking is False:
                continue
            if added is None:
                added = _none_captured(gradients)
            backend = backend_for(device)
            backend.accumulate_(share.operands, added, formula or "abs_product", here, masking)

    def _sample_(
        self,
        operands: Sequence[Operands],
        gradients: Sequence[Tensor | None],
        flag: Tensor | None,
        scratch: Scratch,
    ) -> None:
        """The same with what a user's criterion says of a step, tensor by tensor."""
        for (weight, _, window), gradient in zip(operands, gradients, strict=True):
            if gradient is None or window is None:
                continue
            for block, grad, total in blocks(weight, gradient, window):
                product = scratch.like(block, torch.float32)
                sample = self.criterion.sample(block, grad, product)
                if flag is not None:
                    sample.masked_fill_(flag != 0, 0)  # NaN times 0 would be NaN
                total.add_(sample)

    def end_window_(self, num_samples: float) -> None:
        """Update the averages from the sum over so many samples; 0 leaves them as they are."""
        for share in self._shares:
            if share.averages is not None and num_samples:
                share.averages.end_window_(num_samples)
            elif share.averages is not None:
                share.averages.restart_window_()

    # --- scores -------------------------------------------------------------------------------

    def scored(self, processes: Processes) -> ScoredTensors:
        """What a choice needs: each tensor, and all of them in a line where they can be.

        Collective if the criterion looks at whole tensors.
        """
        statistics = self._statistics(self._tensors, processes)

        def tensors() -> Iterator[ScoredTensor]:
            for tensor, whole in zip(self._tensors, statistics, strict=True):
                yield self._scored_tensor(tensor, whole)

        return ScoredTensors(tensors, self._scored_line())

    def score(self, tensor: TrackedTensor, processes: Processes) -> Tensor:
        """All scores of a tensor: float32, of its shape and placed as it is, a new tensor.

        Collective if the criterion looks at whole tensors.
        """
        (statistics,) = self._statistics([tensor], processes)
        weight = tensor.weight
        out = torch.empty(weight.numel(), dtype=torch.float32, device=weight.device)
        self._score_block(tensor, statistics, slice(0, out.numel()), out)
        return as_placed(out.view(weight.shape), tensor.parameter)

    def _statistics(
        self, tensors: Sequence[TrackedTensor], processes: Processes
    ) -> list[Tensor | None]:
        """What the criterion knows of each whole tensor: float64, on the CPU."""
        if not self.criterion.num_statistics:
            return [None] * len(tensors)
        everyone = processes.gather([self._own_statistics(t).tolist() for t in tensors])
        # Added up in one order everywhere: an all-reduce may round otherwise in another process.
        return [
            torch.tensor([sum(values) for values in zip(*shares, strict=True)], dtype=torch.float64)
            for shares in zip(*everyone, strict=True)
        ]

    def _own_statistics(self, tensor: TrackedTensor) -> Tensor:
        """The criterion's sums over what this process counts of a tensor."""
        assert tensor.shard is not None
        owned = tensor.weight.reshape(-1)[tensor.shard.owned]
        total = torch.zeros(self.criterion.num_statistics, dtype=torch.float64, device=owned.device)
        for (block,) in blocks(owned):
            total += self.criterion.statistics(block)
        return total.cpu()

    def _scored_tensor(self, tensor: TrackedTensor, statistics: Tensor | None) -> ScoredTensor:
        weight = tensor.weight.reshape(-1)

        def score(index: slice | Tensor) -> Tensor:
            size = index.stop - index.start if isinstance(index, slice) else index.numel()
            out = self._scratch.flat(size, torch.float32, weight.device, "score")
            return self._score_block(tensor, statistics, index, out, weight)

        return ScoredTensor(
            score, tensor.mask, tensor.offset, tensor.shard, tensor.name, self.criterion.signed
        )

    def _score_block(
        self,
        tensor: TrackedTensor,
        statistics: Tensor | None,
        index: slice | Tensor,
        out: Tensor,
        flat_weight: Tensor | None = None,
    ) -> Tensor:
        flat = tensor.weight.reshape(-1) if flat_weight is None else flat_weight
        averages = []
        for i, name in enumerate(self.criterion.averages):
            kept = tensor.remembered[name]
            block = kept[index if isinstance(index, slice) else index.to(kept.device)]
            if block.dtype != torch.float32 or block.device != out.device:
                role = f"average {i}"
                block = self._scratch.flat(out.numel(), torch.float32, out.device, role).copy_(
                    block
                )
            averages.append(block)
        if statistics is None:
            return self.criterion.score(flat[index], averages, out)
        return self.criterion.score_with(statistics, flat[index], averages, out)

    def _scored_line(self) -> ScoredLine | None:
        """All tensors in a line; None where a score or a place does not allow it."""
        if len(self._shares) != 1 or self.criterion.num_statistics or self._parameters is None:
            return None
        (share,) = self._shares
        weights = [operand.weight for operand in share.operands]
        # A slab is gathered from flat views, which other strides do not have.
        if self.criterion.reads_weight and not all(each.is_contiguous() for each in weights):
            return None
        masks = share.line.cut([operand.mask for operand in share.operands])
        score = line_scores(self.criterion, share.line, weights, share.averages, self._scratch)
        shapes = {
            tensor.name: operand.mask.shape
            for tensor, operand in zip(self._tensors, share.operands, strict=True)
        }
        signed, scratch = self.criterion.signed, self._scratch
        return ScoredLine(share.line, score, masks, shapes, signed, scratch=scratch)


def _none_captured(gradients: Sequence[Tensor | None] | None) -> Sequence[Tensor | None] | None:
    """No gradient for any tensor, where some are captured; None for all of them elsewhere.

    Else a backend would not know that a graph reads what it keeps for such a step.
    """
    if not isinstance(gradients, FixedList) or gradients.capture is None:
        return None
    none: FixedList[Tensor | None] = FixedList([None] * len(gradients))
    none.capture = gradients.capture
    return none


def _of_share(gradients: Sequence[Tensor | None], share: _Share) -> Sequence[Tensor | None]:
    """Those of one device; the list itself, of which more may be known, if that is all of them."""
    if len(share.numbers) == len(gradients):
        return gradients
    return [gradients[i] for i in share.numbers]


def _seats_of(tensor: TrackedTensor) -> Iterator[_Seat]:
    for module, name in tensor.target.sites:
        for holder, key in (
            (module._parameters, f"{name}_orig"),
            (module._buffers, f"{name}_mask"),
        ):
            held = holder[key]
            assert held is not None
            yield holder, key, held
