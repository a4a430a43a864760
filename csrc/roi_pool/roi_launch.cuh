// What the CUDA entry points of the pooling ops share: strides, grid sizes, index types.
#pragma once

#include <algorithm>
#include <limits>

#include "common/cuda.h"
#include "common/rois.h"

namespace d2proj {
namespace roi_pool {

constexpr int kThreads = 256;

struct Strides {
  int64_t n, c, h, w;
};

inline Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// Kernels walk what is beyond one grid in steps of it.
inline unsigned grid_for(int64_t total) {
  return static_cast<unsigned>(std::min<int64_t>((total + kThreads - 1) / kThreads, int64_t(1) << 22));
}

// Calls `body(I{})` with 32-bit indices where every number up to total + one grid of threads fits, else 64-bit ones.
template <typename Body>
void with_index(int64_t total, const Body& body) {
  const int64_t margin = static_cast<int64_t>(grid_for(total)) * kThreads;
  if (total + margin < std::numeric_limits<uint32_t>::max()) {
    body(uint32_t{});
  } else {
    body(uint64_t{});
  }
}

// The image of a box, -1 if it is out of range: such a box pools to zero (an error would need a synchronisation).
template <typename A>
__device__ __forceinline__ int64_t image_of(const A* box, int64_t images) {
  return box[0] >= A(0) && box[0] < static_cast<A>(images) ? static_cast<int64_t>(box[0]) : -1;
}

// Where a gradient is summed: half types in a float32 map that is rounded once, others (and the deterministic kernels,
// which sum in registers) in the result itself.
template <typename T, typename A>
Tensor sum_for(const Tensor& out, bool channels_last, bool deterministic) {
  if (deterministic) return out;
  Tensor sum = out;
  if (!std::is_same_v<T, A>) {
    sum = torch::stable::empty(out.sizes(), ScalarType::Float, std::nullopt, out.device(), std::nullopt,
                               format_of(channels_last));
  }
  return torch::stable::zero_(sum);
}

}  // namespace roi_pool
}  // namespace d2proj
