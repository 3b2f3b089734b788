"""A user's selection becomes targets: tensors to prune, each checked, shared ones once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from platon_prune.masks.default_selection import (
    OWN_MATRIX,
    Candidate,
    all_tensors,
    computed_from,
    default_selection,
    is_named,
    is_pruned,
    passed_over,
)
from platon_prune.masks.masked import method_of
from platon_prune.masks.unfit import refuse_flat_gradients, refuse_frozen, refuse_wrapped_models
from platon_prune.name_patterns import NamePatterns
from platon_prune.tensors.backends import is_fake
from platon_prune.tensors.shards import is_sharded, registered

Pairs = Iterable[tuple[nn.Module, str]]


@dataclass(frozen=True)
class Target:
    """One tensor to prune.

    Args:
        name: Its name in the model before pruning, such as ``layer.0.weight``.
        sites: Every (module, tensor name) that holds it; more than one if it is shared.
        own_keys: Whether state dicts keep the model's own keys (``weight`` with its zeros, no
            mask) instead of torch's ``weight_orig`` and ``weight_mask``.
    """

    name: str
    sites: tuple[tuple[nn.Module, str], ...]
    own_keys: bool = False


def select(
    model: nn.Module | Pairs,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    own_keys: bool | None = None,
    names: Collection[str] | None = None,
) -> list[Target]:
    """Find the tensors to prune and check that each of them can be pruned.

    Args:
        model: A module, or (module, tensor name) pairs as torch's prune takes them.
        include: Substrings of parameter names; whatever matches one is taken instead of the
            default selection, biases too.
        exclude: Substrings of the names of parameters to leave out.
        own_keys: See :class:`Target`; None decides by whether transformers saves the module.
        names: Whole names of what to take of a model, instead of patterns.

    Returns:
        One target per tensor, in the order of the model; a shared tensor once.

    Raises:
        ValueError: If nothing is selected, a pattern matches nothing, or a tensor can't be pruned.
        TypeError: If ``model`` is neither a module nor pairs.
    """
    if isinstance(model, nn.Module):
        # First of all: under such wrappers no parameter below has a gradient to look at.
        refuse_flat_gradients(model)
        candidates, saved_whole = _from_model(
            model,
            None if include is None else NamePatterns.of("include", include),
            NamePatterns.of("exclude", exclude),
            names,
        )
    else:
        if include is not None or exclude is not None:
            raise ValueError(
                "include and exclude are patterns of a model's parameter names, got them with "
                "(module, name) pairs: pass the model itself, or only the pairs to prune"
            )
        candidates, saved_whole = _from_pairs(model), set()
    if not candidates:
        assert isinstance(model, nn.Module)
        raise ValueError(
            "model must have weights to prune, got none in the default selection (Linear, "
            "convolutions, attention, experts): name parameters with include=[...]"
            + _why_nothing(model)
        )
    refuse_frozen(candidates)
    for name, module, tensor_name in candidates:
        check_prunable(module, tensor_name, name)
    if own_keys is not None:
        # A wish of the caller is for all tensors alike; None leaves it to who saves the module.
        saved_whole = {id(module) for _, module, _ in candidates if own_keys}
    return _merge_shared(candidates, saved_whole)


def doubts(
    model: nn.Module,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
) -> list[str]:
    """List what a selection may not have meant, though :func:`select` has let it pass.

    Args:
        model: As for :func:`select`, before it carries masks or after.
        include: Likewise.
        exclude: Likewise.

    Returns:
        Sentences for a warning, without a full stop.
    """
    wanted, unwanted = NamePatterns.of("include", include), NamePatterns.of("exclude", exclude)
    if include is None:
        found = passed_over(model)
        # Whoever excludes a name knows of it and needs no word.
        left = {name: why for name, why in found.items() if not unwanted.matches(name)}
        return [f"not pruned: {_listed(left)}, or name it with exclude=[...]"] if left else []
    computed: dict[str, list[str]] = {}
    for entry in all_tensors(model):
        found_from, matching = computed_from(*entry), wanted.matching(entry[0])
        if matching and found_from and not unwanted.matches(entry[0]):
            result, tells = found_from
            if not any(tells in substring for substring in matching):
                computed.setdefault(result, []).append(entry[0])
    return [
        f"{', '.join(names)} will get zeros, which are not zeros of {result} that is computed from "
        "it: remove the parametrization first, or spell such names out in include=[...]"
        for result, names in computed.items()
    ]


def bare(model: nn.Module) -> nn.Module:
    """The model itself under the wrappers of data parallelism and ``torch.compile``."""
    while True:
        # torch.compile and data parallelism may be wrapped around one another in any order.
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_prunable(module: nn.Module, tensor_name: str, name: str) -> None:
    """Raise a ValueError that says why ``module.tensor_name`` can't be pruned, if so.

    Args:
        module: The module that holds the tensor.
        tensor_name: The tensor's name in it.
        name: What to call it in the message.
    """
    if is_pruned(module, tensor_name):
        is_ours = method_of(module, tensor_name) is not None
        torchs = f'torch.nn.utils.prune.remove(module, "{tensor_name}")'
        raise ValueError(
            f"{name} must not be pruned already, got a tensor with a mask: finalize it with "
            f"{'platon_prune.remove(model)' if is_ours else torchs} first, or exclude the tensor"
        )
    if parametrize.is_parametrized(module, tensor_name):
        raise ValueError(
            f"{name} must be an ordinary parameter, got a parametrized one: call "
            f'torch.nn.utils.parametrize.remove_parametrizations(module, "{tensor_name}") first'
        )
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        raise ValueError(
            f"{name} must be held by a module written in Python, got a {type(module).__name__}: "
            "prune the model before it is scripted or traced"
        )
    parameter = registered(module, tensor_name) if tensor_name in module._parameters else None
    if parameter is None:
        own = ", ".join(key for key, value in module._parameters.items() if value is not None)
        raise ValueError(
            f"{name} must be a parameter, but {type(module).__name__} has no parameter "
            f"{tensor_name!r}; it has: {own or 'none'}"
        )
    # torch's names for a pruned tensor; another attribute there would be overwritten.
    taken = [key for key in (f"{tensor_name}_orig", f"{tensor_name}_mask") if hasattr(module, key)]
    if taken:
        raise ValueError(
            f"{name} must leave the names {tensor_name}_orig and {tensor_name}_mask free, but "
            f"{type(module).__name__} has {' and '.join(taken)}: rename that, or leave the tensor "
            "out with exclude=[...]"
        )
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(
            f"{name} must have a shape, got a lazily initialised parameter: run one batch "
            "through the model first"
        )
    if parameter.is_complex():
        raise ValueError(f"{name} must be real, got {parameter.dtype}: leave it out with exclude")
    if not parameter.is_floating_point():
        raise ValueError(
            f"{name} must be floating point, got {parameter.dtype}: quantised weights can't be "
            "pruned by training; prune the model before quantising it, or exclude them"
        )
    # A subclass (quantised, wrapped) need not store an entry for each weight.
    is_plain = type(parameter) is nn.Parameter or is_fake(parameter)
    if not is_plain and not is_sharded(parameter):
        raise ValueError(
            f"{name} must be a plain parameter or a DTensor, got {type(parameter).__name__}: prune "
            "the model before it is quantised or wrapped"
        )
    if not parameter.requires_grad:
        raise ValueError(
            f"{name} must require gradients, got a frozen parameter: unfreeze it before pruning, "
            "or leave it out with exclude=[...]"
        )
    # Zeroing one entry of an expanded tensor would zero all that share its memory.
    if any(stride == 0 and size > 1 for stride, size in _strides(parameter)):
        raise ValueError(
            f"{name} must have memory for each entry, got an expanded tensor: make it a parameter "
            "of its own with .clone()"
        )
    if parameter.numel() == 0:
        raise ValueError(
            f"{name} must have entries, got shape {tuple(parameter.shape)}: leave it out with "
            "exclude=[...]"
        )


def _strides(tensor: Tensor) -> Iterable[tuple[int, int]]:
    return zip(tensor.stride(), tensor.shape, strict=True)


def _from_model(
    model: nn.Module,
    include: NamePatterns | None,
    exclude: NamePatterns,
    names: Collection[str] | None,
) -> tuple[list[Candidate], set[int]]:
    everything = list(all_tensors(model))
    for patterns in filter(None, (include, exclude)):
        _require_matches(model, patterns, [name for name, _, _ in everything])
    if include is None:
        refuse_wrapped_models(model)
    # Names of coupled groups are whole and found before: patterns have been applied to places.
    if names is not None:
        chosen = [entry for entry in everything if entry[0] in names]
    elif include is None:
        # What is scripted is chosen in order to be refused, unless it is excluded.
        chosen = [entry for entry in everything if isinstance(entry[1], torch.jit.ScriptModule)]
        chosen += default_selection(model, everything)
    else:
        chosen = [entry for entry in everything if include.matches(entry[0])]
    # After include, so that exclude has the last word.
    kept = [entry for entry in chosen if not exclude.matches(entry[0])]
    if chosen and not kept:
        raise ValueError(
            f"exclude must leave something to prune, but {list(exclude.substrings)} leaves none "
            f"of {len(chosen)} tensors"
        )
    saved_whole = {
        id(module)
        for root in model.modules()
        if _is_saved_by_transformers(root)
        for module in root.modules()
    }
    return kept, saved_whole


def _require_matches(model: nn.Module, patterns: NamePatterns, names: Sequence[str]) -> None:
    """Refuse patterns that match no parameter, nor anything that is computed from some."""
    for substring in patterns.unmatched(names):
        named = {name: why for name, why in passed_over(model).items() if substring in name}
        if named and patterns.argument == "include":
            name, why = next(iter(named.items()))
            raise ValueError(
                f"{name} must be an ordinary parameter, got one that is {why}: "
                f"{_remedy(named)} first"
            )
        if not named:
            example = names[0] if names else "nothing: it has no parameters"
            raise ValueError(
                f"{patterns.argument} must match parameter names, but {substring!r} matches none; "
                f"this model's names look like {example}"
            )


_REMEDIES = {
    "computed from other parameters": "remove the parametrization (torch.nn.utils.parametrize."
    "remove_parametrizations, remove_weight_norm or remove_spectral_norm)",
    "quantised": "prune before quantising",
    OWN_MATRIX: "name all that is to be pruned with include=[...]",
}
_MOST_NAMED = 5


def _remedy(reasons: Mapping[str, str]) -> str:
    """What to do about layers that were passed over, by name and reason."""
    return ", ".join(text for why, text in _REMEDIES.items() if why in reasons.values())


def _listed(reasons: Mapping[str, str]) -> str:
    named = [f"{name} ({why})" for name, why in list(reasons.items())[:_MOST_NAMED]]
    more = f" and {len(reasons) - _MOST_NAMED} more" if len(reasons) > _MOST_NAMED else ""
    return f"{', '.join(named)}{more}: {_remedy(reasons)}"


def _why_nothing(model: nn.Module) -> str:
    """What the model has instead of weights to prune, with what to do; empty if that is unknown."""
    found = passed_over(model)
    if found:
        return f"; passed over: {_listed(found)}"
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        return ", or prune the model before it is scripted or traced"
    if any(isinstance(part, torch.fx.GraphModule) for part in model.modules()):
        return ", or prune the model before it is exported or traced"
    return ""


def _is_saved_by_transformers(module: nn.Module) -> bool:
    """Whether it is a model with ``save_pretrained``, or a part of one, such as its encoder."""
    # A part of a model has no save_pretrained, yet is saved by the one of the whole.
    is_part = is_named(module, "transformers", "") and any(True for _ in module.children())
    return hasattr(module, "save_pretrained") or is_part


def _from_pairs(pairs: Pairs) -> list[Candidate]:
    try:
        listed = [(module, name) for module, name in pairs]
    except (TypeError, ValueError):
        # What can't be unpacked gets the same sentence as what has other things in the pairs.
        listed = []
    if not listed or not all(
        isinstance(module, nn.Module) and isinstance(name, str) for module, name in listed
    ):
        raise TypeError(
            "model must be an nn.Module or an iterable of (module, tensor_name) pairs, got "
            f"{type(pairs).__name__}"
        )
    return [(f"{i}.{name}", module, name) for i, (module, name) in enumerate(listed)]


def _merge_shared(candidates: list[Candidate], own_keys: set[int]) -> list[Target]:
    """One target per tensor; the sites of a shared one are listed under its first name."""
    merged: dict[int, tuple[str, list[tuple[nn.Module, str]]]] = {}
    for name, module, tensor_name in candidates:
        # By identity: modules that share a weight hold the very same parameter.
        parameter = module._parameters[tensor_name]
        _, sites = merged.setdefault(id(parameter), (name, []))
        # A module that a model holds twice is listed once by named_modules, but pairs may repeat.
        if (module, tensor_name) not in sites:
            sites.append((module, tensor_name))
    return [
        Target(name, tuple(sites), own_keys=id(sites[0][0]) in own_keys)
        for name, sites in merged.values()
    ]


def find_tensors(
    model: nn.Module,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> list[tuple[str, nn.Module, str]]:
    """(name, module, tensor name) of what would be pruned, whether or not it can be."""
    found = list(all_tensors(model))
    wanted, unwanted = NamePatterns.of("include", include), NamePatterns.of("exclude", exclude)
    if include is None:
        found = list(default_selection(model, found))
    else:
        found = [entry for entry in found if wanted.matches(entry[0])]
    return [entry for entry in found if not unwanted.matches(entry[0])]
