// The pairwise functions of the IoU family on CUDA.
//
// Forward, a block makes a tile of kRows rows and 32 to 256 columns (as wide as the result asks for): a thread keeps
// its column's box in registers and goes down the rows, whose fields lie in shared memory; writes are coalesced.
// Backward, rows and columns are summed by two kernels, each of which reads the gradient once; neither has atomics, so
// the result is always deterministic.
#include <tuple>

#include "box_iou/box_iou_cuda.cuh"

namespace d2proj {
namespace iou {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 32;                 // of a tile
constexpr int64_t kMostBlocks = 1 << 20;  // more tiles than that are strided over

template <typename T>
struct Problem {
  const T *boxes1, *boxes2;
  int64_t batch, rows, columns;
  T eps;
  Format format;
};

// A block of kThreads threads as `width` columns by kThreads / width rows.
template <Kind K, typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(Problem<T> p, int width, int64_t tiles, T* out) {
  __shared__ Fields<T> row_fields[kRows];
  const int64_t across = (p.columns + width - 1) / width, down = (p.rows + kRows - 1) / kRows;
  const int tx = threadIdx.x % width, ty = threadIdx.x / width, height = kThreads / width;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t column = tile % across * width + tx, row = tile / across % down * kRows, n = tile / (across * down);
    const int rows = static_cast<int>(p.rows - row < kRows ? p.rows - row : kRows);
    __syncthreads();  // the last tile's rows have been read
    if (threadIdx.x < rows) {
      make_fields<K, T>(load_box(p.boxes1, n * p.rows + row + threadIdx.x), p.format, row_fields[threadIdx.x]);
    }
    __syncthreads();
    if (column >= p.columns) continue;  // every thread of the block still meets the barriers of the next tile
    Fields<T> b;
    make_fields<K, T>(load_box(p.boxes2, n * p.columns + column), p.format, b);
    for (int i = ty; i < rows; i += height) {
      Pair<K, false, T> pair;
      pair.measure(row_fields[i], b, p.eps);
      out[(n * p.rows + row + i) * p.columns + column] = pair.similarity();
    }
  }
}

template <Kind K, typename T>
__device__ __forceinline__ void add(Fields<T>& sum, const Fields<T>& more) {
  sum.x1 += more.x1;
  sum.y1 += more.y1;
  sum.x2 += more.x2;
  sum.y2 += more.y2;
  sum.area += more.area;
  if constexpr (K == Kind::kComplete) sum.angle += more.angle;
}

template <Kind K, typename T>
__device__ __forceinline__ void warp_sum_fields(Fields<T>& sum) {
  sum.x1 = warp_sum(sum.x1);
  sum.y1 = warp_sum(sum.y1);
  sum.x2 = warp_sum(sum.x2);
  sum.y2 = warp_sum(sum.y2);
  sum.area = warp_sum(sum.area);
  if constexpr (K == Kind::kComplete) sum.angle = warp_sum(sum.angle);
}

// A block a row: its threads share the columns.
template <Kind K, typename T>
__global__ void __launch_bounds__(kThreads) row_kernel(Problem<T> p, const T* grad, T* out) {
  __shared__ Fields<T> warps[kThreads / 32];
  for (int64_t k = blockIdx.x; k < p.batch * p.rows; k += gridDim.x) {
    const int64_t n = k / p.rows;
    const Numbers<T> numbers = load_box(p.boxes1, k);
    Fields<T> a, b, to_a, to_b, sum{};
    make_fields<K, T>(numbers, p.format, a);
    for (int64_t j = threadIdx.x; j < p.columns; j += blockDim.x) {
      make_fields<K, T>(load_box(p.boxes2, n * p.columns + j), p.format, b);
      Pair<K, false, T> pair;
      pair.measure(a, b, p.eps);
      pair.differentiate(a, b, grad[k * p.columns + j], to_a, to_b);
      add<K, T>(sum, to_a);
    }
    warp_sum_fields<K, T>(sum);
    __syncthreads();  // the last row's sums have been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < static_cast<int>(blockDim.x) / 32; ++w) add<K, T>(sum, warps[w]);
      Numbers<T> result;
      gradient_of_numbers<K, T>(numbers, p.format, sum, result);
      store_box(out, k, result);
    }
  }
}

// A thread a column of a group of rows; the sums go to parts[(n * groups + group) * columns + column].
template <Kind K, typename T>
__global__ void __launch_bounds__(kThreads)
    column_kernel(Problem<T> p, const T* grad, int64_t groups, int64_t per_group, Fields<T>* parts) {
  const int64_t total = p.batch * groups * p.columns, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x; k < total; k += stride) {
    const int64_t column = k % p.columns, group = k / p.columns % groups, n = k / (p.columns * groups);
    const int64_t first = group * per_group;
    const int64_t last = first + per_group < p.rows ? first + per_group : p.rows;
    Fields<T> a, b, to_a, to_b, sum{};
    make_fields<K, T>(load_box(p.boxes2, n * p.columns + column), p.format, b);
    for (int64_t row = first; row < last; ++row) {
      make_fields<K, T>(load_box(p.boxes1, n * p.rows + row), p.format, a);
      Pair<K, false, T> pair;
      pair.measure(a, b, p.eps);
      pair.differentiate(a, b, grad[(n * p.rows + row) * p.columns + column], to_a, to_b);
      add<K, T>(sum, to_b);
    }
    parts[k] = sum;
  }
}

// A warp a column: adds the groups' parts in a fixed order.
template <Kind K, typename T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(Problem<T> p, int64_t groups, const Fields<T>* parts, T* out) {
  const int64_t total = p.batch * p.columns, stride = int64_t(gridDim.x) * (kThreads / 32);
  for (int64_t k = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; k < total; k += stride) {
    const int64_t n = k / p.columns, column = k % p.columns;
    Fields<T> sum{};
    for (int64_t group = threadIdx.x % 32; group < groups; group += 32) {
      add<K, T>(sum, parts[(n * groups + group) * p.columns + column]);
    }
    warp_sum_fields<K, T>(sum);
    if (threadIdx.x % 32 == 0) {
      Numbers<T> result;
      gradient_of_numbers<K, T>(load_box(p.boxes2, k), p.format, sum, result);
      store_box(out, k, result);
    }
  }
}

unsigned grid_for(int64_t blocks) { return static_cast<unsigned>(std::min(blocks, kMostBlocks)); }

Tensor pairwise_cuda(const Tensor& boxes1, const Tensor& boxes2, int64_t kind, int64_t format, double eps) {
  const char* const op = pairwise_name(kind);
  const Sizes s = check_pairwise(op, boxes1, boxes2, kind, format);
  const CudaDevice device(boxes1);
  Tensor out = empty_after(boxes1, 2, {s.rows, s.columns});
  if (out.numel() == 0) return out;
  const Tensor dense1 = aligned_boxes(boxes1), dense2 = aligned_boxes(boxes2);
  const cudaStream_t stream = current_stream(boxes1);
  int width = 32;
  while (width < s.columns && width < kThreads) width *= 2;
  const int64_t tiles = s.batch * ((s.columns + width - 1) / width) * ((s.rows + kRows - 1) / kRows);
  const auto run = [&](auto tag, auto constant) {
    using T = decltype(tag);
    const Problem<T> p{static_cast<const T*>(dense1.const_data_ptr()),
                       static_cast<const T*>(dense2.const_data_ptr()),
                       s.batch,
                       s.rows,
                       s.columns,
                       static_cast<T>(eps),
                       static_cast<Format>(format)};
    forward_kernel<decltype(constant)::value, T>
        <<<grid_for(tiles), kThreads, 0, stream>>>(p, width, tiles, static_cast<T*>(out.mutable_data_ptr()));
    check_cuda(op, cudaGetLastError());
  };
  with_box_type(boxes1, [&](auto tag) { with_kind(kind, [&](auto constant) { run(tag, constant); }); });
  return out;
}

std::tuple<Tensor, Tensor> pairwise_backward_cuda(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                                  int64_t kind, int64_t format, double eps) {
  const char* const op = pairwise_name(kind);
  const Sizes s = check_pairwise(op, boxes1, boxes2, kind, format);
  check_grad(op, grad, boxes1);
  check_pairwise_grad(op, grad, s);
  const CudaDevice device(boxes1);
  Tensor grad1 = empty_after(boxes1, 0, {}), grad2 = empty_after(boxes2, 0, {});
  if (grad.numel() == 0) return {torch::stable::zero_(grad1), torch::stable::zero_(grad2)};
  const Tensor dense = torch::stable::contiguous(grad);
  const Tensor dense1 = aligned_boxes(boxes1), dense2 = aligned_boxes(boxes2);
  const cudaStream_t stream = current_stream(boxes1);
  const auto run = [&](auto tag, auto constant) {
    using T = decltype(tag);
    constexpr Kind K = decltype(constant)::value;
    const Problem<T> p{static_cast<const T*>(dense1.const_data_ptr()),
                       static_cast<const T*>(dense2.const_data_ptr()),
                       s.batch,
                       s.rows,
                       s.columns,
                       static_cast<T>(eps),
                       static_cast<Format>(format)};
    const T* const from = static_cast<const T*>(dense.const_data_ptr());
    const int threads = s.columns > 128 ? kThreads : 32;
    row_kernel<K, T>
        <<<grid_for(s.batch * s.rows), threads, 0, stream>>>(p, from, static_cast<T*>(grad1.mutable_data_ptr()));
    // Parts are at most a fifth of the gradient's size: six sums for 32 rows.
    const int64_t per_group = kRows, groups = (s.rows + per_group - 1) / per_group;
    const Scratch<Fields<T>> parts(boxes1, s.batch * groups * s.columns);
    column_kernel<K, T><<<grid_for((s.batch * groups * s.columns + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        p, from, groups, per_group, parts.get());
    finish_kernel<K, T><<<grid_for((s.batch * s.columns + 7) / 8), kThreads, 0, stream>>>(
        p, groups, parts.get(), static_cast<T*>(grad2.mutable_data_ptr()));
    check_cuda(op, cudaGetLastError());
  };
  with_box_type(boxes1, [&](auto tag) { with_kind(kind, [&](auto constant) { run(tag, constant); }); });
  return {grad1, grad2};
}

}  // namespace
}  // namespace iou
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("pairwise_box_iou", TORCH_BOX(&d2proj::iou::pairwise_cuda));
  m.impl("_pairwise_box_iou_backward", TORCH_BOX(&d2proj::iou::pairwise_backward_cuda));
}
