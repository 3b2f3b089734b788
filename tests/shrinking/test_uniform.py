"""What a config can't tell, beside the families of test_shrink.py."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_shrink import mask

import platon_prune
from platon_prune.groups.find import find_groups
from platon_prune.warning import PruningWarning


@pytest.mark.case
def test_a_config_entry_that_counts_other_layers_too_tells_nothing(tmp_path: object) -> None:
    """MobileBERT's intermediate_size is also that of a layer that keeps all of its neurons."""
    sizes = {"hidden_size": 16, "intermediate_size": 12, "embedding_size": 8, "vocab_size": 16}
    sizes |= {"true_hidden_size": 16, "intra_bottleneck_size": 16, "num_attention_heads": 4}
    config = transformers.MobileBertConfig(num_hidden_layers=1, **sizes)
    torch.manual_seed(0)
    model = transformers.MobileBertForSequenceClassification(config).eval()
    groups = [place for place in find_groups(model) if ".ffn." in place.name]
    mask(model, groups, lambda place: range(5))
    tokens = torch.randint(16, (2, 6))
    expected = model(tokens).logits
    with pytest.warns(PruningWarning, match=r"nothing was cut out.*without uniform=True"):
        report = platon_prune.shrink(model, uniform=True)
    assert report.in_config == () and report.parameters_after == report.parameters_before
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens).logits, expected)
