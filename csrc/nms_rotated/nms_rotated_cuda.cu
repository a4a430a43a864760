// Non-maximum suppression of rotated boxes on CUDA: the chunked engine of nms_select.cuh over prepared boxes.
#include "box_iou_rotated/box_iou_rotated_args.h"
#include "box_iou_rotated/box_iou_rotated_cuda.cuh"
#include "nms/nms_select.cuh"

namespace d2proj {
namespace {

template <typename T>
struct RotatedCriterion {
  using Scalar = T;
  using Box = rotated::Box<T>;

  rotated::Threshold<T> threshold;

  D2_HD static T area(const Box& box) { return box.area; }

  D2_HD bool operator()(const Box& a, T, const Box& b, T) const {
    if (threshold.exact < T(0)) return true;  // even boxes far apart suppress each other
    return rotated::may_suppress(a, b, threshold) && rotated::iou(a, b) > threshold.exact;
  }
};

Tensor select(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
              double threshold) {
  nms::check_arguments(op, boxes, scores, idxs, 5);
  const CudaDevice device(boxes);
  const int64_t count = boxes.size(0);
  if (count == 0) return torch::stable::new_empty(boxes, {&count, 1}, ScalarType::Long);
  const cudaStream_t stream = current_stream(boxes);
  const nms::Ranking ranking(scores, idxs, stream);
  const Scratch<uint8_t> flags(boxes, count);
  const ScalarType type = rotated::common_type(boxes, boxes);
  const Tensor rows = rotated::rows_as(boxes, type);
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    const int64_t sizes[2] = {count, rotated::kFields};
    const Tensor prepared = torch::stable::new_empty(rows, {sizes, 2}, type);
    rotated::prepare_boxes(rows, static_cast<rotated::Box<T>*>(prepared.mutable_data_ptr()), stream);
    const RotatedCriterion<T> criterion{rotated::Threshold<T>(nms::round_down<T>(threshold))};
    nms::run_chunks(prepared, ranking.order(), ranking.ids(), ranking.ranks(), criterion, flags.get(), stream);
  };
  type == ScalarType::Double ? run(double{}) : run(float{});
  auto [keep, kept] = nms::compact(boxes, ranking.order(), flags.get(), count, stream);
  return torch::stable::narrow(keep, 0, 0, nms::read_count(kept));
}

Tensor nms_rotated_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return select("nms_rotated", boxes, scores, std::nullopt, iou_threshold);
}

Tensor batched_nms_rotated_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  return select("batched_nms_rotated", boxes, scores, idxs, iou_threshold);
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("nms_rotated", TORCH_BOX(&d2proj::nms_rotated_cuda));
  m.impl("batched_nms_rotated", TORCH_BOX(&d2proj::batched_nms_rotated_cuda));
}
