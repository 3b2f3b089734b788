"""2:4 is verified before conversion, devices without kernels are named, nothing is half done."""

import copy

import pytest
import torch
from tiny import hf_conv1d, sample
from torch import nn

import platon_prune
from platon_prune.runtimes import semi_structured_inference


def _two_of_four(model):
    """Zero the first two of every four inputs."""
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if weight is not None and weight.ndim == 2:
                dim = 1 if isinstance(module, nn.Linear) else 0
                if weight.shape[dim] % 4 == 0:
                    weight.movedim(dim, -1).unflatten(-1, (-1, 4))[..., :2] = 0
    return model.eval()


def _mlp():
    torch.manual_seed(0)
    return _two_of_four(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)))


@pytest.fixture
def device_with_kernels(monkeypatch):
    """As if this machine had them; the sparse form keeps the values, so outputs must stay."""
    converted = []

    def convert(weight):
        assert weight.ndim == 2 and weight.is_contiguous()
        converted.append(tuple(weight.shape))
        return weight.clone()

    monkeypatch.setattr(semi_structured_inference, "try_conversion", lambda device, dtype: None)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    return converted


def test_without_a_gpu_it_says_what_is_missing_and_changes_nothing():
    model = _mlp()
    before = copy.deepcopy(model)
    with pytest.raises(
        RuntimeError,
        match="CUDA GPU of compute capability 8.0 or newer and weights in float16 or bfloat16, "
        "got cpu",
    ):
        platon_prune.to_semi_structured(model)
    assert not hasattr(model, "semi_structured_report")
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad


def test_layers_are_converted_and_outputs_stay(device_with_kernels):
    model, x = _mlp(), sample(3, 8)
    expected = model(x)
    assert platon_prune.to_semi_structured(model) is model
    assert device_with_kernels == [(16, 8), (4, 16)]
    torch.testing.assert_close(model(x), expected)
    assert model.semi_structured_report.num_converted == 2
    assert "2 of 2 linear layers are 2:4 now" in str(model.semi_structured_report)
    with pytest.raises(ValueError, match="converted already"):
        platon_prune.to_semi_structured(model)


def test_a_layer_that_breaks_the_pattern_is_named_with_its_first_group(device_with_kernels):
    model = _mlp()
    with torch.no_grad():
        model[2].weight[1, 4:8] = torch.tensor([0.0, 1.0, 2.0, 3.0])
        model[2].weight[3, 0:4] = 1.0
    message = (
        r"2\.weight must have at most 2 entries .* got \[0\.0, 1\.0, 2\.0, 3\.0\] in the group "
        r"that begins at \[1, 4\] \(2 of 16 groups have more\): prune it with"
    )
    with pytest.raises(ValueError, match=message):
        platon_prune.to_semi_structured(model)
    assert device_with_kernels == [] and model[0].weight.requires_grad
    platon_prune.to_semi_structured(model, exclude="2.weight")
    assert device_with_kernels == [(16, 8)]


def test_the_pattern_is_looked_at_before_the_device():
    model = _mlp()
    nn.init.ones_(model[0].weight)
    with pytest.raises(ValueError, match=r"0\.weight must have at most 2"):
        platon_prune.to_semi_structured(model)


def test_a_model_with_masks_is_refused_until_it_is_finalized(device_with_kernels):
    model = nn.Sequential(nn.Linear(8, 4))
    scheduler = platon_prune.semi_structured(
        model, total_steps=4, window=2, criterion="magnitude", warmup_steps=0, cooldown_steps=0
    )
    for _ in range(4):
        scheduler.step()
    with pytest.raises(ValueError, match="must not carry masks"):
        platon_prune.to_semi_structured(model)
    platon_prune.to_semi_structured(platon_prune.remove(model))
    assert device_with_kernels == [(4, 8)]


def test_conv1d_of_transformers_becomes_a_linear_layer(device_with_kernels):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            from transformers.pytorch_utils import Conv1D

            self.fc = Conv1D(6, 8)

        def forward(self, x):
            return self.fc(x)

    model, x = _two_of_four(Block()), sample(3, 8)
    expected = model(x)
    platon_prune.to_semi_structured(model)
    assert type(model.fc) is nn.Linear and device_with_kernels == [(6, 8)]
    torch.testing.assert_close(model(x), expected)


def test_what_can_not_be_2_of_4_stays_dense_and_is_listed(device_with_kernels):
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[3].weight = model[2].weight
    _two_of_four(model)
    platon_prune.to_semi_structured(model)
    reasons = {row.name: row.reason for row in model.semi_structured_report}
    assert reasons["0"] == ""
    assert "6 inputs" in reasons["1"] and "not a multiple of 4" in reasons["1"]
    assert reasons["2"] == reasons["3"] == "with a weight that another module shares"
    assert device_with_kernels == [(6, 8)]


def test_shapes_that_the_kernels_refuse_stay_dense(monkeypatch, device_with_kernels):
    def convert(weight):
        if weight.shape[0] % 16:
            raise RuntimeError("Both dimensions must be a multiple of (16, 8)")
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    model = _mlp()
    platon_prune.to_semi_structured(model)
    first, second = model.semi_structured_report
    assert (first.chosen, second.chosen) == ("2:4", "dense")
    assert "a multiple of (16, 8)" in second.reason

    alone = _two_of_four(nn.Sequential(nn.Linear(8, 4)))
    with pytest.raises(RuntimeError, match="shapes that they take, got: 0 refused by torch: Both"):
        platon_prune.to_semi_structured(alone)
    assert alone[0].weight.requires_grad


def test_running_out_of_memory_changes_nothing(monkeypatch, device_with_kernels):
    calls = []

    def convert(weight):
        calls.append(weight)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    model = _mlp()
    with pytest.raises(torch.OutOfMemoryError):
        platon_prune.to_semi_structured(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="must have linear layers that can be 2:4, got none"):
        platon_prune.to_semi_structured(nn.Sequential(nn.Conv1d(4, 4, 1)))


# --- check_semi_structured ----------------------------------------------------------------------


def test_the_check_counts_groups_along_the_inputs():
    model = _two_of_four(nn.Sequential(nn.Linear(8, 3), nn.Conv1d(4, 2, 5), *hf_conv1d()))
    report = platon_prune.check_semi_structured(model)
    rows = {row.name: row for row in report}
    assert [rows[name].num_broken for name in ("0.weight", "1.weight", "2.weight")] == [0, 10, 0]
    assert rows["0.weight"].num_groups == 6
    assert rows["1.weight"].first == (0, 0, 0) and not rows["1.weight"].holds
    assert list(report.left_out) == ["4.weight"]  # 6 inputs
    assert not report.holds
    assert [row.name for row in platon_prune.check_semi_structured(model, 4, 8)] == ["0.weight"]
    assert platon_prune.check_semi_structured(model, include=["0.weight"]).holds
    assert "1.weight" in str(report)


def test_the_check_finds_the_first_group_that_breaks_the_pattern():
    layer = nn.Linear(12, 40)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[31, 9:12] = 1.0
        layer.weight[33, 1:5] = 1.0  # three in one group, one in the next
    (row,) = platon_prune.check_semi_structured(layer)
    assert (row.num_groups, row.num_broken, row.first) == (120, 2, (31, 8))


def test_the_check_reads_a_model_that_is_being_pruned_as_evaluation_does():
    model = nn.Sequential(nn.Linear(8, 4))
    scheduler = platon_prune.semi_structured(
        model,
        n=1,
        m=4,
        total_steps=4,
        window=2,
        criterion="magnitude",
        masking="window",
        warmup_steps=0,
        cooldown_steps=0,
    )
    assert not platon_prune.check_semi_structured(model, 1, 4).holds
    for _ in range(4):
        scheduler.step()
    with torch.no_grad():
        model[0].weight_orig.add_(1.0)  # refilled, as by an optimizer
    assert platon_prune.check_semi_structured(model, 1, 4).holds
    assert platon_prune.check_semi_structured(model).holds  # 1:4 is 2:4 too


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 4)])
def test_what_is_no_pattern_is_refused(n, m):
    with pytest.raises(ValueError, match="n must be at least 1 and less than m"):
        platon_prune.check_semi_structured(nn.Linear(8, 4), n, m)
    with pytest.raises(ValueError, match="n must be at least 1 and less than m"):
        platon_prune.semi_structured(
            nn.Linear(8, 4), n=n, m=m, total_steps=20, warmup_steps=0, cooldown_steps=0
        )
    with pytest.raises(TypeError, match="m must be a whole number, got 4.0"):
        platon_prune.semi_structured(
            nn.Linear(8, 4), m=4.0, total_steps=20, warmup_steps=0, cooldown_steps=0
        )
