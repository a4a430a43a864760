// The element-wise losses of the IoU family on CUDA: a thread a pair, one pass over memory each way.
//
// A reduced loss is summed per block in a fixed order, and the blocks' sums by one last block: the result depends on
// the sizes alone.
#include <tuple>

#include "box_iou/box_iou_cuda.cuh"

namespace d2proj {
namespace iou {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // of kernels that write every pair; they stride over the rest
constexpr int64_t kSumBlocks = 1024;      // of the kernel that sums

template <typename T>
struct Options {
  T eps;
  bool log;
};

template <Kind K, typename T>
__device__ __forceinline__ T loss_of(const T* boxes1, const T* boxes2, int64_t i, const Options<T>& options) {
  Fields<T> a, b;
  make_fields<K, T>(load_box(boxes1, i), Format::kCorners, a);
  make_fields<K, T>(load_box(boxes2, i), Format::kCorners, b);
  Pair<K, true, T> pair;
  pair.measure(a, b, options.eps);
  if (K == Kind::kIou && options.log) return -log(pair.iou < options.eps ? options.eps : pair.iou);
  return pair.distance();
}

template <Kind K, typename T>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(const T* boxes1, const T* boxes2, int64_t count, Options<T> options, T* out) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    out[i] = loss_of<K, T>(boxes1, boxes2, i, options);
  }
}

// The sum of a block's values, in thread 0.
template <typename T>
__device__ T block_sum(T value) {
  __shared__ T warps[kThreads / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x < kThreads / 32 ? warps[threadIdx.x] : T(0);
  return threadIdx.x < 32 ? warp_sum(value) : value;
}

template <Kind K, typename T>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const T* boxes1, const T* boxes2, int64_t count, Options<T> options, T* sums) {
  T total = T(0);
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    total += loss_of<K, T>(boxes1, boxes2, i, options);
  }
  total = block_sum(total);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// One block; `count` sums become the result, which is divided by `divisor`.
template <typename T>
__global__ void __launch_bounds__(kThreads) total_kernel(const T* sums, int64_t count, double divisor, T* out) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total += sums[i];
  total = block_sum(total);
  if (threadIdx.x == 0) *out = static_cast<T>(total / divisor);
}

// `step` is 0 where one gradient stands for all pairs. A null output is not wanted.
template <Kind K, typename T>
__global__ void __launch_bounds__(kThreads)
    loss_backward_kernel(const T* grad, int64_t step, T scale, const T* boxes1, const T* boxes2, int64_t count,
                         Options<T> options, T* grad1, T* grad2) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const Numbers<T> numbers1 = load_box(boxes1, i), numbers2 = load_box(boxes2, i);
    Fields<T> a, b, to_a, to_b;
    make_fields<K, T>(numbers1, Format::kCorners, a);
    make_fields<K, T>(numbers2, Format::kCorners, b);
    Pair<K, true, T> pair;
    pair.measure(a, b, options.eps);
    T to_similarity = -grad[i * step] * scale;
    if (K == Kind::kIou && options.log) to_similarity = pair.iou < options.eps ? T(0) : to_similarity / pair.iou;
    pair.differentiate(a, b, to_similarity, to_a, to_b);
    Numbers<T> out;
    if (grad1) {
      gradient_of_numbers<K, T>(numbers1, Format::kCorners, to_a, out);
      store_box(grad1, i, out);
    }
    if (grad2) {
      gradient_of_numbers<K, T>(numbers2, Format::kCorners, to_b, out);
      store_box(grad2, i, out);
    }
  }
}

unsigned grid_for(int64_t count, int64_t most) {
  return static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, most));
}

Tensor loss_cuda(const Tensor& boxes1, const Tensor& boxes2, int64_t kind, bool log, int64_t reduction, double eps) {
  const char* const op = loss_name(kind);
  const int64_t count = check_loss(op, boxes1, boxes2, reduction);
  const CudaDevice device(boxes1);
  Tensor out = reduction == 0 ? empty_after(boxes1, 1, {}) : torch::stable::new_empty(boxes1, {});
  if (count == 0) return torch::stable::zero_(out);
  const Tensor dense1 = aligned_boxes(boxes1), dense2 = aligned_boxes(boxes2);
  const cudaStream_t stream = current_stream(boxes1);
  const auto run = [&](auto tag, auto constant) {
    using T = decltype(tag);
    constexpr Kind K = decltype(constant)::value;
    const T* const from1 = static_cast<const T*>(dense1.const_data_ptr());
    const T* const from2 = static_cast<const T*>(dense2.const_data_ptr());
    T* const to = static_cast<T*>(out.mutable_data_ptr());
    const Options<T> options{static_cast<T>(eps), log};
    if (reduction == 0) {
      loss_kernel<K, T><<<grid_for(count, kMostBlocks), kThreads, 0, stream>>>(from1, from2, count, options, to);
    } else {
      const unsigned blocks = grid_for(count, kSumBlocks);
      const Scratch<T> sums(boxes1, blocks);
      sum_kernel<K, T><<<blocks, kThreads, 0, stream>>>(from1, from2, count, options, sums.get());
      total_kernel<T><<<1, kThreads, 0, stream>>>(sums.get(), blocks, reduction == 1 ? double(count) : 1.0, to);
    }
    check_cuda(op, cudaGetLastError());
  };
  with_box_type(boxes1, [&](auto tag) { with_kind(kind, [&](auto constant) { run(tag, constant); }); });
  return out;
}

std::tuple<Tensor, Tensor> loss_backward_cuda(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                              int64_t kind, bool log, int64_t reduction, double eps, bool want1,
                                              bool want2) {
  const char* const op = loss_name(kind);
  const int64_t count = check_loss(op, boxes1, boxes2, reduction);
  check_grad(op, grad, boxes1);
  check(grad.numel() == (reduction ? 1 : count), op, "grad must have the shape of the loss, got ", shape_of(grad));
  const CudaDevice device(boxes1);
  Tensor grad1 = want1 ? empty_after(boxes1, 0, {}) : torch::stable::new_empty(boxes1, {0});
  Tensor grad2 = want2 ? empty_after(boxes2, 0, {}) : torch::stable::new_empty(boxes2, {0});
  if (count == 0) return {grad1, grad2};
  const Tensor dense = torch::stable::contiguous(grad);
  const Tensor dense1 = aligned_boxes(boxes1), dense2 = aligned_boxes(boxes2);
  const cudaStream_t stream = current_stream(boxes1);
  const auto run = [&](auto tag, auto constant) {
    using T = decltype(tag);
    constexpr Kind K = decltype(constant)::value;
    const T scale = reduction == 1 ? static_cast<T>(1.0 / static_cast<double>(count)) : T(1);
    loss_backward_kernel<K, T><<<grid_for(count, kMostBlocks), kThreads, 0, stream>>>(
        static_cast<const T*>(dense.const_data_ptr()), reduction ? 0 : 1, scale,
        static_cast<const T*>(dense1.const_data_ptr()), static_cast<const T*>(dense2.const_data_ptr()), count,
        Options<T>{static_cast<T>(eps), log}, want1 ? static_cast<T*>(grad1.mutable_data_ptr()) : nullptr,
        want2 ? static_cast<T*>(grad2.mutable_data_ptr()) : nullptr);
    check_cuda(op, cudaGetLastError());
  };
  with_box_type(boxes1, [&](auto tag) { with_kind(kind, [&](auto constant) { run(tag, constant); }); });
  return {grad1, grad2};
}

}  // namespace
}  // namespace iou
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("box_iou_loss", TORCH_BOX(&d2proj::iou::loss_cuda));
  m.impl("_box_iou_loss_backward", TORCH_BOX(&d2proj::iou::loss_backward_cuda));
}
