"""A state that can't be used is refused by the name of the entry, before anything is changed."""

import copy

import pytest
import soak
import torch
from torch import nn

import platon_prune
from platon_prune.scheduling.states import COUNTERS


def _run(steps=0, masking="window", **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.5,
        total_steps=20,
        window=2,
        masking=masking,
        **dict(warmup_steps=0, cooldown_steps=0) | settings,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(4, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model, scheduler


@pytest.fixture(scope="module")
def state():
    return _run(9)[1].state_dict()


NUMBERS = [-1, 1 << 70, 2.5, float("nan"), True, "3", None, [3], torch.tensor(3)]
ENTRIES = {
    **{(name,): NUMBERS for name in ("last_step", "skipped_steps", "window_steps")},
    ("skipped_steps",): [*NUMBERS, 10],  # of nine steps
    ("has_scores",): [0, 1, None, "yes", torch.tensor(True)],
    ("threshold",): [float("nan"), "0.5", 1, torch.tensor(0.5), [0.5]],
    ("adopted",): [float("nan"), -0.5, 1.5, 1, "0.5", torch.tensor(0.5)],
    ("history",): [7, "x", [7], [[1]], [["a"] * 7], [[0, 0.5, float("nan"), 0, 0, 0, 0]]],
    ("settings",): [None, [], "x", 3, {3: 4}],
    ("settings", "window"): [3, None, torch.tensor([2, 2]), torch.zeros(3, 3), [2], {}],
    ("tensors",): [None, [], "x", 3],
    ("tensors", "0.weight"): [None, [], "x", torch.zeros(3)],
    ("tensors", "0.weight", "had_gradient"): [None, 1, "x", torch.tensor(True)],
    ("tensors", "2.weight", "mask"): [
        None, 3, "x", torch.ones(3, 8), torch.ones(3, 8, dtype=torch.uint8),
        torch.ones(8, 3, dtype=torch.bool), torch.ones(3, 8, dtype=torch.bool, device="meta"),
        torch.ones(3, 8, dtype=torch.bool).to_sparse(), torch.ones(0, dtype=torch.bool),
    ],
    ("version",): [None, 2, "3", True, torch.tensor(3), torch.zeros(3), torch.zeros(3, 8)],
}  # fmt: skip
for _name in ("window", "sensitivity", "uncertainty", "refilled"):
    ENTRIES["tensors", "2.weight", _name] = [
        None, 3.0, "x", torch.ones(8, 3), torch.ones(3, 8, dtype=torch.int64),
        torch.ones(3, 8, dtype=torch.complex64), torch.ones(3, 8, dtype=torch.bool),
        torch.ones(3, 8, device="meta"), torch.ones(3, 8).to_sparse(),
    ]  # fmt: skip
ONE_NAN = torch.ones(3, 8).index_fill(1, torch.tensor(7), float("nan"))
for _name in ("window", "sensitivity", "uncertainty"):
    ENTRIES["tensors", "2.weight", _name] += [torch.full((3, 8), float("nan")), ONE_NAN]
CASES = [(path, value) for path, values in ENTRIES.items() for value in values]


def _changed(state, path, change):
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return state


def _named(path):
    """What the error must name; of a mask the tensor, as it is how models are told apart."""
    return path[-1] if path[-1] != "mask" else "2.weight"


def _assert_refused(state, name):
    model, scheduler = _run(4)
    before = copy.deepcopy([model.state_dict(), scheduler.state_dict()])
    with pytest.raises(ValueError, match=name) as caught:
        scheduler.load_state_dict(state)
    assert "\n" not in str(caught.value)
    after = [model.state_dict(), scheduler.state_dict()]
    soak.require_equal(after, before, "state")


@pytest.mark.parametrize(
    ("path", "value"), CASES, ids=lambda each: " ".join(str(each).split())[:40]
)
def test_an_entry_that_is_no_such_thing_is_named_and_nothing_is_changed(state, path, value):
    _assert_refused(
        _changed(state, path, lambda inner, key: inner.update({key: value})),
        _named(path),
    )


@pytest.mark.parametrize("name", ["a\nb", "a" * 10_000])
@pytest.mark.parametrize("where", ["settings", "tensors"])
def test_an_entry_of_any_name_is_refused_in_a_short_line(state, where, name):
    changed = _changed(state, (where, name), lambda inner, key: inner.update({key: {}}))
    with pytest.raises(ValueError, match="must be of the same|in the state must be") as caught:
        _run(4)[1].load_state_dict(changed)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


OF_THE_RUN = ("version", "settings", "tensors", *COUNTERS)
OF_A_TENSOR = ("mask", "window", "sensitivity", "uncertainty", "refilled", "had_gradient")
PATHS = [(name,) for name in OF_THE_RUN] + [("tensors", "2.weight"), ("settings", "window")]
PATHS += [("tensors", "2.weight", name) for name in OF_A_TENSOR]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_an_entry_that_is_missing_is_named_and_nothing_is_changed(state, path):
    _assert_refused(_changed(state, path, lambda inner, key: inner.pop(key)), _named(path))


@pytest.mark.parametrize("state", [None, 3, "x", [], {}, torch.zeros(3), {3: 4}], ids=repr)
def test_what_is_no_state_at_all_is_refused(state):
    _assert_refused(state, "state must be a PlatonScheduler's")


def test_a_state_of_another_floating_dtype_is_taken(state):
    _, scheduler = _run(4, state_dtype=torch.bfloat16)
    scheduler.load_state_dict(state)
    assert scheduler.last_step == 9


def test_the_weights_of_a_diverged_model_are_its_own_matter(state):
    _, scheduler = _run(4)
    nan = torch.full((3, 8), float("nan"))
    scheduler.load_state_dict(
        _changed(state, ("tensors", "2.weight", "refilled"), lambda i, k: i.update({k: nan}))
    )
    assert scheduler.last_step == 9
