"""The demo's model, a small vision transformer, and one loop that trains it on digits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import platon_prune
from platon_prune.commands.benchmarks.demo_settings import Settings as Settings
from platon_prune.commands.benchmarks.scans import Digits as Digits
from platon_prune.commands.benchmarks.scans import load_digits as load_digits
from platon_prune.criteria import CriterionName
from platon_prune.masks.targets import find_tensors

# The dense model that a pruned one is to be compared with, and the dotted line of the picture.
DENSE_FURTHER = "dense, the same further steps"
# Of the logits of a batch and the positions of its digits in the training part.
Loss = Callable[[Tensor, Tensor], Tensor]


class Scheduler(Protocol):
    """What the training loop needs of whoever prunes."""

    @property
    def amount(self) -> float:
        """Fraction that is due."""

    def step(self) -> None:
        """Called after each optimizer step."""


@dataclass
class Run:
    """A model of the comparison, and what was measured on its way.

    Args:
        label: Its row in the table.
        model: The model, finalized once training is over.
        amount: Fraction pruned in the end; 0 for a dense model.
        accuracies: Step to accuracy on the held-out digits, in percent.
        densities: Step to the density that was due.
    """

    label: str
    model: nn.Module
    amount: float = 0.0
    accuracies: dict[int, float] = field(default_factory=dict)
    densities: dict[int, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Percentage of the held-out digits that the final model gets right."""
        return self.accuracies[max(self.accuracies)]


def make_model(settings: Settings) -> nn.Module:
    """A ViT with random weights, built from its config."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(settings.seed)
    config = ViTConfig(  # type: ignore[call-arg]
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        image_size=8,
        patch_size=settings.patch_size,
        num_channels=1,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model: nn.Module = ViTForImageClassification(config)
    return model


def train_dense(
    digits: Digits,
    settings: Settings,
    on_step: Callable[[], object],
    make: Callable[[Settings], nn.Module] = make_model,
) -> Run:
    """Train the model that all others start from; ``make`` makes it, with random weights."""
    run = Run("dense", make(settings).to(digits.train_images.device))
    train(run, digits, settings, settings.learning_rate, None, on_step)
    return run


def fine_tune_dense(
    dense: Run, digits: Digits, settings: Settings, on_step: Callable[[], object]
) -> Run:
    """Fine-tune a copy of a dense model as the pruned ones are, so that like meets like."""
    run = Run(DENSE_FURTHER, copy.deepcopy(dense.model))
    train(run, digits, settings, settings.fine_tuning_learning_rate, None, on_step)
    return run


def unwatched() -> None:
    """Called at each step where nobody watches them, as in a study, which reports cells."""


def label_of(criterion: str) -> str:
    """What gradual pruning by a criterion is called in the table and the picture."""
    return {"platon": "PLATON", "magnitude": "gradual magnitude"}.get(criterion, criterion)


def fine_tune_pruned(
    dense: Run,
    criterion: CriterionName,
    amount: float,
    digits: Digits,
    settings: Settings,
    on_step: Callable[[], object],
) -> Run:
    """Fine-tune a copy of a dense model while the schedule prunes it, and finalize it."""
    run = Run(label_of(criterion), copy.deepcopy(dense.model), amount)
    scheduler = platon_prune.global_unstructured(
        run.model,
        amount=amount,
        total_steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        cooldown_steps=settings.cooldown_steps,
        window=settings.window,
        criterion=criterion,
    )
    # Before the first step it is the dense model.
    run.accuracies[0] = dense.accuracy
    fine_tune_with(scheduler, run, digits, settings, on_step)
    return run


def fine_tune_with(
    scheduler: Scheduler,
    run: Run,
    digits: Digits,
    settings: Settings,
    on_step: Callable[[], object],
    loss: Loss | None = None,
) -> None:
    """Fine-tune a run's model while a scheduler prunes it, finalize it, and measure it."""
    run.densities[0] = 1.0
    rate = settings.fine_tuning_learning_rate
    train(run, digits, settings, rate, scheduler, on_step, loss)
    platon_prune.remove(run.model)
    run.accuracies[settings.steps] = accuracy(run.model, digits)


def prune_one_shot(dense: Run, amount: float, digits: Digits) -> Run:
    """Prune a copy of a dense model by magnitude in one go, with torch's own prune."""
    run = Run("one-shot magnitude", copy.deepcopy(dense.model), amount)
    weights = [(module, name) for _, module, name in find_tensors(run.model)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=amount)  # type: ignore[no-untyped-call]
    for module, name in weights:
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    run.accuracies[0] = accuracy(run.model, digits)
    return run


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Percentage of the held-out digits that the model gets right."""
    return share_right(logits(model, digits), digits.held_out_labels)


@torch.no_grad()
def validation_accuracy(model: nn.Module, digits: Digits) -> float:
    """Percentage of the validation part that the model gets right, in evaluation mode."""
    return share_right(logits_of(model.eval()(digits.validation_images)), digits.validation_labels)


def share_right(found: Tensor, labels: Tensor) -> float:
    """Percentage of the rows whose highest logit is at the label."""
    return 100 * float((found.argmax(-1) == labels).float().mean())


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: an object that has them, or the tensor itself."""
    found: Tensor = getattr(output, "logits", output)
    return found


@torch.no_grad()
def logits(model: nn.Module, digits: Digits) -> Tensor:
    """The model's output for the held-out digits, in evaluation mode."""
    was_training = model.training
    result = logits_of(model.eval()(digits.held_out_images))
    # Evaluated in the middle of training, which goes on as it was.
    model.train(was_training)
    return result


def train(
    run: Run,
    digits: Digits,
    settings: Settings,
    learning_rate: float,
    scheduler: Scheduler | None,
    on_step: Callable[[], object],
    loss: Loss | None = None,
) -> None:
    """The same loop for every run: the same batches in the same order."""
    with warnings.catch_warnings():
        # That PLATON empties tensors here is what the demo shows and the study counts.
        warnings.filterwarnings("ignore", "nearly empty|empty soon", platon_prune.PruningWarning)
        _train(run, digits, settings, learning_rate, scheduler, on_step, loss)


def _train(
    run: Run,
    digits: Digits,
    settings: Settings,
    learning_rate: float,
    scheduler: Scheduler | None,
    on_step: Callable[[], object],
    loss: Loss | None,
) -> None:
    steps, ramp = settings.steps, settings.learning_rate_warmup_steps
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=learning_rate)
    # Methods of others that prune in the optimizer, as torchao's, put theirs around it.
    stepped = getattr(scheduler, "around", lambda given: given)(optimizer)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / ramp, 1 - step / steps)
    )
    if isinstance(scheduler, platon_prune.PlatonScheduler):
        scheduler.optimizer = optimizer  # for runs that are cut as they go
    evaluate_every = max(1, steps // settings.num_evaluations)
    # A generator of its own: whatever else a run draws, its batches come in the same order.
    order = torch.Generator().manual_seed(settings.seed)
    batches: list[Tensor] = []
    run.model.train()
    for step in range(1, steps + 1):
        if not batches:
            shuffled = torch.randperm(len(digits.train_labels), generator=order)
            batches = list(shuffled.split(settings.batch_size))  # type: ignore[no-untyped-call]
        batch = batches.pop()
        output = logits_of(run.model(digits.train_images[batch]))
        if loss is None:
            value = nn.functional.cross_entropy(output, digits.train_labels[batch])
        else:
            value = loss(output, batch)
        value.backward()  # type: ignore[no-untyped-call]
        stepped.step()
        if scheduler is not None:
            scheduler.step()
            run.densities[step] = 1 - scheduler.amount
        optimizer.zero_grad()
        rates.step()
        if step % evaluate_every == 0 or step == steps:
            run.accuracies[step] = accuracy(run.model, digits)
        on_step()
