"""`SparseLinear`: a linear layer that holds its weight as CSR and multiplies only what is not zero.

Torch's product is ``W @ x.T`` with 32-bit indices, the one arrangement in which it is fast on a
CPU: the CSR weight on the left, the tokens along the contiguous dimension of both dense matrices.
``F.linear(x, W)`` arranges them the other way round and takes longer than a dense layer.
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from platon_prune.runtimes.sparse_operations import csr, csr_linear, csr_matmul, sparse_linear

Product = Literal["torch", "llvm"]


class SparseLinear(nn.Module):
    """Linear layer for inference on the CPU: ``x @ W.T + bias`` with W as float32 CSR.

    The three tensors of the CSR form are buffers, so the module can be copied, pickled, moved and
    saved like any other; the bias stays a parameter. Gradients reach inputs and bias, as through
    a layer with a frozen weight.

    Args:
        weight: Dense weight, outputs by inputs, float32, on the CPU; its zeros are left out.
        bias: One float32 number per output, or None.
        contiguous_output: Whether the output is laid out as a dense layer's. If not, it is a
            transposed view of torch's product, which saves a copy.
        product: "torch" for torch's own product with a CSR matrix, or "llvm" for
            machine code that llvmlite makes in each process where the layer is called; the output
            is contiguous then. Where llvmlite is missing, or the layer is not on the CPU or has
            less than 16 inputs or outputs, torch's product is used all the same.
    """

    weight_crow_indices: Tensor
    weight_col_indices: Tensor
    weight_values: Tensor
    bias: nn.Parameter | None
    # Of layers that were pickled before there was a choice.
    product: Product = "torch"

    def __init__(
        self,
        weight: Tensor,
        bias: nn.Parameter | None = None,
        *,
        contiguous_output: bool = True,
        product: Product = "torch",
    ) -> None:
        super().__init__()
        if product not in get_args(Product):
            choices = " or ".join(map(repr, get_args(Product)))
            raise ValueError(f"product must be {choices}, got {product!r}")
        self.product = product
        self.out_features, self.in_features = weight.shape
        self.contiguous_output = contiguous_output
        with torch.no_grad(), warnings.catch_warnings():
            # A notice for who chooses CSR, which the user of this layer has not.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            matrix = weight.detach().to_sparse_csr()
        # 32-bit indices save a third of the memory, and LLVM's product takes no others.
        self.register_buffer("weight_crow_indices", matrix.crow_indices().to(torch.int32))
        self.register_buffer("weight_col_indices", matrix.col_indices().to(torch.int32))
        # A copy: what CSR hands out is a view of a sparse tensor, which the compiler refuses.
        self.register_buffer("weight_values", matrix.values().clone())
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The weight, outputs by inputs: sparse CSR that shares memory with the buffers.

        Within a compiled graph, which can't hold sparse tensors, it is dense. Models that read no
        more than its dtype, as T5 does, pay nothing for it: what is not used is not computed.
        """
        if torch.compiler.is_compiling():
            return self._product(torch.eye(self.in_features, device=self.weight_values.device))
        return csr(
            self.weight_crow_indices,
            self.weight_col_indices,
            self.weight_values,
            self.out_features,
            self.in_features,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to the last dimension, as ``nn.Linear`` does.

        Args:
            input: Shape ``(..., in_features)``, float32.

        Returns:
            Shape ``(..., out_features)``, float32.

        Raises:
            TypeError: If the input is not float32, or automatic mixed precision is on.
            ValueError: If the last dimension of the input is not ``in_features``.
        """
        self._check(input)
        # One matrix: CSR multiplies two dimensions only.
        tokens = input.reshape(-1, self.in_features)
        output: Tensor
        if self.product == "llvm":
            output = sparse_linear(
                self.weight_crow_indices,
                self.weight_col_indices,
                self.weight_values,
                self.bias,
                tokens,
            )
        elif torch.compiler.is_compiling():
            # A graph can't hold sparse tensors, so the product is one opaque operation in it; the
            # bias and the transposition are left to the compiler, which fuses them.
            product = self._product(tokens.t())
            output = product.t() if self.bias is None else product.t() + self.bias
        else:
            output = csr_linear(self.bias, self.weight, tokens)
        if self.contiguous_output:
            output = output.contiguous()
        return output.view(*input.shape[:-1], self.out_features)

    def _product(self, dense: Tensor) -> Tensor:
        """``W @ dense`` as one operation of a graph."""
        product: Tensor = csr_matmul(
            self.weight_crow_indices,
            self.weight_col_indices,
            self.weight_values,
            self.in_features,
            dense,
        )
        return product

    def _check(self, input: Tensor) -> None:
        if input.dtype != torch.float32 or self.weight_values.dtype != torch.float32:
            raise TypeError(
                "a sparse linear layer must have float32 inputs and weights, got "
                f"{input.dtype} and {self.weight_values.dtype}: keep the model in float32, or "
                "use the dense one"
            )
        # Autocast would cast the inputs to bfloat16, for which CSR has no kernel.
        if torch.is_autocast_enabled("cpu"):
            raise TypeError(
                "a sparse linear layer must run in float32, got a call under torch.autocast: "
                "leave autocast off, or use the dense one"
            )
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"input must have {self.in_features} entries in its last dimension, got shape "
                f"{tuple(input.shape)}"
            )

    def extra_repr(self) -> str:
        """Sizes and density, for ``print(model)``."""
        density = self.weight_values.numel() / (self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, density={density:.4f}, product={self.product}"
        )
