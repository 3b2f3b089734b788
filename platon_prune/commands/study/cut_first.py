"""A text model that is cut before it is trained: by our scores over some batches, or a rival's."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import platon_prune
from platon_prune.commands.study import one_shot, rivals
from platon_prune.commands.study.networks import multiply_adds
from platon_prune.example_inputs import moved_to, text_inputs
from platon_prune.export.size_record import apply_sizes_, record_of_sizes
from platon_prune.groups.coupled_choice import Structured
from platon_prune.studies.cells import Cell

KINDS = ("heads", "neurons")
LEARN = 30  # batches that scores are learned over: of a rival, and of ours by default
_NUM_SAMPLES = 128  # of which each has a gradient of its own, for the Hessian's diagonal


def cut_before_training_(
    cell: Cell, trainer: Any, example: Mapping[str, Tensor], learn: int, settings: Mapping[str, Any]
) -> None:
    """Cut a trainer's model in place, by scores over some batches of its training data.

    Args:
        cell: Says the criterion, or the rival, and the amount.
        trainer: With its model and data.
        example: What multiply-adds are counted on.
        learn: How many batches.
        settings: Of ``global_structured``, where it is ours.
    """
    model = trainer.model
    batches = list(itertools.islice(_batches(trainer, cell.seed), learn))
    model.eval()  # without dropout, whichever method scores
    if cell.criterion in rivals.RIVALS:
        _cut_by_rival_(cell, model, example, batches)
        return
    criterion: Any = cell.criterion
    scheduler = platon_prune.global_structured(
        model,
        dict(example),
        amount=cell.amount,
        criterion=criterion,
        budget="macs",
        kinds=KINDS,
        # The choice is at the last batch, or at the end of the window before it.
        total_steps=learn,
        warmup_steps=learn - 1,
        cooldown_steps=0,
        **settings,
    )
    platon_prune.learn_scores(model, scheduler, batches, lambda batch: model(**batch).loss)
    platon_prune.remove(model)
    platon_prune.shrink(model)


def _cut_by_rival_(
    cell: Cell, model: Any, example: Mapping[str, Tensor], batches: Sequence[Mapping[str, Tensor]]
) -> None:
    """Cut by torch-pruning to the multiply-adds that ours has at the same amount."""

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = model(**batch).loss
        return found

    dense = copy.deepcopy(model)
    singles = (
        {name: values[i : i + 1] for name, values in batch.items()}
        for batch in batches
        for i in range(len(next(iter(batch.values()))))
    )
    samples = list(itertools.islice(singles, _NUM_SAMPLES))
    gradients = one_shot.gradients_for(cell.criterion, dense, batches, samples, loss)
    target = multiply_adds(dense, example) - round(cell.amount * _cost_of_groups(dense, example))
    cut = one_shot.prune_one_shot(
        cell.criterion, dense, target, gradients, _subject_of(dense, example)
    )
    # Torch-pruning makes other parameters, and leaves counts of heads as they were. Their sizes
    # and values are taken over, so that the trainer's model stays the object that it is.
    shapes = {name: tuple(values.shape) for name, values in cut.state_dict().items()}
    apply_sizes_(model, record_of_sizes(cut, shapes, model), "the model that torch-pruning cut")
    model.load_state_dict(cut.state_dict())


def _cost_of_groups(dense: nn.Module, example: Mapping[str, Tensor]) -> int:
    """The multiply-adds of what can be pruned, of which ours counts the amount."""
    scheduler = platon_prune.global_structured(
        copy.deepcopy(dense),
        dict(example),
        amount=0.5,
        criterion="magnitude",
        budget="macs",
        kinds=KINDS,
        total_steps=20,
    )
    assert isinstance(scheduler.granularity, Structured)
    return scheduler.granularity.total


def _subject_of(dense: nn.Module, example: Mapping[str, Tensor]) -> one_shot.Subject:
    """What torch-pruning is told of a model, so that it cuts the places that ours does."""
    num_heads: dict[str, int] = {}
    narrowed: set[str] = set()
    for place in platon_prune.find_groups(dense, dict(example), kinds=KINDS):
        own = {
            member.name.removesuffix(".weight")
            for member in place.members
            if member.dim == 0 and member.name.endswith(".weight")
        }
        narrowed |= own
        if place.kind == "heads":
            num_heads |= dict.fromkeys(own, place.size)
    # Of leaves alone: torch-pruning would leave out all that is in a module that is named.
    leaves = {name for name, module in dense.named_modules() if not list(module.children())}
    device = next(dense.parameters()).device
    return one_shot.Subject(
        # Without padding, whose mask is no part of the graph.
        moved_to(text_inputs(dense, 1, 8), device),
        num_heads,
        lambda name: name in leaves - narrowed,
        lambda output: output.logits,
        lambda model: multiply_adds(model, example),
    )


def _batches(trainer: Any, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the training data in an order of the seed, as many passes as are asked for.

    Not by the trainer's own loader: what it draws and counts is to be the same without them.
    """
    accepted = {*inspect.signature(trainer.model.forward).parameters, "label", "label_ids"}
    data = trainer.train_dataset
    data = data.remove_columns([name for name in data.column_names if name not in accepted])
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=trainer.args.train_batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=trainer.data_collator,
    )
    while True:
        for batch in loader:
            yield moved_to(dict(batch), trainer.args.device)
