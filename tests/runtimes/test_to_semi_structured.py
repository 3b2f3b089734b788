"""2:4 is verified before conversion, devices without kernels are named, nothing is half done."""

import copy

import pytest
import torch
from tiny import hf_conv1d, sample
from torch import nn

import platon_prune
from platon_prune.runtimes import semi_structured_inference, semi_structured_times
from platon_prune.runtimes import two_of_four_kernels as kernels


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


def with_kernels(monkeypatch, times=None, **kernels):
    """As if this machine had these kernels; a call by one takes the time that stands in ``times``.

    By default every kernel is faster than dense.
    """
    times = {"dense": 10.0} | (times or {})

    def timed(run):
        run()
        return times.get(run.kernel, 1.0)

    found = semi_structured_inference, "usable_kernels", lambda device, dtype: (kernels, "")
    monkeypatch.setattr(*found)
    monkeypatch.setattr(semi_structured_inference, "clock", lambda device: timed)


@pytest.fixture
def device_with_kernels(monkeypatch):
    """As if this machine had them; the sparse form keeps the values, so outputs must stay."""
    converted = []

    def convert(weight):
        assert weight.ndim == 2 and weight.is_contiguous()
        converted.append(tuple(weight.shape))
        return weight.clone()

    with_kernels(monkeypatch, cuSPARSELt=convert)
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

    with_kernels(monkeypatch, cuSPARSELt=convert)
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

    with_kernels(monkeypatch, cuSPARSELt=convert)
    model = _mlp()
    with pytest.raises(torch.OutOfMemoryError):
        platon_prune.to_semi_structured(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="must have linear layers that can be 2:4, got none"):
        platon_prune.to_semi_structured(nn.Sequential(nn.Conv1d(4, 4, 1)))


# --- what is chosen -----------------------------------------------------------------------------


class ByCutlass(torch.Tensor):
    pass


class ByCusparselt(torch.Tensor):
    pass


def with_both(monkeypatch, times):
    kernels = {
        "cuSPARSELt": lambda weight: weight.clone().as_subclass(ByCusparselt),
        "CUTLASS": lambda weight: weight.clone().as_subclass(ByCutlass),
    }
    with_kernels(monkeypatch, times, **kernels)


@pytest.mark.parametrize(
    ("times", "chosen", "kind"),
    [
        (dict(cuSPARSELt=5.0, CUTLASS=4.0), "2:4", ByCutlass),
        (dict(cuSPARSELt=4.0, CUTLASS=5.0), "2:4", ByCusparselt),
        (dict(cuSPARSELt=9.0, CUTLASS=60.0), "2:4", ByCusparselt),
        (dict(cuSPARSELt=9.1, CUTLASS=60.0), "dense", None),
        (dict(cuSPARSELt=120.0, CUTLASS=60.0), "dense", None),
    ],
)
def test_a_layer_gets_the_fastest_form_and_stays_dense_unless_a_tenth_is_saved(
    monkeypatch, times, chosen, kind
):
    with_both(monkeypatch, times)
    model, x = _mlp(), sample(3, 8)
    before, expected = model[0].weight, model(x)
    assert platon_prune.to_semi_structured(model, num_tokens=3) is model
    assert [row.chosen for row in model.semi_structured_report] == [chosen] * 2
    assert (model[0].weight is before) == (kind is None)
    assert kind is None or isinstance(model[0].weight.data, kind)
    torch.testing.assert_close(torch.Tensor(model(x)), expected)


def test_the_report_has_both_times_of_each_layer_and_why_it_stayed_dense(monkeypatch):
    with_both(monkeypatch, dict(cuSPARSELt=60.0, CUTLASS=120.0))
    model = platon_prune.to_semi_structured(_mlp(), num_tokens=7)
    (first, second), shown = model.semi_structured_report, str(model.semi_structured_report)
    # Ten calls in a row took 10, 60 and 120 ms.
    assert (first.name, first.num_tokens, first.dense_ms) == ("0", 7, 1.0)
    assert first.kernel_ms == {"cuSPARSELt": 6.0, "CUTLASS": 12.0} == second.kernel_ms
    assert first.reason == "where 2:4 does not save 10% of the time"
    assert "left dense: 2 where 2:4 does not save 10% of the time" in shown
    assert "cuSPARSELt ms" in shown and "6.000" in shown and "12.000" in shown


def test_a_model_in_which_nothing_gained_can_be_tried_at_other_tokens(monkeypatch):
    with_both(monkeypatch, dict(cuSPARSELt=60.0, CUTLASS=60.0))
    model = platon_prune.to_semi_structured(_mlp(), num_tokens=128)
    with_both(monkeypatch, dict(cuSPARSELt=6.0, CUTLASS=5.0))
    platon_prune.to_semi_structured(model, num_tokens=8192)
    assert [row.kernel for row in model.semi_structured_report] == ["CUTLASS"] * 2


def test_layers_are_timed_for_the_tokens_that_they_see(device_with_kernels):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.unused = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(8, 8)

        def forward(self, x):
            return self.head(self.body(x).mean(1))

    seen = []

    def timed(run):
        seen.append(tuple(run.inputs.shape))
        return 10.0 if run.kernel == "dense" else 1.0

    model = _two_of_four(Pooled())
    platon_prune.to_semi_structured(model, torch.randn(5, 3, 8), timed=timed)
    assert set(seen) == {(15, 8), (5, 16)}
    rows = {row.name: row for row in model.semi_structured_report}
    assert (rows["body"].num_tokens, rows["head"].num_tokens) == (15, 5)
    assert rows["unused"].chosen == "dense" and "do not reach" in rows["unused"].reason


def test_without_word_of_tokens_128_count_as_in_to_sparse_inference(device_with_kernels):
    model = platon_prune.to_semi_structured(_mlp())
    assert [row.num_tokens for row in model.semi_structured_report] == [128, 128]


def test_alike_layers_share_a_measurement_and_are_converted_by_its_winner_alone(monkeypatch):
    made = []
    kernels = {
        name: lambda weight, name=name: (made.append(name), weight.clone())[1]
        for name in ("cuSPARSELt", "CUTLASS")
    }
    with_kernels(monkeypatch, dict(cuSPARSELt=5.0, CUTLASS=4.0), **kernels)
    model = _two_of_four(nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)]))
    weights = [layer.weight.detach().clone() for layer in model]
    platon_prune.to_semi_structured(model)
    assert made == ["cuSPARSELt", "CUTLASS", "CUTLASS", "CUTLASS"]
    assert all(torch.equal(layer.weight, w) for layer, w in zip(model, weights, strict=True))


def test_a_kernel_that_refuses_so_many_tokens_is_left_out_and_the_others_are_not(monkeypatch):
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is nn.functional.linear:
                raise RuntimeError("no algorithm for 7 rows")
            return super().__torch_function__(function, types, args, kwargs or {})

    kernels = {
        "cuSPARSELt": lambda weight: weight.clone().as_subclass(Refusing),
        "CUTLASS": lambda weight: weight.clone().as_subclass(ByCutlass),
    }
    with_kernels(monkeypatch, **kernels)
    model = platon_prune.to_semi_structured(_mlp(), num_tokens=7)
    first, _ = model.semi_structured_report
    assert (first.kernel, list(first.kernel_ms)) == ("CUTLASS", ["CUTLASS"])
    with_kernels(monkeypatch, cuSPARSELt=kernels["cuSPARSELt"])
    with pytest.raises(RuntimeError, match="refused by torch: no algorithm for 7 rows"):
        platon_prune.to_semi_structured(_mlp(), num_tokens=7)


def test_each_device_has_a_clock_of_its_own(monkeypatch, device_with_kernels):
    asked = []

    def clock(device):
        asked.append(device)
        return lambda run: 10.0 if run.kernel == "dense" else 1.0

    monkeypatch.setattr(semi_structured_inference, "clock", clock)
    measure = semi_structured_times.Measure
    monkeypatch.setattr(
        semi_structured_inference, "Measure", lambda *args: made.append(args) or measure(*args)
    )
    made = []
    platon_prune.to_semi_structured(_mlp())
    ((clock_of, _),) = made
    clock_of(torch.device("cuda", 1))
    assert asked[-1] == "cuda:1" and set(asked[:-1]) == {"cpu"}


@pytest.mark.parametrize("compiled", [False, True])
def test_layers_are_timed_as_they_will_be_run(monkeypatch, device_with_kernels, compiled):
    made = []

    def compiling(function, **settings):
        made.append((function.__code__, settings))
        return function

    monkeypatch.setattr(torch, "compile", compiling)
    model, x = _mlp(), sample(3, 8)
    expected = model(x)
    platon_prune.to_semi_structured(model, compiled=compiled)
    # Dense and 2:4 of two shapes, each of code of its own: of one code torch compiles eight only.
    assert len({id(code) for code, _ in made}) == (4 if compiled else 0)
    assert ("timed as torch.compile" in str(model.semi_structured_report)) == compiled
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (dict(num_tokens=0), ValueError, "num_tokens must be at least 1"),
        (dict(num_tokens=8.0), TypeError, "num_tokens must be a whole number"),
        (dict(num_tokens=8, example_inputs=torch.ones(1, 8)), ValueError, "left out where"),
    ],
)
def test_tokens_that_can_not_be_used_are_refused(device_with_kernels, settings, error, said):
    with pytest.raises(error, match=said):
        platon_prune.to_semi_structured(_mlp(), **settings)
    assert device_with_kernels == []


def test_kernels_that_do_not_work_are_left_out_and_wrong_results_are_none(monkeypatch):
    def refuse(weight):
        raise RuntimeError("not built with cuSPARSELt")

    monkeypatch.setattr(kernels, "_reason_against", lambda device, dtype: None)
    monkeypatch.setattr(kernels, "KERNELS", {"cuSPARSELt": refuse, "CUTLASS": torch.clone})
    cpu, random = torch.device("cpu"), torch.get_rng_state()
    assert kernels.usable_kernels(cpu, torch.bfloat16) == ({"CUTLASS": torch.clone}, "")
    monkeypatch.setattr(kernels, "KERNELS", {"cuSPARSELt": refuse, "CUTLASS": torch.zeros_like})
    usable, missing = kernels.usable_kernels(cpu, torch.bfloat16)
    assert usable == {} and "not built with cuSPARSELt" in missing and "wrong" in missing
    assert torch.equal(torch.get_rng_state(), random)


def test_weights_in_float32_have_no_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    usable, missing = kernels.usable_kernels(torch.device("cuda"), torch.float32)
    assert usable == {} and "got float32 weights: call model.half() first" in missing


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
