"""Carries out the programs of `programs.py`, checking what must hold after every call."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from program_rules import assert_equal_masks, check_choice, chooses, due
from programs import STEPS, Program
from torch import nn

import platon_prune


class Machine:
    """One model, beside a second one that is never copied, saved or interrupted."""

    def __init__(self, program: Program, folder) -> None:
        self.program, self.folder = program, folder
        self.settings = program.settings
        self.model, self.undisturbed = program.model(), program.model()
        self.scheduler = self._set_up(self.model)
        self.twin = self._set_up(self.undisturbed)
        self.sizes = {name: mask.numel() for name, mask in self.scheduler.masks().items()}
        self.step_number = self.useful_steps = self.steps_with_samples = 0
        self.has_scores = self.settings["criterion"] in ("magnitude", "random")

    def run(self) -> None:
        for number, call in enumerate(self.program.calls):
            if call in STEPS:
                self.one_step(call, number)
            else:
                getattr(self, call)()
            self.check()
        self.finish()

    def _set_up(self, model):
        return self.program.set_up(model)

    # --- steps ------------------------------------------------------------------------------

    def one_step(self, kind: str, number: int) -> None:
        if self.step_number and self.step_number >= self.settings["total_steps"] + 2:
            return
        for model, scheduler in ((self.model, self.scheduler), (self.undisturbed, self.twin)):
            self._gradients(model, kind, number)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None and parameter.grad.isfinite().all():
                        parameter -= (0.05 * parameter.grad.clamp(-1, 1)).to(parameter.dtype)
            scheduler.step(skipped=kind == "skipped")
            for parameter in model.parameters():
                parameter.grad = None
        self._count(kind)
        self.check_choice()

    def _gradients(self, model, kind, number):
        generator = torch.Generator().manual_seed(1000 * self.program.seed + number)
        scale = {"huge": 1e4, "tiny": 1e-6, "zero": 0.0}.get(kind, 1.0)
        parameters = list(model.parameters())
        for i, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=generator)
            if kind == "equal":
                noise = torch.ones(parameter.shape)
            parameter.grad = (scale * noise).to(parameter.dtype)
            if kind == "one_missing" and i == number % len(parameters) and len(parameters) > 2:
                parameter.grad = None
        if kind == "infinite":
            parameter = next(p for n, p in model.named_parameters() if n.endswith("_orig"))
            parameter.grad.view(-1)[0] = float("inf")

    def _count(self, kind: str) -> None:
        """What the schedule's rules say of the windows, kept by hand."""
        self.step_number += 1
        step = self.step_number
        if step > self.settings["total_steps"]:
            return
        if step % self.settings["window"] == 0:
            self.has_scores |= self.steps_with_samples > 0
            self.steps_with_samples = 0
        if kind not in ("skipped", "infinite"):
            self.steps_with_samples += 1

    def check_choice(self) -> None:
        """Exact counts at choosing steps, and that the smallest scores are the ones that went."""
        if chooses(self.settings, self.step_number) and self.has_scores:
            check_choice(self.program, self.scheduler, due(self.settings, self.step_number))

    # --- other calls ------------------------------------------------------------------------

    def train(self):
        self.model.train()

    def evaluate(self):
        self.model.eval()

    def forward(self):
        """The output is that of an ordinary model with the zeros in its weights."""
        plain = self.plain_copy()
        was_training = self.model.training
        inputs = self.program.inputs()
        for model in (self.model, plain):
            model.eval()
        with torch.no_grad():
            torch.testing.assert_close(
                self.model(inputs), plain(inputs), equal_nan=True, rtol=1e-3, atol=1e-3
            )
        self.model.train(was_training)

    def compile(self):
        torch._dynamo.reset()
        compiled = torch.compile(self.model, backend="eager", fullgraph=True)
        with torch.no_grad():
            inputs = self.program.inputs()
            # Attention has a fused path of its own that is not compiled: it rounds otherwise.
            rounding = max(1e-5, 4 * torch.finfo(self.program.dtype).eps)
            torch.testing.assert_close(
                compiled(inputs), self.model(inputs), rtol=rounding, atol=rounding, equal_nan=True
            )

    def copy(self):
        self.model, self.scheduler = copy.deepcopy((self.model, self.scheduler))

    def pickle(self):
        self.model = pickle.loads(pickle.dumps(self.model))
        fresh = self._fresh_for(self.model)
        fresh.load_state_dict(self.scheduler.state_dict())
        self.scheduler = fresh

    def _fresh_for(self, model):
        """A scheduler for a model whose masks are finalized first, as after loading a pickle."""
        platon_prune.remove(model)
        return self._set_up(model)

    def save_and_load(self):
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.scheduler.state_dict()], file)
        file.seek(0)
        model_state, scheduler_state = torch.load(file, weights_only=True)
        if self.settings["own_keys"]:
            for name, tensor in self.plain_copy().state_dict().items():
                assert same(model_state[name], tensor), name
        was_training, self.model = self.model.training, self.program.model()
        self.scheduler = self._set_up(self.model)
        self.model.load_state_dict(model_state)
        self.scheduler.load_state_dict(scheduler_state)
        self.model.train(was_training)

    def load_into_itself(self):
        states = copy.deepcopy((self.model.state_dict(), self.scheduler.state_dict()))
        self.model.load_state_dict(states[0])
        self.scheduler.load_state_dict(states[1])

    def load_dense(self):
        """An ordinary state dict with zeros goes in, and the scheduler's masks are the ones."""
        state = self.scheduler.state_dict()
        self.model.load_state_dict(self.plain_copy().state_dict())
        self.scheduler.load_state_dict(state)

    def save_sparse(self):
        path = self.folder / "model.safetensors"
        platon_prune.save(self.model, path)
        loaded = dict(platon_prune.load(path))
        expected = self.plain_copy().state_dict()
        assert loaded.keys() == expected.keys()
        for name, tensor in expected.items():
            assert same(loaded[name], tensor), name

    def cast_and_back(self):
        if self.program.dtype == torch.float32:
            self.model.double().float()

    def apply_masks(self):
        if self.settings["masking"] == "step":
            platon_prune.apply_masks(self.model)

    def read(self):
        assert 0 <= self.scheduler.sparsity() <= 1
        assert 0 <= self.scheduler.amount <= 1
        assert platon_prune.summary(self.model).total.kept <= sum(self.sizes.values())
        self.scheduler.memory()

    # --- what must hold after every call ------------------------------------------------------

    def check(self) -> None:
        masks = self.scheduler.masks()
        assert_equal_masks(masks, self.twin.masks())
        for mask in masks.values():
            assert mask.dtype == torch.bool and mask.is_contiguous()
        pairs = zip(self.model.named_parameters(), self.undisturbed.named_parameters(), strict=True)
        for (name, parameter), (other_name, other) in pairs:
            assert name == other_name and parameter.dtype == self.program.dtype
            assert same(parameter.detach(), other.detach()), name
        if self.settings["masking"] == "step":
            for name, module, tensor_name in self.sites():
                weight = getattr(module, f"{tensor_name}_orig").detach()
                mask = getattr(module, f"{tensor_name}_mask")
                zeros = weight[~mask]
                assert same(zeros, torch.zeros_like(zeros)), name  # not -0, not NaN

    def finish(self) -> None:
        masks = self.scheduler.masks()
        expected = self.plain_copy()
        platon_prune.remove(self.model)
        assert not torch.nn.utils.prune.is_pruned(self.model)
        assert type(self.model) is type(expected)
        for name, tensor in expected.state_dict().items():
            assert same(self.model.state_dict()[name], tensor), name
        for name, mask in masks.items():
            assert not self.model.get_parameter(name)[~mask].any(), name

    def sites(self):
        for prefix, module in self.model.named_modules():
            for key in list(module._buffers):
                if key.endswith("_mask") and f"{key[:-5]}_orig" in module._parameters:
                    yield f"{prefix}.{key[:-5]}", module, key[:-5]

    @torch.no_grad()
    def plain_copy(self) -> nn.Module:
        """An ordinary model with the weights that finalizing must leave, made without remove."""
        plain = self.program.model()
        pairs = zip(self.model.named_parameters(), plain.parameters(), strict=True)
        for (name, parameter), target in pairs:
            value = parameter
            if name.endswith("_orig"):
                path, _, key = name.rpartition(".")
                module = self.model.get_submodule(path)
                mask = getattr(module, key.removesuffix("_orig") + "_mask")
                value = parameter.masked_fill(~mask, 0)
            target.copy_(value)
        return plain


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in every bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.itemsize]
    return torch.equal(one.contiguous().view(integer), other.contiguous().view(integer))
