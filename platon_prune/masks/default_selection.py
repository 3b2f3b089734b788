"""The tensors that pruning takes of a model where none is named, and those that it passes over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from platon_prune.spellings import CONV1D, EXPERTS, NO_MATRIX, POOLER

Candidate = tuple[str, nn.Module, str]  # name in the model, module, tensor name

# Why a matrix that no layer holds is passed over.
OWN_MATRIX = "a parameter of a module that is no known layer"
_WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def all_tensors(model: nn.Module) -> Iterable[Candidate]:
    """Every parameter of the model under the name that it has without pruning."""
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            tensor_name = key.removesuffix("_orig")
            # Its author may have called it so: only one with a mask on it was renamed.
            if tensor_name == key or not is_pruned(module, tensor_name):
                tensor_name = key
            yield f"{prefix}.{tensor_name}" if prefix else tensor_name, module, tensor_name


def is_pruned(module: nn.Module, tensor_name: str) -> bool:
    """Whether a method of torch's prune, ours included, holds a mask on this tensor."""
    return any(
        isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == tensor_name
        for hook in module._forward_pre_hooks.values()
    )


def default_selection(model: nn.Module, everything: list[Candidate]) -> Iterable[Candidate]:
    """Pick what is pruned where the user names nothing; of scripted modules nothing.

    Args:
        model: The model.
        everything: All its tensors, as :func:`all_tensors` lists them.
    """
    # By identity, since a tied weight is also a parameter of an ordinary linear layer.
    embeddings = _embedding_weights(model)
    outside = _heads_and_poolers(model)
    for name, module, tensor_name in everything:
        if id(module) in outside or isinstance(module, torch.jit.ScriptModule):
            continue
        parameter = _current(module, tensor_name)
        if _is_default(module, tensor_name, parameter) and id(parameter) not in embeddings:
            yield name, module, tensor_name


def _current(module: nn.Module, tensor_name: str) -> Tensor:
    # Under a mask the layer's own name holds nothing; the parameter is under the other one.
    parameter = module._parameters.get(tensor_name)
    return module._parameters[f"{tensor_name}_orig"] if parameter is None else parameter  # type: ignore[return-value]


def passed_over(model: nn.Module) -> dict[str, str]:
    """Find weights that are no parameter of their layer, so that they can't be pruned.

    Returns:
        Their names, each with the reason.
    """
    outside = _heads_and_poolers(model)
    found = {}
    for prefix, module in model.named_modules():
        if id(module) in outside:
            continue
        path = f"{prefix}." if prefix else ""
        for key in ("weight", *_ATTENTION_WEIGHTS):
            if _is_default(module, key, None) and is_computed(module, key):
                found[path + key] = "computed from other parameters"
        if is_named(module, "torch", "WeightedQuantizedModule"):
            found[f"{path}weight"] = "quantised"
    return found | dict.fromkeys(_own_matrices(model, outside), OWN_MATRIX)


def _own_matrices(model: nn.Module, outside: set[int]) -> Iterator[str]:
    """Large matrices that are parameters of a module that is no layer, as XLNet's attention has."""
    if any(isinstance(part, torch.fx.GraphModule) for part in model.modules()):
        return  # no layer of it is known
    everything = [
        entry for entry in all_tensors(model) if not isinstance(entry[1], torch.jit.ScriptModule)
    ]
    embeddings = _embedding_weights(model)
    selected = {entry[0]: _current(*entry[1:]) for entry in default_selection(model, everything)}
    sizes = sorted(tensor.numel() for tensor in selected.values())
    large = sizes[len(sizes) // 2] / 2 if sizes else 0.0
    for name, module, tensor_name in everything:
        tensor = _current(module, tensor_name)
        if (
            name not in selected
            and id(module) not in outside
            and id(tensor) not in embeddings
            # Layers of torch have matrices of their own, such as an LSTM, but not norms.
            and not isinstance(module, _WEIGHT_LAYERS)
            and computed_from(name, module, tensor_name) is None
            and not any(word in tensor_name for word in NO_MATRIX)
            # Positions and tokens are added to a batch: their first dimension is 1.
            and tensor.ndim >= 2
            and min(tensor.shape) > 1
            and tensor.numel() > large
            and tensor.is_floating_point()
        ):
            yield name


def is_computed(module: nn.Module, tensor_name: str) -> bool:
    """Whether a parametrization, or a hook such as weight norm's, makes this tensor of others."""
    if tensor_name in module._parameters or is_pruned(module, tensor_name):
        return False
    # The old weight_norm and spectral_norm leave a plain tensor among the module's attributes.
    by_hook = isinstance(module.__dict__.get(tensor_name), Tensor)
    return by_hook or parametrize.is_parametrized(module, tensor_name)


def computed_from(name: str, module: nn.Module, tensor_name: str) -> tuple[str, str] | None:
    """Find the tensor that a layer computes from a parameter, by the parameter's name.

    Args:
        name: The parameter's name in the model.
        module: The module that holds it: a layer, or the parametrization of one.
        tensor_name: Its name there, such as ``weight_g`` or ``original0``.

    Returns:
        Such as ``0.weight`` and ``parametrizations``; None if nothing is computed from it.
    """
    if isinstance(module, parametrize.ParametrizationList):
        # Such as parametrizations.weight.original0, of which the module's weight is computed.
        path, tells, inside = f".{name}".rpartition(".parametrizations.")
        return f"{path}.{inside.split('.')[0]}".lstrip("."), tells.strip(".")
    computed = tensor_name.rpartition("_")[0]
    if not computed or not is_computed(module, computed):
        return None
    return name.removesuffix(tensor_name) + computed, tensor_name


def _is_default(module: nn.Module, tensor_name: str, parameter: Tensor | None) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return tensor_name in _ATTENTION_WEIGHTS
    if isinstance(module, _WEIGHT_LAYERS) or is_conv1d(module):
        return tensor_name == "weight"
    # Fused experts have no class in torch, and three dimensions tell weights from biases.
    return is_named(module, "", EXPERTS) and parameter is not None and parameter.ndim == 3


def is_named(module: nn.Module, package: str, suffix: str) -> bool:
    """Whether a class of ``package`` whose name ends so is among the module's classes."""
    return any(
        cls.__module__.split(".")[0] == package if package else True
        for cls in type(module).__mro__
        if cls.__name__.endswith(suffix)
    )


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is a Conv1D of transformers: a linear layer that stores inputs by outputs."""
    return any(
        cls.__name__ == CONV1D and cls.__module__.split(".")[0] == "transformers"
        for cls in type(module).__mro__
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
        # By what it can do: to ask for its class would mean importing transformers.
        if not (hasattr(root, "save_pretrained") and hasattr(root, "base_model")):
            continue
        body = {id(module) for module in root.base_model.modules()}  # type: ignore[union-attr,operator]
        # The head of a language model may lie within what transformers calls the base model.
        get_head: Any = getattr(root, "get_output_embeddings", lambda: None)
        head = get_head()
        if isinstance(head, nn.Module):
            # So is all of a model without a base_model_prefix, which is its own base model.
            body -= {id(module) for module in head.modules()}
        outside |= {
            id(module)
            for name, module in root.named_modules()
            if id(module) not in body or POOLER in name
        }
    return outside
