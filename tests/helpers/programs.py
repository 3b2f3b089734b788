"""Random models and random orders of calls for `test_properties.py`: what to build and what to do.

A :class:`Program` is plain data that hypothesis draws and shrinks; `program_machine.py` carries it
out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
COMPILED = 60  # one in so many programs has a call of the compiled model, which is slow
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


def _deep(a, b):
    """Two hidden layers: what one loses makes the other cheaper, and the second would go first."""
    layers = nn.Linear(a, b), nn.ReLU(), nn.Linear(b, a + 1), nn.Tanh(), nn.Linear(a + 1, 2)
    with torch.no_grad():
        for layer in layers[2::2]:
            layer.weight *= 0.01
    return nn.Sequential(*layers)


def _conv(a, b):
    return nn.Sequential(nn.Conv1d(a, b, 2), nn.Flatten(), nn.Linear(b * 3, 2))


def _attention(a, b):
    return nn.TransformerEncoderLayer(2 * a, 2, b, dropout=0.0, batch_first=True)


# Of two small sizes: the model, and the shape of its input.
MODELS = {
    "mlp": (_mlp, lambda a, b: (2, a)),
    "deep": (_deep, lambda a, b: (2, a)),
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
    # n and m, or "structured"; None for single weights.
    pattern: tuple[int, int] | str | None = None

    def set_up(self, model: nn.Module) -> platon_prune.PlatonScheduler:
        if self.pattern is None:
            return platon_prune.global_unstructured(
                model, **dict(warmup_steps=0, cooldown_steps=0) | self.settings
            )
        if isinstance(self.pattern, str):
            return platon_prune.global_structured(
                model,
                self.inputs(),
                kinds=("neurons", "channels"),
                min_neurons=0.0,
                min_channels=0.0,
                **dict(warmup_steps=0, cooldown_steps=0) | self.settings,
            )
        n, m = self.pattern
        return platon_prune.semi_structured(
            model, n=n, m=m, **dict(warmup_steps=0, cooldown_steps=0) | self.settings
        )

    def model(self) -> nn.Module:
        # Without the seeds of other devices, which cost torch a formatted stack each time.
        torch.default_generator.manual_seed(self.seed)
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
    # Floats are 0, where nothing goes, often enough.
    amount = draw(st.one_of(st.floats(0, 0.999), st.sampled_from([0.5, 0.9, 0.99])))
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
    elif draw(st.integers(0, 3)) == 0 and kind in ("mlp", "deep", "conv"):
        pattern = "structured"
        settings["include"] = None
        settings["aggregate"] = draw(st.sampled_from(["mean", "sum", "max", "l2"]))
        sizes = sizes[0], max(2, sizes[1])
        # One group of each place stays, and what it holds of each tensor is at most this share.
        places = (sizes[1], sizes[0] + 1) if kind == "deep" else sizes[1:]
        for name in ("amount", "initial_amount"):
            settings[name] *= 1 - 1 / min(places)
    # Long enough that most programs choose several times, and many reach the end of their run.
    calls = draw(st.lists(st.sampled_from(2 * STEPS + CALLS), min_size=8, max_size=32))
    if draw(st.sampled_from(range(COMPILED))) == COMPILED // 2:  # ends are drawn more often
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
