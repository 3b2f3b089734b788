"""The share of a training step that pruning takes: BERT-base and a Llama of a billion weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

import platon_prune
from platon_prune.commands.benchmarks.compiled import reason_of
from platon_prune.commands.benchmarks.figures import Figure, Spread
from platon_prune.tables import table
from platon_prune.timing import Clock, interleaved

WINDOW = 10
# The first choice is made before anything is timed.
WARMUP_STEPS = WINDOW
Batch = dict[str, Any]


class Training(NamedTuple):
    """A model to train, and how.

    Args:
        name: In words.
        make: Returns the model and a batch, on a device; small ones on a CPU.
        compiled: Whether it is compiled.
        state_dtype: What the scheduler keeps its window and averages in.
    """

    name: str
    make: Callable[[str], tuple[nn.Module, Batch]]
    compiled: bool = False
    state_dtype: torch.dtype = torch.float32


def bert_base(device: str) -> tuple[nn.Module, Batch]:
    """BERT-base that classifies 32 sentences of 128 tokens; on a CPU a tiny one."""
    from transformers import BertConfig, BertForSequenceClassification

    tiny = _is_cpu(device)
    config = BertConfig()
    if tiny:
        config = BertConfig(
            num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128
        )
    model: nn.Module = BertForSequenceClassification(config).to(device)  # type: ignore[arg-type]
    shape = (8, 32) if tiny else (32, 128)
    return model, {
        "input_ids": torch.randint(5, config.vocab_size, shape, device=device),
        "attention_mask": torch.ones(shape, dtype=torch.long, device=device),
        "labels": torch.randint(0, 2, shape[:1], device=device),
    }


def llama(device: str) -> tuple[nn.Module, Batch]:
    """A Llama with 973 million weights to prune, and 4 texts of 1,024 tokens; or a tiny one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = _is_cpu(device)
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=1000 if tiny else 32_000,
        hidden_size=64 if tiny else 2048,
        intermediate_size=128 if tiny else 8192,
        num_hidden_layers=2 if tiny else 16,
        num_attention_heads=4 if tiny else 32,
        num_key_value_heads=2 if tiny else 8,
    )
    with torch.device(device):
        model: nn.Module = LlamaForCausalLM(config)
    ids = torch.randint(5, config.vocab_size, (4, 64 if tiny else 1024), device=device)
    return model, {"input_ids": ids, "labels": ids}


TRAININGS = (
    Training("BERT-base, eager", bert_base),
    Training("BERT-base, compiled", bert_base, compiled=True),
    Training("Llama 1 B, eager", llama),
    Training("Llama 1 B, eager, bfloat16 state", llama, state_dtype=torch.bfloat16),
)


def figures(
    device: str, repeats: int, timed: Clock, trainings: Sequence[Training] = TRAININGS
) -> list[Figure]:
    """A figure for each training: a step with pruning, and one without.

    Both take turns, window by window, so that a choice is among the steps with pruning.

    Args:
        device: Where to train.
        repeats: Windows of each that are timed, by three.
        timed: The clock.
        trainings: What to train.
    """
    return [_figure(training, device, 3 * repeats, timed) for training in trainings]


def training_table(figures: Sequence[Figure], device: str) -> str:
    """The figures as a table, with what pruning adds."""
    size = "tiny models" if _is_cpu(device) else "full size"
    lines = [(f"a training step ({size})", "ms with pruning", "without", "added")]
    for figure in figures:
        if figure.ours is None or figure.textbook is None:
            lines.append((figure.name, "-", "-", "-"))
            continue
        with_pruning, without = figure.ours.median, figure.textbook.median
        added = f"{with_pruning / without - 1:.1%}"
        lines.append((figure.name, f"{with_pruning:.4g}", f"{without:.4g}", added))
    return table(lines)


def _figure(training: Training, device: str, rounds: int, timed: Clock) -> Figure:
    try:
        times = _times(training, device, rounds, timed)
    except Exception as error:
        reason = reason_of(error)
        if not training.compiled or reason is None:
            raise
        print(f"{training.name} was not measured: {reason}")
        return Figure(training.name, "ms", None, None)
    finally:
        # The next one needs the memory, and compiled code keeps models alive.
        gc.collect()
        torch._dynamo.reset()
        if not _is_cpu(device):
            torch.cuda.empty_cache()
    with_pruning, without = (
        Spread.of([window / WINDOW for window in windows]) for windows in times
    )
    return Figure(training.name, "ms", with_pruning, without)


def _times(training: Training, device: str, rounds: int, timed: Clock) -> list[list[float]]:
    """Times of windows of steps, with pruning and without."""
    loops = []
    for is_pruned in (True, False):
        # Two models and not one twice: masks on modules are part of what pruning costs.
        torch.manual_seed(0)
        model, batch = training.make(device)
        after: Callable[[], object] = lambda: None  # noqa: E731
        if is_pruned:
            after = _scheduler(model, training.state_dtype).step
        step = _step(model, batch, device, after, training.compiled)
        loops.append(_window_of(step))
        for _ in range((WARMUP_STEPS + WINDOW) // WINDOW):
            loops[-1]()
    return interleaved(loops, rounds, timed)


def _scheduler(model: nn.Module, state_dtype: torch.dtype) -> Any:
    return platon_prune.global_unstructured(
        model, amount=0.9, total_steps=100_000, warmup_steps=WARMUP_STEPS, cooldown_steps=100,
        window=WINDOW, state_dtype=state_dtype,
    )  # fmt: skip


def _step(
    model: nn.Module, batch: Batch, device: str, after: Callable[[], object], compiled: bool
) -> Callable[[], None]:
    """One step as people train: bfloat16 autocast, clipping and a fused AdamW."""
    # As fast as torch has it: what pruning adds is a share of the rest.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    network: Any = torch.compile(model) if compiled else model  # type: ignore[arg-type]
    kind = torch.device(device).type

    def step() -> None:
        with torch.autocast(kind, dtype=torch.bfloat16):
            loss = network(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after()
        optimizer.zero_grad()

    return step


def _window_of(step: Callable[[], None]) -> Callable[[], None]:
    def window() -> None:
        for _ in range(WINDOW):
            step()

    return window


def _is_cpu(device: str) -> bool:
    return torch.device(device).type == "cpu"
