"""A short way into ops whose kernels take microseconds.

An op that ``torch.library.register_autograd`` differentiates pays for it at every call, more than
a small IoU costs: torch enters Python once for the dispatch and once more for the graph. Here the
graph's node is made first and the kernel is called below autograd. The registration stays: under
``torch.compile``, functorch and for callers of ``torch.ops`` it is what runs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def direct(
    op: Any,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    tensors: int = 2,
) -> Callable[..., Any]:
    """The op as a function; tensors that a gradient flows to are its first one or two arguments.

    Args:
        op: ``torch.ops.d2proj.<name>.default``.
        setup_context: As ``register_differentiable`` takes it.
        backward: The same; it calls the backward op, whose own rule refuses a second derivative.
        tensors: 1 or 2, how many such arguments there are.
    """

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            if torch.is_grad_enabled():  # create_graph=True
                return backward(ctx, *grads)
            with torch._C._AutoDispatchBelowAutograd():
                return backward(ctx, *grads)

    Node.__name__ = f"{op.name().split('::')[1]}"

    def call(first: Tensor, second: Tensor, *rest: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return op(first, second, *rest)
        if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
            return Node.apply(first, second, *rest)
        with torch._C._AutoDispatchBelowAutograd():
            return op(first, second, *rest)

    def call_with_one(first: Tensor, *rest: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return op(first, *rest)
        if first.requires_grad and torch.is_grad_enabled():
            return Node.apply(first, *rest)
        with torch._C._AutoDispatchBelowAutograd():
            return op(first, *rest)

    return call if tensors == 2 else call_with_one
