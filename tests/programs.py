"""Random models and random orders of calls for `test_properties.py`: what to build and what to do.

A :class:`Program` is plain data that hypothesis draws and shrinks; :class:`Machine` carries it out
on one model, beside a second one that is never copied, saved or interrupted.
"""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from hypothesis import strategies as st
from torch import nn

import platon_prune

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CRITERIA = ("platon", "sensitivity", "magnitude", "movement", "random")
# Between two steps; what each does is the method of that name.
CALLS = (
    "train", "evaluate", "forward", "copy", "pickle", "save_and_load", "load_into_itself",
    "load_dense", "save_sparse", "cast_and_back", "apply_masks", "read",
)  # fmt: skip
COMPILED = 1 / 40  # share of the programs with a call of the compiled model, which is slow
# One step: with which gradients.
STEPS = ("step", "step", "step", "step", "huge", "tiny", "zero", "equal", "infinite", "skipped",
         "one_missing")  # fmt: skip


class Odd(nn.Module):
    """Reads one weight twice and holds parameters that no layer calls."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, inputs, bias=False)
        self.shared = self.first
        self.table = nn.Parameter(torch.ones(inputs, outputs))

    def forward(self, x):
        return self.shared(torch.tanh(self.first(x))) @ self.table


def _mlp(a, b):
    return nn.Sequential(nn.Linear(a, b), nn.Tanh(), nn.Linear(b, 1))


def _conv(a, b):
    return nn.Sequential(nn.Conv1d(a, b, 2), nn.Flatten(), nn.Linear(b * 3, 2))


def _attention(a, b):
    return nn.TransformerEncoderLayer(2 * a, 2, b, dropout=0.0, batch_first=True)


# Of two small sizes: the model, and the shape of its input.
MODELS = {
    "mlp": (_mlp, lambda a, b: (2, a)),
    "conv": (_conv, lambda a, b: (2, a, 4)),
    "encoder layer": (_attention, lambda a, b: (2, 3, 2 * a)),
    "odd": (Odd, lambda a, b: (2, a)),
    "one weight": (lambda a, b: nn.Linear(1, 1), lambda a, b: (2, 1)),
}


@dataclass(frozen=True)
class Program:
    """What to build, with which settings, and what to call in which order."""

    kind: str
    sizes: tuple[int, int]
    dtype: torch.dtype
    seed: int
    settings: dict = field(hash=False)
    calls: tuple[str, ...] = ()
    pattern: tuple[int, int] | None = None  # n:m instead of single weights

    def set_up(self, model: nn.Module) -> platon_prune.PlatonScheduler:
        if self.pattern is None:
            return platon_prune.global_unstructured(model, **self.settings)
        n, m = self.pattern
        return platon_prune.semi_structured(model, n=n, m=m, **self.settings)

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return MODELS[self.kind][0](*self.sizes).to(self.dtype)

    def inputs(self) -> torch.Tensor:
        shape = MODELS[self.kind][1](*self.sizes)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return values.to(self.dtype)


@st.composite
def programs(draw) -> Program:
    window = draw(st.integers(1, 4))
    warmup = draw(st.integers(0, 4))
    # The final amount is due after the first window has ended.
    ramp = draw(st.integers(max(2, window), 9))
    cooldown = draw(st.integers(0, 4))
    amount = draw(st.one_of(st.floats(0, 0.999), st.sampled_from([0.0, 0.5, 0.9, 0.99])))
    settings = dict(
        amount=amount,
        initial_amount=draw(st.sampled_from([0.0, 0.25, 1.0])) * amount,
        total_steps=warmup + ramp + cooldown,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        window=window,
        criterion=draw(st.sampled_from(CRITERIA)),
        masking=draw(st.sampled_from(["step", "window"])),
        own_keys=draw(st.sampled_from([None, True])),
        include=draw(st.sampled_from([None, None, "weight", ""])),
        state_dtype=draw(st.sampled_from([torch.float32] * 3 + [torch.bfloat16])),
    )
    kind = draw(st.sampled_from(sorted(MODELS)))
    if kind == "encoder layer" and settings["include"] == "weight":
        settings["include"] = None
    sizes = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    pattern = None
    if draw(st.integers(0, 3)) == 0 and kind in ("mlp", "conv", "odd"):
        n, more = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        pattern = n, n + more
        settings["include"] = None
        sizes = tuple(pattern[1] * (1 + size // 4) for size in sizes)
    calls = draw(st.lists(st.sampled_from(STEPS + CALLS), min_size=3, max_size=24))
    if draw(st.floats(0, 1, exclude_max=True)) > 1 - COMPILED:
        calls.insert(draw(st.integers(0, len(calls))), "compile")
    return Program(
        kind,
        sizes,
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(0, 1000)),
        settings,
        tuple(calls),
        pattern,
    )


def due(settings: dict, step: int) -> Fraction:
    """The amount of the schedule, from the paper's formula, in exact arithmetic."""
    first, last = (Fraction(settings[key]) for key in ("initial_amount", "amount"))
    begin, end = settings["warmup_steps"], settings["total_steps"] - settings["cooldown_steps"]
    if step >= end:
        return last
    left = 1 - Fraction(step - begin, end - begin)
    return last + (first - last) * left**3


def chooses(settings: dict, step: int) -> bool:
    end, total = settings["total_steps"] - settings["cooldown_steps"], settings["total_steps"]
    if not settings["warmup_steps"] < step <= total:
        return False
    return step % settings["window"] == 0 or step in (end, total)


class Machine:
    """Carries a program out, checking after each call what must hold."""

    def __init__(self, program: Program, folder) -> None:
        self.program, self.folder = program, folder
        self.settings = program.settings
        self.model, self.undisturbed = program.model(), program.model()
        self.scheduler = self._set_up(self.model)
        self.twin = self._set_up(self.undisturbed)
        self.sizes = {name: mask.numel() for name, mask in self.scheduler.masks().items()}
        self.total = sum(self.sizes.values())
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
        step = self.step_number
        if not chooses(self.settings, step) or not self.has_scores:
            return
        masks = self.scheduler.masks()
        pruned, of = self.count_pruned(masks)
        wanted = due(self.settings, step) * of
        assert abs(pruned - wanted) <= Fraction(1, 2) + Fraction(1, 10**6), (pruned, wanted)
        if pruned == 0 or self.settings["criterion"] == "magnitude":
            return  # the scores of magnitude are those before zeroing
        if self.program.pattern:
            self.check_groups(masks)
            return
        lowest_kept, highest_pruned = float("inf"), -float("inf")
        for name, mask in masks.items():
            score = self.scheduler.score(name)
            lowest_kept = min([lowest_kept, *score[mask].tolist()])
            highest_pruned = max([highest_pruned, *score[~mask].tolist()])
        assert highest_pruned <= lowest_kept
        assert self.scheduler.threshold == highest_pruned

    def check_groups(self, masks) -> None:
        """A constrained group keeps its largest scores, and gives up less than any other would."""
        n, m = self.program.pattern
        given_up, spared = [-float("inf")], [float("inf")]
        for name, mask in masks.items():
            kept = mask.movedim(1, -1).reshape(-1, m)
            scores = self.scheduler.score(name).movedim(1, -1).reshape(-1, m)
            for row, is_kept in zip(scores, kept, strict=True):
                lost = row.sort().values[: m - n].double().sum().item()
                if is_kept.all():
                    spared.append(lost)
                else:
                    assert row[~is_kept].max() <= row[is_kept].min()
                    given_up.append(lost)
        # Sums are compared in float32.
        assert max(given_up) <= min(spared) + 1e-5 * abs(max(given_up))

    def count_pruned(self, masks) -> tuple[int, int]:
        """Entries that are pruned, or groups that are constrained, and of how many."""
        if self.program.pattern is None:
            return sum(int((~mask).sum()) for mask in masks.values()), self.total
        n, m = self.program.pattern
        constrained = 0
        for mask in masks.values():
            kept = mask.movedim(1, -1).reshape(-1, m).sum(1)
            assert set(kept.tolist()) <= {n, m}
            constrained += int((kept == n).sum())
        return constrained, self.total // m

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
            torch.testing.assert_close(compiled(inputs), self.model(inputs), equal_nan=True)

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
        assert platon_prune.summary(self.model).total.kept <= self.total
        self.scheduler.memory()

    # --- what must hold after every call ------------------------------------------------------

    def check(self) -> None:
        masks, others = self.scheduler.masks(), self.twin.masks()
        for name, mask in masks.items():
            assert mask.dtype == torch.bool and mask.is_contiguous()
            assert torch.equal(mask, others[name]), name
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
