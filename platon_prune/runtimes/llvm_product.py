"""A linear layer with a sparse weight, by machine code that LLVM makes for this processor.

It needs llvmlite, which is LLVM as a Python package, and no C++ compiler. Without it, or for
tensors that the code does not take, torch's own product is there.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from platon_prune.extras import how_to_install

# The least numbers of inputs and outputs that the code takes: those of a vector.
SMALLEST = 16
# Tokens in one pass, so that what is packed for it stays a few MB however many there are.
_TOKENS_IN_A_PASS = 1024
# Multiply-adds of vectors for which another thread is woken: about ten microseconds of work.
_GRAIN = 32_768
_LOCK = threading.Lock()


class _Kernel(NamedTuple):
    """Addresses of the two functions, what a job looks like, and what owns the code."""

    pack: int
    product: int
    job: type[ctypes.Structure]
    tokens_in_a_block: int
    engine: object


def why_not() -> str | None:
    """Why there is no machine code in this process, if so."""
    kernel = _kernel()
    return kernel if isinstance(kernel, str) else None


def takes(shape: tuple[int, int]) -> bool:
    """Whether a weight of so many outputs and inputs can be multiplied by it here."""
    return min(shape) >= SMALLEST and why_not() is None


def can_multiply(weight: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, input: Tensor) -> bool:
    """Whether :func:`linear` takes these tensors.

    Args:
        weight: Row pointers, columns and values of a CSR matrix.
        bias: One number per output, or None.
        input: Tokens by inputs.
    """
    crow_indices, col_indices, values = weight
    # Addresses are all that the code is given: what is elsewhere or of another type must not pass.
    return (
        input.is_cpu
        and crow_indices.is_cpu
        and col_indices.is_cpu
        and values.is_cpu
        and input.dtype == values.dtype == torch.float32
        and crow_indices.dtype == col_indices.dtype == torch.int32
        and (bias is None or (bias.is_cpu and bias.dtype == torch.float32))
        and takes((crow_indices.numel() - 1, input.shape[1]))
    )


def linear(weight: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, input: Tensor) -> Tensor:
    """``input @ W.T + bias`` for a CSR matrix W, if :func:`can_multiply`.

    Args:
        weight: Row pointers, columns (both int32) and values of W.
        bias: One number per output, or None.
        input: Tokens by inputs, float32.

    Returns:
        Tokens by outputs, float32, contiguous.
    """
    kernel = _kernel()
    assert isinstance(kernel, _Kernel)
    crow_indices, col_indices, values = (tensor.contiguous() for tensor in weight)
    num_tokens, num_inputs = input.shape
    num_outputs = crow_indices.numel() - 1
    if input.stride(1) != 1:
        input = input.contiguous()
    bias = input.new_zeros(num_outputs) if bias is None else bias.contiguous()
    output = input.new_empty(num_tokens, num_outputs)
    # Whole vectors: the last tokens of a block may be none.
    in_a_pass = min(num_tokens, _TOKENS_IN_A_PASS)
    panels = input.new_empty(-(-in_a_pass // SMALLEST) * SMALLEST * num_inputs)
    for first in range(0, num_tokens, _TOKENS_IN_A_PASS):
        tokens = input[first : first + _TOKENS_IN_A_PASS]
        job: Any = kernel.job(
            num_tokens=len(tokens),
            num_inputs=num_inputs,
            num_outputs=num_outputs,
            input_stride=tokens.stride(0),
            input=tokens.data_ptr(),
            crow_indices=crow_indices.data_ptr(),
            col_indices=col_indices.data_ptr(),
            values=values.data_ptr(),
            bias=bias.data_ptr(),
            panels=panels.data_ptr(),
            output=output[first:].data_ptr(),
        )
        blocks = -(-len(tokens) // kernel.tokens_in_a_block)
        work = values.numel() * -(-len(tokens) // SMALLEST)
        threads = min(torch.get_num_threads(), 1 + work // _GRAIN)
        # One after the other, since any row may read any input.
        for function, count in ((kernel.pack, num_inputs), (kernel.product, num_outputs)):
            job.next_item, job.num_items = 0, blocks * -(-count // SMALLEST)
            _run(function, ctypes.addressof(job), threads)
    return output


# --- threads ------------------------------------------------------------------------------------


def _run(function: int, job: int, threads: int) -> None:
    """Call a function on several threads; each takes work from the job until none is left."""
    region = _parallel_region()
    if threads == 1 or region is None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(job)
    else:
        region(function, job, threads, 0)


@functools.cache
def _parallel_region() -> Any:
    """The entry into OpenMP's threads that compiled code uses, of the library that torch loaded.

    Torch's own threads, so that no second pool competes with them for the processor. None where
    torch works with other threads, as on Windows; one thread does the work then.
    """
    try:
        region = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    region.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    region.restype = None
    return region


# --- the code -----------------------------------------------------------------------------------


def _kernel() -> _Kernel | str:
    # One compilation at a time, since LLVM's settings belong to the process.
    with _LOCK:
        return _compile()


@functools.cache
def _compile() -> _Kernel | str:
    """The code, made once per process; or why there is none."""
    try:
        import llvmlite.binding as llvm

        from platon_prune.runtimes import llvm_kernel
    except (ImportError, OSError) as error:
        return f"llvmlite can't be imported ({error}): {how_to_install('llvmlite', 'cpu')}"
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features().flatten()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True
        )
        module = llvm.parse_assembly(llvm_kernel.source())
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        module.verify()
        tuning = llvm.create_pipeline_tuning_options(speed_level=2)
        passes = llvm.create_pass_builder(machine, tuning)
        passes.getModulePassManager().run(module, passes)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
    except (RuntimeError, AttributeError, TypeError) as error:
        # Also of a release with another interface: what is optional must not stand in the way.
        return f"llvmlite makes no code here ({error})"
    fields = [(name, ctypes.c_int64) for name in llvm_kernel.JOB_FIELDS]
    job = type("Job", (ctypes.Structure,), {"_fields_": fields})
    pack, product = (engine.get_function_address(name) for name in ("pack", "product"))
    return _Kernel(pack, product, job, llvm_kernel.BLOCK, engine)
