"""Which tensors are pruned: the default selection, patterns of names, and what is refused."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune

from platon_prune.shards import is_sharded, registered

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
        _refuse_flat_gradients(model)
        candidates, saved_whole = _from_model(
            model, _patterns("include", include), _patterns("exclude", exclude), names
        )
    else:
        if include is not None or exclude is not None:
            raise ValueError(
                "include and exclude are patterns of a model's parameter names, got them with "
                "(module, name) pairs: pass the model itself, or only the pairs to prune"
            )
        candidates, saved_whole = _from_pairs(model), set()
    if not candidates:
        raise ValueError(
            "model must have weights to prune, got none in the default selection (Linear, "
            "convolutions, attention, experts): name parameters with include=[...]"
        )
    for name, module, tensor_name in candidates:
        check_prunable(module, tensor_name, name)
    if own_keys is not None:
        saved_whole = {id(module) for _, module, _ in candidates if own_keys}
    return _merge_shared(candidates, saved_whole)


def bare(model: nn.Module) -> nn.Module:
    """The model itself under the wrappers of data parallelism and ``torch.compile``."""
    while True:
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
        raise ValueError(
            f"{name} must not be pruned already, got a tensor with a mask: finalize it with "
            f'torch.nn.utils.prune.remove(module, "{tensor_name}") first, or exclude it'
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
    if not parameter.requires_grad:
        raise ValueError(
            f"{name} must require gradients, got a frozen parameter: unfreeze it before pruning, "
            "or leave it out with exclude=[...]"
        )
    if type(parameter) is not nn.Parameter and not is_sharded(parameter):
        raise ValueError(
            f"{name} must be a plain parameter or a DTensor, got {type(parameter).__name__}: prune "
            "the model before it is quantised or wrapped"
        )
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


def is_pruned(module: nn.Module, tensor_name: str) -> bool:
    """Whether a method of torch's prune, ours included, holds a mask on this tensor."""
    return any(
        isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == tensor_name
        for hook in module._forward_pre_hooks.values()
    )


def _patterns(argument: str, patterns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Patterns as a tuple; a lone string is one pattern, not a sequence of letters."""
    if patterns is None:
        return None
    listed = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not all(isinstance(pattern, str) for pattern in listed):
        raise TypeError(f"{argument} must hold substrings of parameter names, got {patterns!r}")
    if argument == "include" and not listed:
        raise ValueError(
            "include must name at least one substring, got none: leave it out for the default "
            "selection"
        )
    return listed


_Candidate = tuple[str, nn.Module, str]  # name in the model, module, tensor name


def _from_model(
    model: nn.Module,
    include: tuple[str, ...] | None,
    exclude: tuple[str, ...] | None,
    names: Collection[str] | None,
) -> tuple[list[_Candidate], set[int]]:
    everything = list(_all_tensors(model))
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or ():
            if not any(pattern in name for name, _, _ in everything):
                example = everything[0][0] if everything else "nothing: it has no parameters"
                raise ValueError(
                    f"{argument} must match parameter names, but {pattern!r} matches none; this "
                    f"model's names look like {example}"
                )
    if include is None:
        _refuse_wrapped_models(model)
    if names is not None:
        chosen = [entry for entry in everything if entry[0] in names]
    elif include is None:
        chosen = list(_default_selection(model, everything))
    else:
        chosen = [entry for entry in everything if any(p in entry[0] for p in include)]
    kept = [entry for entry in chosen if not any(p in entry[0] for p in exclude or ())]
    if chosen and not kept:
        raise ValueError(
            f"exclude must leave something to prune, but {list(exclude or ())} leaves none of "
            f"{len(chosen)} tensors"
        )
    saved_whole = {
        id(module)
        for root in model.modules()
        if _is_saved_by_transformers(root)
        for module in root.modules()
    }
    return kept, saved_whole


def _is_saved_by_transformers(module: nn.Module) -> bool:
    """Whether it is a model with ``save_pretrained``, or a part of one, such as its encoder."""
    is_part = is_named(module, "transformers", "") and any(True for _ in module.children())
    return hasattr(module, "save_pretrained") or is_part


def _all_tensors(model: nn.Module) -> Iterable[_Candidate]:
    """Every parameter of the model under the name that it has without pruning."""
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            tensor_name = key.removesuffix("_orig")
            if tensor_name == key or not is_pruned(module, tensor_name):
                tensor_name = key
            yield f"{prefix}.{tensor_name}" if prefix else tensor_name, module, tensor_name


def _from_pairs(pairs: Pairs) -> list[_Candidate]:
    try:
        listed = [(module, name) for module, name in pairs]
    except (TypeError, ValueError):
        listed = []
    if not listed or not all(
        isinstance(module, nn.Module) and isinstance(name, str) for module, name in listed
    ):
        raise TypeError(
            "model must be an nn.Module or an iterable of (module, tensor_name) pairs, got "
            f"{type(pairs).__name__}"
        )
    return [(f"{i}.{name}", module, name) for i, (module, name) in enumerate(listed)]


def _merge_shared(candidates: list[_Candidate], own_keys: set[int]) -> list[Target]:
    """One target per tensor; the sites of a shared one are listed under its first name."""
    merged: dict[int, tuple[str, list[tuple[nn.Module, str]]]] = {}
    for name, module, tensor_name in candidates:
        parameter = module._parameters[tensor_name]
        _, sites = merged.setdefault(id(parameter), (name, []))
        if (module, tensor_name) not in sites:
            sites.append((module, tensor_name))
    return [
        Target(name, tuple(sites), own_keys=id(sites[0][0]) in own_keys)
        for name, sites in merged.values()
    ]


# --- the default selection ----------------------------------------------------------------------

_WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def find_tensors(
    model: nn.Module,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> list[tuple[str, nn.Module, str]]:
    """(name, module, tensor name) of what would be pruned, whether or not it can be."""
    found = list(_all_tensors(model))
    patterns, unwanted = _patterns("include", include), _patterns("exclude", exclude) or ()
    if patterns is None:
        found = list(_default_selection(model, found))
    else:
        found = [entry for entry in found if any(pattern in entry[0] for pattern in patterns)]
    return [entry for entry in found if not any(pattern in entry[0] for pattern in unwanted)]


def _default_selection(model: nn.Module, everything: list[_Candidate]) -> Iterable[_Candidate]:
    embeddings = _embedding_weights(model)
    outside = _heads_and_poolers(model)
    for name, module, tensor_name in everything:
        if id(module) in outside:
            continue
        parameter = _current(module, tensor_name)
        if _is_default(module, tensor_name, parameter) and id(parameter) not in embeddings:
            yield name, module, tensor_name


def _current(module: nn.Module, tensor_name: str) -> Tensor:
    parameter = module._parameters.get(tensor_name)
    return module._parameters[f"{tensor_name}_orig"] if parameter is None else parameter  # type: ignore[return-value]


def _is_default(module: nn.Module, tensor_name: str, parameter: Tensor) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return tensor_name in _ATTENTION_WEIGHTS
    if isinstance(module, _WEIGHT_LAYERS) or is_named(module, "transformers", "Conv1D"):
        return tensor_name == "weight"
    return is_named(module, "", "Experts") and parameter.ndim == 3


def is_named(module: nn.Module, package: str, suffix: str) -> bool:
    """Whether a class of ``package`` whose name ends so is among the module's classes."""
    return any(
        cls.__module__.split(".")[0] == package if package else True
        for cls in type(module).__mro__
        if cls.__name__.endswith(suffix)
    )


def _embedding_weights(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for parameter in module._parameters.values()
    }


def _heads_and_poolers(model: nn.Module) -> set[int]:
    """What the transformers models in ``model`` (itself, or wrapped) have around their body."""
    outside: set[int] = set()
    for root in model.modules():
        if not (hasattr(root, "save_pretrained") and hasattr(root, "base_model")):
            continue
        body = {id(module) for module in root.base_model.modules()}  # type: ignore[union-attr,operator]
        get_head: Any = getattr(root, "get_output_embeddings", lambda: None)
        head = get_head()
        if isinstance(head, nn.Module):
            body -= {id(module) for module in head.modules()}
        outside |= {
            id(module)
            for name, module in root.named_modules()
            if id(module) not in body or "pooler" in name
        }
    return outside


_FLATTENING = {"FullyShardedDataParallel": "FSDP1", "DeepSpeedEngine": "DeepSpeed"}


def _refuse_flat_gradients(model: nn.Module) -> None:
    for part in model.modules():
        wrapper = _FLATTENING.get(type(part).__name__)
        if wrapper is not None:
            raise ValueError(
                f"each parameter must have its own gradient, got a model under {wrapper}, which "
                "flattens them: use torch.distributed.fsdp.fully_shard (FSDP2) or DDP"
            )


def _refuse_wrapped_models(model: nn.Module) -> None:
    for part in model.modules():
        _refuse_adapters_and_quantised(part)


def _refuse_adapters_and_quantised(model: nn.Module) -> None:
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "model must not carry adapters, got one with a PEFT config, whose base weights are "
            "frozen: merge them first (merge_and_unload), or name what to prune with include=[...]"
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "model must not be quantised, got is_quantized=True: prune the full-precision model "
            "and quantise the result, or name what to prune with include=[...]"
        )
