// Non-maximum suppression on CUDA: the ops around nms_select.cuh.
#include "nms/nms_select.cuh"

namespace d2proj {
namespace {

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  nms::check_arguments("nms", boxes, scores, std::nullopt);
  return nms::device_select_exactly(boxes, scores, std::nullopt, nms::iou_above(iou_threshold));
}

Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  nms::check_arguments("batched_nms", boxes, scores, idxs);
  return nms::device_select_exactly(boxes, scores, idxs, nms::iou_above(iou_threshold));
}

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                           double iou_threshold) {
  nms::check_arguments("nms_padded", boxes, scores, idxs);
  return nms::device_select(boxes, scores, idxs, nms::iou_above(iou_threshold));
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("nms", TORCH_BOX(&d2proj::nms_cuda));
  m.impl("batched_nms", TORCH_BOX(&d2proj::batched_nms_cuda));
  m.impl("_nms_padded", TORCH_BOX(&d2proj::nms_padded_cuda));
}
