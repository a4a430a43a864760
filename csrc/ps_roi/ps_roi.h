// Position-sensitive RoI pooling (Dai et al., R-FCN, 2016, section 2; Li et al., Light-Head R-CNN, 2017), shared by the
// CPU and the CUDA kernels; no torch here.
//
// Bin (ph, pw) of channel c of the result reads a channel of the map of its own. What it takes there is roi_pool's
// geometry with a mean (ps_roi_pool) or roi_align's (ps_roi_align).
#pragma once

#include "roi_align/roi_align.h"
#include "roi_pool/roi_pool.h"

namespace d2proj {
namespace ps_roi {

// The channel of the map for channel `c` and bin number `bin` of the result; `bins` bins per channel.
D2_HD int64_t channel_of(int64_t c, int64_t bin, int64_t bins) { return c * bins + bin; }

// ps_roi_pool's cells: a box ends before its upper corner's cell, and (a peculiarity of every release of torchvision)
// the map's last row and last column are never read.
template <typename T>
D2_HD roi_pool::Axis<T> make_pool_axis(T low, T high, T spatial_scale, int64_t pooled) {
  return roi_pool::make_axis<T>(low, high, spatial_scale, pooled, false);
}
template <typename T>
D2_HD roi_pool::Span pool_span(const roi_pool::Axis<T>& axis, int64_t b, int64_t size) {
  return roi_pool::bin_span(axis, b, size - 1);
}

}  // namespace ps_roi
}  // namespace d2proj
