"""What every op's Python half needs: box lists, memory formats, shared registrations."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

BoxesLike = Tensor | Sequence[Tensor]

_LIBRARY = torch.library.Library("d2proj", "IMPL")


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """``value`` or ``(value, value)``."""
    if isinstance(value, (int, torch.SymInt)):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be one number or two, got {list(value)}")
    return value[0], value[1]


def raise_box_dtype(boxes: Tensor) -> Tensor:
    """Boxes in float16 or bfloat16 become float32; their values are exact in it."""
    return boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes


def to_rois(op: str, boxes: BoxesLike) -> Tensor:
    """Boxes as the ops take them: (K, 5) of image index, x1, y1, x2, y2.

    Args:
        op: The op's name, for the error.
        boxes: (K, 5) already, or for each image of the batch its (K_i, 4).
    """
    if isinstance(boxes, Tensor):
        return raise_box_dtype(boxes)
    if len(boxes) == 0:
        raise RuntimeError(
            f"{op}: boxes must be a (K, 5) tensor or a (K_i, 4) for each image, got []"
        )
    for i, each in enumerate(boxes):
        if each.dim() != 2 or each.shape[1] != 4:
            raise RuntimeError(f"{op}: boxes[{i}] must have shape (K, 4), got {tuple(each.shape)}")
    boxes = [raise_box_dtype(each) for each in boxes]
    index = torch.cat([each.new_full((each.shape[0], 1), i) for i, each in enumerate(boxes)])
    return torch.cat([index, torch.cat(list(boxes))], dim=1)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a 4-D tensor is laid out N, H, W, C, and not also N, C, H, W (then that wins).

    The rule of ``is_channels_last`` in ``csrc/common/tensor.h``.
    """
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def memory_format(channels_last: bool) -> torch.memory_format:
    """The memory format of a 4-D result."""
    return torch.channels_last if channels_last else torch.contiguous_format


def register_differentiable(
    name: str,
    *,
    forward_fake: Callable[..., Any],
    backward_fake: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """Register fakes and autograd of ``d2proj::<name>`` and of its ``d2proj::_<name>_backward``.

    The backward op gets an autograd rule of its own, whose only content is a clear error.
    """
    torch.library.register_fake(f"d2proj::{name}", forward_fake)
    torch.library.register_fake(f"d2proj::_{name}_backward", backward_fake)
    torch.library.register_autograd(f"d2proj::{name}", backward, setup_context=setup_context)

    def no_double_backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{name}: double backward is not supported; its gradient cannot be differentiated again"
        )

    torch.library.register_autograd(f"d2proj::_{name}_backward", no_double_backward)
    refuse_vmap(name, f"_{name}_backward")


def refuse_vmap(*names: str) -> None:
    """Make ``torch.func.vmap`` over these ops an error in words; torch would warn and loop."""
    for name in names:

        def refuse(info: Any, in_dims: Any, *args: Any, _op: str = name) -> NoReturn:
            raise RuntimeError(
                f"{_op}: torch.func.vmap is not supported; give the op its batch as one call "
                "(image indices in the boxes, or the batched form of the op)"
            )

        torch.library.register_vmap(f"d2proj::{name}", refuse)


def register_autocast(name: str, box_arguments: Sequence[int]) -> None:
    """Register the ops' rule under autocast: features keep their dtype, boxes are at least float32.

    The kernels take every floating type and accumulate in float32 by themselves, so nothing has to
    be cast down; what must not happen is that boxes stay in half, which cannot tell neighbouring
    pixels past 2048 apart.

    Args:
        name: Op, without the namespace.
        box_arguments: Positions of its box arguments.
    """
    op = getattr(torch.ops.d2proj, name).default

    def rule(device_type: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            raised = [raise_box_dtype(a) if i in box_arguments else a for i, a in enumerate(args)]
            with torch.autocast(device_type, enabled=False):
                return op(*raised)

        return call

    _LIBRARY.impl(name, rule("cpu"), "AutocastCPU")
    _LIBRARY.impl(name, rule("cuda"), "AutocastCUDA")
