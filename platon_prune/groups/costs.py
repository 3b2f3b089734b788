"""What coupled groups cost: parameters, or multiply-adds or time on example inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from platon_prune.example_inputs import call_model
from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.masks.default_selection import is_named
from platon_prune.spellings import EXPERTS

Budget = Literal["parameters", "macs", "latency"]
BUDGETS: tuple[Budget, ...] = ("parameters", "macs", "latency")


@dataclass(frozen=True)
class Prices:
    """What is counted when groups go.

    Args:
        of_entry: For each tensor, by its name, what one of its entries costs.
        of_group: For each place, in order, what one of its groups costs beyond its entries.
        whole: What an amount is a share of; None for what all groups together cost.
    """

    of_entry: Mapping[str, int]
    of_group: tuple[int, ...]
    whole: int | None = None


def parameter_prices(groups: Sequence[CoupledGroups]) -> Prices:
    """Each entry counts one."""
    # By tensor and not by place: an entry that two places hold must have one price.
    names = [member.name for place in groups for member in place.members]
    return Prices(dict.fromkeys(names, 1), (0,) * len(groups))


def mac_prices(model: nn.Module, groups: Sequence[CoupledGroups], inputs: Any) -> Prices:
    """Multiply-adds of one forward over example inputs.

    An entry of a linear layer counts once per row it is applied to, one of a convolution once per
    position, one of an expert once per row of the mean expert; biases, tables and norms count
    nothing. A head also counts its two products of queries, keys and values.

    Args:
        model: Left as it is.
        groups: All places that are priced.
        inputs: Example inputs: a tensor, a tuple or a dict of arguments.

    Raises:
        ValueError: If the inputs reach none of the layers.
    """
    names = {member.name for place in groups for member in place.members}
    holders = {name.rpartition(".")[0] for name in names}
    uses = _measured(model, holders, inputs)
    if not any(use.rows for use in uses.values()):
        raise ValueError(
            'example_inputs must run through the layers to be pruned for budget="macs", but none '
            "of them was called"
        )
    of_entry = {}
    for name in names:
        holder, _, tensor_name = name.rpartition(".")
        use = uses[holder]
        is_weight = use.multiplies if tensor_name == "weight" else tensor_name in use.matrices
        of_entry[name] = use.rows if is_weight else 0
    return Prices(of_entry, tuple(_products(place, uses) for place in groups))


@dataclass
class _Use:
    rows: int = 0  # how often each entry of the weight is used
    length: int = 0  # tokens of one example
    multiplies: bool = False
    matrices: frozenset[str] = frozenset()  # of a module that is no layer, and holds its own


def _products(place: CoupledGroups, uses: Mapping[str, _Use]) -> int:
    """Multiply-adds of queries with keys, and of what they give with values, in one head."""
    if place.kind != "heads":
        return 0
    layers = list(dict.fromkeys(member.name.rpartition(".")[0] for member in place.members))
    query, key = layers[0], layers[min(1, len(layers) - 2)]  # the last one is the output
    # With grouped queries this is the width of all query heads of the group.
    width = int((place.members[-1].group_of == 0).sum())
    return uses[query].rows * uses[key].length * 2 * width


@torch.no_grad()
def _measured(model: nn.Module, names: set[str], inputs: Any) -> dict[str, _Use]:
    uses = {name: _Use() for name in names}
    modules = {name: module for name, module in model.named_modules() if name in names}
    modes = [(module, module.training) for module in model.modules()]
    hooks = [
        module.register_forward_hook(_counter(uses[name]), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        model.eval()  # no batch norm may learn from the example
        call_model(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return uses


def _counter(use: _Use) -> Any:
    def count(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            _count_own(use, module, [*inputs, *named.values()])
            return
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            use.rows += inputs[0].numel() // module.in_channels
        elif isinstance(module, nn.modules.conv._ConvNd):
            use.rows += output.numel() // module.out_channels
        else:
            # Added up: a layer may be called several times in one forward, as ALBERT's are.
            use.rows += math.prod(output.shape[:-1])
            use.length = output.shape[-2] if output.ndim > 1 else 1
        use.multiplies = weight.ndim > 1

    return count


def _count_own(use: _Use, module: nn.Module, given: Sequence[Any]) -> None:
    """Count the rows of a module that holds several matrices: XLNet's attention, experts."""
    tensors = [value for value in given if isinstance(value, Tensor)]
    own = {key.removesuffix("_orig"): p for key, p in module._parameters.items() if p is not None}
    # A scale for each head may have three dimensions, too, two of them of one entry.
    matrices = {key: p for key, p in own.items() if p.ndim == 3 and min(p.shape) > 1}
    if not tensors or not matrices:
        return
    rows = math.prod(tensors[0].shape[:-1])
    if is_named(module, "", EXPERTS) and len(tensors) > 1:
        # The second argument says which experts each row goes to: all of them share the rows.
        rows = max(1, tensors[1].numel() // next(iter(matrices.values())).shape[0])
    use.rows += rows
    use.length = tensors[0].shape[0] if tensors[0].ndim > 2 else 1
    use.matrices = frozenset(matrices)


def indices_per_group(member: Member, size: int) -> Tensor:
    """How many indices of a member each of ``size`` groups has; int64."""
    return torch.bincount(member.group_of + 1, minlength=size + 1)[1:]


class Savings:
    """What is saved when some groups go: entries that two places hold are saved once.

    Counted in integers, from how many indices of each dimension are left.

    Args:
        groups: All places.
        shapes: The shape of each of their tensors.
        prices: What entries and groups cost.

    Attributes:
        total: What all groups together cost.
    """

    def __init__(
        self, groups: Sequence[CoupledGroups], shapes: Mapping[str, torch.Size], prices: Prices
    ) -> None:
        self._sizes = [place.size for place in groups]
        self._prices = prices
        self._shapes = shapes
        # For each tensor and each dimension, the place and the indices that each group has there.
        self._cuts: dict[str, dict[int, list[tuple[int, Tensor]]]] = {}
        held: dict[tuple[str, int], list[tuple[int, Member]]] = {}
        for i, place in enumerate(groups):
            for member in place.members:
                held.setdefault((member.name, member.dim), []).append((i, member))
                cuts = self._cuts.setdefault(member.name, {}).setdefault(member.dim, [])
                cuts.append((i, indices_per_group(member, place.size)))
        # Where places hold the same indices, as a block and its heads do of a bias: counts would
        # count them twice.
        self._common = {key: each for key, each in held.items() if _overlap(each)}
        self.total = self.of(torch.ones(sum(self._sizes), dtype=torch.bool))

    def of(self, pruned: Tensor) -> int:
        """What is saved with all groups flagged in a bool tensor, place after place."""
        places = torch.split(pruned, self._sizes)
        saved = sum(
            price * int(place.sum())
            for price, place in zip(self._prices.of_group, places, strict=True)
        )
        for name, cuts in self._cuts.items():
            shape = self._shapes[name]
            left = list(shape)
            # A rectangle is left, so an entry that a row and a column lose is counted once.
            for dim, counted in cuts.items():
                common = self._common.get((name, dim))
                left[dim] -= (
                    sum(int(counts[places[place]].sum()) for place, counts in counted)
                    if common is None
                    else _num_gone(common, places)
                )
            saved += self._prices.of_entry[name] * (shape.numel() - math.prod(left))
        return saved


def _overlap(held: Sequence[tuple[int, Member]]) -> bool:
    """Whether several places hold one index of a tensor's dimension."""
    num_holders = torch.stack([member.group_of >= 0 for _, member in held]).sum(dim=0)
    return bool((num_holders > 1).any())


def _num_gone(held: Sequence[tuple[int, Member]], places: Sequence[Tensor]) -> int:
    """How many indices go with the groups that are flagged, place by place."""
    gone = torch.zeros_like(held[0][1].group_of, dtype=torch.bool)
    for place, member in held:
        # Behind the last group stands what is in none, as -1 is in a tensor's index.
        gone |= torch.cat([places[place], places[place].new_zeros(1)])[member.group_of]
    return int(gone.sum())
