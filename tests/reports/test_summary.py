"""What a summary counts: what an evaluation uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import platon_prune
from platon_prune import Summary, TensorSummary


def _pruned(masking: str = "step") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    scheduler = platon_prune.global_unstructured(
        model, amount=0.8, total_steps=1, criterion="magnitude", masking=masking
    )
    scheduler.step()
    return model


def _fill(model: nn.Module) -> None:
    """Give two weights outside the mask a value, and say which entries are not zero."""
    weight, mask = model[0].weight_orig, model[0].weight_mask
    gone = (~mask).flatten().nonzero().flatten()[:2]
    with torch.no_grad():
        weight.view(-1)[gone] = 1.0


@pytest.mark.case
def test_weights_that_averaging_has_filled_in_are_counted_and_told() -> None:
    average = AveragedModel(_pruned())
    _fill(average.module)
    found = platon_prune.summary(average)
    assert (found.total.kept, found.total.outside) == (6 + 2, 2)  # 30 weights, 24 of them pruned
    assert int((average.module[0].weight != 0).sum()) == 8
    assert "2 outside their mask" in str(found)


def test_what_an_evaluation_masks_anew_is_told_but_not_counted() -> None:
    model = _pruned("window")
    _fill(model)
    found = platon_prune.summary(model.eval())
    assert (found.total.kept, found.total.outside) == (6, 2)
    assert int((model[0].weight != 0).sum()) == 6


def test_nothing_outside_is_not_mentioned() -> None:
    assert "outside" not in str(platon_prune.summary(_pruned()))


class _Quantised(Tensor):
    """As torchao keeps a weight: a tensor whose values are not its memory."""

    can_be_read = True

    @staticmethod
    def __new__(cls, values: Tensor) -> _Quantised:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values: Tensor) -> None:
        self.values_inside = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{function} is not there")

    def dequantize(self) -> Tensor:
        if not type(self).can_be_read:
            raise NotImplementedError
        return self.values_inside


def _quantised() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2))
    values = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0]])
    model[0].weight = nn.Parameter(_Quantised(values), requires_grad=False)
    return model


def test_a_model_that_was_quantised_afterwards_is_counted_by_its_values() -> None:
    assert platon_prune.summary(_quantised()).total.kept == 3


def test_values_that_can_not_be_read_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Quantised, "can_be_read", False)
    with pytest.raises(ValueError, match=r"0\.weight must have values.*before the model is quant"):
        platon_prune.summary(_quantised())


# --- how it is shown ----------------------------------------------------------------------------


def _rows() -> Summary:
    half, most, none = (
        TensorSummary(name, (2, 5), kept) for name, kept in zip("bca", (5, 1, 10), strict=True)
    )
    return Summary((half, most, none))


def test_rows_are_sorted_by_what_was_lost_most_and_by_name() -> None:
    found = _rows()
    assert [row.name for row in found.sort("sparsity")] == ["c", "b", "a"]
    assert [row.name for row in found.sort("kept")] == ["a", "b", "c"]
    assert [row.name for row in found.sort("name")] == ["a", "b", "c"]
    assert [row.name for row in found.sort("numel")] == ["b", "c", "a"]  # equal: as they were
    assert [row.name for row in found] == ["b", "c", "a"]
    with pytest.raises(ValueError, match="by must be one of name, sparsity, kept, numel; got 'x'"):
        found.sort("x")  # type: ignore[arg-type]


def test_its_repr_is_a_line_with_counts_and_sparsity() -> None:
    expected = "Summary(3 tensors, 14 of 30 weights zero: 46.67%)"
    assert repr(_rows()) == expected


def test_a_notebook_shows_every_row_and_the_total_and_no_name_as_markup() -> None:
    shown = Summary((TensorSummary("<b>", (4,), 1),))._repr_html_()
    assert shown.count("<tr>") == 3 and "<b>" not in shown and "&lt;b&gt;" in shown
    assert "75.00%" in shown


def test_a_table_of_long_names_fits_100_columns_and_keeps_their_ends() -> None:
    names = [f"{'a_very_long_name.' * 9}{i}.weight" for i in range(3)]
    lines = str(Summary(tuple(TensorSummary(name, (768, 768), 5) for name in names))).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(f"{i}.weight " in line for i, line in enumerate(lines[1:4]))
