// Non-maximum suppression on the CPU: the ops around nms_greedy.h.
#include <numeric>
#include <tuple>

#include "nms/nms_args.h"
#include "nms/nms_rank.h"

namespace d2proj {
namespace {

// The kept boxes, by descending score.
struct Kept {
  std::vector<uint32_t> order;
  std::vector<uint8_t> flags;  // by rank
  int64_t count;

  void write(int64_t* out) const {
    for (size_t rank = 0; rank < order.size(); ++rank) {
      if (flags[rank]) *out++ = order[rank];
    }
  }
};

Kept select(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
            double threshold) {
  nms::check_arguments(op, boxes, scores, idxs);
  const int64_t count = boxes.size(0);
  Kept kept{nms::rank_by_score(scores), std::vector<uint8_t>(count, 0), 0};
  if (count == 0) return kept;
  const nms::Classes classes = idxs.has_value() ? nms::group_by_class(*idxs, kept.order) : nms::one_class(count);
  const Tensor dense = nms::prepare_boxes(boxes);
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    const Box<T>* const data = static_cast<const Box<T>*>(dense.const_data_ptr());
    const auto box_of = [&](uint32_t rank) { return data[kept.order[rank]]; };
    nms::run_segments<T>(classes.ranks, classes.segments, nms::IouCriterion<T>(threshold), box_of, kept.flags.data(),
                         nms::Parallel{});
  };
  dense.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  kept.count = std::accumulate(kept.flags.begin(), kept.flags.end(), int64_t(0));
  return kept;
}

Tensor empty_indices(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {&count, 1}, ScalarType::Long);
}

Tensor select_exactly(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                      double threshold) {
  const Kept kept = select(op, boxes, scores, idxs, threshold);
  Tensor out = empty_indices(boxes, kept.count);
  kept.write(static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return select_exactly("nms", boxes, scores, std::nullopt, iou_threshold);
}

Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  return select_exactly("batched_nms", boxes, scores, idxs, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs,
                                          double iou_threshold) {
  const Kept kept = select("nms_padded", boxes, scores, idxs, iou_threshold);
  Tensor out = empty_indices(boxes, boxes.size(0));
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
