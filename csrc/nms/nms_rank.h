// What every CPU op of the NMS family does first: boxes ranked by score, ranks grouped by class.
#pragma once

#include <numeric>
#include <vector>

#include "common/tensor.h"
#include "nms/nms_greedy.h"

namespace d2proj {
namespace nms {

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
  std::vector<Record<Key<T>>> records(count);
  for (int64_t i = 0; i < count; ++i) {
    records[i] = {descending_key(static_cast<T>(scores[i])), static_cast<uint32_t>(i)};
  }
  sort_records(records);
  std::vector<uint32_t> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = records[i].index;
  return order;
}

inline std::vector<uint32_t> rank_by_score(const Tensor& scores) {
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
  std::vector<Segment> segments;
};

inline Classes one_class(int64_t count) {
  Classes classes{std::vector<uint32_t>(count), {{0, count}}};
  std::iota(classes.ranks.begin(), classes.ranks.end(), 0);
  return classes;
}

inline Classes group_by_class(const Tensor& idxs, const std::vector<uint32_t>& order) {
  const Tensor dense = torch::stable::contiguous(idxs);
  const int64_t* const ids = static_cast<const int64_t*>(dense.const_data_ptr());
  const int64_t count = order.size();
  std::vector<Record<uint64_t>> records(count);
  for (int64_t rank = 0; rank < count; ++rank) {
    records[rank] = {ascending_key(ids[order[rank]]), static_cast<uint32_t>(rank)};
  }
  sort_records(records);
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

}  // namespace nms
}  // namespace d2proj
