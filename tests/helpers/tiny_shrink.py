"""Models with two layers and four heads each, and masks over some of their coupled groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import platon_prune
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.find import find_groups
from platon_prune.masks.masked import apply_mask_, mask_of
from platon_prune.masks.method import attach
from platon_prune.tensors.blocks import Scratch

_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 12,
}
_TEXT = {**_SIZES, "vocab_size": 16, "max_position_embeddings": 32, "num_labels": 3}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
ATTENTIONS = ("eager", "sdpa")


def bert(**settings: object) -> nn.Module:
    config = transformers.BertConfig(**_TEXT, **_NO_DROPOUT, **settings)
    return transformers.BertForSequenceClassification(config)


def roberta(**settings: object) -> nn.Module:
    config = transformers.RobertaConfig(**_TEXT, **_NO_DROPOUT, pad_token_id=1, **settings)
    return transformers.RobertaForSequenceClassification(config)


def deberta(**settings: object) -> nn.Module:
    """Of version 3, whose positions have the projections of the tokens."""
    kinds = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4}
    kinds |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
    config = transformers.DebertaV2Config(**_TEXT, **_NO_DROPOUT, **(kinds | settings))
    return transformers.DebertaV2ForSequenceClassification(config)


def vit(**settings: object) -> nn.Module:
    config = transformers.ViTConfig(
        **_SIZES, **_NO_DROPOUT, image_size=8, patch_size=4, num_labels=3, **settings
    )
    return transformers.ViTForImageClassification(config)


def gpt2(**settings: object) -> nn.Module:
    sizes = {"vocab_size": 16, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
    no_dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    config = transformers.GPT2Config(**sizes, **no_dropout, **_SPECIAL, **settings)
    return transformers.GPT2LMHeadModel(config)


def t5(**settings: object) -> nn.Module:
    sizes = {"vocab_size": 16, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_layers": 2}
    sizes |= {"num_heads": 4, "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **settings))


def llama(**settings: object) -> nn.Module:
    """Eight query heads that share four key-value heads, and gated feed-forward layers."""
    sizes = {**_TEXT, "num_attention_heads": 8, "num_key_value_heads": 4, **_SPECIAL}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | settings)))


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "BERT": bert,
    "RoBERTa": roberta,
    "DeBERTa-v3": deberta,
    "ViT": vit,
    "GPT-2": gpt2,
    "T5": t5,
    "gated T5": lambda **settings: t5(feed_forward_proj="gated-gelu", **settings),
    "Llama": llama,
}


# --- a residual network as torchvision's ----------------------------------------------------------


class _Block(nn.Module):
    """Convolutions of the given widths beside a shortcut, which is one where sizes differ."""

    def __init__(self, inputs: int, widths: Sequence[int], kernels: Sequence[int], stride: int):
        super().__init__()
        sizes = list(zip((inputs, *widths), widths, kernels, strict=False))
        at = 1 if len(sizes) == 3 else 0
        for i, (fewer, more, kernel) in enumerate(sizes):
            step = stride if i == at else 1
            conv = nn.Conv2d(fewer, more, kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(more))
        self.downsample = None
        if stride > 1 or inputs != widths[-1]:
            conv = nn.Conv2d(inputs, widths[-1], 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))
        self.num_convs = len(sizes)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.num_convs + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = F.relu(x if i < self.num_convs else x + shortcut)
        return x


class ResNet(nn.Module):
    """Two stages of two blocks, basic or with a bottleneck."""

    def __init__(self, bottleneck: bool = False):
        super().__init__()
        widths, kernels = ((6, 6, 12), (1, 3, 1)) if bottleneck else ((8, 8), (3, 3))
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        wider = [2 * width for width in widths]
        self.layer1 = nn.Sequential(
            _Block(8, widths, kernels, 1), _Block(widths[-1], widths, kernels, 1)
        )
        self.layer2 = nn.Sequential(
            _Block(widths[-1], wider, kernels, 2), _Block(wider[-1], wider, kernels, 1)
        )
        self.fc = nn.Linear(wider[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean(dim=(2, 3)))


def resnet(bottleneck: bool = False) -> nn.Module:
    """With statistics as after some training."""
    model = ResNet(bottleneck)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# --- inputs and masks -----------------------------------------------------------------------------


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, transformers.ViTForImageClassification):
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    tokens = torch.randint(2, 16, (2, 6), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    extra = {}
    if isinstance(model, transformers.T5ForConditionalGeneration):
        extra["decoder_input_ids"] = tokens.flip(1)
    return {"input_ids": tokens, "attention_mask": mask} | extra


def output(model: nn.Module) -> Tensor:
    return model(**inputs_of(model)).logits


def built(name: str, **settings: object) -> nn.Module:
    """A model of a family, in evaluation, with weights that let every head matter."""
    torch.manual_seed(1)
    model = FAMILIES[name](**settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def mask(
    model: nn.Module,
    groups: Sequence[CoupledGroups],
    pruned: Callable[[CoupledGroups], Sequence[int]],
    masking: str = "step",
) -> None:
    """Put masks over all members of the groups, and prune some groups by them."""
    for place in groups:
        for member in place.members:
            path, _, key = member.name.rpartition(".")
            module = model.get_submodule(path)
            if f"{key}_mask" not in module._buffers:
                attach(module, key, masking=masking)
            gone = place.indices(member, list(pruned(place)))
            mask_of(module, key).index_fill_(member.dim, gone, False)
            if masking == "step":
                apply_mask_(module, key, Scratch())


def differing(places: Sequence[CoupledGroups]) -> Callable[[CoupledGroups], list[int]]:
    """Other groups, and other numbers of them, at each place; at the last one all."""
    order = {place.name: i for i, place in enumerate(places)}

    def pruned(place: CoupledGroups) -> list[int]:
        i = order[place.name]
        count = place.size if i == len(places) - 1 else (i + 1) % place.size
        return [(i + k) % place.size for k in range(count)]

    return pruned


def masked(name: str, masking: str = "step", **settings: object) -> nn.Module:
    """A model of a family with masks over groups, other ones in every layer."""
    model = built(name, **settings)
    groups = find_groups(model)
    mask(model, groups, differing(groups), masking)
    return model


def counts(report: platon_prune.ShrinkReport) -> dict[str, int]:
    return {row.name: row.after for row in report.places}
