// Sorting, classes and threads around the grid of nms_grid.h: greedy NMS of a whole set on the CPU.
//
// Boxes are ranked by score; those of one class form a segment, in rank order. Segments are
// independent of each other and a long one is worked off in rounds, each filtered by all threads
// against what earlier rounds kept: the result does not depend on the number of threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "nms.h"
#include "nms_grid.h"

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

// Runs task(0), task(1), ... in the calling thread; the kernel brings its like on torch's threads.
struct Sequential {
  int64_t threads() const { return 1; }
  template <typename Task>
  void operator()(int64_t tasks, const Task& task) const {
    for (int64_t i = 0; i < tasks; ++i) {
      task(i);
    }
  }
};

// A run of ranks that belong to one class: ranks[begin, end) of the list `by_class`.
struct Segment {
  int64_t begin, end;
};

// One thread's greedy pass over segments; its buffers are reused from one to the next.
template <typename T>
class Greedy {
 public:
  explicit Greedy(double threshold) : threshold_(threshold), grid_(threshold_) {}

  // Sets keep[rank] for each rank of the segment. `box_of(rank)` gives the box.
  template <typename BoxOf, typename Parallel>
  void run(const uint32_t* ranks, int64_t count, const BoxOf& box_of, uint8_t* keep, const Parallel& parallel) {
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
    if (parallel.threads() == 1 || active < kParallelFrom) {
      for (int64_t i = 0; i < active; ++i) {
        keep_unless_suppressed(i, keep);
      }
      return;
    }
    run_rounds(active, keep, parallel);
  }

  static constexpr int64_t kParallelFrom = 8192;

 private:
  void keep_unless_suppressed(int64_t i, uint8_t* keep) {
    if (!grid_.suppressed(boxes_[i], areas_[i], true)) {
      grid_.keep(boxes_[i], areas_[i]);
      keep[ranks_[i]] = 1;
    }
  }

  template <typename Parallel>
  void run_rounds(int64_t active, uint8_t* keep, const Parallel& parallel) {
    constexpr int64_t kTask = 64;  // boxes
    falls_.assign(active, 0);
    for (int64_t begin = 0, end; begin < active; begin = end) {
      // A quarter more each time: rounds stay few, and what a round must do in sequence stays small.
      end = std::min(active, begin + std::max(int64_t(1024), begin / 4));
      if (begin > 0) {
        grid_.next_round();
        parallel((end - begin + kTask - 1) / kTask, [&](int64_t task) {
          const int64_t stop = std::min(end, begin + (task + 1) * kTask);
          for (int64_t i = begin + task * kTask; i < stop; ++i) {
            falls_[i] = grid_.suppressed(boxes_[i], areas_[i], false);
          }
        });
      }
      for (int64_t i = begin; i < end; ++i) {
        if (!falls_[i]) {
          keep_unless_suppressed(i, keep);
        }
      }
    }
  }

  // Thresholds below zero, where even disjoint boxes suppress each other.
  template <typename BoxOf>
  void run_unpruned(const uint32_t* ranks, int64_t count, const BoxOf& box_of, uint8_t* keep) {
    boxes_.clear();
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> box = box_of(ranks[i]);
      const T area = box_area(box);
      keep[ranks[i]] = std::none_of(boxes_.begin(), boxes_.end(), [&](const Box<T>& kept) {
        return suppresses(kept, box_area(kept), box, area, threshold_.exact);
      });
      if (keep[ranks[i]]) {
        boxes_.push_back(box);
      }
    }
  }

  Threshold<T> threshold_;
  Grid<T> grid_;
  std::vector<Box<T>> boxes_;
  std::vector<T> areas_;
  std::vector<uint32_t> ranks_;
  std::vector<uint8_t> falls_;
};

// Runs the segments, the long ones each on all threads, the others shared among the threads.
template <typename T, typename BoxOf, typename Parallel>
void run_segments(const std::vector<uint32_t>& ranks, const std::vector<Segment>& segments, double threshold,
                  const BoxOf& box_of, uint8_t* keep, const Parallel& parallel) {
  const int64_t threads = parallel.threads();
  const int64_t total = ranks.size();
  const auto is_long = [&](const Segment& segment) {
    const int64_t length = segment.end - segment.begin;
    return length >= Greedy<T>::kParallelFrom && length * threads > total;
  };
  std::atomic<int64_t> next{0};
  const int64_t count = segments.size();
  {
    Greedy<T> greedy(threshold);
    for (const Segment& segment : segments) {
      if (is_long(segment) || count == 1) {
        greedy.run(ranks.data() + segment.begin, segment.end - segment.begin, box_of, keep, parallel);
      }
    }
  }
  if (count == 1) {
    return;
  }
  constexpr int64_t kWorthAThread = 4096;  // boxes
  const int64_t workers = std::min(threads, std::max(int64_t(1), total / kWorthAThread));
  parallel(workers, [&](int64_t) {
    Greedy<T> greedy(threshold);
    for (int64_t s = next++; s < count; s = next++) {
      const Segment& segment = segments[s];
      if (!is_long(segment)) {
        greedy.run(ranks.data() + segment.begin, segment.end - segment.begin, box_of, keep, Sequential{});
      }
    }
  });
}

}  // namespace nms
}  // namespace d2proj
