"""Whole blocks of a model: layers in a row, each of which adds to what it is given.

With all of its parameters zero such a layer hands its input on unchanged, and can go. Whether it
does is tried and not told from names: a norm on the branch passes, a norm after the addition fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from platon_prune.example_inputs import as_call, guessed_inputs, moved_to
from platon_prune.groups.coupled import CoupledGroups, Member, Missed
from platon_prune.groups.layouts import own_parameters

KIND = "blocks"
_NOT_ITSELF = (
    "it does not hand its input on once all of it is zero, as where a norm comes after the addition"
)


def stacks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Lists of layers of which several are of one class, by their paths."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        and any(count > 1 for count in _classes(module).values())
    }


def blocks_in(stack: nn.Module) -> dict[int, nn.Module]:
    """The layers of a list that may be blocks, those of a class that others share, by position."""
    classes = _classes(stack)
    layers = enumerate(stack.children())
    return {i: layer for i, layer in layers if classes[_class_of(layer)] > 1}


def _classes(stack: nn.Module) -> Counter[str]:
    return Counter(_class_of(layer) for layer in stack.children())


def _class_of(layer: nn.Module) -> str:
    # By name: a layer that holds a mask itself is of a class of ours that is called the same.
    return type(layer).__name__


def path_of(stack: str, position: int) -> str:
    """The path of a layer."""
    return f"{stack}.{position}" if stack else str(position)


def positions_of(place: CoupledGroups) -> list[int]:
    """Where the layer of each group of a place of blocks stands in its list."""
    start = len(f"{place.name}.") if place.name else 0
    found = dict.fromkeys(range(place.size), -1)
    for member in place.members:
        found[int(member.group_of[0])] = int(member.name[start:].partition(".")[0])
    return list(found.values())


def only(place: CoupledGroups, groups: Sequence[int]) -> CoupledGroups:
    """A place of blocks with some of its groups alone, in this order."""
    number = {group: i for i, group in enumerate(groups)}
    members = tuple(
        replace(member, group_of=torch.full_like(member.group_of, number[group]))
        for member in place.members
        if (group := int(member.group_of[0])) in number
    )
    return replace(place, size=len(groups), members=members)


def place_of(
    model: nn.Module,
    stack: str,
    positions: Sequence[int],
    others: Iterable[CoupledGroups] = (),
    names: Iterable[str] | None = None,
) -> CoupledGroups:
    """A place whose groups are layers of a list, each with all of its parameters.

    Args:
        model: With masks or without.
        stack: The path of the list.
        positions: Which of its layers are groups, in this order.
        others: Places that hold some of the same tensors.
        names: The tensors that groups are to hold, if not all of them.
    """
    taken: dict[str, set[int]] = {}
    for member in (member for place in others for member in place.members):
        taken.setdefault(member.name, set()).add(member.dim)
    wanted = None if names is None else set(names)
    members = []
    for group, position in enumerate(positions):
        path = path_of(stack, position)
        for name, parameter in _parameters(model.get_submodule(path), path):
            if wanted is not None and name not in wanted:
                continue
            # Where another place cuts rows, a block takes columns: the rectangle that is left of
            # the tensor then says what both save together.
            free = [d for d in range(parameter.ndim) if d not in taken.get(name, ())]
            dim = free[0] if free else 0
            members.append(Member(name, dim, torch.full((parameter.shape[dim],), group)))
    return CoupledGroups(stack, KIND, len(positions), tuple(members))


def _parameters(layer: nn.Module, path: str) -> Iterable[tuple[str, Tensor]]:
    for prefix, module in layer.named_modules():
        for key, parameter in own_parameters(module).items():
            if parameter.ndim and parameter.numel():
                yield ".".join(filter(None, (path, prefix, key))), parameter


def find_blocks(
    model: nn.Module, example_inputs: Any = None, others: Sequence[CoupledGroups] = ()
) -> tuple[list[CoupledGroups], list[Missed]]:
    """Every layer that is the identity once all of it is zero, tried on example inputs.

    Args:
        model: With masks or without; not changed.
        example_inputs: What the model is run on; by default a guess by its config.
        others: Places of other kinds that were found, which hold some of the same tensors.

    Returns:
        A place for each list of layers, and the layers that are none, with the reasons.
    """
    candidates = {
        path_of(stack, i): layer
        for stack, module in stacks_of(model).items()
        for i, layer in blocks_in(module).items()
    }
    reasons = reasons_against(model, candidates, example_inputs)
    passed = [path for path, why in reasons.items() if why is None]
    # Of a list within a layer the layers go one by one, which is finer than all at once.
    inner = [p for p in passed if not any(q.startswith(f"{p}.") for q in passed)]
    found = []
    for stack, module in stacks_of(model).items():
        positions = [i for i in blocks_in(module) if path_of(stack, i) in inner]
        if positions:
            found.append(place_of(model, stack, positions, others))
    missed = [Missed(path, KIND, why) for path, why in reasons.items() if why is not None]
    # A list in a layer that is a block, or around blocks, is no news.
    news = [m for m in missed if not any(_is_around(m.name, p) for p in inner)]
    return found, news


def _is_around(one: str, other: str) -> bool:
    return one.startswith(f"{other}.") or other.startswith(f"{one}.")


def reasons_against(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    example_inputs: Any = None,
    names: Iterable[str] | None = None,
) -> dict[str, str | None]:
    """Why each of some layers is no block; None for those that are.

    Args:
        model: With masks or without; not changed.
        layers: By their paths.
        example_inputs: What the model is run on; by default a guess by its config.
        names: The tensors that are zero, if not all of the layers.
    """
    shared = _shared(model, layers)
    reasons = {path: shared.get(path) for path in layers}
    inputs = example_inputs
    if inputs is None and (guess := guessed_inputs(model)) is not None:
        inputs = moved_to(guess, next(model.parameters()).device)
    if inputs is None:
        return dict.fromkeys(layers, "example_inputs must be given to try it")
    wanted = None if names is None else set(names)
    able = {path: layer for path, layer in layers.items() if reasons[path] is None}
    calls = _called(model, able, inputs, wanted)
    for path in able:
        reasons[path] = calls if isinstance(calls, str) else _judged(calls[path])
    return reasons


def _shared(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers with a parameter that a module outside of them holds too."""
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for held in module._parameters.values():
            holders.setdefault(id(held), set()).add(id(module))
    found = {}
    for path, layer in layers.items():
        inside = set(map(id, layer.modules()))
        for name, parameter in _parameters(layer, path):
            if holders[id(parameter)] - inside:
                found[path] = f"{name} is shared"
            elif not parameter.is_floating_point():
                found[path] = f"{name} is of {parameter.dtype}"
    return found


@torch.no_grad()
def _called(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any, names: set[str] | None
) -> dict[str, list[bool]] | str:
    """For each call of a layer with all of it zero, whether it gave what it was given.

    Why that is not known instead if the model does not run.
    """
    calls: dict[str, list[bool]] = {}
    changed = {}
    for path, layer in layers.items():
        for name, parameter in layer.named_parameters(path):
            if parameter.ndim and parameter.is_floating_point():
                # What stays is one: a bias that is zero by now may be anything after training.
                is_zero = names is None or name.removesuffix("_orig") in names
                value = parameter.new_full((), 0.0 if is_zero else 1.0)
                changed[name] = value.expand(parameter.shape)  # of no memory to speak of
    hooks = [
        layer.register_forward_hook(_noting(calls.setdefault(path, [])), with_kwargs=True)
        for path, layer in layers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        args, kwargs = as_call(inputs)
        # Random numbers, which some models draw in evaluation too, go on as if nothing was run.
        with torch.random.fork_rng(devices=[]):
            functional_call(model, changed, args, kwargs)
    except Exception as error:  # whatever the model's own code raises
        lines = str(error).strip().splitlines() or [""]
        return f"with zeros the model does not run: {type(error).__name__}: {lines[0][:160]}"
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return calls


def _noting(calls: list[bool]) -> Any:
    def note(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        is_several = isinstance(output, (tuple, list)) and len(output) > 0
        first = output[0] if is_several else output
        if given is None or not isinstance(first, Tensor) or given.shape != first.shape:
            calls.append(False)
            return None
        calls.append(torch.equal(given, first))
        # Handed on whatever the layer gives: behind one that gives zeros all others would pass.
        return (given, *output[1:]) if is_several else given

    return note


def _judged(calls: Sequence[bool]) -> str | None:
    if len(calls) != 1:
        return f"it is called {len(calls)} times in a forward" if calls else "it is not called"
    return None if calls[0] else _NOT_ITSELF
