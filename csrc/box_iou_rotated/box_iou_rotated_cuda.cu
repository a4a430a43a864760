// IoU of every pair of rotated boxes on CUDA: a thread has one of boxes2 in registers and runs down rows of the result.
#include "box_iou_rotated/box_iou_rotated_args.h"
#include "box_iou_rotated/box_iou_rotated_cuda.cuh"

namespace d2proj {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 16;  // of the result, that a block writes at a time
constexpr int64_t kMostBlocksDown = 65535;

// A grid of (columns / kThreads, any) blocks.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pairwise_kernel(const rotated::Box<T>* boxes1, const rotated::Box<T>* boxes2, T* out, int64_t rows,
                    int64_t columns) {
  __shared__ rotated::Box<T> tile[kRows];
  const int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const rotated::Box<T> b = j < columns ? boxes2[j] : rotated::nothing<T>();
  for (int64_t first = int64_t(blockIdx.y) * kRows; first < rows; first += int64_t(gridDim.y) * kRows) {
    const int count = rows - first < kRows ? static_cast<int>(rows - first) : kRows;
    __syncthreads();  // the tile before is read
    if (threadIdx.x < count) tile[threadIdx.x] = boxes1[first + threadIdx.x];
    __syncthreads();
    if (j >= columns) continue;
    for (int r = 0; r < count; ++r) {
      out[(first + r) * columns + j] = rotated::apart(tile[r], b) ? T(0) : rotated::iou(tile[r], b);
    }
  }
}

template <typename T>
void all_pairs(const Tensor& rows1, const Tensor& rows2, Tensor& result) {
  const cudaStream_t stream = current_stream(result);
  const int64_t rows = rows1.size(0), columns = rows2.size(0);
  const Scratch<rotated::Box<T>> boxes1(result, rows), boxes2(result, columns);
  rotated::prepare_boxes(rows1, boxes1.get(), stream);
  rotated::prepare_boxes(rows2, boxes2.get(), stream);
  const int64_t down = std::min<int64_t>((rows + kRows - 1) / kRows, kMostBlocksDown);
  const dim3 grid(blocks_for(columns, kThreads), static_cast<unsigned>(down));
  pairwise_kernel<T><<<grid, kThreads, 0, stream>>>(boxes1.get(), boxes2.get(),
                                                    static_cast<T*>(result.mutable_data_ptr()), rows, columns);
  check_cuda("box_iou_rotated", cudaGetLastError());
}

Tensor box_iou_rotated_cuda(const Tensor& boxes1, const Tensor& boxes2) {
  auto [rows1, rows2, result] = rotated::prepare_pairs(boxes1, boxes2);
  const CudaDevice device(boxes1);
  if (result.numel() == 0) return result;
  const bool wide = result.scalar_type() == ScalarType::Double;
  wide ? all_pairs<double>(rows1, rows2, result) : all_pairs<float>(rows1, rows2, result);
  return result;
}

}  // namespace
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) { m.impl("box_iou_rotated", TORCH_BOX(&d2proj::box_iou_rotated_cuda)); }
