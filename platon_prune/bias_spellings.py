"""What is known of position biases that several attention layers of transformers read.

Plain data, as the table of `spellings`: either the first layer of a stack makes the bias and hands
it on, as T5's, or the model makes it for all heads and hands it to every layer, as Bloom's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SharedBias:
    """A position bias that the first layer of a stack makes and hands on, as in T5.

    Args:
        sharing: Classes of attention whose layers share one table.
        owning: Classes that read theirs alike, but have one each.
        table: The embedding with a column for each head.
        query: The layer whose outputs tell the heads.
        self_attention: The module's name where the bias is used.
        cross_attention: Its name where there is none.
        blocks: What holds the layers of a stack.
    """

    sharing: tuple[str, ...]
    owning: tuple[str, ...]
    table: str
    query: str
    self_attention: str
    cross_attention: str
    blocks: str


SHARED_BIAS = SharedBias(
    sharing=("T5Attention", "MT5Attention"),
    owning=("UMT5Attention",),
    table="relative_attention_bias",
    query="q",
    self_attention="SelfAttention",
    cross_attention="EncDecAttention",
    blocks="block",
)


@dataclass(frozen=True)
class HandedBias:
    """Attention that is handed a bias with an entry for each head of the model.

    Args:
        in_class: The class of the attention.
        heads: Its arguments that may have heads, and the dimension along which these lie, or
            ``OF_EVERY_EXAMPLE``.
        if_config: An entry of the config without which there is no such bias.
    """

    in_class: str
    heads: dict[str, int]
    if_config: str = ""


OF_EVERY_EXAMPLE = -1  # batch times heads, along the first dimension
HANDED_BIAS = (
    HandedBias("BloomAttention", {"alibi": OF_EVERY_EXAMPLE}),
    HandedBias("MptAttention", {"position_bias": 0}),
    # The kernel of torch is handed ALiBi in the mask, which has heads then.
    HandedBias("FalconAttention", {"alibi": OF_EVERY_EXAMPLE, "attention_mask": 1}, "alibi"),
    HandedBias("MPNetSelfAttention", {"position_bias": 1}),
)
# How other models call tables that may be shared; what they do with them is not known.
ANY_SHARED_BIAS = r"rel\w*bias|position_bias"
