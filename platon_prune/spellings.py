"""The table of what is known of transformers' layers: how they are spelled, and what they count.

All of it is plain data, read by whatever looks at a model or at a file: the finders of heads and
neurons, the resizing of modules and configs, the default selection. A new spelling is a new row
here, and nothing elsewhere; `tests/groups/test_spellings.py` tries each row on a module and a file.
"""

from __future__ import annotations

from dataclasses import dataclass

# --- heads and neurons --------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """A linear layer that reads the layer's input, and what its outputs are.

    Args:
        name: Where it is, from the module that holds the layer; "../" goes one module up.
        parts: What its outputs are, one run after another: "query", "key", "value" of all heads,
            or "neurons". Several of them where matrices are fused into one.
    """

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """One way to spell an attention layer.

    Args:
        reads: The projections of its input.
        writes: The layer that reads the heads' results.
        may_read: Projections that some layers of this spelling have besides.
        is_conv1d: Whether it is known only with transformers' Conv1D: a Linear of that name may
            hold its heads in another order.
    """

    reads: tuple[Projection, ...]
    writes: str
    may_read: tuple[Projection, ...] = ()
    is_conv1d: bool = False


@dataclass(frozen=True)
class FeedForward:
    """One way to spell a feed-forward layer: what reads its input, and what reads its neurons.

    Args:
        reads: One projection, or two of which one gates the other.
        writes: The layer that reads the neurons.
    """

    reads: tuple[Projection, ...]
    writes: str


def _separate(query: str, key: str, value: str, writes: str) -> Attention:
    """Query, key and value in layers of their own; DeBERTa projects positions beside them."""
    reads = (
        Projection(query, ("query",)),
        Projection(key, ("key",)),
        Projection(value, ("value",)),
    )
    positions = tuple(Projection(f"pos_{name}", ("query",)) for name in (query, key))
    return Attention(reads, writes, positions)


def _neurons(*reads: str, writes: str) -> FeedForward:
    return FeedForward(tuple(Projection(name, ("neurons",)) for name in reads), writes)


# Of two rows that fit one module, the first is taken: what has more layers stands before.
ATTENTION = (
    _separate("q_proj", "k_proj", "v_proj", "o_proj"),
    _separate("q_proj", "k_proj", "v_proj", "out_proj"),
    _separate("q_proj", "k_proj", "v_proj", "dense"),
    _separate("query", "key", "value", "../output.dense"),
    _separate("query", "key", "value", "dense"),
    _separate("query", "key", "value", "out_proj"),
    _separate("query_proj", "key_proj", "value_proj", "../output.dense"),
    _separate("q", "k", "v", "o"),
    _separate("q_lin", "k_lin", "v_lin", "out_lin"),
    Attention(  # GPT-2's cross-attention
        (Projection("c_attn", ("key", "value")), Projection("q_attn", ("query",))),
        "c_proj",
        is_conv1d=True,
    ),
    Attention((Projection("c_attn", ("query", "key", "value")),), "c_proj", is_conv1d=True),
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
)

# What an attention may have besides: scales whose last dimension is a head's size, if the layer's
# name has one of these; and what acts on the result or on scores, head by head, by its whole name.
OF_EACH_HEAD = ("norm", "distance_embedding")
OF_THE_RESULT = ("LayerNorm", "relative_attention_bias")

# Modules beside a feed-forward layer, in the module that holds it, which have layers of their own
# and see none of its neurons, though a size of theirs may be equal (MobileBERT's).
BESIDE_NEURONS = ("attention", "bottleneck", "ffn")


@dataclass(frozen=True)
class Entangled:
    """Attention whose heads are not independent: blocks drawn per head, averages over heads.

    Args:
        in_class: A piece of the names of its classes.
        config_key: The entry of a config that tells it, for files, where classes are not seen.
        config_value: What stands there.
    """

    in_class: str
    config_key: str
    config_value: str


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
# In configs as saved, whose entries may be called otherwise than the attributes they are read by.
CONFIG_NUM_HEADS = (*NUM_HEADS, "attention_heads")
# Where encoder and decoder have a number each: that of the layers below a module so named.
CONFIG_NUM_HEADS_BELOW = {
    side: (f"{side}_attention_heads", f"{side}_num_attention_heads", f"num_{side}_attention_heads")
    for side in ("encoder", "decoder")
}
# What a module has of the size of one head; elsewhere it is the query's outputs by the heads.
HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim")
# Where a config can say the size of a head by itself, beside the number of heads.
CONFIG_HEAD_SIZE = ("head_dim", "attention_head_size")
# Names by which a forward puts all heads together again; see `shrinking.resize.has_fixed_width`.
HIDDEN_SIZE = ("embed_dim", "hidden_size", "d_model")
# In configs: the number of query heads, and of the key-value heads that several of them read.
QUERY_HEADS, KEY_VALUE_HEADS = "num_attention_heads", "num_key_value_heads"

COUNTS = {
    "heads": Counts(
        in_modules=(*NUM_HEADS, KEY_VALUE_HEADS, "num_kv_heads")
        + ("all_head_size", "inner_dim", "split_size"),  # heads by their size
        in_configs=(QUERY_HEADS, KEY_VALUE_HEADS)
        + ("encoder_attention_heads", "decoder_attention_heads"),
    ),
    "neurons": Counts(
        in_modules=("intermediate_size", "intermediate_dim", "ffn_dim"),
        in_configs=("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim")
        + ("encoder_ffn_dim", "decoder_ffn_dim"),
    ),
}

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
# How other models call tables that may be shared; what they do with them is not known.
ANY_SHARED_BIAS = r"rel\w*bias|position_bias"
