"""`save` and `load` of any module: every bit, every tie, and the sizes that arithmetic promises."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
import threading
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from tiny import CASES, MASKINGS, masked, num_pruned, sample, sites, tied_linears, train
from torch import Tensor, nn
from torch.nn.utils import prune

import platon_prune

COMPRESSIONS = [None, "zstd"]
all_compressions = pytest.mark.parametrize("compression", COMPRESSIONS)

FLOATS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16)


class Holder(nn.Module):
    """A module whose state dict is the given tensors."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def bits(tensor: Tensor) -> list[int]:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).tolist() if flat.numel() else []


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert bits(found) == bits(expected)


def saved(tmp_path: Path, compression: str | None = None, **tensors: Tensor) -> Path:
    path = tmp_path / "tensors.safetensors"
    platon_prune.save(Holder(**tensors), path, compression=compression)
    return path


def sparse_normal(*shape: int, sparsity: float = 0.9) -> Tensor:
    """Normal weights of a usual size without the smallest ones."""
    weight = sample(*shape) * 0.02
    num_zeros = round(sparsity * weight.numel())
    weight.view(-1)[weight.abs().view(-1).argsort()[:num_zeros]] = 0
    return weight


@all_compressions
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0, 2), (1,), (7,), (8,), (9,), (5, 3, 7), (64, 65)]
)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 1.0])
def test_every_bit_of_a_float_comes_back(
    dtype: torch.dtype, shape: tuple[int, ...], sparsity: float, compression: str, tmp_path: Path
) -> None:
    tensor = sparse_normal(*shape, sparsity=sparsity).to(dtype)
    assert_same(platon_prune.load(saved(tmp_path, compression, a=tensor))["a"], tensor)


@all_compressions
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(), (0, 4), (513,), (40, 50)])
def test_every_bit_of_another_dtype_comes_back(
    dtype: torch.dtype, shape: tuple[int, ...], compression: str, tmp_path: Path
) -> None:
    tensor = (sparse_normal(*shape) * 2000).to(dtype)
    assert_same(platon_prune.load(saved(tmp_path, compression, a=tensor))["a"], tensor)


@all_compressions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_negative_zeros_nans_and_infinities_keep_their_bits(
    dtype: torch.dtype, compression: str, tmp_path: Path
) -> None:
    tensor = torch.zeros(4000, dtype=dtype)
    tensor[3::100] = -0.0
    tensor[4::100] = torch.nan
    tensor[5::100] = -torch.inf
    tensor[6::100] = torch.finfo(dtype).smallest_normal / 2  # a subnormal number
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    tensor.view(integer)[7::100] = -3  # a NaN with a payload and a sign
    assert_same(platon_prune.load(saved(tmp_path, compression, a=tensor))["a"], tensor)


@all_compressions
def test_a_tensor_of_many_pieces_comes_back(compression: str, tmp_path: Path) -> None:
    numbers = torch.arange(3 * (1 << 20) + 5, dtype=torch.int32)
    tensor = torch.where(numbers % 7 == 0, numbers, 0)
    assert_same(platon_prune.load(saved(tmp_path, compression, a=tensor))["a"], tensor)


def test_strides_do_not_matter_and_values_are_in_row_major_order(tmp_path: Path) -> None:
    tensor = sparse_normal(20, 30).t()
    path = saved(tmp_path, a=tensor, b=sample(40)[::3], c=torch.tensor(1.5).expand(4, 5))
    state = platon_prune.load(path)
    assert_same(state["a"], tensor)
    assert_same(state["b"], sample(40)[::3])
    assert state["c"].tolist() == [[1.5] * 5] * 4


def test_any_safetensors_reader_finds_the_bits_the_values_and_dense_tensors(tmp_path: Path) -> None:
    weight = torch.tensor([[0, 1.5, 0], [-2, 0, 0], [0, 0, 3]])
    path = saved(tmp_path, weight=weight, bias=torch.tensor([1.0, 2.0]), step=torch.tensor(7))
    found = safetensors.torch.load_file(path)
    # Entries 1 and 3 are bits 1 and 3 of the first byte, entry 8 is bit 0 of the second.
    assert {key: value.tolist() for key, value in found.items()} == {
        "weight#bitmask": [0b1010, 0b1],
        "weight#values": [1.5, -2.0, 3.0],
        "bias": [1.0, 2.0],
        "step": 7,
    }


def test_metadata_say_what_the_file_is(tmp_path: Path) -> None:
    weight = torch.tensor([[0, 1.5, 0], [-2, 0, 0], [0, 0, 3]])
    with safetensors.safe_open(
        saved(tmp_path, weight=weight, bias=torch.ones(2).half()), "pt"
    ) as f:
        metadata = f.metadata()
    assert metadata["format"] == "platon_prune.sparse" and metadata["format_version"] == "1"
    assert metadata["platon_prune_version"] == platon_prune.__version__
    records = json.loads(metadata["index"])["records"]
    told = {name: (r["dtype"], r["shape"], r["form"]) for name, r in records.items()}
    assert told == {
        "weight": ("float32", [3, 3], "bitmask"),
        "bias": ("float16", [2], "dense"),
    }


@pytest.mark.parametrize(
    ("num_values", "form"),
    [(31, "dense"), (30, "bitmask"), (0, "bitmask"), (32, "dense")],
)
def test_the_smaller_form_is_chosen(num_values: int, form: str, tmp_path: Path) -> None:
    # Dense 32 * 4 = 128 bytes; else 4 bytes of bits and 4 a value: 128 for 31, equal, 124 for 30.
    tensor = torch.zeros(32)
    tensor[:num_values] = 1
    with safetensors.safe_open(saved(tmp_path, a=tensor), "pt") as file:
        assert json.loads(file.metadata()["index"])["records"]["a"]["form"] == form


@pytest.mark.parametrize(("compression", "limit"), [(None, 0.135), ("zstd", 0.105)])
@pytest.mark.parametrize("by", ["magnitude", "chance"])
def test_nine_tenths_of_zeros_leave_an_eighth_of_the_float32_file_and_a_tenth_with_zstd(
    compression: str | None, limit: float, by: str, tmp_path: Path
) -> None:
    weight = sparse_normal(1024, 512)
    if by == "chance":
        torch.manual_seed(0)
        weight = sample(1024, 512) * 0.02 * (torch.rand(1024, 512) > 0.9)
    path = saved(tmp_path, compression, weight=weight + 0.0)
    assert os.path.getsize(path) <= limit * 4 * 1024 * 512


def test_a_dense_tensor_costs_nothing_but_the_header(tmp_path: Path) -> None:
    size = os.path.getsize(saved(tmp_path, a=sample(10_000)))
    assert 40_000 < size < 42_000


@all_compressions
def test_tied_tensors_are_stored_once_and_share_memory_again(
    compression: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300), nn.Linear(300, 300))
    model[2].weight = model[0].weight
    path = tmp_path / "model"
    platon_prune.save(model, path, compression=compression)
    assert os.path.getsize(path) < 4 * 300 * 300 * 2.1
    state = dict(platon_prune.load(path))
    assert list(state) == list(model.state_dict())
    assert state["0.weight"].data_ptr() == state["2.weight"].data_ptr()
    assert state["0.weight"].data_ptr() != state["1.weight"].data_ptr()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_views_of_one_memory_that_differ_are_not_tied(tmp_path: Path) -> None:
    whole = sample(6, 6)
    state = platon_prune.load(saved(tmp_path, a=whole, b=whole.t(), c=whole[:3], d=whole[3:]))
    for name, expected in {"a": whole, "b": whole.t(), "c": whole[:3], "d": whole[3:]}.items():
        assert_same(state[name], expected)


def test_a_module_under_two_names_is_saved_under_both(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    train(model, lambda m: m(sample(3, 4)))
    expected = masked(layer, "weight")
    platon_prune.save(model, tmp_path / "model")
    state = platon_prune.load(tmp_path / "model")
    assert set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(state["0.weight"], expected) and torch.equal(state["2.weight"], expected)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, first=torch.full((1000,), 1.25), second=torch.full((1000,), 2.25))
    content = path.read_bytes()
    position = content.index(torch.full((4,), 2.25).numpy().tobytes())
    path.write_bytes(content[:position] + b"\1" + content[position + 1 :])
    state = platon_prune.load(path)
    assert list(state) == ["first", "second"] and len(state) == 2 and "second" in state
    assert torch.equal(state["first"], torch.full((1000,), 1.25))
    with pytest.raises(ValueError, match="second.*checksum"):
        state["second"]


def test_loading_is_not_disturbed_by_a_file_that_takes_its_place(tmp_path: Path) -> None:
    state = platon_prune.load(saved(tmp_path, a=torch.full((9,), 1.0)))
    saved(tmp_path, a=torch.full((9,), 2.0))
    assert state["a"].tolist() == [1.0] * 9
    assert platon_prune.load(tmp_path / "tensors.safetensors")["a"].tolist() == [2.0] * 9


def test_threads_may_read_at_the_same_time(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((5000,), float(i)) for i in range(20)}
    state = platon_prune.load(saved(tmp_path, **tensors))
    wrong = []

    def read() -> None:
        wrong.extend(name for name in state if not torch.equal(state[name], tensors[name]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_loaded_can_be_written_to_and_is_not_shared(tmp_path: Path) -> None:
    state = platon_prune.load(saved(tmp_path, a=torch.ones(5), b=torch.zeros(100)))
    for name in state:
        state[name].add_(1)
    assert state["a"].tolist() == [1.0] * 5 and not state["b"].any()
    with pytest.raises(KeyError):
        state["c"]
    assert "c" not in state and state.get("c") is None and "2 tensors" in repr(state)


@all_compressions
@pytest.mark.parametrize("assign", [True, False])
def test_the_mapping_goes_into_load_state_dict(
    assign: bool, compression: str, tmp_path: Path
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Linear(5, 5))

    model, other = build(), build()
    model(sample(2, 3, 6))  # the batch norm's counter is not 0 then
    platon_prune.save(model, tmp_path / "model", compression=compression)
    missing, unexpected = other.load_state_dict(
        platon_prune.load(tmp_path / "model"), assign=assign
    )
    assert not missing and not unexpected
    for name, value in model.state_dict().items():
        assert_same(other.state_dict()[name], value)


def test_modules_are_told_the_version_that_was_saved(tmp_path: Path) -> None:
    told = []

    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(
            self, state_dict: dict, prefix: str, local_metadata: dict, *args: object
        ) -> None:
            told.append(local_metadata.get("version"))
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    model = nn.Sequential(Versioned(2, 2))
    platon_prune.save(model, tmp_path / "model")
    model.load_state_dict(platon_prune.load(tmp_path / "model"))
    assert told == [3]


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("own_keys", [True, False])
@all_compressions
def test_a_model_with_masks_is_saved_as_finalizing_would_leave_it(
    masking: str, own_keys: bool, compression: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 10))
    keys = list(model.state_dict())
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.6,
        total_steps=12,
        window=2,
        masking=masking,
        own_keys=own_keys,
        warmup_steps=0,
        cooldown_steps=0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(7):  # one step after a choice: "window" has refilled what it prunes
        (model(sample(3, 20)) - 0.5).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    expected = {f"{i}.weight": masked(model[i], "weight") for i in (0, 2)}
    before = copy.deepcopy(model.state_dict())
    platon_prune.save(model, tmp_path / "model", compression=compression)

    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    state = dict(platon_prune.load(tmp_path / "model"))
    assert list(state) == keys
    for name, value in expected.items():
        assert_same(state[name], value)
    platon_prune.remove(model)
    for name, value in model.state_dict().items():
        assert_same(state[name], value)
    platon_prune.save(model, tmp_path / "final", compression=compression)
    assert (tmp_path / "final").read_bytes() == (tmp_path / "model").read_bytes()


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_module_is_saved_as_finalizing_would_leave_it(
    name: str, masking: str, tmp_path: Path
) -> None:
    model = CASES[name].trained(masking)
    platon_prune.save(model, tmp_path / "model")
    state = dict(platon_prune.load(tmp_path / "model"))
    platon_prune.remove(model)
    assert list(state) == list(model.state_dict())
    for key, value in model.state_dict().items():
        assert_same(state[key], value)


def test_the_default_device_does_not_matter(tmp_path: Path) -> None:
    weight = sparse_normal(50)
    with torch.device("meta"):
        path = saved(tmp_path, "zstd", a=weight, b=weight.half(), c=torch.tensor(3, device="cpu"))
        state = dict(platon_prune.load(path))
    assert_same(state["a"], weight)
    assert_same(state["b"], weight.half())


@pytest.mark.parametrize("masking", MASKINGS)
def test_a_saved_model_loads_into_one_that_is_being_pruned(masking: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, other = (nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10)) for _ in range(2))
    train(model, lambda m: m(sample(3, 20)), masking)
    platon_prune.save(model, tmp_path / "model")
    train(other, lambda m: m(sample(3, 20)), masking)
    other.load_state_dict(platon_prune.load(tmp_path / "model"))
    assert num_pruned(other) == num_pruned(model) > 0
    for (module, name), (twin, _) in zip(sites(model), sites(other), strict=True):
        assert torch.equal(masked(twin, name), masked(module, name))


@pytest.mark.parametrize("masking", MASKINGS)
def test_tied_pruned_weights_stay_tied(masking: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = tied_linears()
    train(model, lambda m: m(sample(3, 4)), masking)
    expected = masked(model[0], "weight")
    platon_prune.save(model, tmp_path / "model")
    state = dict(platon_prune.load(tmp_path / "model"))
    assert_same(state["0.weight"], expected)
    assert state["0.weight"].data_ptr() == state["2.weight"].data_ptr()


def test_a_parameter_whose_other_owner_is_pruned_is_saved_with_its_zeros(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    model[0].weight = model[1].weight
    train(model, lambda m: m(torch.arange(4)), "window", include=("1.weight",))
    expected = masked(model[1], "weight")
    platon_prune.save(model, tmp_path / "model")
    state = dict(platon_prune.load(tmp_path / "model"))
    assert_same(state["0.weight"], expected)
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
    platon_prune.remove(model)
    assert_same(model[0].weight.detach(), expected)


def test_masks_of_torchs_methods_are_applied_and_their_zeros_are_zeros(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    with torch.no_grad():
        model[0].weight.fill_(-1.0)  # times a mask of 0 that is -0.0, which would not pay
    prune.random_unstructured(model[0], "weight", amount=0.9)
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    prune.l1_unstructured(model[1], "weight", amount=0.5)  # a container of two
    prune.l1_unstructured(model[1], "bias", amount=3)
    effective = {name: getattr(model[int(name[0])], name[2:]) for name in ("0.weight", "1.bias")}
    path = tmp_path / "model"
    platon_prune.save(model, path)
    state = platon_prune.load(path)
    assert set(state) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name, value in effective.items():
        assert torch.equal(state[name], value.detach())
    assert torch.equal(state["1.weight"], model[1].weight.detach())
    assert not state["0.weight"].view(torch.int32)[state["0.weight"] == 0].any()
    assert prune.is_pruned(model)
    nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)).load_state_dict(state)


def test_a_mask_of_torchs_that_is_a_factor_is_one_in_the_file(tmp_path: Path) -> None:
    layer = nn.Linear(2, 1)
    prune.custom_from_mask(layer, "weight", torch.tensor([[0.5, 0.0]]))
    with torch.no_grad():
        layer.weight_orig.copy_(torch.tensor([[3.0, 4.0]]))
    platon_prune.save(layer, tmp_path / "layer")
    assert platon_prune.load(tmp_path / "layer")["weight"].tolist() == [[1.5, 0.0]]


def test_a_compiled_model_is_saved_under_its_own_names(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    platon_prune.save(torch.compile(model), tmp_path / "model")
    assert list(platon_prune.load(tmp_path / "model")) == ["0.weight", "0.bias"]


def test_names_of_any_letters_and_models_without_tensors(tmp_path: Path) -> None:
    names = {'quote"\\': torch.ones(2), "größe\n🙂": torch.zeros(50), "a#bitmask": torch.ones(1)}
    state = platon_prune.load(saved(tmp_path, **names, **{"a" * 500: torch.zeros(64)}))
    for name, value in names.items():
        assert_same(state[name], value)
    platon_prune.save(nn.ReLU(), tmp_path / "nothing")
    assert dict(platon_prune.load(tmp_path / "nothing")) == {}


def test_names_that_look_like_parts_of_another_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a#bitmask"):
        saved(tmp_path, **{"a#bitmask": torch.ones(8), "a": torch.zeros(64)})
    assert not list(tmp_path.iterdir())


def test_what_zstd_can_not_shrink_and_what_it_shrinks_too_much_stays_raw(tmp_path: Path) -> None:
    # A small file must not promise a large one: constants stay as they are.
    noise = torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0)).byte()
    path = saved(tmp_path, "zstd", noise=noise, constant=torch.ones(100_000))
    found = safetensors.torch.load_file(path)
    assert_same(found["noise"], noise)
    assert_same(found["constant"], torch.ones(100_000))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "zstd", a=sparse_normal(100))
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    monkeypatch.setattr(torch, "load", None)
    assert_same(platon_prune.load(path)["a"], sparse_normal(100))


@pytest.mark.parametrize("when", ["saving", "loading"])
def test_zstd_without_its_package_names_the_extra(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, "zstd", a=sparse_normal(1000))
    content = path.read_bytes()
    monkeypatch.setitem(sys.modules, "zstandard", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install 'platon-prune\[files\]'"):
        if when == "saving":
            saved(tmp_path, "zstd", a=torch.ones(3))
        else:
            platon_prune.load(path)
    assert path.read_bytes() == content and len(list(tmp_path.iterdir())) == 1
