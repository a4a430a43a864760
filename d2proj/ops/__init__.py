"""The compiled ops (CPU and CUDA), one file each; ``reference`` has the same in plain torch."""

from d2proj.ops.box_fusion import non_maximum_weighted, weighted_boxes_fusion
from d2proj.ops.box_iou import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from d2proj.ops.box_iou_rotated import box_iou_rotated
from d2proj.ops.cluster_nms import batched_cluster_nms, cluster_nms
from d2proj.ops.corner_pool import (
    BottomPool,
    CornerPool,
    LeftPool,
    RightPool,
    TopPool,
    corner_pool,
    corner_pool_pair,
)
from d2proj.ops.deform_conv2d import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    deform_conv2d,
)
from d2proj.ops.deform_roi_pool import (
    DeformPSRoIPool,
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPool,
    ModulatedDeformRoIPoolPack,
    deform_ps_roi_pool,
    deform_roi_pool,
)
from d2proj.ops.diou_nms import batched_diou_nms, diou_nms
from d2proj.ops.fused_conv2d import is_built as _is_built  # noqa: F401  (registers its fake)
from d2proj.ops.iou_loss import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    iou_loss,
)
from d2proj.ops.matrix_nms import matrix_nms
from d2proj.ops.multilevel_roi_align import MultiLevelRoIAlign, multilevel_roi_align
from d2proj.ops.nms import batched_nms, nms, nms_padded
from d2proj.ops.nms_rotated import batched_nms_rotated, nms_rotated
from d2proj.ops.ps_roi_pool import PSRoIAlign, PSRoIPool, ps_roi_align, ps_roi_pool
from d2proj.ops.roi_align import RoIAlign, roi_align
from d2proj.ops.roi_align_rotated import RoIAlignRotated, roi_align_rotated
from d2proj.ops.roi_pool import RoIPool, roi_pool
from d2proj.ops.sigmoid_focal_loss import sigmoid_focal_loss
from d2proj.ops.soft_nms import batched_soft_nms, soft_nms
from d2proj.ops.spatial_pyramid_pool import SpatialPyramidPool, spatial_pyramid_pool

__all__ = [
    "non_maximum_weighted",
    "weighted_boxes_fusion",
    "box_iou",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
    "box_iou_rotated",
    "batched_cluster_nms",
    "cluster_nms",
    "BottomPool",
    "CornerPool",
    "LeftPool",
    "RightPool",
    "TopPool",
    "corner_pool",
    "corner_pool_pair",
    "DeformConv2d",
    "DeformConv2dPack",
    "ModulatedDeformConv2dPack",
    "deform_conv2d",
    "DeformPSRoIPool",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "ModulatedDeformRoIPool",
    "ModulatedDeformRoIPoolPack",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "batched_diou_nms",
    "diou_nms",
    "complete_box_iou_loss",
    "distance_box_iou_loss",
    "generalized_box_iou_loss",
    "iou_loss",
    "matrix_nms",
    "MultiLevelRoIAlign",
    "multilevel_roi_align",
    "batched_nms",
    "nms",
    "nms_padded",
    "batched_nms_rotated",
    "nms_rotated",
    "PSRoIAlign",
    "PSRoIPool",
    "ps_roi_align",
    "ps_roi_pool",
    "RoIAlign",
    "roi_align",
    "RoIAlignRotated",
    "roi_align_rotated",
    "RoIPool",
    "roi_pool",
    "sigmoid_focal_loss",
    "batched_soft_nms",
    "soft_nms",
    "SpatialPyramidPool",
    "spatial_pyramid_pool",
]
