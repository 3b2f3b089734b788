"""A step that is captured once and replayed gives the masks of a run that takes every step."""

import copy
import re
import warnings
from dataclasses import dataclass

import pytest
import ranks
import torch
from recorder import Graph
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import fully_shard

import platon_prune
from platon_prune.scheduling import store
from platon_prune.scheduling.outcomes import Outcomes
from platon_prune.scheduling.steps.told import Told
from platon_prune.tensors import backends
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.plain_backend import PLAIN

TOTAL, WINDOW = 30, 4
SETTINGS = dict(amount=0.6, total_steps=TOTAL, warmup_steps=5, cooldown_steps=7, window=WINDOW)
NOT_FINITE = (3, 9, 10, 11, 12, 21)  # all steps of one window, among others


@dataclass(frozen=True)
class Cubed(platon_prune.Criterion):
    """A criterion of a user, which has no formula that a kernel knows."""

    name = "cubed"
    averages = ("mean",)

    def sample(self, weight, grad, out):
        return out.copy_(grad).pow_(3).abs_().add_(weight.abs())

    def update_averages_(self, mean, averages):
        averages[0].mul_(0.5).add_(mean)

    def score(self, weight, averages, out):
        return out.copy_(averages[0])


class Run:
    """A model in training: static inputs, an optimizer that leaves weights alone if it must."""

    def __init__(self, door=platon_prune.global_unstructured, seed=0, **settings):
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 8, bias=False)
        )
        self.inputs, self.graph, self.told, self.masks = torch.zeros(5, 8), None, [], []
        settings = SETTINGS | settings
        if door is platon_prune.adopt_zeros:
            self.model[0].weight.data[:, 1] = 0
            settings = {k: v for k, v in settings.items() if k == "capturable"}
        self.scheduler = door(self.model, **settings)
        self.velocity = [torch.zeros_like(each) for each in self.model.parameters()]

    def _train(self):
        self.model(self.inputs).square().mean().backward()
        with torch.no_grad():
            for parameter, velocity in zip(self.model.parameters(), self.velocity, strict=True):
                velocity.mul_(0.5).add_(parameter.grad.nan_to_num(0.0, 0.0, 0.0))
                parameter.sub_(velocity, alpha=0.1)
        self.scheduler.step()

    def capture(self):
        self.model.zero_grad()
        self.graph = Graph()
        with self.graph:
            self._train()

    def _fill(self, step):
        torch.manual_seed(step)
        self.inputs.copy_(torch.randn(5, 8))
        if step in NOT_FINITE:
            self.inputs[1, 2] = torch.inf

    def step(self):
        t = self.scheduler.last_step + 1
        self._fill(t)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if self.graph is None:
                self.model.zero_grad()
                self._train()
            else:
                self.scheduler.before_replay()
                self.graph.replay()
                self.scheduler.after_replay()
        self.told += [(t, str(each.message)) for each in caught]
        self.masks.append(self.scheduler.masks())
        return self

    def steps(self, number):
        for _ in range(number):
            self.step()
        return self


def assert_same(run, expected):
    """All that a user or a file can see."""
    assert run.told == expected.told
    assert len(run.masks) == len(expected.masks)
    for masks, others in zip(run.masks, expected.masks, strict=True):
        assert all(torch.equal(masks[name], other) for name, other in others.items())
    for parameter, other in zip(run.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(parameter.view(torch.int32), other.view(torch.int32))
    assert run.scheduler.skipped_steps == expected.scheduler.skipped_steps
    state, other = run.scheduler.state_dict(), expected.scheduler.state_dict()
    assert state.keys() == other.keys()
    for key in state.keys() - {"tensors", "capturable"}:
        assert state[key] == other[key], key
    for name, tensor in state["tensors"].items():
        for key, value in tensor.items():
            kept = torch.as_tensor(other["tensors"][name][key])
            assert torch.equal(torch.as_tensor(value), kept), (name, key)


@pytest.fixture(params=["plain", "foreach"])
def backend(request, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, request.param)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(masking="window"),
        dict(state_dtype=torch.bfloat16),
        dict(criterion="movement"),
        dict(criterion="magnitude"),
        dict(criterion="scaled_magnitude"),
        dict(criterion=Cubed()),
        dict(offload_averages=True, max_amount=0.7),
        dict(door=platon_prune.semi_structured, amount=1.0),
        dict(door=platon_prune.global_structured, amount=0.3, example_inputs=torch.zeros(1, 8)),
        dict(door=platon_prune.adopt_zeros),
    ],
    # No addresses of functions: workers must agree on the names of tests.
    ids=lambda settings: (
        ",".join(getattr(value, "__name__", name) for name, value in settings.items()) or "defaults"
    ),
)
def test_replays_are_the_run_without_a_graph(settings, backend):
    expected = Run(**settings).steps(TOTAL + 3)
    run = Run(**settings, capturable=True).steps(2)
    run.capture()
    assert_same(run.steps(TOTAL + 1), expected)


@pytest.mark.parametrize("warm_up", [1, 3, 4, 7, 8, 23, TOTAL - 1, TOTAL, TOTAL + 2])
def test_a_step_may_be_captured_wherever_the_run_is(warm_up):
    expected = Run(masking="window").steps(TOTAL + 4)
    run = Run(masking="window", capturable=True).steps(warm_up)
    run.capture()
    assert run.scheduler.last_step == warm_up  # recorded, not taken
    assert_same(run.steps(TOTAL + 4 - warm_up), expected)


def test_steps_without_the_graph_may_come_between_replays():
    expected = Run().steps(TOTAL)
    run = Run(capturable=True).steps(2)
    run.capture()
    run.steps(5)
    graph, run.graph = run.graph, None
    zero_grad = run.model.zero_grad
    run.model.zero_grad = lambda: zero_grad(set_to_none=False)
    run.steps(3)
    run.graph = graph
    assert_same(run.steps(TOTAL - 10), expected)


def test_a_state_saved_between_replays_goes_on_with_a_graph_and_without():
    expected = Run().steps(TOTAL)
    run = Run(capturable=True).steps(2)
    run.capture()
    run.steps(12)
    saved = copy.deepcopy((run.model.state_dict(), run.scheduler.state_dict()))
    assert saved[1]["capturable"] is True
    for capturable in (True, False):
        other = Run(seed=1, capturable=capturable)
        other.model.load_state_dict(saved[0])
        other.scheduler.load_state_dict(saved[1])
        other.velocity = [each.clone() for each in run.velocity]
        other.told, other.masks = run.told[:], run.masks[:]
        if capturable:
            other.step().capture()
        assert_same(other.steps(TOTAL - other.scheduler.last_step), expected)


def test_a_state_loaded_into_a_captured_run_is_what_the_graph_goes_on_from():
    expected = Run().steps(TOTAL)
    run = Run(capturable=True).steps(2)
    run.capture()
    run.steps(6)
    saved = copy.deepcopy((run.model.state_dict(), run.scheduler.state_dict(), run.velocity))
    masks, told = run.masks[:], run.told[:]
    run.steps(7)
    run.model.load_state_dict(saved[0])
    run.scheduler.load_state_dict(saved[1])
    for velocity, before in zip(run.velocity, saved[2], strict=True):
        velocity.copy_(before)
    run.masks, run.told = masks, told
    assert_same(run.steps(TOTAL - 8), expected)


def test_warm_up_steps_can_be_taken_back():
    expected = Run().steps(TOTAL)
    run = Run(capturable=True)
    before = copy.deepcopy((run.model.state_dict(), run.scheduler.state_dict()))
    run.steps(3).capture()
    run.model.load_state_dict(before[0])
    run.scheduler.load_state_dict(before[1])
    for velocity in run.velocity:
        velocity.zero_()
    run.masks, run.told = [], []
    assert_same(run.steps(TOTAL), expected)


def test_an_optimizer_that_is_followed_may_be_captured_and_say_on_the_device_that_it_skipped():
    runs = []
    for captures in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        optimizer.found_inf = torch.zeros(())  # as a GradScaler leaves it
        scheduler = platon_prune.global_unstructured(model, **SETTINGS, capturable=captures)
        scheduler.step_with(optimizer)
        inputs, graph = torch.zeros(5, 8), None
        for step in range(TOTAL):
            torch.manual_seed(step)
            inputs.normal_()
            optimizer.found_inf.fill_(step in (6, 13))
            if captures and step == 3:
                optimizer.zero_grad()
                graph = Graph()
                with graph:
                    model(inputs).square().mean().backward()
                    optimizer.step()
            if graph is None:
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
            else:
                scheduler.before_replay()
                graph.replay()
                scheduler.after_replay()
        runs.append((scheduler.skipped_steps, scheduler.masks()))
    assert runs[0][0] == runs[1][0] == 2
    assert all(torch.equal(mask, runs[1][1][name]) for name, mask in runs[0][1].items())


def test_a_copy_of_a_captured_run_has_its_steps_and_none_of_its_graphs():
    run = Run(capturable=True).steps(2)
    run.capture()
    run.steps(8)
    model, scheduler = copy.deepcopy((run.model, run.scheduler))
    assert scheduler.skipped_steps == run.scheduler.skipped_steps == 3
    with pytest.raises(RuntimeError, match="must be captured before it is replayed"):
        scheduler.before_replay()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    scheduler.step()
    assert scheduler.last_step == 11 and run.step().scheduler.last_step == 11


def test_counts_follow_a_model_to_another_device_and_graphs_do_not():
    told, there = Told(), torch.device("meta")
    told.tell(torch.device("cpu"), 2, learns=True, masks=True)
    told.flag()
    capture = told.new_capture()
    told.captures.append((capture, frozenset({1})))
    for each, without in ((capture, frozenset({1})), (None, frozenset())):
        told.count_(without, each)
    told.tell(there, 2, learns=True, masks=True)
    assert not told.captures and not told.is_ready(torch.device("cpu")) and told.is_ready(there)
    assert {without: counts.device for without, counts in told._all_counts().items()} == {
        frozenset({1}): there,
        frozenset(): there,
    }


# --- what is refused ----------------------------------------------------------------------------


def _captured():
    run = Run(capturable=True).steps(2)
    run.capture()
    return run.steps(1)


def _state(run):
    return copy.deepcopy(run.scheduler.state_dict()["tensors"]["0.weight"]["window"])


def _refused(run, call, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call()
    assert run.scheduler.last_step == 3


def test_a_gradient_that_moved_since_the_capture_is_refused_by_name():
    run = _captured()
    before = _state(run)
    run.model[3].weight_orig.grad = run.model[3].weight_orig.grad.clone()
    moved = "gradient of 3.weight must stay where it was when the step was captured, got one at"
    _refused(run, run.scheduler.before_replay, moved)
    run.model.zero_grad()
    _refused(run, run.scheduler.before_replay, "gradient of 0.weight must stay where it was")
    assert torch.equal(_state(run), before)


def test_a_weight_that_moved_since_the_capture_is_refused():
    run = _captured()
    run.model[0].weight_orig.data = run.model[0].weight_orig.data.clone()
    _refused(run, run.scheduler.before_replay, "weights and masks must stay where they were")
    run.graph = None
    run.step().capture()
    run.steps(1)
    assert run.scheduler.last_step == 5


def test_replays_without_the_calls_around_them_are_found_at_the_next_count():
    run = _captured()
    run.graph.replay()
    message = "got 4 steps on the device where 3 were announced"
    with pytest.raises(RuntimeError, match=message):
        run.steps(2)


def test_the_calls_around_a_replay_come_in_their_order():
    run = _captured()
    _refused(run, run.scheduler.after_replay, "before_replay() must come before each replay")
    run.scheduler.before_replay()
    for call in (run.scheduler.before_replay, run.scheduler.step, run.scheduler.state_dict):
        _refused(run, call, "after_replay() must come before")
    run.graph.replay()
    run.scheduler.after_replay()
    assert run.scheduler.last_step == 4


def test_a_step_is_captured_only_after_one_that_was_taken():
    run = Run(capturable=True)
    with pytest.raises(RuntimeError, match="a step must have been taken"):
        run.capture()
    with pytest.raises(RuntimeError, match="must be captured before it is replayed"):
        run.scheduler.before_replay()
    with pytest.raises(RuntimeError, match="capturable=True"):
        Run().capture()
    with pytest.raises(RuntimeError, match="capturable=True"):
        Run().scheduler.before_replay()


def test_a_skip_that_python_knows_of_is_refused_in_a_capture_and_counted_otherwise():
    run = _captured()
    with Graph(), pytest.raises(RuntimeError, match="skipped must be known on the device alone"):
        run.scheduler.step(skipped=True)
    assert run.scheduler.skipped_steps == 1
    run.scheduler.step(skipped=True)
    assert run.scheduler.skipped_steps == 2 and run.scheduler.last_step == 4


def test_a_run_without_gradients_is_refused_as_without_a_graph():
    run = _captured()
    run.model.zero_grad()
    with pytest.raises(RuntimeError, match="have no gradient"):
        run.scheduler.step()
    with Graph(), pytest.raises(RuntimeError, match="have no gradient"):
        run.scheduler.step()


def test_a_criterion_that_reads_values_is_refused_at_set_up():
    class Reads(Cubed):
        def sample(self, weight, grad, out):
            return out.fill_(float(grad.sum()))

    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="without reading a value"):
        platon_prune.global_unstructured(model, **SETTINGS, criterion=Reads(), capturable=True)
    assert not platon_prune.masks.masked.forms_of(model[0])


def test_several_processes_are_refused_at_set_up_and_at_a_step(monkeypatch):
    run = Run(capturable=True).steps(2)
    monkeypatch.setattr(Processes, "size", 2)
    with pytest.raises(RuntimeError, match="capturable=True must be of one process .* 2 processes"):
        run.scheduler.step()
    monkeypatch.setattr(Processes, "all_or_none", lambda self, what, make, undo: make())
    with pytest.raises(ValueError, match="capturable=True must be of one process, got 2"):
        Run(capturable=True)


def test_sharded_tensors_are_refused_by_name_at_set_up_and_at_a_step(tmp_path):
    ranks.join(0, 1, tmp_path / "store")
    try:
        model = fully_shard(nn.Sequential(nn.Linear(4, 4)))
        with pytest.raises(ValueError, match="0.weight, which is sharded"):
            platon_prune.global_unstructured(model, **SETTINGS, capturable=True)
        model = nn.Sequential(nn.Linear(4, 4))
        scheduler = platon_prune.global_unstructured(model, **SETTINGS, capturable=True)
        fully_shard(model)(torch.ones(2, 4)).sum().backward()
        with pytest.raises(RuntimeError, match="got a model that is sharded over processes"):
            scheduler.step()
    finally:
        ranks.leave()


def test_pruning_that_has_ended_is_told_of_before_a_replay():
    run = _captured()
    platon_prune.remove(run.model)
    with pytest.raises(RuntimeError, match="finalized"):
        run.scheduler.before_replay()
    run.graph.replay()  # the memory that it writes is there all the same


def test_a_state_may_be_loaded_whatever_became_of_the_replays_since(backend):
    run = Run(capturable=True).steps(2)
    saved = copy.deepcopy((run.model.state_dict(), run.scheduler.state_dict(), run.velocity))
    masks, told = run.masks[:], run.told[:]
    run.capture()
    run.steps(3).graph.replay()  # without the calls around it
    run.scheduler.before_replay()  # and one that failed before it was counted
    run.model.load_state_dict(saved[0])
    run.scheduler.load_state_dict(saved[1])
    for velocity, before in zip(run.velocity, saved[2], strict=True):
        velocity.copy_(before)
    run.masks, run.told = masks, told
    assert_same(run.steps(TOTAL - 2), Run().steps(TOTAL))


def test_more_graphs_than_there_is_room_for_are_refused_by_their_number():
    run = Run(capturable=True).steps(2)
    for _ in range(4):
        run.capture()
    with pytest.raises(RuntimeError, match="at most 4 graphs can be captured without a step in"):
        run.capture()
    run.graph = None
    run.step().capture()
    assert run.steps(3).scheduler.last_step == 6


def test_after_the_last_choice_no_gradient_need_be_there_as_without_a_graph():
    run = Run(capturable=True).steps(TOTAL)
    run.model.zero_grad()
    with pytest.warns(platon_prune.PruningWarning, match="beyond total_steps"):
        run.scheduler.step()
    assert run.scheduler.last_step == TOTAL + 1
    assert_same(run.steps(2), _one_more_without_gradients())


def _one_more_without_gradients():
    run = Run().steps(TOTAL)
    run.model.zero_grad()
    with pytest.warns(platon_prune.PruningWarning, match="beyond total_steps"):
        run.scheduler.step()
    return run.steps(2)


@pytest.mark.parametrize("criterion", [Cubed(), "magnitude", "platon"], ids=str)
def test_what_a_graph_launches_belongs_to_it_whatever_a_criterion_adds(criterion, monkeypatch):
    """A backend keeps the tables of a captured launch only where it is told of the capture."""
    run = Run(criterion=criterion, capturable=True).steps(2)
    told = []

    class Backend:
        def accumulate_(self, tensors, gradients, *rest):
            told.append(gradients.capture)
            return PLAIN.accumulate_(tensors, gradients, *rest)

        flag_non_finite_ = PLAIN.flag_non_finite_

    monkeypatch.setattr(store, "backend_for", lambda device: Backend())
    run.capture()
    ((capture, _),) = run.scheduler._tensors._told.captures
    assert told == [capture]


def test_how_steps_went_is_known_of_a_device_that_the_model_has_left():
    cpu, meta = torch.device("cpu"), torch.device("meta")
    outcomes = Outcomes()
    for step, device in enumerate((cpu, cpu, meta)):
        flag = outcomes.flag(device)
        assert flag.device == device
        if step == 1:
            flag.fill_(1)
        if device == cpu:
            outcomes.add(frozenset([step]))
    assert outcomes.read() == [(False, {0}), (True, {1})] and outcomes.read() == []


def test_a_criterion_that_asks_how_many_are_positive_is_refused_and_one_with_tensors_is_not():
    class Picks(Cubed):
        def sample(self, weight, grad, out):
            return out.copy_(grad).mul_(grad[grad > 0].sum())

    class Holds(Cubed):
        factors = torch.tensor([2.0, 3.0])

        def sample(self, weight, grad, out):
            return out.copy_(grad).pow_(2).mul_(self.factors.sum())

    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="without reading a value"):
        platon_prune.global_unstructured(model, **SETTINGS, criterion=Picks(), capturable=True)
    platon_prune.global_unstructured(model, **SETTINGS, criterion=Holds(), capturable=True)


def test_a_graph_may_leave_pruning_out_which_then_follows_each_replay(monkeypatch):
    expected, run = Run().steps(TOTAL), Run().steps(2)
    with monkeypatch.context() as patch:
        patch.setattr(run.scheduler, "step", lambda: None)
        run.capture()
    for step in range(3, TOTAL + 1):
        run._fill(step)
        run.graph.replay()
        with warnings.catch_warnings(record=True) as caught:
            run.scheduler.step()
        run.told += [(step, str(each.message)) for each in caught]
        run.masks.append(run.scheduler.masks())
    assert_same(run, expected)


# --- on an accelerator --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "foreach", "triton"])
def test_nothing_is_read_in_steps_that_have_no_values(name, monkeypatch):
    if name == "triton" and not backends.has_triton():
        pytest.skip("Triton is missing: pip install triton")
    monkeypatch.setenv(backends.VARIABLE, name)

    class Linear(nn.Linear):
        def reset_parameters(self):
            pass  # random numbers need a device

    with FakeTensorMode():
        model = nn.Sequential(*[Linear(8, 8, device="cuda") for _ in range(3)])
        scheduler = platon_prune.global_unstructured(model, **SETTINGS, capturable=True)
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            scheduler.step(skipped=torch.empty((), dtype=torch.bool, device="cuda"))
        with Graph():
            scheduler.step()
        scheduler.before_replay()
        scheduler.after_replay()
    assert scheduler.last_step == 3
