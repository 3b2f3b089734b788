"""The table of what is known of mixtures of experts: how each family's routers choose.

It is a part of the table of spellings, in a file of its own since classes of routers stand in it,
and no names of layers. A new family is a new name here, and nothing elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["softmax", "top-k", "sigmoid"]


@dataclass(frozen=True)
class Router:
    """How some routers make of logits which experts a token goes to, and with which weights.

    Args:
        classes: The names of their classes in transformers.
        rule: "softmax": of all logits, of which the largest are taken; "top-k": the largest logits,
            of which a softmax is taken; "sigmoid": of all logits, of which those are taken that are
            largest with a correction added, in the best routing groups.
        divides: Whether weights are divided by their sum over the experts of a token; None where
            the router's ``norm_topk_prob`` says.
    """

    classes: tuple[str, ...]
    rule: Rule
    divides: bool | None = None


ROUTERS = (
    Router(
        ("MixtralTopKRouter", "MiniMaxTopKRouter")
        + ("Qwen3VLMoeTextTopKRouter", "Qwen3OmniMoeTextTopKRouter", "Qwen3_5MoeTopKRouter"),
        "softmax",
        divides=True,
    ),
    Router(
        ("OlmoeTopKRouter", "FlexOlmoTopKRouter", "MellumTopKRouter")
        + ("Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter", "Qwen3NextTopKRouter"),
        "softmax",
    ),
    Router(
        ("GptOssTopKRouter", "GraniteMoeTopKRouter")
        + ("GraniteMoeSharedTopKRouter", "GraniteMoeHybridTopKRouter"),
        "top-k",
    ),
    Router(
        ("DeepseekV3TopkRouter", "Dots1TopkRouter", "ExaoneMoeTopkRouter", "SolarOpenTopkRouter")
        + ("Glm4MoeTopkRouter", "Glm4MoeLiteTopkRouter", "Glm4vMoeTextTopkRouter"),
        "sigmoid",
    ),
)

# What is added to the scores of a "sigmoid" router: a buffer with an entry for each expert.
CORRECTION = "e_score_correction_bias"
# How many of the best experts of a routing group say how good the group is.
BEST_OF_GROUP = 2
# Modules that may hold a router, beside experts: for words about one that is not known.
ROUTER_PATHS = ("gate", "router")
# The entry of a config by which losses get the logits of all layers at once.
WANTS_LOGITS = "output_router_logits"
# Entries of outputs that have an axis of experts, or are made of such: fewer experts change them.
OUTPUTS_OF_EXPERTS = ("router_logits", "aux_loss")
