// DIoU-NMS on CUDA: greedy suppression under diou_nms.h's criterion.
#include "diou_nms/diou_nms.h"
#include "nms/nms_select.cuh"

namespace d2proj {
namespace {

Tensor diou_nms_cuda(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs, double iou_threshold,
                     double beta) {
  const char* const op = idxs.has_value() ? "batched_diou_nms" : "diou_nms";
  nms::check_arguments(op, boxes, scores, idxs);
  diou_nms::check_beta(op, beta);
  return nms::device_select_exactly(boxes, scores, idxs, diou_nms::diou_above(iou_threshold, beta));
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) { m.impl("diou_nms", TORCH_BOX(&d2proj::diou_nms_cuda)); }
