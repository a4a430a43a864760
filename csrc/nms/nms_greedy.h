// Sorting, classes and threads around the grid of nms_grid.h: greedy NMS of a whole set on the CPU.
//
// Boxes are ranked by score; those of one class form a segment, in rank order. Segments are independent
// of each other and shared among the threads. Within a segment there is one thread: the grid leaves so
// little work for each box that handing it to others cost more than it saved (measured: a quarter
// faster on two idle cores, a hundred times slower where other processes held them).

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "nms/nms.h"
#include "nms/nms_grid.h"

namespace d2proj {
namespace nms {

template <typename K>
struct Record {
  K key;
  uint32_t index;
};

// Stable, by ascending key; `index` must ascend within equal keys, as it does in a fresh list.
template <typename K>
void sort_records(std::vector<Record<K>>& records) {
  const size_t count = records.size();
  if (count < 192) {
    std::sort(records.begin(), records.end(), [](const Record<K>& a, const Record<K>& b) {
      return a.key != b.key ? a.key < b.key : a.index < b.index;
    });
    return;
  }
  constexpr int kDigits = sizeof(K);
  std::vector<uint32_t> histogram(kDigits * 256);
  for (const Record<K>& record : records) {
    for (int digit = 0; digit < kDigits; ++digit) {
      ++histogram[digit * 256 + ((record.key >> (8 * digit)) & 255)];
    }
  }
  std::vector<Record<K>> other(count);
  for (int digit = 0; digit < kDigits; ++digit) {
    uint32_t* const slot = &histogram[digit * 256];
    if (slot[(records[0].key >> (8 * digit)) & 255] == count) {
      continue;  // all alike in this digit
    }
    uint32_t total = 0;
    for (int value = 0; value < 256; ++value) {
      const uint32_t here = slot[value];
      slot[value] = total;
      total += here;
    }
    for (const Record<K>& record : records) {
      other[slot[(record.key >> (8 * digit)) & 255]++] = record;
    }
    records.swap(other);
  }
}

// A run of ranks that belong to one class: ranks[begin, end) of the list `by_class`.
struct Segment {
  int64_t begin, end;
};

// One thread's greedy pass over segments; its buffers are reused from one to the next. A criterion other than
// IouCriterion must imply that the IoU is above its threshold (see Grid).
template <typename T, typename Criterion>
class Greedy {
 public:
  explicit Greedy(const Criterion& criterion)
      : threshold_(criterion.threshold), criterion_(criterion), grid_(threshold_, criterion) {}

  // Sets keep[rank] for each rank of the segment. `box_of(rank)` gives the box.
  template <typename BoxOf>
  void run(const uint32_t* ranks, int64_t count, const BoxOf& box_of, uint8_t* keep) {
    if (!threshold_.prunable()) {
      run_unpruned(ranks, count, box_of, keep);
      return;
    }
    boxes_.clear();
    areas_.clear();
    ranks_.clear();
    boxes_.reserve(count);
    areas_.reserve(count);
    ranks_.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> box = box_of(ranks[i]);
      const T area = box_area(box);
      if (inert(box, area)) {
        keep[ranks[i]] = 1;
      } else {
        boxes_.push_back(box);
        areas_.push_back(area);
        ranks_.push_back(ranks[i]);
      }
    }
    const int64_t active = boxes_.size();
    grid_.reset(boxes_.data(), areas_.data(), active);
    for (int64_t i = 0; i < active; ++i) {
      if (grid_.suppressed(boxes_[i], areas_[i])) continue;
      grid_.keep(boxes_[i], areas_[i]);
      keep[ranks_[i]] = 1;
    }
  }

 private:
  // Thresholds below zero, where even disjoint boxes suppress each other.
  template <typename BoxOf>
  void run_unpruned(const uint32_t* ranks, int64_t count, const BoxOf& box_of, uint8_t* keep) {
    boxes_.clear();
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> box = box_of(ranks[i]);
      const T area = box_area(box);
      keep[ranks[i]] = std::none_of(boxes_.begin(), boxes_.end(),
                                    [&](const Box<T>& kept) { return criterion_(kept, box_area(kept), box, area); });
      if (keep[ranks[i]]) {
        boxes_.push_back(box);
      }
    }
  }

  Threshold<T> threshold_;
  Criterion criterion_;
  Grid<T, Criterion> grid_;
  std::vector<Box<T>> boxes_;
  std::vector<T> areas_;
  std::vector<uint32_t> ranks_;
};

// Runs work(state, segment) for each segment, shared among the threads; every thread makes its own state.
// `parallel(tasks, task)` runs task(0), task(1), ...
template <typename MakeState, typename Work, typename Parallel>
void share_segments(const std::vector<Segment>& segments, int64_t boxes, const MakeState& make_state, const Work& work,
                    const Parallel& parallel) {
  constexpr int64_t kWorthAThread = 8192;  // boxes
  std::atomic<int64_t> next{0};
  const int64_t count = segments.size();
  const auto task = [&](int64_t) {
    auto state = make_state();
    for (int64_t s = next++; s < count; s = next++) work(state, segments[s]);
  };
  const int64_t workers = std::min({parallel.threads(), count, boxes / kWorthAThread});
  workers > 1 ? parallel(workers, task) : task(0);
}

// The greedy pass over all segments: sets keep[rank].
template <typename T, typename Criterion, typename BoxOf, typename Parallel>
void run_segments(const std::vector<uint32_t>& ranks, const std::vector<Segment>& segments, const Criterion& criterion,
                  const BoxOf& box_of, uint8_t* keep, const Parallel& parallel) {
  share_segments(
      segments, ranks.size(), [&] { return Greedy<T, Criterion>(criterion); },
      [&](Greedy<T, Criterion>& greedy, const Segment& segment) {
        greedy.run(ranks.data() + segment.begin, segment.end - segment.begin, box_of, keep);
      },
      parallel);
}
}  // namespace nms
}  // namespace d2proj
