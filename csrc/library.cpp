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

  // nms
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
  m.def("_nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> (Tensor keep, Tensor count)");

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
}
