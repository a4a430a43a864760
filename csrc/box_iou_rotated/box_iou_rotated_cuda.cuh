// Rotated boxes on CUDA: rows turned into what the kernels read, once a box.
#pragma once

#include "box_iou_rotated/box_iou_rotated.h"
#include "common/scratch.cuh"

namespace d2proj {
namespace rotated {

constexpr int kPrepareThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const T* rows, Box<T>* boxes, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kPrepareThreads + threadIdx.x;
  if (i < count) boxes[i] = prepare(rows + 5 * i);
}

template <typename T>
void prepare_boxes(const Tensor& rows, Box<T>* boxes, cudaStream_t stream) {
  const int64_t count = rows.size(0);
  prepare_kernel<T><<<blocks_for(count, kPrepareThreads), kPrepareThreads, 0, stream>>>(
      static_cast<const T*>(rows.const_data_ptr()), boxes, count);
}

}  // namespace rotated
}  // namespace d2proj
