"""Export to ONNX: the ops as standard ONNX operators, for ``torch.onnx.export(dynamo=True)``.

``onnx`` and ``onnxscript`` are needed, and only here.
"""

from collections.abc import Callable
from typing import Any

import torch

from d2proj.ops import _ext


def translation_table() -> dict[Any, Callable[..., Any]]:
    """What ``torch.onnx.export``'s ``custom_translation_table`` takes, for ``opset_version`` 19 on.

    ===================  ========================================================================
    ``roi_align``        ``RoiAlign`` (``half_pixel`` if aligned, else ``output_half_pixel``)
    ``nms``              ``NonMaxSuppression``, then the kept indices by descending score
    ``batched_nms``      the same, a class of ONNX's for each distinct index: no coordinate offset
    ``deform_conv2d``    ``DeformConv``
    ===================  ========================================================================

    Boxes and scores are compared in float32, which is what ONNX's operators have. Equal scores
    keep the order of their indices.

    Raises:
        RuntimeError: The compiled ops are missing.
        ImportError: onnxscript is missing.
    """
    _ext.require()
    from onnxscript import FLOAT, INT64, opset19

    op: Any = opset19  # its stubs do not know the exporter's symbolic values

    def ranked(selected: Any, scores: Any) -> Any:
        """The kept indices by descending score; ``selected`` is (M, 3), in any order."""
        index = op.Gather(selected, op.Constant(value_ints=[2]), axis=1)
        index = op.Reshape(index, op.Constant(value_ints=[-1]))
        count = op.Shape(index)
        # TopK is stable, so indices that ascend keep equal scores in order.
        index, _ = op.TopK(index, count, axis=0, largest=0)
        _, order = op.TopK(op.Gather(scores, index), count, axis=0, largest=1)
        return op.Gather(index, order)

    def suppress(boxes: Any, scores: Any, flat: Any, iou_threshold: float) -> Any:
        """``scores``: (1, classes, N), -inf where a box is not of the class; ``flat``: (N,)."""
        most = op.Constant(value_ints=[torch.iinfo(torch.int32).max])
        selected = op.NonMaxSuppression(
            op.Unsqueeze(boxes, op.Constant(value_ints=[0])),
            scores,
            most,
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[torch.finfo(torch.float32).min]),
        )
        return ranked(selected, flat)

    def nms(boxes: FLOAT, scores: FLOAT, iou_threshold: float) -> INT64:
        boxes, flat = op.Cast(boxes, to=FLOAT.dtype), op.Cast(scores, to=FLOAT.dtype)
        return suppress(
            boxes, op.Unsqueeze(flat, op.Constant(value_ints=[0, 1])), flat, iou_threshold
        )

    def batched_nms(boxes: FLOAT, scores: FLOAT, idxs: INT64, iou_threshold: float) -> INT64:
        boxes, flat = op.Cast(boxes, to=FLOAT.dtype), op.Cast(scores, to=FLOAT.dtype)
        classes, _, _, _ = op.Unique(idxs)
        of_class = op.Equal(  # (classes, N)
            op.Unsqueeze(classes, op.Constant(value_ints=[1])),
            op.Unsqueeze(idxs, op.Constant(value_ints=[0])),
        )
        masked = op.Where(of_class, flat, op.Constant(value_float=float("-inf")))
        return suppress(
            boxes, op.Unsqueeze(masked, op.Constant(value_ints=[0])), flat, iou_threshold
        )

    def roi_align(
        input: FLOAT,
        boxes: FLOAT,
        spatial_scale: float,
        pooled_height: int,
        pooled_width: int,
        sampling_ratio: int,
        aligned: bool,
    ) -> FLOAT:
        first, last = op.Constant(value_ints=[1]), op.Constant(value_ints=[5])
        corners = op.Slice(boxes, first, last, first)
        index = op.Reshape(
            op.Gather(boxes, op.Constant(value_ints=[0]), axis=1), op.Constant(value_ints=[-1])
        )
        return op.RoiAlign(
            input,
            op.CastLike(corners, input),
            op.Cast(index, to=INT64.dtype),
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
            output_height=pooled_height,
            output_width=pooled_width,
            sampling_ratio=max(sampling_ratio, 0),
            spatial_scale=spatial_scale,
        )

    def deform_conv2d(
        input: FLOAT,
        weight: FLOAT,
        offset: FLOAT,
        mask: FLOAT | None,
        bias: FLOAT | None,
        stride_h: int,
        stride_w: int,
        pad_h: int,
        pad_w: int,
        dilation_h: int,
        dilation_w: int,
    ) -> FLOAT:
        sizes: Any = (input.shape, weight.shape, offset.shape)
        channels, (_, group_channels, *kernel), shifts = sizes[0][1], sizes[1], sizes[2][1]
        return op.DeformConv(
            input,
            weight,
            offset,
            bias,
            mask,
            kernel_shape=kernel,
            strides=[stride_h, stride_w],
            pads=[pad_h, pad_w, pad_h, pad_w],
            dilations=[dilation_h, dilation_w],
            group=channels // group_channels,
            offset_group=shifts // (2 * kernel[0] * kernel[1]),
        )

    table: dict[Any, Callable[..., Any]] = {
        torch.ops.d2proj.nms.default: nms,
        torch.ops.d2proj.batched_nms.default: batched_nms,
        torch.ops.d2proj.roi_align.default: roi_align,
    }
    if hasattr(torch.ops.d2proj, "deform_conv2d"):
        table[torch.ops.d2proj.deform_conv2d.default] = deform_conv2d
    return table
