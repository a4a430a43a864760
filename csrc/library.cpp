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
