// What the CUDA kernels of the IoU family share: 16-byte loads of boxes, sums over threads.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "box_iou/box_iou.h"
#include "box_iou/box_iou_args.h"
#include "common/cuda.h"
#include "common/scratch.cuh"

namespace d2proj {
namespace iou {

__device__ __forceinline__ Numbers<float> load_box(const float* boxes, int64_t i) {
  const float4 box = __ldg(reinterpret_cast<const float4*>(boxes) + i);
  return {box.x, box.y, box.z, box.w};
}
__device__ __forceinline__ Numbers<double> load_box(const double* boxes, int64_t i) {
  const double2 low = __ldg(reinterpret_cast<const double2*>(boxes) + 2 * i);
  const double2 high = __ldg(reinterpret_cast<const double2*>(boxes) + 2 * i + 1);
  return {low.x, low.y, high.x, high.y};
}
__device__ __forceinline__ void store_box(float* boxes, int64_t i, const Numbers<float>& box) {
  reinterpret_cast<float4*>(boxes)[i] = make_float4(box.a, box.b, box.c, box.d);
}
__device__ __forceinline__ void store_box(double* boxes, int64_t i, const Numbers<double>& box) {
  reinterpret_cast<double2*>(boxes)[2 * i] = make_double2(box.a, box.b);
  reinterpret_cast<double2*>(boxes)[2 * i + 1] = make_double2(box.c, box.d);
}

// The sum over a warp, in its first lane; the order is fixed.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

// Contiguous, and aligned to the 16 bytes that a load takes (a view into other memory need not be).
inline Tensor aligned_boxes(const Tensor& boxes) {
  const Tensor dense = torch::stable::contiguous(boxes);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 ? torch::stable::clone(dense) : dense;
}

}  // namespace iou
}  // namespace d2proj
