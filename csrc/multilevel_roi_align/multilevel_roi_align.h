// Which level of a pyramid a box is pooled from (Lin et al., Feature Pyramid Networks, 2017, equation 1), shared by the
// CPU and the CUDA kernel; no torch here.
#pragma once

#include <cmath>

#include "roi_align/roi_align.h"

namespace d2proj {
namespace multilevel_roi_align {

using roi_align::kMaxLevels;
using roi_align::Reduce;

// A box of `canonical_size` belongs to `canonical_level`, log2 of a stride; level 0 of the pyramid is `min_level`.
struct Assignment {
  double canonical_size;
  int64_t canonical_level, min_level, levels;
};

// Step by step as assign_levels of d2proj/ops/reference/multilevel_roi_align.py, in the boxes' type.
template <typename T>
D2_HD int64_t assign_level(const T* corners, const Assignment& a) {
  const T size = std::sqrt((corners[2] - corners[0]) * (corners[3] - corners[1]));
  const T level = std::floor(static_cast<T>(a.canonical_level) +
                             std::log2(size / static_cast<T>(a.canonical_size) + static_cast<T>(1e-8)));
  // Written so that NaN goes to the finest level.
  if (!(level > static_cast<T>(a.min_level))) return 0;
  const int64_t last = a.levels - 1;
  return level < static_cast<T>(a.min_level + last) ? static_cast<int64_t>(level) - a.min_level : last;
}

}  // namespace multilevel_roi_align
}  // namespace d2proj
