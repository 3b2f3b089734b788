"""The forms that torch runs with fewer bits: 16 for all, or int8 by torchao."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from platon_prune.deploy.form import (
    Form,
    Source,
    UnavailableError,
    call_compiled,
    call_in,
    call_of,
    dense_files,
    name_of,
    state_file,
)
from platon_prune.runtimes.int8 import has_bfloat16, quantize_


def half(source: Source, dtype: torch.dtype) -> Form:
    """Weights and activations in 16 bits."""
    name = name_of(dtype)
    if source.dtype == dtype:
        raise UnavailableError(f"the model is in {name} already, which is what dense measures")
    if dtype == torch.bfloat16 and source.is_on_cpu and not has_bfloat16():
        raise UnavailableError(
            "this CPU has no instructions for bfloat16 (AVX-512 BF16, AMX or Arm's BF16), without "
            "which it is slower than float32"
        )
    model = source.in_dtype(dtype)
    files = dense_files(model, source.folder / name)
    return Form(call_in(model, dtype), "torch", files, model, rounds=True)


def int8_weights(source: Source) -> Form:
    """Linear layers with int8 weights, which are brought back to float32 in each call."""
    return _torchao(source, activations=False)


def int8(source: Source) -> Form:
    """Linear layers with int8 weights, and activations that are rounded to int8 in each call."""
    return _torchao(source, activations=True)


def compiled_int8(source: Source) -> Form:
    """The same through ``torch.compile``, which joins the rounding with what is around it."""
    model, files, note = _quantised(source, activations=True)
    run: Any = torch.compile(model, dynamic=False)
    return Form(
        call_compiled(run), "compiled", files, model, note=note, selected=source.dense,
        rounds_weights=True,
    )  # fmt: skip


def _torchao(source: Source, activations: bool) -> Form:
    model, files, note = _quantised(source, activations)
    return Form(
        call_of(model), "torch", files, model, note=note, selected=source.dense,
        rounds_weights=True,
    )  # fmt: skip


def _quantised(source: Source, activations: bool) -> tuple[nn.Module, Any, str]:
    """The quantised model, its files, and what is to be said of it; made once."""
    name = "int8" if activations else "int8 weights"

    def make() -> tuple[nn.Module, Any, str]:
        source.require_float32()
        model = copy.deepcopy(source.dense)
        num_layers = quantize_(model, activations=activations)
        if not num_layers:
            raise UnavailableError("the model has no nn.Linear, the one layer that torchao rounds")
        linear = "linear layer" if num_layers == 1 else "linear layers"
        note = f"{num_layers} {linear}, all else is float32"
        return model, state_file(model, source.folder / name), note

    found: tuple[nn.Module, Any, str] = source.once(name, make)
    return found
