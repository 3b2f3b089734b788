"""What is selected by default, and by patterns: the names are written out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_transformers import bert, gpt2, llama, mixtral, t5, vit
from torch import nn

import platon_prune
from platon_prune.masks.targets import select

BERT_ENCODER = [
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.0.attention.self.key.weight",
    "encoder.layer.0.attention.self.value.weight",
    "encoder.layer.0.attention.output.dense.weight",
    "encoder.layer.0.intermediate.dense.weight",
    "encoder.layer.0.output.dense.weight",
]
LLAMA_ATTENTION = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
]
LLAMA = [
    *LLAMA_ATTENTION,
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
]


def names(model: nn.Module, **patterns: object) -> list[str]:
    return [target.name for target in select(model, **patterns)]


def test_bert_without_embeddings_norms_biases_pooler_and_classifier() -> None:
    assert names(bert()) == [f"bert.{name}" for name in BERT_ENCODER]
    assert names(bert().bert) == BERT_ENCODER


def test_vit_with_the_patch_projection_and_without_the_classifier() -> None:
    assert names(vit()) == [
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.layers.0.attention.q_proj.weight",
        "vit.layers.0.attention.k_proj.weight",
        "vit.layers.0.attention.v_proj.weight",
        "vit.layers.0.attention.o_proj.weight",
        "vit.layers.0.mlp.fc1.weight",
        "vit.layers.0.mlp.fc2.weight",
    ]


def test_gpt2_with_its_conv1d_layers_and_without_the_tied_head() -> None:
    assert names(gpt2()) == [
        "transformer.h.0.attn.c_attn.weight",
        "transformer.h.0.attn.c_proj.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_proj.weight",
    ]


def test_t5_without_the_head_and_the_position_biases() -> None:
    assert names(t5()) == [
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.block.0.layer.0.SelfAttention.k.weight",
        "encoder.block.0.layer.0.SelfAttention.v.weight",
        "encoder.block.0.layer.0.SelfAttention.o.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        "decoder.block.0.layer.0.SelfAttention.q.weight",
        "decoder.block.0.layer.0.SelfAttention.k.weight",
        "decoder.block.0.layer.0.SelfAttention.v.weight",
        "decoder.block.0.layer.0.SelfAttention.o.weight",
        "decoder.block.0.layer.1.EncDecAttention.q.weight",
        "decoder.block.0.layer.1.EncDecAttention.k.weight",
        "decoder.block.0.layer.1.EncDecAttention.v.weight",
        "decoder.block.0.layer.1.EncDecAttention.o.weight",
        "decoder.block.0.layer.2.DenseReluDense.wi.weight",
        "decoder.block.0.layer.2.DenseReluDense.wo.weight",
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_llama_without_the_head_tied_or_not(tied: bool) -> None:
    assert names(llama(tied)) == LLAMA


def test_mixtral_with_the_fused_experts_and_without_the_router() -> None:
    experts = "model.layers.0.mlp.experts"
    assert names(mixtral()) == [
        *LLAMA_ATTENTION,
        f"{experts}.gate_up_proj",
        f"{experts}.down_proj",
    ]


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )


class ResNet(nn.Module):
    """The layout of torchvision's residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 8))
        self.fc = nn.Linear(8, 10)


RESNET = [
    "conv1.weight",
    "layer1.0.conv1.weight",
    "layer1.0.conv2.weight",
    "layer1.0.downsample.0.weight",
    "fc.weight",
]


def test_convolutional_network_with_its_classifier_and_without_norms() -> None:
    assert names(ResNet()) == RESNET


def test_attention_recurrent_bilinear_and_embedding_layers() -> None:
    model = nn.ModuleDict(
        {
            "same": nn.MultiheadAttention(8, 2),
            "three": nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True),
            "lstm": nn.LSTM(4, 4),
            "bilinear": nn.Bilinear(2, 2, 2),
            "bag": nn.EmbeddingBag(4, 4),
            "conv": nn.ConvTranspose3d(2, 2, 1),
            "norm": nn.LayerNorm(4),
        }
    )
    assert names(model) == [
        "same.in_proj_weight",
        "same.out_proj.weight",
        "three.q_proj_weight",
        "three.k_proj_weight",
        "three.v_proj_weight",
        "three.out_proj.weight",
        "conv.weight",
    ]


def test_linear_tied_to_an_embedding_is_not_selected() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["body"] = nn.Linear(4, 4)
    assert names(model) == ["head.weight", "body.weight"]
    model["head"].weight = model["embedding"].weight
    assert names(model) == ["body.weight"]
    assert names(model, include="head") == ["head.weight"]


def test_an_embedding_with_a_parametrized_weight_is_no_obstacle() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "body": nn.Linear(4, 4)})
    nn.utils.parametrize.register_parametrization(model["embedding"], "weight", nn.Identity())
    assert names(model) == ["body.weight"]


def test_a_tensor_shared_by_two_modules_is_one_target_and_counts_once() -> None:
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("first", "other", "last")})
    model["last"].weight = model["first"].weight
    targets = select(model)
    assert [target.name for target in targets] == ["first.weight", "other.weight"]
    assert targets[0].sites == ((model["first"], "weight"), (model["last"], "weight"))
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.5,
        total_steps=1,
        window=1,
        criterion="magnitude",
        warmup_steps=0,
        cooldown_steps=0,
    )
    scheduler.step()
    assert sum(int((~mask).sum()) for mask in scheduler.masks().values()) == 16  # of 32, not 48


def test_a_module_used_twice_is_selected_once() -> None:
    layer = nn.Linear(4, 4)
    assert names(nn.Sequential(layer, nn.ReLU(), layer)) == ["0.weight"]


def test_include_takes_whatever_matches_instead_of_the_default() -> None:
    assert names(bert(), include=["classifier", "LayerNorm.bias"]) == [
        "bert.embeddings.LayerNorm.bias",
        "bert.encoder.layer.0.attention.output.LayerNorm.bias",
        "bert.encoder.layer.0.output.LayerNorm.bias",
        "classifier.weight",
        "classifier.bias",
    ]
    assert names(ResNet(), include="fc") == ["fc.weight", "fc.bias"]
    assert names(nn.LSTM(4, 4), include=("weight_ih",)) == ["weight_ih_l0"]


def test_exclude_leaves_out_of_the_default_or_of_what_is_included() -> None:
    assert names(ResNet(), exclude="layer1") == ["conv1.weight", "fc.weight"]
    assert names(ResNet(), exclude=["conv", "downsample"]) == ["fc.weight"]
    assert names(ResNet(), include="fc", exclude="bias") == ["fc.weight"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"include": ["fc", "layer9"]}, "include must match parameter names, but 'layer9' matches"),
        ({"exclude": "Conv"}, "exclude must match parameter names, but 'Conv' matches none"),
        ({"include": "fc", "exclude": "fc"}, "exclude must leave something to prune"),
        ({"include": []}, "include must name at least one substring"),
    ],
)
def test_patterns_that_match_nothing_are_errors(patterns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names(ResNet(), **patterns)


def test_pairs_are_taken_as_they_are() -> None:
    model = ResNet()
    targets = select([(model.fc, "bias"), (model.conv1, "weight"), (model.fc, "bias")])
    assert [target.sites for target in targets] == [
        ((model.fc, "bias"),),
        ((model.conv1, "weight"),),
    ]
    with pytest.raises(ValueError, match="include and exclude are patterns of a model's"):
        select([(model.fc, "bias")], include="fc")


def test_a_wrapped_transformers_model_is_selected_as_when_it_is_given_itself() -> None:
    model = nn.ModuleDict({"model": bert(), "pooler": nn.Linear(8, 8)})
    assert names(model) == [*(f"model.bert.{name}" for name in BERT_ENCODER), "pooler.weight"]
    assert names(nn.ModuleDict({"model": llama()})) == [f"model.{name}" for name in LLAMA]


def test_two_models_in_one_are_pruned_without_the_heads_of_either() -> None:
    config = bert().config
    config.is_decoder = config.add_cross_attention = True
    model = transformers.EncoderDecoderModel(
        encoder=bert().bert, decoder=transformers.BertLMHeadModel(config)
    )
    selected = names(model)
    assert [name for name in selected if name.startswith("encoder.")] == [
        f"encoder.{name}" for name in BERT_ENCODER
    ]
    assert "decoder.bert.encoder.layer.0.crossattention.self.query.weight" in selected
    assert not any(".cls." in name or "pooler" in name for name in selected)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("peft_config", SimpleNamespace(), "must not carry adapters, .*merge_and_unload"),
        ("is_quantized", True, "must not be quantised, got is_quantized=True"),
    ],
)
def test_adapters_and_quantised_bases_are_refused_with_the_remedy(
    attribute: str, value: object, message: str, wrapped: bool
) -> None:
    model = bert()
    setattr(model, attribute, value)
    with pytest.raises(ValueError, match=message):
        names(nn.ModuleDict({"model": model}) if wrapped else model)


def test_a_quantised_layer_is_refused_by_name() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    model = nn.ModuleDict({"base": layer, "top": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match=r"base.weight must be floating point, got torch.int8"):
        names(model)
    assert names(model, exclude="base") == ["top.weight"]
