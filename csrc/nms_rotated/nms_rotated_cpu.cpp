// Non-maximum suppression of rotated boxes on the CPU: the ops around nms_rotated_grid.h.
#include <atomic>
#include <numeric>

#include "box_iou_rotated/box_iou_rotated_args.h"
#include "nms/nms_args.h"
#include "nms/nms_rank.h"
#include "nms_rotated/nms_rotated_grid.h"

namespace d2proj {
namespace {

// One thread's greedy pass over classes; its buffers are reused from one to the next.
template <typename T>
struct Greedy {
  const T* rows;
  const std::vector<uint32_t>& order;  // index by rank
  T threshold;
  uint8_t* keep;  // by rank
  rotated::Grid<T> grid;
  std::vector<rotated::Box<T>> boxes;
  std::vector<uint32_t> ranks;

  void run_class(const uint32_t* begin, const uint32_t* end) {
    if (threshold < T(0)) {  // even boxes far apart suppress each other
      keep[*begin] = 1;
      return;
    }
    boxes.clear();
    ranks.clear();
    for (const uint32_t* rank = begin; rank < end; ++rank) {
      const rotated::Box<T> box = rotated::prepare(rows + 5 * int64_t(order[*rank]));
      if (box.area > T(0)) {
        boxes.push_back(box);
        ranks.push_back(*rank);
      } else {
        keep[*rank] = 1;  // overlaps nothing
      }
    }
    grid.reset(boxes);
    simd::dispatch<Greedy>(this);
  }

  template <simd::Level L>
  static D2_INLINE void run(Greedy* self) {
    const rotated::Threshold<T> threshold(self->threshold);
    for (size_t i = 0; i < self->boxes.size(); ++i) {
      if (self->grid.template suppressed<L>(self->boxes[i], threshold)) continue;
      self->grid.keep(self->boxes[i]);
      self->keep[self->ranks[i]] = 1;
    }
  }
};

// Classes are shared among the threads; within one there is a single thread, as in nms_greedy.h.
template <typename T>
void run_classes(const Tensor& rows, const std::vector<uint32_t>& order, const nms::Classes& classes, double threshold,
                 uint8_t* keep) {
  constexpr int64_t kWorthAThread = 4096;  // boxes
  std::atomic<int64_t> next{0};
  const int64_t count = classes.segments.size();
  const auto work = [&](int64_t) {
    Greedy<T> greedy{
        static_cast<const T*>(rows.const_data_ptr()), order, nms::round_down<T>(threshold), keep, {}, {}, {}};
    for (int64_t s = next++; s < count; s = next++) {
      const nms::Segment& segment = classes.segments[s];
      greedy.run_class(classes.ranks.data() + segment.begin, classes.ranks.data() + segment.end);
    }
  };
  const nms::Parallel parallel;
  const int64_t useful = std::min<int64_t>(count, order.size() / kWorthAThread);
  const int64_t workers = std::min(parallel.threads(), useful);
  workers > 1 ? parallel(workers, work) : work(0);
}

Tensor select(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
              double threshold) {
  nms::check_arguments(op, boxes, scores, idxs, 5);
  const int64_t count = boxes.size(0);
  const std::vector<uint32_t> order = nms::rank_by_score(scores);
  std::vector<uint8_t> keep(count, 0);
  if (count > 0) {
    const nms::Classes classes = idxs.has_value() ? nms::group_by_class(*idxs, order) : nms::one_class(count);
    const ScalarType type = rotated::common_type(boxes, boxes);
    const Tensor rows = rotated::rows_as(boxes, type);
    type == ScalarType::Double ? run_classes<double>(rows, order, classes, threshold, keep.data())
                               : run_classes<float>(rows, order, classes, threshold, keep.data());
  }
  const int64_t kept = std::accumulate(keep.begin(), keep.end(), int64_t(0));
  Tensor out = torch::stable::new_empty(boxes, {&kept, 1}, ScalarType::Long);
  int64_t* to = static_cast<int64_t*>(out.mutable_data_ptr());
  for (int64_t rank = 0; rank < count; ++rank) {
    if (keep[rank]) *to++ = order[rank];
  }
  return out;
}

Tensor nms_rotated_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return select("nms_rotated", boxes, scores, std::nullopt, iou_threshold);
}

Tensor batched_nms_rotated_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  return select("batched_nms_rotated", boxes, scores, idxs, iou_threshold);
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("nms_rotated", TORCH_BOX(&d2proj::nms_rotated_cpu));
  m.impl("batched_nms_rotated", TORCH_BOX(&d2proj::batched_nms_rotated_cpu));
}
