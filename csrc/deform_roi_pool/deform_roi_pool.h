// The geometry of deformable RoI pooling (Dai et al., Deformable Convolutional Networks, 2017, section 2.2), in both
// its forms, shared by the CPU and the CUDA kernels; no torch here.
//
// Either form moves every bin of a box by an offset of its own, and means bilinear samples that form a regular grid in
// the bin. So a bin separates by axis: a pixel's weight is (its weight along y) * (its weight along x).
//   - deform_roi_pool (kPs false): RoIAlign's samples and borders, every sample counts.
//   - deform_ps_roi_pool (kPs true): whole-pixel corners, samples at the bin's near corner, only those inside count.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"
#include "roi_align/roi_align.h"

namespace d2proj {
namespace deform_roi_pool {

using roi_align::is_finite;
using roi_align::SampleRange;
using roi_align::Taps;

struct Problem {
  int64_t images, channels, height, width;  // of the map; `channels` of the result (cells times fewer than the map's)
  int64_t boxes, pooled_h, pooled_w;
  int64_t cells_h, cells_w;  // position-sensitive cells: output channel c reads channel c * cells + cell
  int64_t classes;           // groups of output channels with offsets of their own
  int64_t part_h, part_w;    // the offsets' grid
  double spatial_scale, gamma;
  int64_t sampling;  // kPs: samples per axis; else 0 or less: as many as the bin has cells

  D2_HD int64_t bins() const { return pooled_h * pooled_w; }
  D2_HD int64_t cells() const { return cells_h * cells_w; }
  // One class, one cell, an offset a bin: the usual cases, without the division.
  D2_HD int64_t class_channels() const { return classes == 1 ? channels : channels / classes; }
  D2_HD int64_t class_of(int64_t channel) const { return classes == 1 ? 0 : channel / class_channels(); }
  D2_HD int64_t cell_of(int64_t ph, int64_t pw) const {
    return scaled(ph, cells_h, pooled_h) * cells_w + scaled(pw, cells_w, pooled_w);
  }
  // Where the x offset of a bin stands in a contiguous (boxes, 2 * classes, part_h, part_w); y's is `parts` further on.
  D2_HD int64_t offset_of(int64_t k, int64_t cls, int64_t ph, int64_t pw) const {
    return (((k * classes + cls) * 2) * part_h + scaled(ph, part_h, pooled_h)) * part_w + scaled(pw, part_w, pooled_w);
  }
  D2_HD int64_t parts() const { return part_h * part_w; }
  D2_HD static int64_t scaled(int64_t b, int64_t size, int64_t pooled) {
    return size == pooled ? b : size == 1 ? 0 : b * size / pooled;
  }
  // Where the x part of a bin's own offset gradient stands in (boxes, classes, 2, pooled_h, pooled_w).
  D2_HD int64_t bin_grad_of(int64_t k, int64_t cls, int64_t ph, int64_t pw) const {
    return ((k * classes + cls) * 2 * pooled_h + ph) * pooled_w + pw;
  }
};

// The bins of a box that belong to a cell: a rectangle.
struct CellBins {
  int64_t top, bottom, left, right;

  D2_HD CellBins(const Problem& p, int64_t cell)
      : top(first(cell / p.cells_w, p.cells_h, p.pooled_h)),
        bottom(first(cell / p.cells_w + 1, p.cells_h, p.pooled_h)),
        left(first(cell % p.cells_w, p.cells_w, p.pooled_w)),
        right(first(cell % p.cells_w + 1, p.cells_w, p.pooled_w)) {}

  D2_HD int64_t width() const { return right - left; }
  D2_HD int64_t count() const { return (bottom - top) * (right - left); }

 private:
  // The first bin b with b * cells / pooled >= cell.
  D2_HD static int64_t first(int64_t cell, int64_t cells, int64_t pooled) {
    return (cell * pooled + cells - 1) / cells;
  }
};

// A bin's samples along one axis.
template <typename A, bool kPs>
struct BinAxis {
  A start, length, grid;
  A extent;    // d start / d offset: gamma times the box's side
  bool valid;  // false where box or offset is not finite: the bin is zero

  D2_HD A sample(int64_t i) const {
    if (kPs) return start + static_cast<A>(i) * (length / grid);
    return start + (static_cast<A>(i) + A(0.5)) * length / grid;
  }

  // The samples that may lie inside a map of `size` pixels.
  D2_HD SampleRange range(int64_t size) const {
    if (kPs) return {0, static_cast<int64_t>(grid)};
    return roi_align::sample_range(roi_align::Axis<A>{start, length, grid, valid}, 0, size);
  }
};

// A box along one axis, before its bins are moved.
template <typename A, bool kPs>
struct BoxAxis {
  A start, side, length, grid;
  bool valid;

  D2_HD BoxAxis(A low, A high, int64_t pooled, const Problem& p) {
    const A scale = static_cast<A>(p.spatial_scale);
    if (kPs) {
      start = std::round(low) * scale - A(0.5);
      side = (std::round(high) + A(1)) * scale - A(0.5) - start;
      valid = is_finite(side);
      if (side < A(0.1)) side = A(0.1);
      length = side / static_cast<A>(pooled);
      grid = static_cast<A>(p.sampling);
    } else {
      const auto whole = roi_align::make_axis<A>(low, high, scale, pooled, p.sampling, true);
      start = whole.start;
      side = high * scale - A(0.5) - start;
      valid = whole.valid;
      length = whole.bin;
      grid = whole.grid;
    }
  }

  // Bin `b`, moved by `offset` (in sides, before gamma).
  D2_HD BinAxis<A, kPs> bin(A offset, int64_t b, const Problem& p) const {
    const A gamma = static_cast<A>(p.gamma), near = static_cast<A>(b) * length;
    BinAxis<A, kPs> axis;
    axis.start = kPs ? near + start + offset * gamma * side : start + gamma * side * offset + near;
    axis.length = length;
    axis.extent = gamma * side;
    axis.valid = valid && is_finite(axis.start);
    axis.grid = axis.valid ? grid : A(0);
    return axis;
  }
};

// The two pixels that a sample reads, their weights, and by how much weight moves from the first to the second for each
// pixel that the sample moves: 1, or 0 where the sample is clamped to the map's border.
template <typename A>
struct SlopedTaps : Taps<A> {
  A slope;
};

template <bool kPs, typename A>
D2_HD bool sloped_taps_at(A at, int64_t size, SlopedTaps<A>& taps) {
  if (kPs) {
    // Written as !(inside), so that NaN counts as outside.
    if (!(at >= A(-0.5) && at <= static_cast<A>(size) - A(0.5))) return false;
    const A last = static_cast<A>(size - 1);
    at = at > A(0) ? (at < last ? at : last) : A(0);
    const int64_t low = static_cast<int64_t>(at);
    taps.low = low < size ? low : size - 1;  // `last` may have been rounded up
    // The source reads floor and ceil, so that a sample on a pixel has no slope.
    taps.w_high = taps.low == size - 1 ? A(0) : at - static_cast<A>(low);
    taps.w_low = A(1) - taps.w_high;
    taps.high = taps.w_high > A(0) ? taps.low + 1 : taps.low;
    taps.slope = taps.w_high > A(0) ? A(1) : A(0);
    return true;
  }
  if (!roi_align::taps_at(at, size, taps)) return false;
  taps.slope = at >= A(0) && taps.low != taps.high ? A(1) : A(0);
  return true;
}

// How many samples of the axis count.
template <typename A, bool kPs>
D2_HD A counted(const BinAxis<A, kPs>& axis, int64_t size) {
  if (!kPs) return axis.grid;
  int64_t count = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(axis.grid); ++i) {
    SlopedTaps<A> taps;
    count += sloped_taps_at<kPs>(axis.sample(i), size, taps);
  }
  return static_cast<A>(count);
}

// What a bin's sum is multiplied with.
template <typename A>
D2_HD A mean_factor(A count_y, A count_x) {
  const A count = count_y * count_x;
  return count > A(1) ? A(1) / count : A(1);
}

}  // namespace deform_roi_pool
}  // namespace d2proj
