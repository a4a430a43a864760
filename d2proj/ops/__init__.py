"""The compiled ops (CPU and CUDA), one file each; ``reference`` has the same in plain torch."""

from d2proj.ops.multilevel_roi_align import MultiLevelRoIAlign, multilevel_roi_align
from d2proj.ops.nms import batched_nms, nms, nms_padded
from d2proj.ops.roi_align import RoIAlign, roi_align
from d2proj.ops.roi_align_rotated import RoIAlignRotated, roi_align_rotated

__all__ = ["MultiLevelRoIAlign", "multilevel_roi_align"]
__all__ += ["RoIAlign", "roi_align", "batched_nms", "nms", "nms_padded"]
__all__ += ["RoIAlignRotated", "roi_align_rotated"]
