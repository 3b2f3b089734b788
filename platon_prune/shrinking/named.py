"""The tensors of a model by their names, and how linear layers have them."""

from __future__ import annotations

from torch import Tensor, nn

from platon_prune.masks.default_selection import is_conv1d


def find(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module and the key of a parameter or buffer, by its name without masks.

    Raises:
        ValueError: If the model has no such tensor.
    """
    path, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    held = () if module is None else (*module._parameters, *module._buffers)
    if module is None or not {key, f"{key}_orig"}.intersection(held):
        raise ValueError(f"model must have the tensor {name}, got none of that name")
    return module, key


def tensor_at(module: nn.Module, key: str) -> Tensor:
    """Return the parameter or buffer called ``key``."""
    tensor = module._parameters.get(key)
    return tensor if tensor is not None else module._buffers[key]  # type: ignore[return-value]


def named_parameter(module: nn.Module, key: str) -> nn.Parameter:
    """The parameter called ``key`` without masks."""
    parameters = module._parameters
    return parameters[key if key in parameters else f"{key}_orig"]  # type: ignore[return-value]


def output_dim(module: nn.Module) -> int | None:
    """The dimension of ``weight`` that a layer's outputs lie along, of a linear layer."""
    if is_conv1d(module):
        return 1
    return 0 if isinstance(module, nn.Linear) else None


def plain_names(module: nn.Module) -> dict[str, Tensor | None]:
    """The parameters of a layer by their names without masks."""
    return {key.removesuffix("_orig"): value for key, value in module._parameters.items()}
