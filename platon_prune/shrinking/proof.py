"""Each place is tried before it is believed: some of it is cut out of a twin, which must run alike.

Places are tried together, and by halves where that fails, so that a model without surprises costs a
few runs whatever its depth: one evaluation with zeros, one without them, one training step. They
are tried in batches whose cut tensors take a sixteenth of the model, or 64 MiB if that is more; the
twin shares the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.blocks import only, path_of, positions_of
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.experts import KIND, pass_over_
from platon_prune.shrinking import twin as twins
from platon_prune.shrinking.attention.head_bias import without_unknown
from platon_prune.shrinking.cut_out import cut_out_, plan_cut
from platon_prune.shrinking.fewer_blocks import Untold
from platon_prune.shrinking.named import find, named_parameter
from platon_prune.shrinking.removable import Place, in_whole_steps, refusals, step_of

_MOST_BYTES = 64 * 2**20
_MOST_SHARE = 16


@dataclass(frozen=True)
class Proof:
    """Which places can be cut out of a model.

    Args:
        groups: Those that can.
        left_out: Why each other one can't, by the name of its place.
    """

    groups: list[CoupledGroups]
    left_out: dict[str, str]


class CannotRun(ValueError):  # noqa: N818  (a ValueError to users, told apart within)
    """The model as it is does not run on the inputs, so that nothing can be learned from them."""


def prove(model: nn.Module, groups: Sequence[CoupledGroups], inputs: Any) -> Proof:
    """Try to cut something out of each place.

    Args:
        model: With masks or without; not changed.
        groups: The places.
        inputs: Example inputs, or None to look at layers only.

    Returns:
        The places that can be cut, in their order, and why the others can't.

    Raises:
        CannotRun: If the model does not run on the inputs.
    """
    stacks = {i: place for i, place in enumerate(groups) if place.kind == BLOCKS}
    trials = [_trial(i, place) for i, place in enumerate(groups)]
    reasons = dict(enumerate(refusals(model, groups)))
    for i, trial in enumerate(without_unknown(model, trials)):
        reasons[i] = reasons[i] or trial.note
    # A place of one group is never cut.
    able = [
        i for i, place in enumerate(groups)
        if not reasons[i] and place.size > 1 and i not in stacks
    ]  # fmt: skip
    found = failures(model, [trials[i] for i in able], inputs, bounded=True)
    reasons |= {able[i]: reason for i, reason in found.items()}
    proof = Proof([], {})
    for i, place in enumerate(groups):
        if i in stacks:
            left, layers = _proven_blocks(model, place, inputs)
            proof.groups.extend(left)
            proof.left_out.update(layers)
        elif reasons[i]:
            proof.left_out[place.name] = reasons[i]
        else:
            proof.groups.append(place)
    return proof


def _proven_blocks(
    model: nn.Module, stack: CoupledGroups, inputs: Any
) -> tuple[list[CoupledGroups], dict[str, str]]:
    """The layers of a list without which the model runs alike, and why not without others."""
    each = [Place(stack, torch.arange(stack.size) != i) for i in range(stack.size)]
    reasons: dict[int, str] = {}
    # All but the last at once, then the last: a list must keep a layer.
    for numbers in (range(stack.size - 1), [stack.size - 1]):
        tried = failures(model, [each[i] for i in numbers], inputs)
        reasons |= {numbers[i]: reason for i, reason in tried.items()}
    positions = positions_of(stack)
    left_out = {path_of(stack.name, positions[i]): reason for i, reason in reasons.items()}
    left = [i for i in range(stack.size) if i not in reasons]
    return [only(stack, left)] if left else [], left_out


def failures(
    model: nn.Module, places: Sequence[Place], inputs: Any, *, bounded: bool = False
) -> dict[int, str]:
    """Which places can't be cut as planned, and why.

    Args:
        model: Not changed, nor are its running statistics and the random numbers of the process.
        places: What each is to be left with; what goes is zeroed first, if it is not zero.
        inputs: Example inputs, or None to look at sizes only.
        bounded: Whether to try them in batches, for bounded memory, instead of all at once.

    Returns:
        The reason for each that can't, by its number.

    Raises:
        CannotRun: If the model does not run on the inputs.
    """
    wanted = [i for i, place in enumerate(places) if not place.kept.all()]
    if not wanted:
        return {}
    if inputs is None:
        return _misfits(model, places, wanted)
    with twins.as_if_nothing_happened(model):
        trials = _Trials(model, places, inputs)
        found: dict[int, str] = {}
        for batch in _batches(model, places, wanted) if bounded else [wanted]:
            found |= trials.search(batch)
    return found


def _misfits(model: nn.Module, places: Sequence[Place], wanted: Sequence[int]) -> dict[int, str]:
    """Which places would leave a layer or its parent with sizes that do not fit."""
    found = {}
    for i in wanted:
        try:
            plan_cut(model, [places[i]])
        except ValueError as error:
            found[i] = str(error)
    return found


def _trial(number: int, place: CoupledGroups) -> Place:
    """The place without one of its groups, or two: neighbours must not come out alike by chance."""
    kept = torch.ones(place.size, dtype=torch.bool)
    count = max(1 + number % 2 if place.size > 3 else 1, step_of(place))
    generator = torch.Generator().manual_seed(number)
    if place.kind == KIND:
        # One of each routing group: they stay equal.
        kept.view(place.num_sets, -1)[:, number % (place.size // place.num_sets)] = False
    else:
        kept[torch.randperm(place.size, generator=generator)[:count]] = False
    return in_whole_steps(Place(place, kept))


def _batches(
    model: nn.Module, places: Sequence[Place], wanted: Sequence[int]
) -> Iterator[list[int]]:
    """Places whose tensors together take no more memory than a trial may."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    most, size = max(_MOST_BYTES, total // _MOST_SHARE), 0
    batch: list[int] = []
    for i in wanted:
        own = sum(parameter.nbytes for parameter in _parameters(model, places[i]))
        if batch and size + own > most:
            yield batch
            batch, size = [], 0
        batch, size = [*batch, i], size + own
    yield batch


def _parameters(model: nn.Module, place: Place) -> list[Tensor]:
    return [named_parameter(*find(model, member.name)) for member in place.groups.members]


class _Trials:
    """Trials of one plan on one model."""

    def __init__(self, model: nn.Module, places: Sequence[Place], inputs: Any) -> None:
        self._model = model
        self._places = places
        self._inputs = inputs
        self._train: Callable[..., None] | None = None
        twin = self._twin()
        try:
            twins.outputs_of(twin, inputs)
        except Exception as error:
            raise CannotRun(
                f"model must run on example_inputs, but got {_said(error)}: pass a batch as the "
                "model takes it"
            ) from error
        # What training runs has branches of its own. Where even the whole model does not train on
        # the inputs (a detector without targets), it tells nothing of a cut.
        for train in (twins.train_on, twins.train_with_fixed_norms):
            try:
                train(self._twin(), inputs)
            except Exception:  # noqa: S112
                continue
            self._train = train
            break

    def _twin(self) -> nn.Module:
        try:
            return twins.twin_of(self._model)
        except Exception as error:
            raise CannotRun(
                f"model must be one that copy.deepcopy can copy, but got {_said(error)}: no place "
                "of it can be tried"
            ) from error

    def search(self, numbers: Sequence[int]) -> dict[int, str]:
        """Those that can't be cut, the others being cut together."""
        reason = self._reason(numbers)
        if reason is None:
            return {}
        if len(numbers) == 1:
            return {numbers[0]: reason}
        half = len(numbers) // 2
        found = self.search(numbers[:half]) | self.search(numbers[half:])
        fine = [i for i in numbers if i not in found]
        if 0 < len(fine) < len(numbers) and self._reason(fine) is None:
            return found
        # Each half runs, but not both: one after another, what does not fit those before it.
        together: list[int] = []
        for i in fine:
            reason = self._reason([*together, i])
            if reason is None:
                together.append(i)
            else:
                found[i] = reason
        return found

    def _reason(self, numbers: Sequence[int]) -> str | None:
        """Why the places can't be cut together; None if they can."""
        places = [self._places[i] for i in numbers]
        twin = self._twin()
        try:
            _zero_(twin, places)
            expected = twins.outputs_of(twin, self._inputs)
            weights = _weights(twin, places)
            cut_out_(twin, plan_cut(twin, places))
            found = twins.outputs_of(twin, self._inputs)
            if differs := twins.difference(found, expected):
                return f"without it the model runs, but {differs}"
        except Untold as error:
            return str(error)
        except Exception as error:  # whatever the model's own code raises
            return f"without it the model does not run: {_said(error)}"
        if self._train is not None:
            try:
                self._train(twin, self._inputs, _still_in(twin, weights))
            except Exception as error:
                return f"without it the model does not train: {_said(error)}"
        return None


def _weights(twin: nn.Module, places: Sequence[Place]) -> list[Tensor]:
    names = dict.fromkeys(m.name for place in places for m in place.groups.members)
    found = (named_parameter(*find(twin, name)) for name in names)
    return list({id(weight): weight for weight in found}.values())


def _still_in(twin: nn.Module, weights: Sequence[Tensor]) -> list[Tensor]:
    """Those that the twin has left; where all are gone with their layers, its smallest one."""
    there = set(map(id, twin.parameters()))
    return [weight for weight in weights if id(weight) in there] or [
        min(twin.parameters(), key=Tensor.numel)
    ]


@torch.no_grad()
def _zero_(twin: nn.Module, places: Sequence[Place]) -> None:
    """Zero on a twin what is to go, in memory of the twin's own."""
    for place in places:
        gone = (~place.kept).nonzero().flatten()
        if place.groups.kind == KIND:
            pass_over_(twin, place.groups, ~place.kept)
        for member in place.groups.members:
            parameter = named_parameter(*find(twin, member.name))
            index = place.groups.indices(member, gone).to(parameter.device)
            if place.groups.kind == BLOCKS and len(index):
                # All of it, which is gone with its layer soon: zeros of no memory.
                parameter.data = parameter.data.new_zeros(()).expand(parameter.shape)
            elif parameter.index_select(member.dim, index).count_nonzero():
                parameter.data = parameter.data.index_fill(member.dim, index, 0)


def _said(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
