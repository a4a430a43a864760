// Greedy suppression on the CPU under any criterion: ranking, classes, and the flags of the boxes that stay.
#pragma once

#include <numeric>
#include <vector>

#include "nms/nms_args.h"
#include "nms/nms_rank.h"

namespace d2proj {
namespace nms {

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

inline Classes classes_of(const std::optional<Tensor>& idxs, const std::vector<uint32_t>& order) {
  return idxs.has_value() ? group_by_class(*idxs, order) : one_class(order.size());
}

// Arguments were checked. `criterion_of(T{})` makes the criterion for boxes of float or double.
template <typename CriterionOf>
Kept select(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
            const CriterionOf& criterion_of) {
  const int64_t count = boxes.size(0);
  Kept kept{rank_by_score(scores), std::vector<uint8_t>(count, 0), 0};
  if (count == 0) return kept;
  const Classes classes = classes_of(idxs, kept.order);
  const Tensor dense = prepare_boxes(boxes);
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    const Box<T>* const data = static_cast<const Box<T>*>(dense.const_data_ptr());
    const auto box_of = [&](uint32_t rank) { return data[kept.order[rank]]; };
    run_segments<T>(classes.ranks, classes.segments, criterion_of(tag), box_of, kept.flags.data(), Parallel{});
  };
  dense.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  kept.count = std::accumulate(kept.flags.begin(), kept.flags.end(), int64_t(0));
  return kept;
}

inline Tensor empty_indices(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {&count, 1}, ScalarType::Long);
}

template <typename CriterionOf>
Tensor select_exactly(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                      const CriterionOf& criterion_of) {
  const Kept kept = select(boxes, scores, idxs, criterion_of);
  Tensor out = empty_indices(boxes, kept.count);
  kept.write(static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace nms
}  // namespace d2proj
