"""The table of what is known of transformers' layers: how they are spelled, and what they count.

All of it is plain data, read by whatever looks at a model or at a file: the finders of heads and
neurons, the resizing of modules and configs, the default selection. A new spelling is a new row
here, and nothing elsewhere; `tests/groups/test_spellings.py` tries each row on a module and a file.
How the routers of mixtures choose stands in `mixtures.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# --- heads and neurons --------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """A linear layer that reads the layer's input, and what its outputs are.

    Args:
        name: Where it is, from the module that holds the layer; "../" goes one module up.
        parts: What its outputs are: "query", "key", "value", a "gate" on the heads' results, or
            "neurons". Several of them where matrices are fused into one.
        by_head: Whether all parts of one head (with grouped queries, of one key-value head) lie
            together, then those of the next; otherwise one part of all heads, then the next part.
    """

    name: str
    parts: tuple[str, ...]
    by_head: bool = False


@dataclass(frozen=True)
class Attention:
    """One way to spell an attention layer.

    Args:
        reads: The projections of its input.
        writes: The layer that reads the heads' results.
        may_read: Projections that some layers of this spelling have besides.
        is_conv1d: Whether it is known only with transformers' Conv1D: a Linear of that name may
            hold its heads in another order.
        blocks: Into how many equal blocks outputs are cut before the parts are told apart. A group
            is then one head of each block.
        is_latent: Whether queries and keys are of another size than what is written, as where both
            are made of a latent of few entries.
    """

    reads: tuple[Projection, ...]
    writes: str
    may_read: tuple[Projection, ...] = ()
    is_conv1d: bool = False
    blocks: int = 1
    is_latent: bool = False


@dataclass(frozen=True)
class FeedForward:
    """One way to spell a feed-forward layer: what reads its input, and what reads its neurons.

    Args:
        reads: One projection, or two of which one gates the other.
        writes: The layer that reads the neurons.
        may_filter: Depthwise convolutions that some layers have between, one filter a neuron.
    """

    reads: tuple[Projection, ...]
    writes: str
    may_filter: tuple[str, ...] = ("dwconv.dwconv",)


@dataclass(frozen=True)
class OwnMatrices:
    """A layer whose matrices are parameters of the module itself, and not of linear layers in it.

    Args:
        kind: "heads" or "neurons".
        holds: Its parameters, and the dimension along which each has one entry a head or neuron.
    """

    kind: str
    holds: dict[str, int]


_FUSED = ("query", "key", "value")


def _separate(query: str, key: str, value: str, writes: str, *also: str) -> Attention:
    """Query, key and value in layers of their own; DeBERTa projects positions beside them."""
    reads = (
        Projection(query, ("query",)),
        Projection(key, ("key",)),
        Projection(value, ("value",)),
    )
    others = (*(f"pos_{name}" for name in (query, key)), *also)
    return Attention(reads, writes, tuple(Projection(name, ("query",)) for name in others))


def _fused(name: str, writes: str, **settings: Any) -> Attention:
    return Attention((Projection(name, _FUSED),), writes, **settings)


def _fused_by_head(name: str, writes: str, *also: str) -> Attention:
    positions = tuple(Projection(other, ("query",)) for other in also)
    return Attention((Projection(name, _FUSED, by_head=True),), writes, positions)


def _neurons(*reads: str, writes: str) -> FeedForward:
    return FeedForward(tuple(Projection(name, ("neurons",)) for name in reads), writes)


def _gated_in_one(name: str, writes: str) -> FeedForward:
    return FeedForward((Projection(name, ("neurons", "neurons")),), writes)


# LUKE's queries between words and entities; Longformer's of the tokens that attend to all.
_LUKE = ("w2e_query", "e2w_query", "e2e_query")
_LONGFORMER = ("query_global", "key_global", "value_global")

# Of two rows that fit one module, the first is taken: what has more layers stands before.
ATTENTION = (
    _separate("q_proj", "k_proj", "v_proj", "o_proj"),
    _separate("q_proj", "k_proj", "v_proj", "out_proj"),
    _separate("q_proj", "k_proj", "v_proj", "dense"),
    _separate("query", "key", "value", "../output.dense", *_LUKE, *_LONGFORMER),
    _separate("query", "key", "value", "dense"),
    _separate("query", "key", "value", "out_proj"),
    _separate("query_proj", "key_proj", "value_proj", "../output.dense"),
    _separate("q", "k", "v", "o"),
    _separate("q_lin", "k_lin", "v_lin", "out_lin"),
    _separate("query", "key", "value", "proj"),
    _separate("q_head", "k_head", "v_head", "post_proj"),
    Attention(  # Qwen3-Next: each query head is followed by its gate
        (
            Projection("q_proj", ("query", "gate"), by_head=True),
            Projection("k_proj", ("key",)),
            Projection("v_proj", ("value",)),
        ),
        "o_proj",
    ),
    *(
        Attention(  # DeepSeek
            (
                Projection(query, ("query",)),
                Projection("kv_b_proj", ("key", "value"), by_head=True),
            ),
            "o_proj",
            is_latent=True,
        )
        for query in ("q_b_proj", "q_proj")
    ),
    _fused("Wqkv", "Wo"),
    _fused("Wqkv", "out_proj"),
    _fused("qkv_proj", "o_proj"),
    # CodeGen, whose four blocks are queries, values and keys of a quarter of the heads.
    Attention((Projection("qkv_proj", ("query", "value", "key")),), "out_proj", blocks=4),
    _fused_by_head("query_key_value", "dense"),
    _fused_by_head("in_proj", "../output.dense", "pos_proj", "pos_q_proj"),
    Attention(  # GPT-2's cross-attention
        (Projection("c_attn", ("key", "value")), Projection("q_attn", ("query",))),
        "c_proj",
        is_conv1d=True,
    ),
    _fused("c_attn", "c_proj", is_conv1d=True),
    _fused_by_head("c_attn", "c_proj"),  # BigCode
)
FEED_FORWARD = (
    _neurons("gate_proj", "up_proj", writes="down_proj"),
    _neurons("up_proj", writes="down_proj"),
    _neurons("wi_0", "wi_1", writes="wo"),
    _neurons("wi", writes="wo"),
    _neurons("intermediate.dense", writes="output.dense"),
    _neurons("fc1", writes="fc2"),
    _neurons("lin1", writes="lin2"),
    _neurons("linear1", writes="linear2"),
    _neurons("c_fc", writes="c_proj"),
    _neurons("dense_h_to_4h", writes="dense_4h_to_h"),
    _neurons("ffn", writes="ffn_output"),
    _neurons("fc_in", writes="fc_out"),
    _neurons("intermediate_dense", writes="output_dense"),
    _neurons("layer_1", writes="layer_2"),
    _neurons("linear_1", writes="linear_2"),
    _neurons("dense1", writes="dense2"),
    _neurons("w1", "w3", writes="w2"),
    _neurons("ff.0", writes="ff.3"),
    _neurons("pwconv1", writes="pwconv2"),
    _gated_in_one("gate_up_proj", writes="down_proj"),
    _gated_in_one("Wi", writes="Wo"),
    _gated_in_one("input_linear", writes="output_linear"),
)
OWN_MATRICES = (
    OwnMatrices(  # XLNet
        "heads",
        {"q": 1, "k": 1, "v": 1, "o": 1, "r": 1, "seg_embed": 1}
        | {"r_r_bias": 0, "r_s_bias": 0, "r_w_bias": 0},
    ),
)

# What an attention may have besides: scales whose last dimension is a head's size, if the layer's
# name has one of these; and what acts on the input, on the result or on scores, head by head, by
# the first name on its path.
OF_EACH_HEAD = ("norm", "distance_embedding")
OF_THE_RESULT = ("LayerNorm", "layer_norm", "relative_attention_bias")
OF_THE_INPUT = (
    *("sequence_reduction", "sr", "spatial_reduction", "continuous_position_bias_mlp.0"),
    *("q_a_proj", "q_a_layernorm", "kv_a_proj_with_mqa", "kv_a_layernorm"),  # to a latent
) + (
    ("q_a_proj", "q_a_layernorm", "kv_a_proj_with_mqa", "kv_a_layernorm")  # to a latent
)
# Parameters with one or more entries for each query head, and the dimension along which these lie:
# sinks, biases, scales, tables of positions.
OF_HEADS = {
    "sinks": 0,
    "logit_scale": 0,
    "continuous_position_bias_mlp.2.weight": 0,
    "relative_position_bias.relative_position_bias_table": 1,
    "relative_position_bias_table": 1,  # as Swin's files have it
    "conv.weight": 0,  # Nyströmformer's, depthwise over heads
    "q_bias": 0,
    "v_bias": 0,
    "r_w_bias": 0,
    "r_r_bias": 0,
    "r_s_bias": 0,
    "r_kernel": 1,
    "seg_embed": 1,
}
OF_HEADS_ABOVE = {"../relative_position_bias.relative_position_bias_table": 1}  # BEiT's
# Norms by the root of the mean square of what a part has in all heads.
OVER_ALL_HEADS = {"q_norm": "query", "k_norm": "key"}
RMS_NORM, NORM_EPS = "RMSNorm", ("variance_epsilon", "eps")

# Modules beside a feed-forward layer, in the module that holds it, which have layers of their own
# and see none of its neurons, though a size of theirs may be equal (MobileBERT's).
BESIDE_NEURONS = ("attention", "bottleneck", "ffn")


@dataclass(frozen=True)
class Entangled:
    """Attention whose heads can't go one by one.

    Args:
        in_class: A piece of the names of its classes.
        config_key: The entry of a config that tells it: for files, where classes are not seen, and
            where a class can do either.
        config_value: What stands there.
        why: What ties the heads together.
    """

    in_class: str
    config_key: str
    config_value: str | bool
    why: str = "its heads are not independent of each other"


ENTANGLED = (
    Entangled("BlockSparse", "attention_type", "block_sparse"),
    Entangled("ProbSparse", "attention_type", "prob"),
    Entangled("Autoformer", "model_type", "autoformer"),
)

# --- sizes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Under which names heads or neurons are counted.

    Args:
        in_modules: Attributes of the modules that hold projections, scaled when outputs are cut.
        in_configs: Entries of configs, set to what every layer is left with.
    """

    in_modules: tuple[str, ...]
    in_configs: tuple[str, ...]


NUM_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads")
QUERIES_OF_A_KEY = "num_key_value_groups"  # as modules call it
# In configs as saved, whose entries may be called otherwise than the attributes they are read by.
CONFIG_NUM_HEADS = (*NUM_HEADS, "attention_heads")
# Where encoder and decoder have a number each: that of the layers below a module so named.
CONFIG_NUM_HEADS_BELOW = {
    side: (f"{side}_attention_heads", f"{side}_num_attention_heads", f"num_{side}_attention_heads")
    for side in ("encoder", "decoder")
}
# What a module has of the size of one head; elsewhere it is the query's outputs by the heads.
HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
# Where a config can say the size of a head by itself, beside the number of heads.
CONFIG_HEAD_SIZE = ("head_dim", "attention_head_size")
# Names by which a forward puts all heads together again; see `shrinking.holders`.
HIDDEN_SIZE = ("embed_dim", "hidden_size", "d_model", "num_channels")
# In configs: the number of query heads, and of the key-value heads that several of them read.
QUERY_HEADS, KEY_VALUE_HEADS = "num_attention_heads", "num_key_value_heads"
NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

COUNTS = {
    "heads": Counts(
        in_modules=(*NUM_HEADS, *KEY_VALUE_COUNTS)
        + ("all_head_size", "inner_dim", "split_size"),  # heads by their size
        in_configs=(QUERY_HEADS, KEY_VALUE_HEADS)
        + ("encoder_attention_heads", "decoder_attention_heads"),
    ),
    "neurons": Counts(
        in_modules=("intermediate_size", "intermediate_dim", "ffn_dim"),
        in_configs=("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim")
        + ("encoder_ffn_dim", "decoder_ffn_dim", "d_inner", "ffn_hidden_size")
        + ("moe_intermediate_size", "shared_intermediate_size"),
    ),
    "experts": Counts(in_modules=NUM_EXPERTS, in_configs=NUM_EXPERTS),
}

# --- layers in a row ----------------------------------------------------------------------------

# How names of entries and attributes end that count the layers of a list; and what is in the names
# of lists with an entry for each of them.
LAYER_COUNTS = ("layers", "layer", "blocks", "depth")
LAYER_LISTS = ("layer", "block", "attention")
# What the modules of a layer call its position: caches and kinds of attention are found by it.
LAYER_NUMBERS = ("layer_idx", "layer_id", "layer_index", "block_idx", "block_id")

# --- weights stored inputs by outputs -----------------------------------------------------------

CONV1D = "Conv1D"  # transformers' class of such a linear layer
# In files, where classes are not seen: the layers that are of this class if the first one is, which
# its bias tells, having an entry for each output.
CONV1D_LAYERS = ("c_attn", "q_attn", "c_proj", "c_fc")
EXPERTS = "Experts"  # classes of mixtures of experts end so; their weights have three dimensions
EXPERTS_PATH = "experts"  # the module that holds them
# Experts that are (experts, in, out): the attribute that says so, and what lacks it.
DECLARES_TRANSPOSED, TRANSPOSED_EXPERTS = "is_transposed", "Llama4TextExperts"
# The same in files, by the config's model type.
TRANSPOSED_EXPERTS_TYPES = ("gpt_oss", "openai_privacy_filter") + (
    ("llama4", "llama4_text", "aria", "aria_text")
)
# Experts whose gates and values take turns along the outputs: the attribute that denies it, and
# for files the config's model type.
DECLARES_RUNS, INTERLEAVED_EXPERTS_TYPES = "is_concatenated", ("gpt_oss",)
# What reads the input of experts and their neurons, and where its bias is.
EXPERTS_READ, EXPERTS_WRITE = ("gate_up_proj", "up_proj"), "down_proj"
# Kernels of grouped products want rows of whole 16 bytes: eight entries of half precision.
EXPERTS_STEP = 8

# Entries of outputs that have an axis of heads, or caches of them: fewer heads leave less of them.
OUTPUTS_OF_HEADS = ("past_key_values", "cache_params", "mems") + (
    ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
)

# --- what is beside layers ----------------------------------------------------------------------

# In the names of parameters that multiply nothing, though they may look like matrices.
NO_MATRIX = ("embed", "pos", "token", "bias", "scale", "gamma", "A_log")
POOLER = "pooler"  # in the names of modules that are not pruned by default
# Buffers that older files hold, which are no parameters: ends of names.
BUFFERS = (".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq", ".position_ids")
