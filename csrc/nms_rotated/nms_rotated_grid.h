// The greedy pass of rotated NMS on the CPU: boxes in descending order of score against the boxes already kept.
//
// Kept boxes lie in a uniform grid over the boxes' centres. Two boxes overlap only if the upright boxes around them do,
// so a box looks only into cells that are as near as its own extent and the largest of all.
#pragma once

#include <cmath>

#include "box_iou_rotated/box_iou_rotated_cpu.h"

namespace d2proj {
namespace rotated {

template <typename T>
class Grid {
 public:
  // Lays the grid out for boxes that overlap something, if only themselves. Every cell has room for all centred in it.
  void reset(const std::vector<Box<T>>& boxes) {
    const int64_t count = boxes.size();
    columns_ = rows_ = 1;
    if (count >= kSmallestGrid) measure(boxes);
    const int64_t cells = int64_t(columns_) * rows_;
    begin_.assign(cells + 1, 0);
    for (const Box<T>& box : boxes) ++begin_[home(box) + 1];
    for (int64_t c = 0; c < cells; ++c) begin_[c + 1] += begin_[c];
    end_.assign(begin_.begin(), begin_.end() - 1);
    // A vector may reach beyond a cell's end: into slots still empty or kept boxes of the next cell, both harmless.
    kept_.reset(count);
  }

  void keep(const Box<T>& box) { kept_.set(end_[home(box)]++, box); }

  // Whether a kept box suppresses this one.
  template <simd::Level L>
  D2_INLINE bool suppressed(const Box<T>& box, const Threshold<T>& threshold) const {
    using V = typename simd::Native<L, T>::Vector;
    Query<L, V> query{broadcast<V>(box), threshold, kept_, {}, 0};
    const int64_t own = home(box);
    // Most boxes that fall do so to a box centred in their own cell.
    if (query.scan(begin_[own], end_[own]) || query.finish()) return true;
    if (columns_ == 1 && rows_ == 1) return false;
    const T x = box.cx - left_, y = box.cy - top_;
    const T reach_x = box.ex + threshold.reach * longest_x_ + margin_;
    const T reach_y = box.ey + threshold.reach * longest_y_ + margin_;
    const int64_t first_column = cell_of(x - reach_x, scale_x_, columns_);
    const int64_t last_column = cell_of(x + reach_x, scale_x_, columns_);
    const int64_t last_row = cell_of(y + reach_y, scale_y_, rows_);
    for (int64_t row = cell_of(y - reach_y, scale_y_, rows_); row <= last_row; ++row) {
      for (int64_t column = first_column; column <= last_column; ++column) {
        const int64_t cell = row * columns_ + column;
        if (cell != own && query.scan(begin_[cell], end_[cell])) return true;
      }
    }
    return query.finish();
  }

 private:
  // One box against kept ones. Those that the bounds do not rule out are set aside until they fill a vector.
  template <simd::Level L, typename V>
  struct Query {
    static constexpr int kLanes = simd::Native<L, T>::kLanes;

    Box<V> box;
    const Threshold<T>& threshold;
    const Columns<T>& kept;
    uint32_t aside[2 * kLanes];
    int waiting;

    D2_INLINE bool scan(int64_t slot, int64_t end) {
      for (; slot < end; slot += kLanes) {
        const Box<V> others = kept.template load<V>(slot);
        uint32_t near = simd::bits<L, T>(may_suppress(others, box, threshold));
        for (; near != 0; near &= near - 1) {
          const int64_t each = slot + __builtin_ctz(near);
          // Lanes past the end hold boxes of the next cell, which come in their turn.
          if (each < end) aside[waiting++] = static_cast<uint32_t>(each);
        }
        if (waiting >= kLanes) {
          if (exceeds()) return true;
          waiting -= kLanes;
          for (int k = 0; k < waiting; ++k) aside[k] = aside[kLanes + k];
        }
      }
      return false;
    }

    D2_INLINE bool finish() {
      if (waiting == 0) return false;
      for (int k = waiting; k < kLanes; ++k) aside[k] = aside[0];
      waiting = 0;
      return exceeds();
    }

    D2_INLINE bool exceeds() const {
      return simd::bits<L, T>(iou(kept.template gather<V>(aside), box) > V{} + threshold.exact) != 0;
    }
  };

  // Chooses the cells: about half as large as a box of average size.
  void measure(const std::vector<Box<T>>& boxes) {
    T right = boxes[0].cx, bottom = boxes[0].cy, total_x = 0, total_y = 0;
    left_ = right;
    top_ = bottom;
    longest_x_ = longest_y_ = 0;
    for (const Box<T>& box : boxes) {
      left_ = std::min(left_, box.cx);
      top_ = std::min(top_, box.cy);
      right = std::max(right, box.cx);
      bottom = std::max(bottom, box.cy);
      longest_x_ = std::max(longest_x_, box.ex);
      longest_y_ = std::max(longest_y_, box.ey);
      total_x += box.ex;
      total_y += box.ey;
    }
    const T width = right - left_, height = bottom - top_;
    const T largest = std::max(std::max(width, height), std::max(longest_x_, longest_y_));
    if (!(largest < kLargest)) return;  // sums of coordinates could overflow
    // The differences are rounded.
    margin_ = T(8) * std::numeric_limits<T>::epsilon() * largest;
    const T count = static_cast<T>(boxes.size());
    const double budget = std::max(1.0, std::sqrt(double(boxes.size()) / kBoxesPerCell));
    columns_ = cells_along(width, T(2) * total_x / count, budget);
    rows_ = cells_along(height, T(2) * total_y / count, budget);
    scale_x_ = width > T(0) ? T(columns_) / width : T(0);
    scale_y_ = height > T(0) ? T(rows_) / height : T(0);
  }

  static int32_t cells_along(T range, T length, double budget) {
    if (range < T(1) / kLargest) return 1;  // its inverse may overflow
    const double cells = double(range) / double(length) * kCellsPerBox;
    return cells < budget ? std::max(int32_t(1), int32_t(cells)) : int32_t(budget);
  }

  static int32_t cell_of(T offset, T scale, int32_t cells) {
    const T cell = offset * scale;
    return cell < T(0) ? 0 : cell < T(cells) ? static_cast<int32_t>(cell) : cells - 1;
  }

  int64_t home(const Box<T>& box) const {
    if (columns_ == 1 && rows_ == 1) return 0;
    return int64_t(cell_of(box.cy - top_, scale_y_, rows_)) * columns_ + cell_of(box.cx - left_, scale_x_, columns_);
  }

  static constexpr T kLargest = sizeof(T) == sizeof(float) ? T(1e18) : T(1e150);
  static constexpr int64_t kSmallestGrid = 128;
  static constexpr double kBoxesPerCell = 16.0;
  static constexpr double kCellsPerBox = 2.0;

  int32_t columns_ = 1, rows_ = 1;
  T left_ = 0, top_ = 0, scale_x_ = 0, scale_y_ = 0, margin_ = 0;
  T longest_x_ = 0, longest_y_ = 0;
  // Per cell: its first slot, and one past the last slot filled.
  std::vector<uint32_t> begin_, end_;
  Columns<T> kept_;
};

}  // namespace rotated
}  // namespace d2proj
