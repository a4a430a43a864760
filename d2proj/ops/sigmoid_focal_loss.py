"""Focal loss (Lin et al., Focal loss for dense object detection, ICCV 2017, eq. 5)."""

from typing import Any

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops._common import is_channels_last, memory_format, register_differentiable

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> Tensor:
    """``-alpha_t (1 - p_t)^gamma log p_t`` of independent binary classifications.

    Signature and semantics are ``torchvision.ops.sigmoid_focal_loss``'s, and targets may be
    classes too (as in mmcv), which spares the one-hot matrix.

    Args:
        inputs: Logits of any shape, float16, bfloat16, float32 or float64.
        targets: A value from 0 to 1 for each logit, in the shape of ``inputs``. Or int64 classes,
            in its shape without the last dimension, K: 0 to K - 1 makes that logit of the row the
            positive one, K or more makes all negative, and rows below 0 are ignored.
        alpha: Weight of positives, negatives weigh ``1 - alpha``; below 0: no weights.
        gamma: How much easy examples are muted; 0 or more.
        reduction: ``none``, ``sum`` or ``mean`` (over all logits, ignored ones too).

    Returns:
        The losses in the shape and memory format of ``inputs``, or one number; in its dtype.

    Raises:
        RuntimeError: Wrong shapes, dtypes or devices; a negative ``gamma``; ``targets`` that want a
            gradient: it flows to ``inputs`` alone.
        ValueError: ``alpha`` above 1, or an unknown ``reduction``.
    """
    _ext.require()
    if not alpha <= 1:
        raise ValueError(f"sigmoid_focal_loss: alpha must be at most 1, got {alpha}")
    if reduction not in _REDUCTIONS:
        raise ValueError(
            f"sigmoid_focal_loss: reduction must be none, mean or sum, got {reduction!r}"
        )
    if targets.requires_grad:
        raise RuntimeError("sigmoid_focal_loss: targets must not require a gradient")
    if targets.dtype != inputs.dtype and targets.shape == inputs.shape:
        targets = targets.to(inputs.dtype)
    return torch.ops.d2proj.sigmoid_focal_loss(
        inputs, targets, alpha, gamma, _REDUCTIONS[reduction]
    )


def _empty_like(inputs: Tensor, targets: Tensor) -> Tensor:
    last = targets.dtype != torch.int64 and inputs.dim() == 4 and is_channels_last(inputs)
    return torch.empty_like(inputs, memory_format=memory_format(last))


def _forward_fake(
    inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int
) -> Tensor:
    torch._check(
        targets.shape == (inputs.shape[:-1] if targets.dtype == torch.int64 else inputs.shape),
        lambda: (
            "sigmoid_focal_loss: targets must have the shape of inputs, or be its rows' classes"
        ),
    )
    return inputs.new_empty(()) if reduction else _empty_like(inputs, targets)


def _backward_fake(
    grad: Tensor, inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int
) -> Tensor:
    return _empty_like(inputs, targets)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, targets, *ctx.options = inputs
    ctx.save_for_backward(logits, targets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    logits, targets = ctx.saved_tensors
    grad_logits = torch.ops.d2proj._sigmoid_focal_loss_backward(grad, logits, targets, *ctx.options)
    return grad_logits, None, None, None, None


if _ext.AVAILABLE:
    register_differentiable(
        "sigmoid_focal_loss",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    for _device in ("cpu", "cuda"):
        # As torch does with its own losses: a sum of many can exceed what half can hold.
        torch.library.register_autocast("d2proj::sigmoid_focal_loss", _device, torch.float32)
