// Non-maximum suppression on the CPU: the ops around nms_greedy.h.
#include <tuple>

#include "nms/nms_select.h"

namespace d2proj {
namespace {

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  nms::check_arguments("nms", boxes, scores, std::nullopt);
  return nms::select_exactly(boxes, scores, std::nullopt, nms::iou_above(iou_threshold));
}

Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  nms::check_arguments("batched_nms", boxes, scores, idxs);
  return nms::select_exactly(boxes, scores, idxs, nms::iou_above(iou_threshold));
}

std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                          double iou_threshold) {
  nms::check_arguments("nms_padded", boxes, scores, idxs);
  const nms::Kept kept = nms::select(boxes, scores, idxs, nms::iou_above(iou_threshold));
  Tensor out = nms::empty_indices(boxes, boxes.size(0));
  torch::stable::fill_(out, -1);
  kept.write(static_cast<int64_t*>(out.mutable_data_ptr()));
  Tensor count = torch::stable::new_empty(boxes, {}, ScalarType::Long);
  *static_cast<int64_t*>(count.mutable_data_ptr()) = kept.count;
  return {out, count};
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("nms", TORCH_BOX(&d2proj::nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&d2proj::batched_nms_cpu));
  m.impl("_nms_padded", TORCH_BOX(&d2proj::nms_padded_cpu));
}
