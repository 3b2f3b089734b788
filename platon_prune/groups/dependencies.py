"""Coupled channels and neurons of any network, from torch-pruning's dependency graph.

The graph takes what it does not know for elementwise, so each place it finds is tried on the
example before it is believed: with all that reads a channel at zero, what computes it must not
matter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune
from torch.utils import _pytree as pytree

from platon_prune.example_inputs import as_call, call_model
from platon_prune.extras import need
from platon_prune.groups.coupled import CoupledGroups, Member, Missed
from platon_prune.groups.tracing import trace_around
from platon_prune.masks.masked import pruned_tensors
from platon_prune.warning import PruningWarning

_CONVOLUTION = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_OUTPUT = "_OutputOp"  # of torch-pruning's graph
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class _Traced(NamedTuple):
    """One place as it was found in the graph: its coupled groups, and which tensors do what.

    Args:
        groups: The place.
        computing: Tensors whose entries compute the groups.
        reading: Tensors whose entries read what the groups give.
    """

    groups: CoupledGroups
    computing: tuple[Member, ...]
    reading: tuple[Member, ...]


_SEEN = (
    "what computes them is seen though they are masked, as where a norm, a softmax or a gate looks "
    "at all of them, or they are an output"
)


def traced_places(
    model: nn.Module, inputs: Any, time_limit: float
) -> tuple[list[CoupledGroups], list[Missed]]:
    """Channels and neurons whose removal changes nothing once they are masked.

    Args:
        model: Left as it is; a copy is traced.
        inputs: Example inputs: a tensor, a tuple or a dict of arguments.
        time_limit: Seconds that the tracing may take.

    Returns:
        Places in the order of the model, and those left out, with the reasons.

    Raises:
        ImportError: If torch-pruning is not installed.
        ValueError: If the model does not run, or nothing of it can be traced.
        TimeoutError: If it took longer.
    """
    twin = _plain_copy(model)  # masks and hooks would hide layers from torch-pruning
    names = {module: name for name, module in twin.named_modules()}
    traced = trace_around(
        twin,
        inputs,
        lambda module, given, walls: list(_places(module, given, walls, names)),
        time_limit,
    )
    places = _told_apart([place for place in traced.found if isinstance(place, _Traced)])
    missed = {place.name: place for place in traced.found if isinstance(place, Missed)}
    if traced.untraced:
        _tell(traced.untraced, any_left=bool(places))
    order = {name: i for i, (name, _) in enumerate(twin.named_parameters())}
    places.sort(key=lambda place: order[place.groups.members[0].name])
    found = []
    for place in places:
        if _is_independent(twin, inputs, place):
            found.append(place.groups)
            missed.pop(place.groups.name, None)  # traced by itself where the whole model was not
        else:
            missed[place.groups.name] = Missed(place.groups.name, place.groups.kind, _SEEN)
    return found, list(missed.values())


def _plain_copy(model: nn.Module) -> nn.Module:
    """The model without masks and hooks, all of it trainable, in evaluation."""
    twin = copy.deepcopy(model)
    for _, module, name in list(pruned_tensors(twin)):
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    for module in twin.modules():
        # torch-pruning knows a layer by the gradient function of its output.
        for hooks in (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks):
            hooks.clear()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin.eval()


# --- the graph ----------------------------------------------------------------------------------


def _told_apart(places: Sequence[_Traced]) -> list[_Traced]:
    """Each place once, where parts of a model were traced by themselves."""
    found: dict[str, _Traced] = {}
    for place in places:
        found.setdefault(place.groups.members[0].name, place)
    return list(found.values())


def _tell(untraced: Mapping[str, str], any_left: bool) -> None:
    """Say what could not be traced: as an error if nothing else is left to prune."""
    listed = "; ".join(f"{name or 'the model'} ({why})" for name, why in untraced.items())
    if not any_left:
        raise ValueError(
            f"model must have layers that torch-pruning can trace, got none around {listed}: write "
            "what it fails on in another way (chunk instead of split with sizes), or prune single "
            "weights with global_unstructured instead"
        )
    PruningWarning.warn(
        f"not traced, so that what flows into it stays whole: {listed}; the rest is pruned"
    )


def _places(
    model: nn.Module,
    inputs: Any,
    walls: Sequence[nn.Module],
    names: Mapping[nn.Module, str],
) -> Iterator[_Traced | Missed]:
    who = "finding the groups of a model that is not known by the names of its layers"
    need("torch_pruning", who=who, extra="structured")
    from torch_pruning import DependencyGraph

    with torch.enable_grad():
        graph = DependencyGraph().build_dependency(
            model,
            inputs,
            call_model,
            output_transform=_with_gradient,
            ignored_layers=[layer for wall in walls for layer in wall.modules()],
            verbose=False,
        )
        for group in graph.get_all_groups(root_module_types=[_CONVOLUTION, nn.Linear]):
            yield _place_of(graph, group, names)


def _with_gradient(outputs: Any) -> list[Tensor]:
    return [output for output in _tensors(outputs) if output.grad_fn is not None]


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _place_of(graph: Any, group: Any, names: Mapping[nn.Module, str]) -> _Traced | Missed:
    """A group of torch-pruning, whose elements are ours; why not if something is not known."""
    root = group[0].dep.target.module
    root_kind = "channels" if isinstance(root, _CONVOLUTION) else "neurons"

    def missed(why: str) -> Missed:
        return Missed(names.get(root, ""), root_kind, why)

    computing: dict[tuple[str, int], Tensor] = {}
    reading: dict[tuple[str, int], Tensor] = {}
    size, kind = len(group[0].idxs), "neurons"
    for item in group:
        module = item.dep.target.module
        if not isinstance(module, nn.Module) or module not in names:
            if _is_transparent(module):
                continue
            what = type(module).__name__
            if what == _OUTPUT:
                return missed("they are an output of the model")
            return missed(f"what a {what} does with them is not known")
        is_computed = graph.is_out_channel_pruning_fn(item.dep.handler)
        cut = _cut(module, is_computed)
        if cut is None or None in item.root_idxs:
            grouped = "grouped " if getattr(module, "groups", 1) != 1 else ""
            what = f"{grouped}{type(module).__name__}"
            return missed(f"how to cut a {what} such as {names[module]} is not known")
        for tensor_name, dim in cut:
            # What the graph does not list of a tensor, a part of a concatenation, is in no group.
            group_of = torch.full((getattr(module, tensor_name).shape[dim],), -1)
            if max(item.idxs) >= len(group_of):  # of a GLU's halves
                return missed(f"torch-pruning loses count of them in {names[module]}")
            group_of[torch.tensor(item.idxs)] = torch.tensor(item.root_idxs)
            side = computing if is_computed else reading
            key = (f"{names[module]}.{tensor_name}".removeprefix("."), dim)
            if key in side and not torch.equal(side[key], group_of):
                return missed(f"{names[module]} has them in another order each time")
            side[key] = group_of
        if is_computed and isinstance(module, _CONVOLUTION):
            kind = "channels"
    if not computing or not reading:
        return missed("no layer reads them, as of an output of the model")
    return _ordered(kind, size, computing, reading, list(names.values()))


def _ordered(
    kind: str,
    size: int,
    computing: Mapping[tuple[str, int], Tensor],
    reading: Mapping[tuple[str, int], Tensor],
    order: Sequence[str],
) -> _Traced:
    def members(side: Mapping[tuple[str, int], Tensor]) -> tuple[Member, ...]:
        found = [Member(name, dim, group_of) for (name, dim), group_of in side.items()]
        # Stable: a weight stays before its bias.
        return tuple(sorted(found, key=lambda member: order.index(_holder(member))))

    first, last = members(computing), members(reading)
    return _Traced(CoupledGroups(_holder(first[0]), kind, size, first + last), first, last)


def _holder(member: Member) -> str:
    return member.name.rpartition(".")[0]


def _is_transparent(operation: Any) -> bool:
    """Whether it is an operation of the graph, and none at which the model ends."""
    return isinstance(operation, nn.Module) and type(operation).__name__ != _OUTPUT


def _cut(module: nn.Module, is_computed: bool) -> list[tuple[str, int]] | None:
    """Which tensors of a layer are cut along which dimension; None if it is not understood."""
    if isinstance(module, _CONVOLUTION):
        by_channel = module.groups == module.in_channels == module.out_channels
        if module.groups > 1 and not by_channel:
            return None
        first = isinstance(module, _TRANSPOSED) != is_computed
        dim = 0 if first or by_channel else 1
        cut = [("weight", dim)]
    elif isinstance(module, nn.Linear):
        cut = [("weight", 0 if is_computed else 1)]
    elif isinstance(module, _BATCH_NORM) or (
        isinstance(module, nn.PReLU) and module.num_parameters > 1
    ):
        cut = [("weight", 0)]
    elif isinstance(module, nn.PReLU):
        return []
    else:
        return None
    if getattr(module, "bias", None) is not None and is_computed:
        cut.append(("bias", 0))
    known = all(module._parameters.get(name) is not None for name, _ in cut)
    return cut if known else None  # a batch norm without scale could not be cut with the channel


# --- the trial ----------------------------------------------------------------------------------


@torch.no_grad()
def _is_independent(model: nn.Module, inputs: Any, place: _Traced) -> bool:
    """Whether a masked half of the groups is seen nowhere, whatever computes it."""
    # A generator of its own: finding groups must not move the user's random numbers.
    generator = torch.Generator().manual_seed(0)
    masked = torch.randperm(place.groups.size, generator=generator)[: -(-place.groups.size // 2)]
    outputs = []
    for is_noisy in (False, True):
        changed: dict[str, Tensor] = {}
        for i, member in enumerate(place.computing + place.reading):
            tensor = changed.get(member.name)
            if tensor is None:
                tensor = changed[member.name] = model.get_parameter(member.name).detach().clone()
            index = place.groups.indices(member, masked).to(tensor.device)
            noise = torch.zeros_like(tensor.index_select(member.dim, index))
            if is_noisy and i < len(place.computing):
                noise = torch.randn(noise.shape, generator=generator).to(noise)
            tensor.index_copy_(member.dim, index, noise)
        outputs.append(_tensors(functional_call(model, changed, *as_call(inputs))))
    return all(
        torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()), equal_nan=True)
        for one, other in zip(*outputs, strict=True)
        if one.is_floating_point() and one.numel()
    )
