// RoI pooling's geometry (Girshick, Fast R-CNN, 2015, section 2.1), shared by every kernel that cuts boxes into whole
// cells: roi_pool, spatial_pyramid_pool, ps_roi_pool. No torch here.
//
// A box's corners are rounded to cells; the cells are cut into bins whose fractional edges are rounded outwards, so
// that neighbouring bins may share a row or a column.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace d2proj {
namespace roi_pool {

// Cells [begin, end) along one axis.
struct Span {
  int32_t begin, end;

  D2_HD int32_t count() const { return end - begin; }
};

// One axis of one box.
template <typename T>
struct Axis {
  int64_t start;  // first cell
  T bin;          // cells per bin
  bool valid;     // false where the box is not finite: such a box pools to zero
};

template <typename T>
D2_HD bool is_finite(T value) {
  return value - value == T(0);  // false for NaN and both infinities, on host and device alike
}

// The cell that a corner is rounded to (halves away from zero). Further out than any map, it is clamped: what follows
// stays within 64 bits.
template <typename T>
D2_HD int64_t to_cell(T corner) {
  constexpr T kFar = 1099511627776;  // 2^40
  const T cell = std::round(corner);
  return static_cast<int64_t>(cell < -kFar ? -kFar : cell > kFar ? kFar : cell);
}

// `closed`: the cell of the upper corner belongs to the box (roi_pool); else it ends there (ps_roi_pool). A box is at
// least one cell long.
template <typename T>
D2_HD Axis<T> make_axis(T low, T high, T spatial_scale, int64_t pooled, bool closed) {
  const T first = low * spatial_scale, last = high * spatial_scale;
  if (!(is_finite(first) && is_finite(last))) return {0, T(0), false};
  const int64_t start = to_cell(first);
  const int64_t length = to_cell(last) - start + (closed ? 1 : 0);
  return {start, static_cast<T>(length > 1 ? length : 1) / static_cast<T>(pooled), true};
}

// The cells of bin `b` within a map of `size` cells (2^31 at most); empty where the bin lies outside.
template <typename T>
D2_HD Span bin_span(const Axis<T>& axis, int64_t b, int64_t size) {
  if (!axis.valid) return {0, 0};
  const int64_t begin = axis.start + static_cast<int64_t>(std::floor(static_cast<T>(b) * axis.bin));
  const int64_t end = axis.start + static_cast<int64_t>(std::ceil(static_cast<T>(b + 1) * axis.bin));
  const int64_t low = begin < 0 ? 0 : begin < size ? begin : size;
  const int64_t high = end < 0 ? 0 : end < size ? end : size;
  return {static_cast<int32_t>(low), static_cast<int32_t>(high > low ? high : low)};
}

// What a maximum starts from, in every type: a cell that is not above it, NaN among them, is never taken.
constexpr float kLowest = -3.402823466e+38f;

// A grid of bins per box, one of spatial_pyramid_pool's; roi_pool has one alone. Bin (ph, pw) of channel c of box k is
// element k * box + base + c * channel + (ph * pooled_w + pw) * bin of the result.
struct Grid {
  int64_t pooled_h, pooled_w;
  int64_t base, channel, bin;
};

// Bounds the arrays that hold one entry per grid.
constexpr int kMaxGrids = 16;

}  // namespace roi_pool
}  // namespace d2proj
