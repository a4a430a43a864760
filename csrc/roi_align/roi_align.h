// RoIAlign's geometry (He et al., Mask R-CNN, 2017, section 3), shared by the CPU and the CUDA kernel; no torch here.
//
// A box is cut into pooled_h x pooled_w bins; a bin's value is the mean of grid_h x grid_w bilinear samples spread
// evenly in it. Samples form a regular grid, so everything separates by axis: the weight of a pixel in a bin is (its
// weight along y) * (its weight along x), and either axis can be worked out alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace d2proj {
namespace roi_align {

constexpr int64_t kMaxLevels = 16;  // of a pyramid

// What becomes of a box's levels (the `reduce` of multilevel_roi_align): every row of the result has one view, or, for
// the reductions, one of each level, view `row * levels + level`.
enum class Reduce : int64_t { kAssigned, kNone, kSum, kMax };

D2_HD int64_t views_per_row(Reduce reduce, int64_t levels) {
  return reduce == Reduce::kSum || reduce == Reduce::kMax ? levels : 1;
}

// Whether a later level's value takes the maximum's place: the first of equal ones and the first NaN stay.
template <typename A>
D2_HD bool takes_over(A value, A best) {
  return !(value <= best) && best == best;
}

// One axis of one box: sample `i` of bin `b` lies at start + b * bin + (i + 0.5) * bin / grid.
template <typename T>
struct Axis {
  T start;
  T bin;
  T grid;      // samples per bin; a whole number, but as large as a box can be, so not an int
  bool valid;  // false where the box is not finite: such a box pools to zero

  D2_HD T sample(int64_t b, int64_t i) const {
    return start + static_cast<T>(b) * bin + (static_cast<T>(i) + T(0.5)) * bin / grid;
  }
};

template <typename T>
D2_HD bool is_finite(T value) {
  return value - value == T(0);  // false for NaN and both infinities, on host and device alike
}

template <typename T>
D2_HD Axis<T> make_axis(T low, T high, T spatial_scale, int64_t pooled, int64_t sampling_ratio, bool aligned) {
  const T offset = aligned ? T(0.5) : T(0);
  Axis<T> axis;
  axis.start = low * spatial_scale - offset;
  T length = high * spatial_scale - offset - axis.start;
  axis.valid = is_finite(low) && is_finite(axis.start) && is_finite(length);
  // Without `aligned`, boxes are at least one pixel long (the original, half-a-pixel-off form of the op).
  if (!aligned && length < T(1)) length = T(1);
  axis.bin = length / static_cast<T>(pooled);
  axis.grid = sampling_ratio > 0 ? static_cast<T>(sampling_ratio) : std::ceil(axis.bin);
  return axis;
}

// What a bin's sum is divided by.
template <typename T>
D2_HD T sample_count(const Axis<T>& y, const Axis<T>& x) {
  const T count = y.grid * x.grid;
  return count > T(1) ? count : T(1);
}

// The samples [first, last) of bin `b`, without those that are certain to lie outside [low, high]: a box may be a
// billion pixels long and have as many samples.
struct SampleRange {
  int64_t first, last;
};

template <typename T>
D2_HD SampleRange sample_range(const Axis<T>& axis, int64_t b, double low, double high) {
  if (!(axis.grid > T(0))) return {0, 0};
  // Short grids, and those of inverted boxes, which run backwards, are walked whole.
  constexpr double kMany = 9e15;
  const double grid = axis.grid < T(kMany) ? static_cast<double>(axis.grid) : kMany;
  if (grid <= 64 || !(axis.bin > T(0))) return {0, static_cast<int64_t>(grid)};
  const double step = static_cast<double>(axis.bin) / static_cast<double>(axis.grid);
  const double base = static_cast<double>(axis.start) + static_cast<double>(b) * static_cast<double>(axis.bin);
  // Two samples of slack on either side for rounding; `taps_at` has the last word.
  double first = std::floor((low - base) / step) - 2.0;
  double last = std::ceil((high - base) / step) + 2.0;
  first = first > 0.0 ? (first < grid ? first : grid) : 0.0;
  last = last > first ? (last < grid ? last : grid) : first;
  return {static_cast<int64_t>(first), static_cast<int64_t>(last)};
}

// Along a map of `size` pixels.
template <typename T>
D2_HD SampleRange sample_range(const Axis<T>& axis, int64_t b, int64_t size) {
  return sample_range(axis, b, -1.0, static_cast<double>(size));
}

// The two pixels that a sample reads along an axis, and their weights.
template <typename T>
struct Taps {
  int64_t low, high;
  T w_low, w_high;
};

// Samples further than a pixel outside the map read nothing (returns false); the others are clamped into it.
template <typename T>
D2_HD bool taps_at(T at, int64_t size, Taps<T>& taps) {
  // Written as !(inside), so that NaN counts as outside.
  if (!(at >= T(-1) && at <= static_cast<T>(size))) return false;
  at = at > T(0) ? at : T(0);
  const int64_t low = static_cast<int64_t>(at);
  if (low >= size - 1) {
    taps = {size - 1, size - 1, T(1), T(0)};
    return true;
  }
  const T fraction = at - static_cast<T>(low);
  taps = {low, low + 1, T(1) - fraction, fraction};
  return true;
}

}  // namespace roi_align
}  // namespace d2proj
