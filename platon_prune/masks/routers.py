"""Routers of mixtures that never pick a pruned expert.

A row of zeros in a router's weight is a logit of zero, which may well be among the largest. So a
forward hook takes such logits out, as minus infinity, and makes of the others what the router
makes of its logits: what comes out is what a router without these rows would give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.masks.state_forms import asked_by_save_pretrained
from platon_prune.mixtures import BEST_OF_GROUP, CORRECTION, ROUTERS, Router
from platon_prune.tensors.shards import whole_of
from platon_prune.warning import PruningWarning

# The buffer of a router that says which experts stay out though no mask says so (any more).
OUT = "pruned_experts"


class PassesOver:
    """Forward hook of a router, by which no token goes to a pruned expert.

    Args:
        router: How the router chooses.
    """

    def __init__(self, router: Router) -> None:
        self.router = router

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The outputs of the router as they would be without the rows of pruned experts."""
        out = pruned_experts(module)
        if out is None:
            return output
        logits, before, _, *rest = output
        weights, indices = chosen(module, self.router, logits, out)
        # Losses that balance experts are made of these logits: pruned ones are none of them.
        return logits.masked_fill(out, -torch.inf), weights.to(before.dtype), indices, *rest


def chosen(module: Any, router: Router, logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The weights and the experts of each token, without those that are out.

    Args:
        module: The router, for its numbers.
        router: How it chooses.
        logits: Of all tokens and experts, (tokens, experts).
        out: Which experts may not be chosen; bool, (experts,).

    Returns:
        Weights and indices, (tokens, chosen); the indices count all experts.
    """
    if router.rule == "top-k":
        largest, indices = logits.masked_fill(out, -torch.inf).topk(module.top_k, dim=-1)
        return largest.softmax(dim=-1), indices
    if router.rule == "softmax":
        # Before the softmax: where weights are not divided by their sum, it is over those left.
        shares = logits.masked_fill(out, -torch.inf).softmax(dim=-1, dtype=torch.float32)
        weights, indices = shares.topk(module.top_k, dim=-1)
    else:
        scores = logits.sigmoid()
        corrected = (scores + getattr(module, CORRECTION)).masked_fill(out, -torch.inf)
        indices = _of_best_groups(module, corrected).topk(module.top_k, dim=-1, sorted=False)[1]
        weights = scores.gather(-1, indices)
    if module.norm_topk_prob if router.divides is None else router.divides:
        # What keeps a sum of sigmoids from zero is far below the rounding of any other one.
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * getattr(module, "routed_scaling_factor", 1.0), indices


def _of_best_groups(module: Any, scores: Tensor) -> Tensor:
    """Scores in which only the experts of the best routing groups are left."""
    in_groups = scores.view(len(scores), module.num_group, -1)
    of_groups = in_groups.topk(BEST_OF_GROUP, dim=-1)[0].sum(dim=-1)
    best = of_groups.topk(module.topk_group, dim=-1, sorted=False)[1]
    is_best = torch.zeros_like(of_groups, dtype=torch.bool).scatter(-1, best, True)
    left: Tensor = in_groups.masked_fill(~is_best.unsqueeze(-1), -torch.inf).flatten(-2)
    return left


def known_router(module: nn.Module) -> Router | None:
    """How a router chooses, by the name of its class; None if it is none that is known."""
    names = {cls.__name__ for cls in type(module).__mro__}
    return next((router for router in ROUTERS if names.intersection(router.classes)), None)


def pruned_experts(module: nn.Module) -> Tensor | None:
    """Which experts a router passes over; bool, (experts,), on its device; None if it can't."""
    out: Tensor | None = getattr(module, OUT, None)
    mask: Tensor | None = getattr(module, "weight_mask", None)
    if mask is None:
        return out
    # Read at each forward: a choice, a checkpoint or a copy changes the mask in place.
    masked = ~whole_of(mask.any(dim=1))  # of a sharded router gathered: a flag for each expert
    return masked if out is None else out | masked


def pass_over_pruned_(module: nn.Module, out: Tensor | None = None) -> None:
    """Make a router pass over experts that its mask prunes, and over those that are named.

    Args:
        module: A router that is known.
        out: Which stay out without a mask; bool, (experts,).
    """
    router = known_router(module)
    assert router is not None
    if out is not None:
        # Not in state dicts: from_pretrained would not know the key.
        module.register_buffer(OUT, out.to(module.weight.device), persistent=False)  # type: ignore[arg-type,union-attr]
    if not _hooks_of(module):
        # In front of what records the logits for losses.
        module.register_forward_hook(PassesOver(router), prepend=True)


def freeze_pruned_(module: nn.Module, name: str) -> None:
    """Keep what a router passes over when its mask is about to be removed.

    Args:
        module: Any; of others than routers that pass over experts nothing is kept.
        name: The tensor whose mask goes.
    """
    if name == "weight" and _hooks_of(module):
        out = pruned_experts(module)
        if out is not None and out.any():
            pass_over_pruned_(module, out)
        else:
            forget_pruned_(module)


def forget_pruned_(module: nn.Module) -> None:
    """Make a router an ordinary one again."""
    for key in _hooks_of(module):
        del module._forward_hooks[key]
    if OUT in module._buffers:
        del module._buffers[OUT]
        module._non_persistent_buffers_set.discard(OUT)


def forget_where_none_is_out_(model: nn.Module) -> None:
    """Make those routers of a model ordinary ones that have no expert to pass over."""
    for module in model.modules():
        if _hooks_of(module) and not hasattr(module, "weight_mask"):
            out = pruned_experts(module)
            if out is None or not out.any():
                forget_pruned_(module)
    for module in model.modules():
        if not any(_hooks_of(part) for part in module.modules()):
            hooks = module._state_dict_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _warn_of_other_routing]:
                del hooks[key]


def _hooks_of(module: nn.Module) -> list[int]:
    return [key for key, hook in module._forward_hooks.items() if isinstance(hook, PassesOver)]


# --- saving -------------------------------------------------------------------------------------


def warn_when_saved_(model: nn.Module) -> None:
    """Make ``save_pretrained`` of a model warn as long as it has pruned experts."""
    if _warn_of_other_routing not in model._state_dict_pre_hooks.values():
        model.register_state_dict_pre_hook(_warn_of_other_routing)  # type: ignore[no-untyped-call]


def _warn_of_other_routing(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    if not asked_by_save_pretrained():
        return
    passed_over = (pruned_experts(part) for part in module.modules() if _hooks_of(part))
    if any(out is not None and bool(out.any()) for out in passed_over):
        PruningWarning.warn(
            "pruned experts are saved as zeros, which from_pretrained will route tokens to again: "
            "take them out with platon_prune.shrink first, or save with platon_prune.save"
        )
