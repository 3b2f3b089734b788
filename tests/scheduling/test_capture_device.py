"""Real CUDA graphs: needs a GPU and ``--device cuda``; on the CPU, test_capture.py stands in."""

import pytest
import torch
from torch import nn

import platon_prune

TOTAL = 40
SETTINGS = dict(amount=0.6, total_steps=TOTAL, warmup_steps=5, cooldown_steps=9, window=4)


@pytest.fixture
def gpu(device):
    if device.type != "cuda":
        pytest.skip("captures a CUDA graph: run on a GPU with python -m pytest --device cuda")
    return device


class Run:
    """A run on a GPU whose steps are taken one by one until it is captured."""

    def __init__(self, gpu, **settings):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 257), nn.GELU(), nn.Linear(257, 32)).to(gpu)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, capturable=True)
        self.scheduler = platon_prune.global_unstructured(self.model, **SETTINGS | settings)
        self.inputs, self.graph, self.masks = torch.zeros(16, 64, device=gpu), None, []

    def _train(self):
        # Finite or not, it leaves weights alone only by what the test does to the gradient.
        self.model(self.inputs).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def steps(self, number):
        for _ in range(number):
            t = self.scheduler.last_step + 1
            self.inputs.copy_(torch.randn(16, 64, generator=torch.Generator().manual_seed(t)))
            if self.graph is None:
                self.optimizer.zero_grad()
                self._train()
            else:
                self.scheduler.before_replay()
                self.graph.replay()
                self.scheduler.after_replay()
            self.masks.append(self.scheduler.masks())
        return self

    def warm_up(self, number):
        """As torch asks for it: on a stream of its own."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.steps(number)
        torch.cuda.current_stream().wait_stream(stream)
        return self

    def capture(self):
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._train()
        self.graph = graph
        return self


@pytest.mark.parametrize("backend", ["triton", "foreach", "plain"])
@pytest.mark.parametrize(
    "settings", [{}, dict(masking="window"), dict(state_dtype=torch.bfloat16)], ids=str
)
def test_replays_of_a_cuda_graph_are_the_run_without(gpu, settings, backend, monkeypatch):
    monkeypatch.setenv("PLATON_PRUNE_BACKEND", backend)
    expected = Run(gpu, **settings).steps(TOTAL + 2)
    run = Run(gpu, **settings, capturable=True).warm_up(3).capture()
    assert run.scheduler.last_step == 3
    run.steps(TOTAL - 1)
    for masks, others in zip(run.masks, expected.masks, strict=True):
        assert all(torch.equal(masks[name], other) for name, other in others.items())
    for parameter, other in zip(run.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert run.scheduler.sparsity() == expected.scheduler.sparsity()


@pytest.mark.parametrize("criterion", ["platon", "magnitude"])  # which adds no gradients
def test_a_graph_reads_tables_of_its_own_whatever_steps_come_between(gpu, criterion):
    expected = Run(gpu, criterion=criterion).steps(20)
    run = Run(gpu, criterion=criterion, capturable=True).warm_up(3).capture().steps(3)
    graph, run.graph = run.graph, None
    held = [parameter.grad for parameter in run.model.parameters()]
    run.steps(4)  # gradients at other addresses
    for parameter, gradient in zip(run.model.parameters(), held, strict=True):
        parameter.grad = gradient
    run.graph = graph
    torch.cuda.empty_cache()
    run.steps(10)
    assert all(torch.equal(run.masks[-1][n], other) for n, other in expected.masks[-1].items())


def test_a_scaled_loss_that_overflows_is_skipped_in_replays(gpu):
    run = Run(gpu, capturable=True).warm_up(3).capture().steps(2)
    run.model[0].bias.data.fill_(torch.inf)  # of no pruned tensor
    run.steps(2)
    assert run.scheduler.skipped_steps == 2 and run.scheduler.last_step == 7


def test_a_gradient_that_moved_is_refused(gpu):
    run = Run(gpu, capturable=True).warm_up(3).capture().steps(1)
    run.optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="must stay where it was when the step was captured"):
        run.steps(1)


def test_a_step_that_is_not_capturable_is_refused_in_a_graph(gpu):
    with pytest.raises(RuntimeError, match="capturable=True"):
        Run(gpu).steps(3).capture()


def test_a_model_compiled_with_graphs_of_its_own_is_pruned_between_them(gpu):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 32)).to(gpu)
    compiled = torch.compile(model, mode="reduce-overhead")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = platon_prune.global_unstructured(model, **SETTINGS)
    for step in range(TOTAL):
        inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(step)).to(gpu)
        torch.compiler.cudagraph_mark_step_begin()
        compiled(inputs).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    numel = 64 * 256 + 256 * 32
    assert sum(int((~mask).sum()) for mask in scheduler.masks().values()) == round(0.6 * numel)
