"""The kernels that torch has for 2:4 weights, cuSPARSELt's and CUTLASS's, tried on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Convert = Callable[[Tensor], Tensor]

N, M = 2, 4  # the one pattern that torch has kernels for
DTYPES = (torch.float16, torch.bfloat16)
_OLDEST = (8, 0)  # compute capability
_TRIED = 128  # rows, columns and inputs of what the device is tried with
_NEEDED = "a CUDA GPU of compute capability 8.0 or newer and weights in float16 or bfloat16"


def _by_cusparselt(weight: Tensor) -> Tensor:
    return torch.sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense(weight)


def _by_cutlass(weight: Tensor) -> Tensor:
    return torch.sparse.SparseSemiStructuredTensorCUTLASS.from_dense(weight)


# By the classes, not by torch.sparse.to_sparse_semi_structured, which makes one kind or the other
# by a flag of the whole process.
KERNELS: Mapping[str, Convert] = {"cuSPARSELt": _by_cusparselt, "CUTLASS": _by_cutlass}


def usable_kernels(device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Convert], str]:
    """The kernels that work on a device for a type of weights, found out by using them.

    Args:
        device: Where the weights are.
        dtype: Of the weights.

    Returns:
        By name how each makes its form of a weight; and, if there is none, what is missing, to
        follow "need".
    """
    missing = _reason_against(device, dtype)
    if missing is not None:
        return {}, missing
    # Tried for real: which kernels a build of torch has, no version or property tells.
    reasons = {name: _try(convert, device, dtype) for name, convert in KERNELS.items()}
    usable = {name: KERNELS[name] for name, reason in reasons.items() if reason is None}
    said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return usable, "" if usable else f"{_NEEDED}, got from torch {said}"


def _reason_against(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"{_NEEDED}, got {device.type}: call model.half().cuda() first, or stay dense"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"{_NEEDED}, got {torch.cuda.get_device_name(device)} with {capability}: stay dense"
    # CUTLASS has kernels for float32 as well, which round it to fewer bits than a dense layer does.
    if dtype not in DTYPES:
        name = str(dtype).removeprefix("torch.")
        return f"{_NEEDED}, got {name} weights: call model.half() first, or stay dense"
    return None


def _try(convert: Convert, device: torch.device, dtype: torch.dtype) -> str | None:
    """What goes wrong with a matrix that is known to be 2:4, whatever the model's weights are."""
    # A generator of its own: the user's random numbers stay what they were.
    generator = torch.Generator(device).manual_seed(0)
    weight, inputs = torch.randn(2, _TRIED, _TRIED, generator=generator, device=device).to(dtype)
    weight.view(-1, M)[:, N:] = 0
    expected = nn.functional.linear(inputs, weight)
    try:
        found = nn.functional.linear(inputs, convert(weight))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error)
    # Kernels of an unknown card may run and be wrong, which no error would tell.
    if not torch.allclose(found, expected, rtol=0.02, atol=0.1):
        return f"nothing, but its results are wrong with torch {torch.__version__} on {device}"
    return None
