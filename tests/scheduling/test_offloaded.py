"""Averages in host memory come over the bus once a window, beside the step, and stay exact."""

import contextlib
import copy
import pickle

import pytest
import rank_jobs
import torch
from rank_jobs import STEPS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from platon_prune.choice.scored import Line
from platon_prune.criteria import Platon
from platon_prune.scheduling import averages as averages_module
from platon_prune.scheduling import bus
from platon_prune.scheduling.averages import Averages, Storage
from platon_prune.tensors.blocks import Scratch

DTYPES = [torch.float32, torch.bfloat16]


class LateQueues:
    """Two side streams that do nothing until somebody waits for them: as late as is allowed.

    What the main stream does is done at once. So whoever reads what was not waited for reads what
    was there before, and whoever sends what may still be computed is found.
    """

    def __init__(self):
        self.queued = {"down": [], "up": []}
        self.done = {"down": 0, "up": 0}
        self.main_marks = self.seen_by_up = 0
        self.host_waits = 0

    def copy(self, queue, target, source):
        if queue == "main":
            target.copy_(source)
            return
        if queue == "up":
            assert self.seen_by_up == self.main_marks, "sent before it was computed"
        self.queued[queue].append(lambda: target.copy_(source))

    def mark(self, queue):
        if queue == "main":
            self.main_marks += 1
            return (queue, self.main_marks)
        return (queue, self.done[queue] + len(self.queued[queue]))

    def wait(self, queue, mark):
        other, number = mark
        if other == "main":
            if queue == "up":
                self.seen_by_up = number
            return
        if queue == "main":
            self._run(other, number)
        elif queue != other:
            self._then(queue, lambda: self._run(other, number))

    def _then(self, queue, action):
        self.queued[queue].append(action)

    def _run(self, queue, number):
        while self.done[queue] < number:
            self.done[queue] += 1
            self.queued[queue].pop(0)()

    def lend(self, buffer):
        pass  # nothing is freed on a device

    def finish(self):
        self.host_waits += 1
        for queue in ("down", "up"):
            self._run(queue, self.done[queue] + len(self.queued[queue]))

    def __reduce__(self):
        return LateQueues, ()


@pytest.fixture
def late(monkeypatch):
    """Offloaded averages of a model on the CPU go through such queues, in small blocks."""
    made = []

    def queues_for(device):
        made.append(LateQueues())
        return made[-1]

    monkeypatch.setattr(averages_module, "queues_for", queues_for)
    monkeypatch.setattr(bus, "_SMALLEST_BLOCK", 16)
    return made


def _line_of(numel, storage, device="cpu"):
    device = torch.device(device)
    return Averages(Platon(), Line([numel], device), storage, Scratch())


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_scores_and_states_are_those_of_averages_on_the_device(late, kind, masking, dtype):
    settings = dict(masking=masking, state_dtype=dtype)
    expected = rank_jobs.results(rank_jobs.alone, kind, (8, STEPS), settings)
    assert not late
    offloaded = settings | dict(offload_averages=True)
    found = rank_jobs.results(rank_jobs.alone, kind, (8, STEPS), offloaded)
    assert late and late[0].main_marks > 0
    for one, other in zip(found, expected, strict=True):
        assert not rank_jobs.differences(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 16, 17, 100, 1000])
def test_averages_of_any_length_are_updated_as_on_the_device(late, numel, dtype):
    there, here = (_line_of(numel, Storage(dtype, offload)) for offload in (True, False))
    assert there._bus is not None and here._bus is None
    generator = torch.Generator().manual_seed(numel)
    for _ in range(3):
        sample = torch.rand(numel, generator=generator)
        for each in (there, here):
            each.window.add_(sample)
            each.end_window_(3)
        for ours, theirs in zip(there.at(slice(0, numel)), here.at(slice(0, numel)), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(there.window, torch.zeros_like(there.window))
    there.finish()
    for ours, theirs in zip(there.averages, here.averages, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_takes_each_average_once_there_and_once_back(late, dtype):
    numel, size = 1000, dtype.itemsize
    averages = _line_of(numel, Storage(dtype, offload=True))
    before = copy.copy(bus.MOVED)
    averages.end_window_(3)
    moved = (bus.MOVED.to_device - before.to_device, bus.MOVED.to_host - before.to_host)
    assert moved == (2 * size * numel, 2 * size * numel)
    averages.at(slice(0, 100))  # a choice reads them
    assert bus.MOVED.to_device - before.to_device == 2 * size * (numel + 100)


def test_the_host_waits_only_where_it_reads_averages_itself(late):
    averages = _line_of(1000, Storage(offload=True))
    for _ in range(3):
        averages.window.add_(1)
        averages.end_window_(3)
        averages.at(slice(0, 1000))
    assert late[0].host_waits == 0
    averages.at(torch.tensor([3, 500]))
    assert late[0].host_waits == 1


def test_a_state_is_read_and_written_once_the_device_has_done_with_it(late):
    expected = rank_jobs.Run().to(9).scheduler.state_dict()["tensors"]
    run = rank_jobs.Run(offload_averages=True).to(9)
    state = run.scheduler.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state["tensors"][name]["uncertainty"], tensor["uncertainty"])
    again = rank_jobs.Run(offload_averages=True).to(7)
    again.scheduler.load_state_dict(state)
    found = again.scheduler.state_dict()["tensors"]
    for name, tensor in expected.items():
        assert torch.equal(found[name]["sensitivity"], tensor["sensitivity"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_averages_goes_on_by_itself(late, copied):
    first = _line_of(100, Storage(offload=True))
    first.window.add_(2)
    first.end_window_(2)
    second = copied(first)
    for each in (first, second):
        each.window.add_(1)
        each.end_window_(2)
        each.finish()
    for ours, theirs in zip(first.averages, second.averages, strict=True):
        assert torch.equal(ours, theirs)


def test_the_order_of_two_windows_is_the_one_that_keeps_blocks_apart(monkeypatch):
    class Log(bus.OneQueue):
        def copy(self, queue, target, source):
            log.append(f"copy {queue}")
            target.copy_(source)

        def mark(self, queue):
            marks.append(f"{queue} {len(marks)}")
            return marks[-1]

        def wait(self, queue, mark):
            log.append(f"{queue} waits for {mark}")

    log, marks = [], []
    monkeypatch.setattr(averages_module, "queues_for", lambda device: Log())
    monkeypatch.setattr(bus, "_SMALLEST_BLOCK", 16)
    averages = _line_of(32, Storage(offload=True))
    fetch, send = ["copy down"] * 2, ["copy up"] * 2
    averages.end_window_(1)
    assert log == [
        "down waits for main 0", *fetch, *fetch,  # the memory of both blocks is new
        "main waits for down 1", "up waits for main 3", *send,
        "main waits for down 2", "up waits for main 5", *send,
    ]  # fmt: skip
    log.clear()
    averages.end_window_(1)
    assert log[:6] == ["down waits for up 4", *fetch, "down waits for up 6", *fetch]


def test_queues_of_a_gpu_are_two_streams_beside_the_one_that_a_step_runs_on(monkeypatch):
    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            return f"event of {self.name}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for the {event}")

    class Target:
        def copy_(self, source, non_blocking):
            log.append(f"copy on {entered[-1].name}, non_blocking={non_blocking}")

        def record_stream(self, stream):
            log.append(f"used by {stream.name}")

    @contextlib.contextmanager
    def enter(stream):
        entered.append(stream)
        yield
        entered.pop()

    log, entered, made = [], [], []
    numbered = lambda device: made.append(Stream(f"side {len(made)}")) or made[-1]  # noqa: E731
    monkeypatch.setattr(torch.cuda, "Stream", numbered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", enter)
    queues = bus.CudaQueues(torch.device("cuda"))
    for name in ("down", "up", "main"):
        queues.copy(name, Target(), None)
    queues.wait("up", queues.mark("main"))
    queues.wait("main", queues.mark("down"))
    queues.lend(Target())  # or torch would give the memory out while a copy runs
    assert log == [
        "copy on side 0, non_blocking=True", "copy on side 1, non_blocking=True",
        "copy on main, non_blocking=True", "side 1 waits for the event of main",
        "main waits for the event of side 0", "used by side 0", "used by side 1",
    ]  # fmt: skip


# --- fake tensors on a GPU ----------------------------------------------------------------------


class CountedQueues(bus.OneQueue):
    """Counts bytes by where they go; fake tensors can't be copied from a device to another."""

    def __init__(self):
        self.bytes = {"cuda": 0, "cpu": 0}

    def copy(self, queue, target, source):
        assert target.device != source.device and target.dtype == source.dtype
        assert target.shape == source.shape
        self.bytes[target.device.type] += source.numel() * source.dtype.itemsize


class Values(TorchDispatchMode):
    """Refuses what reads a value, and any operation over two devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in function.name()
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        assert len({each.device for each in tensors}) <= 1
        return function(*args, **(kwargs or {}))


def test_a_window_on_a_gpu_moves_16_bytes_a_weight_and_reads_no_value(monkeypatch):
    queues = CountedQueues()
    monkeypatch.setattr(averages_module, "queues_for", lambda device: queues)
    numel = 3 << 18
    with FakeTensorMode():
        averages = _line_of(numel, Storage(offload=True), "cuda")
        assert {each.device.type for each in averages.averages} == {"cpu"}
        with Values():
            averages.end_window_(10)
    assert queues.bytes == {"cuda": 8 * numel, "cpu": 8 * numel}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_offloaded_averages_are_the_same_to_the_bit(dtype):
    numel = 10_000_001
    there, here = (_line_of(numel, Storage(dtype, offload), "cuda") for offload in (True, False))
    for _ in range(4):
        sample = torch.rand(numel, device="cuda")
        for each in (there, here):
            each.window.add_(sample)
            each.end_window_(3)
        found = [block.clone() for block in there.at(slice(0, numel))]
        assert all(map(torch.equal, found, here.at(slice(0, numel))))
    there.finish()
    for ours, theirs in zip(there.averages, here.averages, strict=True):
        assert torch.equal(ours, theirs.cpu())
