"""A shrunk model with zeros put back is one that from_pretrained can read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_shrink import FAMILIES, masked, output

import platon_prune
from platon_prune.cli import main
from platon_prune.shrinking.even import with_zeros_back


@pytest.mark.parametrize("name", FAMILIES)
def test_zeros_put_back_change_nothing_and_the_config_tells_all_sizes(
    name: str, tmp_path: Path
) -> None:
    model = masked(name)
    whole = sum(parameter.numel() for parameter in model.parameters())
    platon_prune.shrink(model)
    small = sum(parameter.numel() for parameter in model.parameters())
    even = with_zeros_back(model)
    found = sum(parameter.numel() for parameter in even.parameters())
    assert small < found < whole  # the neurons at least are fewer
    assert (output(even) - output(model)).abs().max() <= 1e-5 * output(model).abs().max()
    even.save_pretrained(tmp_path)
    again, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values()), told
    assert torch.equal(output(again.eval()), output(even))


def test_the_command_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = masked("BERT")
    platon_prune.shrink(model)
    platon_prune.save(model, tmp_path / "shrunk")
    call = ["export", str(tmp_path / "shrunk"), "--to", "uniform", "-o", str(tmp_path / "even")]
    assert main(call) == 0
    assert "zeros put back" in capsys.readouterr().out
    again = type(model).from_pretrained(tmp_path / "even").eval()
    assert (output(again) - output(model)).abs().max() <= 1e-5 * output(model).abs().max()
