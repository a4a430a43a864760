// Non-maximum suppression on the CPU: the ops around nms_greedy.h.
#include <numeric>
#include <tuple>

#include "nms/nms_args.h"
#include "nms/nms_greedy.h"

namespace d2proj {
namespace {

// Tasks on torch's own threads.
struct Parallel {
  int64_t threads() const { return torch::stable::get_num_threads(); }

  template <typename Task>
  void operator()(int64_t tasks, const Task& task) const {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(i);
    });
  }
};

// Indices of the boxes by descending score; `T` is the type the scores are compared in.
template <typename T, typename S>
std::vector<uint32_t> rank_by_score(const S* scores, int64_t count) {
  std::vector<nms::Record<nms::Key<T>>> records(count);
  for (int64_t i = 0; i < count; ++i) {
    records[i] = {nms::descending_key(static_cast<T>(scores[i])), static_cast<uint32_t>(i)};
  }
  nms::sort_records(records);
  std::vector<uint32_t> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = records[i].index;
  return order;
}

std::vector<uint32_t> rank_by_score(const Tensor& scores) {
  const Tensor dense = torch::stable::contiguous(scores);
  std::vector<uint32_t> order;
  dispatch_floating(scores.scalar_type(), [&](auto tag) {
    using S = decltype(tag);
    order = rank_by_score<accumulate_t<S>>(static_cast<const S*>(dense.const_data_ptr()), dense.size(0));
  });
  return order;
}

// Ranks grouped by class, ascending within each.
struct Classes {
  std::vector<uint32_t> ranks;
  std::vector<nms::Segment> segments;
};

Classes one_class(int64_t count) {
  Classes classes{std::vector<uint32_t>(count), {{0, count}}};
  std::iota(classes.ranks.begin(), classes.ranks.end(), 0);
  return classes;
}

Classes group_by_class(const Tensor& idxs, const std::vector<uint32_t>& order) {
  const Tensor dense = torch::stable::contiguous(idxs);
  const int64_t* const ids = static_cast<const int64_t*>(dense.const_data_ptr());
  const int64_t count = order.size();
  std::vector<nms::Record<uint64_t>> records(count);
  for (int64_t rank = 0; rank < count; ++rank) {
    records[rank] = {nms::ascending_key(ids[order[rank]]), static_cast<uint32_t>(rank)};
  }
  nms::sort_records(records);
  Classes classes{std::vector<uint32_t>(count), {}};
  for (int64_t i = 0; i < count; ++i) {
    classes.ranks[i] = records[i].index;
    if (i == 0 || records[i].key != records[i - 1].key) {
      classes.segments.push_back({i, i});
    }
    classes.segments.back().end = i + 1;
  }
  return classes;
}

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
  Kept kept{rank_by_score(scores), std::vector<uint8_t>(count, 0), 0};
  if (count == 0) return kept;
  const Classes classes = idxs.has_value() ? group_by_class(*idxs, kept.order) : one_class(count);
  const Tensor dense = nms::prepare_boxes(boxes);
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    const Box<T>* const data = static_cast<const Box<T>*>(dense.const_data_ptr());
    const auto box_of = [&](uint32_t rank) { return data[kept.order[rank]]; };
    nms::run_segments<T>(classes.ranks, classes.segments, threshold, box_of, kept.flags.data(), Parallel{});
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
