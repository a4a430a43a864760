// The greedy pass on the CPU: boxes in descending order of score against the boxes already kept.
//
// Kept boxes lie in a grid over the boxes' centres, so that a box is compared only with those close
// enough to reach the threshold. Two boxes with IoU > t have one-dimensional IoUs > t in x and in y;
// for intervals of lengths v and w that bounds the distance between centres by
// (v + w)(1 - t) / (2(1 + t)), and the ratio of the lengths by 1 / t. Every cell has room for all boxes
// centred in it, so the grid is one allocation, filled in place.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "nms/nms.h"
#include "nms/nms_simd.h"

namespace d2proj {
namespace nms {

// Bounds on how close two boxes must be for one to suppress the other.
template <typename T>
struct Threshold {
  T exact;  // compare the rounded IoU with this
  T loose;  // inter > loose * union holds whenever the rounded IoU is above `exact`
  T reach;  // a box reaches centres up to reach * (length + longest) away
  T ratio;  // lengths of overlapping boxes differ by at most this factor

  explicit Threshold(T threshold) : exact(threshold) {
    // The slack covers the rounding of areas, union and quotient, a few units in the last place.
    const T slack = T(1e-5);
    loose = exact > slack ? exact * (T(1) - slack) : T(0);
    const T bound = std::min(loose, T(1) - slack);
    reach = (T(1) - bound) / (T(2) * (T(1) + bound));
    ratio = bound > slack ? T(1) / bound : std::numeric_limits<T>::infinity();
  }

  // Below zero (or NaN) boxes that do not touch may suppress each other: nothing can be pruned.
  bool prunable() const { return exact >= T(0); }
};

// A uniform grid over the boxes' centres: in which cell a box is at home, and which cells hold all it may reach.
template <typename T>
class Cells {
 public:
  explicit Cells(const Threshold<T>& threshold) : threshold_(threshold) {}

  // Chooses the cells for `count` boxes, all of them able to suppress (see `inert`): about `per_reach` of them along
  // the reach of a box of average size, and no more than one for each kBoxesPerCell boxes.
  void lay_out(const Box<T>* boxes, const T* areas, int64_t count, double per_reach) {
    // IoUs of denormal areas are off by more than the slack: neither the product nor the grid may prune them.
    const bool exact_areas = std::none_of(areas, areas + count, [](T area) { return area < kSmallestArea; });
    loose_ = exact_areas ? threshold_.loose : T(0);
    columns_ = rows_ = 1;
    if (exact_areas && count >= kSmallestGrid) measure(boxes, count, per_reach);
  }

  int32_t columns() const { return columns_; }
  int32_t rows() const { return rows_; }
  int64_t count() const { return int64_t(columns_) * rows_; }
  // inter > loose() * union wherever the rounded IoU is above the threshold.
  T loose() const { return loose_; }

  int64_t home(const Box<T>& box) const {
    if (count() == 1) return 0;
    const T x = (box.x1 + box.x2) * T(0.5), y = (box.y1 + box.y2) * T(0.5);
    return int64_t(cell_of(y - origin_y_, scale_y_, rows_)) * columns_ + cell_of(x - origin_x_, scale_x_, columns_);
  }

  Window window(const Box<T>& box) const {
    if (count() == 1) return Window{0, 0, 0, 0, 1, 0};
    const T x = (box.x1 + box.x2) * T(0.5) - origin_x_;
    const T y = (box.y1 + box.y2) * T(0.5) - origin_y_;
    const T reach_x = reach(box.x2 - box.x1, longest_x_);
    const T reach_y = reach(box.y2 - box.y1, longest_y_);
    Window window;
    window.left = cell_of(x - reach_x, scale_x_, columns_);
    window.right = cell_of(x + reach_x, scale_x_, columns_);
    window.top = cell_of(y - reach_y, scale_y_, rows_);
    window.bottom = cell_of(y + reach_y, scale_y_, rows_);
    window.columns = columns_;
    window.home = int64_t(cell_of(y, scale_y_, rows_)) * columns_ + cell_of(x, scale_x_, columns_);
    return window;
  }

 private:
  void measure(const Box<T>* boxes, int64_t count, double per_reach) {
    const T infinity = std::numeric_limits<T>::infinity();
    Box<T> extent{infinity, infinity, -infinity, -infinity};
    T total_width = 0, total_height = 0;
    longest_x_ = longest_y_ = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Box<T>& box = boxes[i];
      const T width = box.x2 - box.x1, height = box.y2 - box.y1;
      extent.x1 = std::min(extent.x1, box.x1);
      extent.y1 = std::min(extent.y1, box.y1);
      extent.x2 = std::max(extent.x2, box.x2);
      extent.y2 = std::max(extent.y2, box.y2);
      total_width += width;
      total_height += height;
      longest_x_ = std::max(longest_x_, width);
      longest_y_ = std::max(longest_y_, height);
    }
    const T largest = std::max(std::max(std::abs(extent.x1), std::abs(extent.x2)),
                               std::max(std::abs(extent.y1), std::abs(extent.y2)));
    if (!(largest < kLargest)) return;  // sums and products of coordinates could overflow
    // A centre is rounded by up to half a unit in the last place of the largest coordinate, twice.
    margin_ = T(8) * std::numeric_limits<T>::epsilon() * largest;
    origin_x_ = extent.x1;
    origin_y_ = extent.y1;
    const double budget = std::max(1.0, std::sqrt(double(count) / kBoxesPerCell));
    columns_ = cells_along(extent.x2 - extent.x1, reach(total_width / T(count), longest_x_), per_reach, budget);
    rows_ = cells_along(extent.y2 - extent.y1, reach(total_height / T(count), longest_y_), per_reach, budget);
    scale_x_ = T(columns_) / (extent.x2 - extent.x1);
    scale_y_ = T(rows_) / (extent.y2 - extent.y1);
  }

  static int32_t cells_along(T range, T reach, double per_reach, double budget) {
    if (range < kShortestRange) return 1;  // its inverse may overflow
    const double cells = double(range) / double(reach) * per_reach;
    return cells < budget ? std::max(int32_t(1), int32_t(cells)) : int32_t(budget);
  }

  T reach(T length, T longest) const {
    return threshold_.reach * (length + std::min(length * threshold_.ratio, longest)) + margin_;
  }

  static int32_t cell_of(T offset, T scale, int32_t cells) {
    const T cell = offset * scale;
    return cell < T(0) ? 0 : cell < T(cells) ? static_cast<int32_t>(cell) : cells - 1;
  }

  static constexpr T kLargest = sizeof(T) == sizeof(float) ? T(1e18) : T(1e150);
  static constexpr T kShortestRange = T(1) / kLargest;
  static constexpr T kSmallestArea = sizeof(T) == sizeof(float) ? T(1e-30) : T(1e-290);
  static constexpr int64_t kSmallestGrid = 128;
  static constexpr double kBoxesPerCell = 16.0;

  Threshold<T> threshold_;
  T loose_ = 0;
  int32_t columns_ = 1, rows_ = 1;
  T origin_x_ = 0, origin_y_ = 0, scale_x_ = 0, scale_y_ = 0, margin_ = 0;
  T longest_x_ = 0, longest_y_ = 0;
};

// Kept boxes by cell. Under a criterion other than IouCriterion, boxes found to have an IoU above the threshold are put
// to the criterion one by one.
template <typename T, typename Criterion>
class Grid {
 public:
  Grid(const Threshold<T>& threshold, const Criterion& criterion)
      : threshold_(threshold), criterion_(criterion), cells_(threshold), scan_(scan_function<T, Criterion>()) {}

  // Lays the grid out for `count` boxes, all of them able to suppress (see `inert`).
  void reset(const Box<T>* boxes, const T* areas, int64_t count) {
    cells_.lay_out(boxes, areas, count, 1.0);
    begin_.assign(cells_.count() + 1, 0);
    if (cells_.count() > 1) {
      for (int64_t i = 0; i < count; ++i) {
        ++begin_[cells_.home(boxes[i]) + 1];
      }
      for (int64_t c = 0; c < cells_.count(); ++c) {
        begin_[c + 1] += begin_[c];
      }
    }
    end_.assign(begin_.begin(), begin_.end() - 1);
    // The scan reads whole vectors: beyond a cell's end lie empty boxes or kept boxes of the next cell,
    // and either is harmless.
    stride_ = count + kOverread;
    store_.assign(5 * stride_, T(0));
  }

  // Whether a kept box suppresses `box`.
  bool suppressed(const Box<T>& box, T area) const {
    const KeptView<T> kept{store_.data(), stride_};
    const Query<T, Criterion> query{box, area, threshold_.exact, cells_.loose(), criterion_};
    return scan_(query, kept, begin_.data(), end_.data(), cells_.window(box));
  }

  void keep(const Box<T>& box, T area) {
    const int64_t slot = end_[cells_.home(box)]++;
    T* x1 = store_.data() + slot;
    x1[0] = box.x1;
    x1[stride_] = box.y1;
    x1[2 * stride_] = box.x2;
    x1[3 * stride_] = box.y2;
    x1[4 * stride_] = area;
  }

 private:
  Threshold<T> threshold_;
  Criterion criterion_;
  Cells<T> cells_;
  Scan<T, Criterion> scan_;
  int64_t stride_ = 0;
  // Per cell: its first slot, and one past the last slot filled.
  std::vector<uint32_t> begin_, end_;
  std::vector<T> store_;  // x1 | y1 | x2 | y2 | area, `stride_` slots each
};

}  // namespace nms
}  // namespace d2proj
