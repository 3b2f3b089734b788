"""What the ranks of a test do with transformers' Trainer: train, save, resume."""

import contextlib
import os
import warnings
from pathlib import Path

import rank_jobs
import sharding_on_cpu
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny_trainer import Examples, pruning_callback, small_bert, trainer_arguments
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from platon_prune.integrations import hf_limits, hf_trainer

BERT = {"transformer_layer_cls_to_wrap": ["BertLayer"]}


class Observer(TrainerCallback):
    """Notes the scheduler's whole state when training begins and at each checkpoint."""

    def __init__(self, pruning):
        self.pruning = pruning
        self.begun = None
        self.resumed_from = None
        self.saved = {}
        self.sharded = None
        self.ignored_by_ddp = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.begun = whole(self.pruning.scheduler.state_dict())
        self.resumed_from = state.global_step
        self.sharded = any(isinstance(tensor, DTensor) for tensor in model.parameters())

    def on_save(self, args, state, control, **kwargs):
        self.saved[state.global_step] = whole(self.pruning.scheduler.state_dict())


def whole(value):
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(whole, value))
    return rank_jobs.full(value) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def one_accelerator():
    """accelerate keeps its state for the life of a process."""
    kept = dict(os.environ)
    os.environ.update(ACCELERATE_USE_CPU="true", LOCAL_WORLD_SIZE=os.environ.get("WORLD_SIZE", "1"))
    try:
        yield
    finally:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        os.environ.clear()
        os.environ.update(kept)


def train(folder, fsdp=None, resume=None, metrics=None, pruning=None, before=None, **changes):
    """Train; what each rank saw of it.

    ``fsdp`` is the config of FSDP2, None for DDP; ``metrics`` the losses of the evaluations;
    ``before`` is called with the trainer.
    """
    sharding_on_cpu.enable()
    with one_accelerator(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = dict(per_device_train_batch_size=4) | changes
        if fsdp is not None:
            settings |= dict(fsdp=True, fsdp_config=BERT | fsdp)
        callback = pruning_callback(**pruning or {})
        observer = Observer(callback)
        trainer = Trainer(
            model=small_bert(dropout=settings.pop("dropout", 0.1)),
            args=trainer_arguments(folder, **settings),
            train_dataset=Examples(),
            eval_dataset=Examples(16),
        )
        callback.install(trainer)
        trainer.add_callback(observer)
        if metrics is not None:
            losses = iter(metrics)
            trainer.compute_metrics = lambda _: {"made_up": next(losses)}
        if before is not None:
            before(trainer)
        trainer.train(resume_from_checkpoint=resume)
        if fsdp is not None:
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(Path(folder, "final")))
        trainer.create_model_card(model_name="tiny")
        logits = trainer.predict(Examples(16)).predictions
        if dist.is_initialized():
            dist.barrier()
        return {
            "weights": whole(trainer.accelerator.unwrap_model(trainer.model).state_dict()),
            "sharded": observer.sharded,
            "begun": observer.begun,
            "resumed_from": observer.resumed_from,
            "saved": observer.saved,
            "history": callback.history,
            "best": trainer.state.best_model_checkpoint,
            "logits": torch.as_tensor(logits),
            "ignored_by_ddp": sorted(getattr(trainer.model_wrapped, "parameters_to_ignore", ())),
            "goal": str(callback.scheduler.goal),
            "last_step": trainer.state.global_step,
            "warned": [str(warning.message) for warning in caught],
        }


def fail_to_save(trainer):
    """From the second checkpoint on, as if the run were killed while the pruner's state is due."""
    kept = hf_trainer.save_shards

    def save(run, scheduler, folder):
        if scheduler.last_step > 10:
            hf_trainer.save_shards = kept
            raise OSError("killed")
        kept(run, scheduler, folder)

    hf_trainer.save_shards = save


def wrap_in_fsdp1():
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    hf_limits.refuse_flattened(model)
    hf_limits.refuse_flattened(FullyShardedDataParallel(model, device_id=torch.device("cpu")))


def train_to_a_goal(folder, values, fsdp, resume_at, **changes):
    """Train by a metric that is lower in the second rank; then resume from checkpoints."""

    def give(trainer):
        rank = dist.get_rank() if dist.is_initialized() else 0
        trainer.compute_metrics = lambda _: {
            "made_up": values.get(trainer.state.global_step, 1.0) - 0.5 * rank
        }

    settings = dict(
        fsdp=fsdp, before=give, pruning=dict(metric="made_up", max_drop=0.1, schedule="linear"),
        eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4,
    )  # fmt: skip
    whole_run = train(folder, **settings | changes)
    checkpoints = [str(Path(folder, f"checkpoint-{step}")) for step in resume_at]
    return whole_run, [train(folder, resume=path, **settings | changes) for path in checkpoints]
