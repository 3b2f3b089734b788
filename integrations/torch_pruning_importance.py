"""`PlatonImportance`: torch-pruning's own pruners, with the scores of a scheduler of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import platon_prune
from platon_prune import PlatonScheduler
from platon_prune.integrations.needs import told

try:
    from torch_pruning.pruner import function
    from torch_pruning.pruner.importance import Importance
except ModuleNotFoundError as missing:
    raise told(missing, "PlatonImportance", "structured") from missing

_OUTPUTS = (
    function.prune_conv_out_channels,
    function.prune_linear_out_channels,
    function.prune_depthwise_conv_out_channels,
    function.prune_batchnorm_out_channels,
)
_INPUTS = (function.prune_conv_in_channels, function.prune_linear_in_channels)
_CHECKED = 16  # entries of each tensor that are compared with what was written


class PlatonImportance(Importance):  # type: ignore[misc]
    """A channel's importance is the mean score of all entries that go with it.

    Made after the scores are there, before the pruner: torch-pruning does not know modules with
    hooks, so this finalizes the model, as :func:`platon_prune.remove` does. It then keeps the
    scores in ``.grad`` of the parameters, which torch-pruning cuts along with them, so that a
    pruner may take several steps. Clear the gradients before training goes on.

    Args:
        scheduler: What scored the model's tensors, for some steps at least; ``amount=0.0`` scores
            without pruning anything. It can't be stepped any more.
        model: The model that it scores; its masks are taken off, and its gradients replaced.

    Raises:
        ValueError: If the model has grouped-query attention, on which torch-pruning does not come
            to an end, or is not the scheduler's. It is untouched then.

    Example:
        >>> importance = PlatonImportance(scheduler, model)
        >>> pruner = torch_pruning.pruner.MagnitudePruner(
        ...     model, example_inputs, importance=importance, pruning_ratio=0.5
        ... )
        >>> pruner.step()
        >>> model.zero_grad()
    """

    def __init__(self, scheduler: PlatonScheduler, model: nn.Module) -> None:
        _refuse_grouped_queries(model)
        scores = {name: scheduler.score(name) for name in scheduler.masks()}
        wrong = [name for name in scores if not _has(model, name)]
        if wrong:
            raise ValueError(
                f"model must be the one that the scheduler scores, got one without {wrong[0]}: "
                "pass what global_unstructured or global_structured was given"
            )
        # The scores are what is wanted of the run, whatever its masks have come to.
        scheduler.allow_other_length()
        platon_prune.remove(model)
        self._names = {module: name for name, module in model.named_modules()}
        self._written: dict[str, Tensor] = {}
        # Gradients of unscored parameters would be taken for scores.
        for parameter in model.parameters():
            parameter.grad = None
        for name, score in scores.items():
            parameter = model.get_parameter(name)
            parameter.grad = score.to(parameter)
            # Sorted, so that any entry can be looked up after torch-pruning has cut the tensor.
            self._written[name] = parameter.grad.flatten().sort().values

    @torch.no_grad()
    def __call__(self, group: Any, **kwargs: Any) -> Tensor | None:
        """The importance of each channel of a group, as torch-pruning asks for it.

        Returns:
            One number a channel; None, for which it leaves the group alone, if nothing in it is
            scored.

        Raises:
            RuntimeError: If the gradients are not the scores any more.
        """
        total = torch.zeros(len(group[0].idxs))
        count = torch.zeros_like(total)
        for dependency, indices, roots in ((item.dep, item.idxs, item.root_idxs) for item in group):
            if None in roots:
                continue
            for score in self._along_channels(dependency.target.module, dependency.handler):
                chosen = score[torch.as_tensor(indices)]
                where = torch.as_tensor(roots)
                total.index_add_(0, where, chosen.sum(dim=1))
                count.index_add_(0, where, torch.full((len(where),), float(chosen.shape[1])))
        return total / count.clamp(min=1) if count.any() else None

    def _along_channels(self, layer: Any, cut: Any) -> list[Tensor]:
        """The scores in a layer, each as channels by entries."""
        found = []
        transposed = getattr(layer, "transposed", False)
        for key in ("weight", "bias") if cut in _OUTPUTS else ("weight",):
            score = self._score(layer, key)
            if score is None or cut not in (*_OUTPUTS, *_INPUTS):
                continue
            along_inputs = cut in _INPUTS and score.dim() > 1
            if along_inputs != (transposed and key == "weight") and score.dim() > 1:
                score = score.transpose(0, 1)
            groups = getattr(layer, "groups", 1)
            if along_inputs and groups > 1:
                score = score.repeat(groups, *[1] * (score.dim() - 1))
            found.append(score.flatten(1) if score.dim() > 1 else score[:, None])
        return found

    def _score(self, layer: nn.Module, key: str) -> Tensor | None:
        name = f"{self._names.get(layer, '')}.{key}".removeprefix(".")
        parameter = getattr(layer, key, None)
        if name not in self._written or parameter is None:
            return None
        score = parameter.grad
        if score is None or not self._is_written(name, score):
            raise RuntimeError(
                f"the gradient of {name} must be its score, got "
                f"{'none' if score is None else 'another one'}: don't train or call zero_grad() "
                "between making PlatonImportance and the pruner's last step"
            )
        scores: Tensor = score.float().cpu()
        return scores

    def _is_written(self, name: str, score: Tensor) -> bool:
        """Whether a gradient still consists of scores; some entries of it are looked at."""
        entries = score.flatten()
        entries = entries[:: max(1, entries.numel() // _CHECKED)].contiguous()
        written = self._written[name]
        at = torch.searchsorted(written, entries).clamp(max=written.numel() - 1)
        return bool((written[at] == entries).all())


def _has(model: nn.Module, name: str) -> bool:
    """Whether a model has this parameter under a mask of ours."""
    path, _, key = name.rpartition(".")
    modules = dict(model.named_modules())
    return path in modules and f"{key}_orig" in modules[path]._parameters


def _refuse_grouped_queries(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "num_key_value_groups", 1) not in (1, None):
            raise ValueError(
                f"model must be without grouped-query attention, on which torch-pruning does not "
                f"come to an end, got {name}: use platon_prune.global_structured and shrink"
            )
