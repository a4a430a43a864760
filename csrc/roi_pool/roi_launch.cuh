// What the CUDA entry points of the pooling ops share: strides, grid sizes, index types.
#pragma once

#include <algorithm>
#include <limits>

#include "common/cuda.h"
#include "common/launch.cuh"
#include "common/rois.h"

namespace d2proj {
namespace roi_pool {

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
