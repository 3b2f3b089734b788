"""The loss that a teacher adds, and the trainer of all recipes, which can have one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import Trainer

from platon_prune.integrations.recipes.arguments import (
    ADAMAX,
    DistillationArguments,
    RecipeTrainingArguments,
)


def distillation_loss(
    student: Mapping[str, Any], teacher: Mapping[str, Any], temperature: float
) -> Tensor:
    """How far the student's predictions are from the teacher's.

    ``T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))``, averaged over examples and then over
    heads. A head with one output (regression) has the mean squared difference of the outputs
    instead.

    Args:
        student: Outputs of the model; its heads are the entries whose name ends with ``logits``.
        teacher: Outputs of the teacher, with the same heads.
        temperature: T, above 0.

    Returns:
        A scalar, float32, non-negative.

    Source:
        Hinton et al., Distilling the knowledge in a neural network (arXiv:1503.02531).
    """
    heads = [
        name for name, value in student.items() if name.endswith("logits") and value is not None
    ]
    losses = [
        _head_loss(student[head].float(), teacher[head].float(), temperature) for head in heads
    ]
    return torch.stack(losses).mean()


def _head_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            "the teacher's logits must have the shape of the model's, got "
            f"{tuple(teacher.shape)} and {tuple(student.shape)}: use a teacher of the same task"
        )
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        log_target=True,
        reduction="batchmean",
    )
    return divergence * temperature**2


class RecipeTrainer(Trainer):
    """A Trainer that also knows adamax and, while it trains, may learn from a teacher.

    Args:
        teacher: Fine-tuned model of the same task; None learns from the labels alone.
        distillation: Temperature and weight of the teacher.
        **kwargs: Those of transformers' Trainer.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module | None = None,
        distillation: DistillationArguments | None = None,
        args: RecipeTrainingArguments,
        **kwargs: Any,
    ) -> None:
        if args.optim == ADAMAX:
            kwargs["optimizer_cls_and_kwargs"] = (
                torch.optim.Adamax,
                {
                    "lr": args.learning_rate,
                    "betas": (args.adam_beta1, args.adam_beta2),
                    "eps": args.adam_epsilon,
                },
            )
        super().__init__(args=args, **kwargs)
        self.distillation = distillation or DistillationArguments()
        self.teacher = teacher
        if teacher is not None:
            self.teacher = teacher.to(args.device).eval().requires_grad_(False)
        # The loss of a micro-batch is its mean, labels and teacher alike. Otherwise the Trainer
        # would rely on the model to divide by the examples of the whole batch, on all devices;
        # BERT's classifier takes that number and ignores it, so its gradients would be too large.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """``(1 - weight) * loss of the labels + weight * distillation_loss``, while training."""
        loss, outputs = super().compute_loss(
            model, dict(inputs), return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if self.teacher is not None and model.training:
            weight = self.distillation.distillation_weight
            distance = self.distance(outputs, self._teach(inputs), inputs)
            loss = (1 - weight) * loss + weight * distance
        return (loss, outputs) if return_outputs else loss

    def distance(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Tensor:
        """How far a batch's predictions are from the teacher's, all of them counted."""
        return distillation_loss(student, teacher, self.distillation.distillation_temperature)

    def _teach(self, inputs: dict[str, Any]) -> Mapping[str, Any]:
        assert self.teacher is not None
        known = inspect.signature(self.teacher.forward).parameters
        labels = {"labels", *self.label_names}
        with torch.no_grad():
            taught: Mapping[str, Any] = self.teacher(
                **{k: v for k, v in inputs.items() if k in known and k not in labels}
            )
        return taught
