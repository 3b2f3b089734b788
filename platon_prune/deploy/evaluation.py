"""A metric of each form: any form as a module that is called as its model is, and its score."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from platon_prune.deploy.form import Form, call_of
from platon_prune.example_inputs import call_model

Evaluate = Callable[[nn.Module], float]

# As `integrations.goal_settings` has it, which this wing can't import.
_SMALLER_IS_BETTER = ("loss", "perplexity")
# What a graph has no input for may be left out where it is what transformers takes without one.
_LEFT_OUT = {"token_type_ids": 0}
_FILLED_IN = {"attention_mask": 1}


class CallableForm(nn.Module):
    """A form that is called as its model is, whatever runs it, and gives the same kind of output.

    Inputs may have any type that the model takes; what comes out is in float32. ``config`` and
    ``device`` are the model's.

    Args:
        form: What to run.
        model: What the form was made of.
        example: Inputs that the model takes, to see what it returns.
    """

    def __init__(self, form: Form, model: nn.Module, example: Any) -> None:
        super().__init__()
        # Not as submodules: a runtime has no module, and nobody is to move or train these.
        self._kept: dict[str, Any] = {"form": form, "model": model, "example": example}
        # Each length would be compiled by itself; the weights of both are the same.
        compiled = form.kind == "compiled" and form.model is not None
        self._prepare = call_of(form.model) if compiled and form.model else form.prepare
        self._is_graph = form.kind in ("onnx", "openvino")
        self._structure: Any = None
        self.eval()

    @property
    def config(self) -> Any:
        """The model's, or an AttributeError if it has none."""
        return self._kept["model"].config

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""
        parameters = self._kept["model"].parameters()
        return next((each.device for each in parameters), torch.device("cpu"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the form.

        Raises:
            ValueError: If a file is to take what it was not exported for.
        """
        if not self._is_graph:
            outputs = self._prepare(_as_inputs(args, kwargs, self._kept["model"]))()
            return pytree.tree_map(_in_float32, outputs)
        form, model = self._kept["form"], self._kept["model"]
        inputs = graph_inputs(args, kwargs, form.names, model)
        try:
            # Those of a runtime may lie in memory that its next call writes to.
            tensors = [tensor.clone() for tensor in self._prepare(inputs)()]
        # Runtimes begin what they say of sizes with places in their own code.
        except Exception as error:
            shapes = [tuple(t.shape) for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
            raise ValueError(
                f"the file does not run inputs of the shapes {shapes}: pass example inputs of "
                "other sizes, or give more lengths as num_tokens"
            ) from error
        return pytree.tree_unflatten(tensors, self._spec(len(tensors)))

    def _spec(self, num_outputs: int) -> Any:
        """How the model's outputs are put together, which a file does not tell."""
        if self._structure is None:
            with torch.no_grad():
                outputs = call_model(self._kept["model"], self._kept["example"])
            self._structure = pytree.tree_structure(outputs)
        if self._structure.num_leaves != num_outputs:
            raise ValueError(
                f"the file must have the {self._structure.num_leaves} outputs of the model, got "
                f"{num_outputs}"
            )
        return self._structure


def graph_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...], model: nn.Module
) -> Any:
    """What a file takes of the arguments that its model takes.

    Args:
        args: Positional arguments of the call.
        kwargs: Its keyword arguments.
        names: Of the file's inputs.
        model: Whose ``forward`` names the arguments.

    Returns:
        Inputs for the file, as :func:`platon_prune.example_inputs.as_call` takes them.

    Raises:
        ValueError: If something is missing, or is given that the file has no input for.
    """
    given = _by_name(args, kwargs, model)
    if given is None or not set(names) <= inspect.signature(model.forward).parameters.keys():
        # Inputs within inputs: the file has them in the order of the tree.
        return args if not kwargs else {**kwargs}
    # What is given to be nothing is not given, and how outputs are wrapped is the model's matter.
    given = {name: value for name, value in given.items() if value is not None}
    given.pop("return_dict", None)
    left = {name: value for name, value in given.items() if name not in names}
    for name, value in left.items():
        is_usual = name in _LEFT_OUT and bool(torch.as_tensor(value).eq(_LEFT_OUT[name]).all())
        if value is False or is_usual:
            continue
        raise ValueError(
            f"the file takes {', '.join(names)} and nothing else, got {name}: leave it out, or "
            "have it in the example inputs; a loss is the evaluation function's to compute"
        )
    found = {name: given[name] for name in names if name in given}
    for name in names:
        if name not in found and name in _FILLED_IN and found:
            found[name] = torch.full_like(next(iter(found.values())), _FILLED_IN[name])
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"the file takes {', '.join(names)}, got no {missing[0]}: pass it")
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


def metric_of(evaluate: Evaluate, form: Form, model: nn.Module, example: Any) -> float:
    """What an evaluation function says of a form.

    Args:
        evaluate: Called with a :class:`CallableForm`.
        form: What it is to run.
        model: What the form was made of.
        example: Inputs of the model.

    Raises:
        ValueError: If it returns no number, or none that is finite.
    """
    # Ordinary tensors: what the function keeps for later may be trained on.
    with torch.inference_mode(False), torch.no_grad():
        value: Any = evaluate(CallableForm(form, model, example))
    if isinstance(value, bool) or not _is_one_number(value) or not math.isfinite(float(value)):
        raise ValueError(f"evaluate must return a finite number, got {value!r}")
    return float(value)


def is_greater_better(metric: str) -> bool:
    """Whether a larger value of a metric is a better one, by its name."""
    return not metric.endswith(_SMALLER_IS_BETTER)


def _by_name(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], model: nn.Module
) -> dict[str, Any] | None:
    """The arguments of a call by their names; None where a model names none for them."""
    signature = inspect.signature(model.forward)
    # What is missing is told by the names of the file's inputs, or by the model.
    bound = signature.bind_partial(*args, **kwargs)
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return None
        found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


def _as_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any], model: nn.Module) -> Any:
    """The same as inputs that :func:`as_call` splits into this call again."""
    if not args or not kwargs:
        return dict(kwargs) if kwargs else args
    named = _by_name(args, kwargs, model)
    if named is None:
        raise ValueError("arguments of this model must be all positional or all by name, got both")
    return named


def _in_float32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _is_one_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return hasattr(value, "__float__")
