"""Example inputs reach a model's forward as the caller meant them."""

from collections import UserDict

import pytest
from torch import nn

from platon_prune.example_inputs import as_call, call_model


class Echo(nn.Module):
    def forward(self, *args, **kwargs):
        return args, kwargs


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (1, (1,), {}),
        ((1, 2), (1, 2), {}),
        ([1, 2], (1, 2), {}),
        ({"a": 1, "b": 2}, (), {"a": 1, "b": 2}),
        (UserDict(a=1), (), {"a": 1}),  # as a tokenizer returns
        ((), (), {}),
        ({"a", "b"}, ({"a", "b"},), {}),
    ],
)
def test_a_mapping_is_keywords_a_tuple_or_list_arguments_and_anything_else_one(
    inputs, args, kwargs
):
    assert as_call(inputs) == (args, kwargs)
    assert call_model(Echo(), inputs) == (args, kwargs)
