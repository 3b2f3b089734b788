"""Products with a CSR weight as operations that graphs of torch can hold.

A graph has no sparse tensors, so an operation is handed the three tensors of a CSR matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from platon_prune.runtimes import llvm_product


def csr(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, num_rows: int, num_columns: int
) -> Tensor:
    """The matrix, sharing memory with its three tensors."""
    return torch.sparse_csr_tensor(
        crow_indices, col_indices, values, (num_rows, num_columns), check_invariants=False
    )


def csr_linear(bias: Tensor | None, weight: Tensor, tokens: Tensor) -> Tensor:
    """``tokens @ W.T + bias`` by torch's product; a transposed view of what it computes."""
    if bias is None:
        return (weight @ tokens.t()).t()
    # The bias in the same operation: added afterwards, it would read the output once more.
    return torch.addmm(bias[:, None], weight, tokens.t()).t()


@torch.library.custom_op("platon_prune::csr_matmul", mutates_args=())
def csr_matmul(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, num_columns: int, dense: Tensor
) -> Tensor:
    """``W @ dense`` for a CSR matrix given by its three tensors: rows of W by columns of dense."""
    num_rows = crow_indices.numel() - 1
    return csr(crow_indices, col_indices, values, num_rows, num_columns) @ dense


@torch.library.custom_op("platon_prune::csr_matmul_transposed", mutates_args=())
def csr_matmul_transposed(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, num_columns: int, dense: Tensor
) -> Tensor:
    """``W.T @ dense``, which takes gradients back through the others."""
    num_rows = crow_indices.numel() - 1
    return csr(crow_indices, col_indices, values, num_rows, num_columns).t() @ dense


@torch.library.custom_op("platon_prune::sparse_linear", mutates_args=())
def sparse_linear(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, bias: Tensor | None, tokens: Tensor
) -> Tensor:
    """``tokens @ W.T + bias`` for a CSR matrix: tokens by rows of W, contiguous.

    By machine code of LLVM, or by torch's product where that is not to be had.
    """
    weight = (crow_indices, col_indices, values)
    if llvm_product.can_multiply(weight, bias, tokens):
        return llvm_product.linear(weight, bias, tokens)
    matrix = csr(*weight, crow_indices.numel() - 1, tokens.shape[1])
    return csr_linear(bias, matrix, tokens).contiguous()


@csr_matmul.register_fake
def _(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, num_columns: int, dense: Tensor
) -> Tensor:
    return dense.new_empty(crow_indices.shape[0] - 1, dense.shape[1])


@csr_matmul_transposed.register_fake
def _(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, num_columns: int, dense: Tensor
) -> Tensor:
    return dense.new_empty(num_columns, dense.shape[1])


@sparse_linear.register_fake
def _(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, bias: Tensor | None, tokens: Tensor
) -> Tensor:
    return tokens.new_empty(tokens.shape[0], crow_indices.shape[0] - 1)


# --- gradients ----------------------------------------------------------------------------------


def _remember_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # Not the inputs: the weight is frozen, so only its product with the gradient is needed.
    ctx.save_for_backward(*inputs[:3])
    ctx.num_columns = inputs[3]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return None, None, None, None, csr_matmul_transposed(*ctx.saved_tensors, ctx.num_columns, grad)


csr_matmul.register_autograd(_gradients, setup_context=_remember_weight)


def _remember_layer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.num_columns = inputs[4].shape[1]


def _layer_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    of_bias = grad.sum(0) if ctx.needs_input_grad[3] else None
    of_tokens = None
    if ctx.needs_input_grad[4]:
        back = csr_matmul_transposed(*ctx.saved_tensors, ctx.num_columns, grad.t())
        of_tokens = back.t()
    return None, None, None, of_bias, of_tokens


sparse_linear.register_autograd(_layer_gradients, setup_context=_remember_layer)
