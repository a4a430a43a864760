// The list of d2proj's compiled ops. Kernels register themselves beside their code (csrc/<op>/<op>_{cpu.cpp,cuda.cu});
// autograd, fake kernels and autocast rules are in d2proj/ops/<op>.py.
#include <torch/csrc/stable/library.h>

#include "build_info.h"

// Read from the file's bytes by d2proj/ops/_ext.py, so that it can be told even if the library does not load.
extern "C" __attribute__((used, visibility("default"))) const char d2proj_build_info[] =
    "d2proj-build-info:" D2PROJ_BUILD_INFO;

STABLE_TORCH_LIBRARY(d2proj, m) {
  // roi_align
  m.def(
      "roi_align(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "_roi_align_backward(Tensor grad, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned, "
      "bool channels_last, bool deterministic) -> Tensor");

  // multilevel_roi_align: reduce is 0 assigned, 1 none, 2 sum, 3 max; the second result is the level of each maximum
  m.def(
      "multilevel_roi_align(Tensor[] inputs, Tensor boxes, Tensor? levels, float[] spatial_scales, "
      "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned, int reduce, float canonical_size, "
      "int canonical_level) -> (Tensor output, Tensor winner)");
  m.def(
      "_multilevel_roi_align_backward(Tensor grad, Tensor winner, Tensor boxes, Tensor? levels, "
      "float[] spatial_scales, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, "
      "SymInt[] heights, SymInt[] widths, int sampling_ratio, bool aligned, int reduce, float canonical_size, "
      "int canonical_level, int[] channels_last, bool deterministic) -> Tensor[]");

  // roi_align_rotated
  m.def(
      "roi_align_rotated(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio) -> Tensor");
  m.def(
      "_roi_align_rotated_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, "
      "bool channels_last, bool deterministic) -> Tensor");

  // nms
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
  m.def("_nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> (Tensor keep, Tensor count)");

  // deform_roi_pool
  m.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor offset, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, float gamma) -> Tensor");
  m.def(
      "_deform_roi_pool_backward(Tensor grad, Tensor input, Tensor rois, Tensor offset, float spatial_scale, "
      "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, float gamma, bool channels_last, "
      "bool deterministic) -> (Tensor grad_input, Tensor grad_offset)");
  m.def(
      "deform_ps_roi_pool(Tensor input, Tensor rois, Tensor offset, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt group_height, SymInt group_width, SymInt part_height, SymInt part_width, "
      "int sample_per_part, float gamma) -> Tensor");
  m.def(
      "_deform_ps_roi_pool_backward(Tensor grad, Tensor input, Tensor rois, Tensor offset, float spatial_scale, "
      "SymInt pooled_height, SymInt pooled_width, SymInt group_height, SymInt group_width, SymInt part_height, "
      "SymInt part_width, int sample_per_part, float gamma, bool channels_last, bool deterministic) "
      "-> (Tensor grad_input, Tensor grad_offset)");
  // box_iou_rotated, nms_rotated
  m.def("box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor");
  m.def("nms_rotated(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms_rotated(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");

  // box_fusion
  m.def(
      "weighted_boxes_fusion(Tensor boxes, Tensor scores, Tensor labels, Tensor models, Tensor weights, float iou_thr, "
      "float skip_box_thr, int conf_type, bool allows_overflow) -> (Tensor, Tensor, Tensor)");
  m.def(
      "non_maximum_weighted(Tensor boxes, Tensor scores, Tensor labels, Tensor models, Tensor weights, float iou_thr, "
      "float skip_box_thr) -> (Tensor, Tensor, Tensor)");
  // soft_nms, diou_nms, matrix_nms, cluster_nms
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, float sigma, float min_score, "
      "int method) -> (Tensor dets, Tensor keep)");
  m.def("diou_nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, float beta) -> Tensor");
  m.def(
      "matrix_nms(Tensor boxes, Tensor scores, Tensor? idxs, bool gaussian, float sigma, float min_score) "
      "-> (Tensor dets, Tensor keep)");
  m.def(
      "cluster_nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, int variant, float beta, "
      "float sigma, float min_score) -> (Tensor dets, Tensor keep)");
  // The IoU family; kind: 0 IoU, 1 generalized, 2 distance, 3 complete; format: 0 xyxy, 1 xywh, 2 cxcywh; reduction: 0
  // none, 1 mean, 2 sum.
  m.def("pairwise_box_iou(Tensor boxes1, Tensor boxes2, int kind, int format, float eps) -> Tensor");
  m.def(
      "_pairwise_box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, int kind, int format, float eps) "
      "-> (Tensor, Tensor)");
  m.def("box_iou_loss(Tensor boxes1, Tensor boxes2, int kind, bool log, int reduction, float eps) -> Tensor");
  m.def(
      "_box_iou_loss_backward(Tensor grad, Tensor boxes1, Tensor boxes2, int kind, bool log, int reduction, float eps, "
      "bool want1, bool want2) -> (Tensor, Tensor)");
  // roi_pool, spatial_pyramid_pool
  m.def(
      "roi_pool(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "bool with_argmax) -> (Tensor output, Tensor argmax)");
  m.def(
      "_roi_pool_backward(Tensor grad, Tensor boxes, Tensor argmax, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, bool channels_last, "
      "bool deterministic) -> Tensor");
  m.def(
      "spatial_pyramid_pool(Tensor input, Tensor boxes, int[] bins, float spatial_scale, bool with_argmax) "
      "-> (Tensor output, Tensor argmax)");
  m.def(
      "_spatial_pyramid_pool_backward(Tensor grad, Tensor boxes, Tensor argmax, int[] bins, float spatial_scale, "
      "SymInt batch_size, SymInt channels, SymInt height, SymInt width, bool channels_last, bool deterministic) "
      "-> Tensor");

  // Inference alone: a convolution with bias, activation and residual; weights come packed (d2proj/layers/fused.py)
  m.def(
      "_fused_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int out_channels, int kernel_h, "
      "int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, bool winograd, "
      "bool depthwise, int activation, float slope) -> Tensor");

  // ps_roi_pool, ps_roi_align
  m.def(
      "ps_roi_pool(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
      "-> Tensor");
  m.def(
      "_ps_roi_pool_backward(Tensor grad, Tensor boxes, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, bool channels_last, "
      "bool deterministic) -> Tensor");
  m.def(
      "ps_roi_align(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio) -> Tensor");
  m.def(
      "_ps_roi_align_backward(Tensor grad, Tensor boxes, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, "
      "bool channels_last, bool deterministic) -> Tensor");
  // corner_pool
  m.def("corner_pool(Tensor input, int dim, bool from_end) -> Tensor");
  m.def("_corner_pool_backward(Tensor grad, Tensor input, int dim, bool from_end) -> Tensor");
  m.def("corner_pool_pair(Tensor x_a, Tensor x_b, bool from_end) -> Tensor");
  m.def("_corner_pool_pair_backward(Tensor grad, Tensor x_a, Tensor x_b, bool from_end) -> (Tensor, Tensor)");

  // sigmoid_focal_loss
  m.def("sigmoid_focal_loss(Tensor inputs, Tensor targets, float alpha, float gamma, int reduction) -> Tensor");
  m.def(
      "_sigmoid_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, float alpha, float gamma, "
      "int reduction) -> Tensor");
  // deform_conv2d
  m.def(
      "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias, SymInt stride_h, "
      "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w) -> Tensor");
  m.def(
      "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor? mask, "
      "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
      "bool need_input, bool need_weight, bool need_offset, bool need_mask, bool deterministic) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_offset, Tensor grad_mask)");
}
