"""Float32 products of matrices on a CPU by oneDNN.

torch gives these products to MKL. On an AMD processor with AVX-512 MKL uses half of the width of its vectors, and oneDNN uses all
of it (LOG.md has the figures). Both round in float32 and add in different orders, so the last digits differ, and which of the two
computed a figure is part of its identity.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

from holdfast.core.types import HoldfastError


def multiply_with_onednn(model: nn.Module) -> None:
    """Compute the linear layers of a float32 model on a CPU with oneDNN, forward and backward; all else stays as it is.

    Raises:
        HoldfastError: this build of torch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise HoldfastError("this build of torch has no oneDNN; leave --matmul onednn out")
    for module in model.modules():
        if type(module).forward is nn.Linear.forward:
            vars(module)["forward"] = MethodType(_forward, module)


def _forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return linear(inputs, layer.weight, layer.bias)


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `torch.nn.functional.linear`: inputs … x K, weight N x K, bias N; … x N."""
    if has_torch_function((inputs, weight)):  # who counts products sees this one by its name
        counted: torch.Tensor = handle_torch_function(linear, (inputs, weight), inputs, weight, bias)
        return counted
    product: torch.Tensor = _Linear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        context.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = context.saved_tensors
        for_inputs, for_weight, for_bias = context.needs_input_grad
        flat = gradient.flatten(0, -2)
        # Through `linear`, whose own gradient is known, where a gradient of the gradient is wanted.
        multiply = linear if torch.is_grad_enabled() else _product
        return (
            multiply(gradient, weight.t()) if for_inputs else None,
            multiply(flat.t(), inputs.flatten(0, -2).t()) if for_weight else None,
            flat.sum(0) if for_bias else None,
        )


def _product(left: torch.Tensor, right: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
    """left … x K times the transpose of right N x K."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, added, "none", [], "")
    return product
