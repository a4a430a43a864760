// Corner pooling (Law and Deng, CornerNet, 2018, eq. 1-2), shared by the CPU and the CUDA kernel; no torch here.
//
// A running maximum along an axis, from its far edge: output[i] = max of input[0..i] in scan order. Its gradient goes
// to the position that the maximum was first met at, so what a pass back needs is where the running maximum was
// replaced; that is worked out anew from the input, which training keeps anyway.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace d2proj {
namespace corner_pool {

// A dense map seen as (outer, length, inner): `length` is scanned, neighbouring `inner` lie side by side in memory.
struct Scan {
  int64_t outer, length, inner;
  bool from_end;

  // Where the scan's step `i` lies, in units of `inner`.
  D2_HD int64_t at(int64_t i) const { return from_end ? length - 1 - i : i; }
};

// `dim` is 2 (top and bottom pooling) or 3 (left and right).
inline Scan make_scan(int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last, int64_t dim, bool from_end) {
  if (channels_last) return dim == 2 ? Scan{n, h, w * c, from_end} : Scan{n * h, w, c, from_end};
  return dim == 2 ? Scan{n * c, h, w, from_end} : Scan{n * c * h, w, 1, from_end};
}

// Whether a value takes the running maximum's place: only if greater, so the first of equal values keeps it; a NaN
// always does, and nothing replaces a NaN. Also for vectors of values (then a vector of masks).
template <typename V>
D2_HD auto replaces(const V& value, const V& best) {
  return (!(value <= best)) & (best == best);
}

}  // namespace corner_pool
}  // namespace d2proj
