// Corner pooling on CUDA, forward and backward.
//
// columns (inner > 1): a thread has kItems consecutive steps of kVec (16 bytes of) neighbouring columns in registers;
// the 16 threads of a column's block settle among themselves, through shared memory, what each has to begin with. So a
// map is read once and written once, with as many loads in flight as registers hold. Longer columns go chunk by chunk.
// rows (inner == 1): a warp, or the part of one that a short row needs, scans 16 bytes a lane with shuffles.
//
// Backward finds again where the running maximum was replaced and sums the gradient from each such place to the next:
// the same scan, the other way. No atomics anywhere: the same bits every time.
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "common/cuda.h"
#include "common/launch.cuh"
#include "corner_pool/corner_pool_args.h"

namespace d2proj {
namespace corner_pool {
namespace {

constexpr int kColumns = 32;   // threads of a block along the columns ...
constexpr int kSegments = 16;  // ... and along the scan
constexpr unsigned kAll = 0xffffffffu;

template <int kVec>
constexpr int kItemsOf = kVec > 4 ? 4 : 8;  // steps of a thread: at most 32 accumulators

template <typename A>
__device__ __forceinline__ A lowest() {
  return static_cast<A>(-INFINITY);
}

template <typename A>
__device__ __forceinline__ A later(A best, A value) {
  return replaces(value, best) ? value : best;
}

template <typename A, typename T, int kVec>
__device__ __forceinline__ void read(A (&value)[kVec], const T* from) {
  const Pack<T, kVec> pack = *reinterpret_cast<const Pack<T, kVec>*>(from);
#pragma unroll
  for (int v = 0; v < kVec; ++v) value[v] = static_cast<A>(pack.lane[v]);
}

template <bool kAdd, typename A, typename T, int kVec>
__device__ __forceinline__ void write(T* to, const A (&value)[kVec]) {
  Pack<T, kVec> pack;
  if (kAdd) pack = *reinterpret_cast<const Pack<T, kVec>*>(to);
#pragma unroll
  for (int v = 0; v < kVec; ++v) {
    pack.lane[v] = static_cast<T>(kAdd ? static_cast<A>(pack.lane[v]) + value[v] : value[v]);
  }
  *reinterpret_cast<Pack<T, kVec>*>(to) = pack;
}

// ---- columns ----

// The thread's column (of kVec), as an offset into the map; negative past the last one.
template <int kVec>
__device__ __forceinline__ int64_t column_of(const Scan& s) {
  const int64_t vectors = s.inner / kVec, column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  if (column >= s.outer * vectors) return -1;
  return column / vectors * s.length * s.inner + column % vectors * kVec;
}

// Scans a chunk, `count` steps of it the thread's own: `best` is the maximum before the chunk and becomes that after
// it (minus infinity, which replaces nothing, before the first); `value` becomes the running maxima. Every thread of a
// block calls it.
template <typename A, int kVec, int kItems>
__device__ __forceinline__ void scan_chunk(A (&value)[kItems][kVec], int count, A (&best)[kVec],
                                           Pack<A, kVec> (&shared)[kSegments][kColumns], int segments) {
#pragma unroll
  for (int k = 1; k < kItems; ++k) {
    if (k >= count) continue;
#pragma unroll
    for (int v = 0; v < kVec; ++v) value[k][v] = later(value[k - 1][v], value[k][v]);
  }
  __syncthreads();  // an earlier chunk's readers are done
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (k != count - 1) continue;
#pragma unroll
    for (int v = 0; v < kVec; ++v) shared[threadIdx.y][threadIdx.x].lane[v] = value[k][v];
  }
  __syncthreads();
  A before[kVec];
#pragma unroll
  for (int v = 0; v < kVec; ++v) before[v] = best[v];
  for (int y = 0; y < segments; ++y) {
    if (y == static_cast<int>(threadIdx.y)) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) before[v] = best[v];
    }
    const Pack<A, kVec> total = shared[y][threadIdx.x];
#pragma unroll
    for (int v = 0; v < kVec; ++v) best[v] = later(best[v], total.lane[v]);
  }
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
#pragma unroll
    for (int v = 0; v < kVec; ++v) value[k][v] = later(before[v], value[k][v]);
  }
}

// The steps of the chunk at `chunk` that are the thread's own, and how many of the block's threads have any.
template <int kItems>
__device__ __forceinline__ int own_steps(const Scan& s, int64_t chunk, int64_t& first, int& segments) {
  const int64_t left = s.length - chunk;
  segments = static_cast<int>(left >= kSegments * kItems ? kSegments : (left + kItems - 1) / kItems);
  first = chunk + static_cast<int64_t>(threadIdx.y) * kItems;
  const int64_t count = s.length - first;
  return static_cast<int>(count < 0 ? 0 : count < kItems ? count : kItems);
}

template <typename T, typename A, int kVec, bool kAdd>
__global__ void __launch_bounds__(kColumns* kSegments)
    columns_kernel(const T* __restrict__ in, T* __restrict__ out, Scan s) {
  constexpr int kItems = kItemsOf<kVec>;
  __shared__ Pack<A, kVec> shared[kSegments][kColumns];
  const int64_t column = column_of<kVec>(s);
  A best[kVec];
#pragma unroll
  for (int v = 0; v < kVec; ++v) best[v] = lowest<A>();
  for (int64_t chunk = 0; chunk < s.length; chunk += kSegments * kItems) {
    int64_t first;
    int segments;
    const int own = own_steps<kItems>(s, chunk, first, segments), count = column < 0 ? 0 : own;
    A value[kItems][kVec] = {};
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (k < count) read(value[k], in + column + s.at(first + k) * s.inner);
    }
    scan_chunk(value, count, best, shared, segments);
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (k < count) write<kAdd>(out + column + s.at(first + k) * s.inner, value[k]);
    }
  }
}

// The maximum before a chunk that is not the first is kept in the gradient, at the chunk's first step, until that is
// written: the same block reads and writes it.
template <typename T, typename A, int kVec>
__global__ void __launch_bounds__(kColumns* kSegments)
    columns_backward_kernel(const T* __restrict__ grad, const T* __restrict__ in, T* out, Scan s) {
  constexpr int kItems = kItemsOf<kVec>;
  constexpr int kChunk = kSegments * kItems;
  __shared__ Pack<A, kVec> shared[kSegments][kColumns];
  __shared__ bool stops[kSegments][kColumns][kVec];
  const int64_t column = column_of<kVec>(s);
  const int64_t chunks = (s.length + kChunk - 1) / kChunk;
  A best[kVec];
#pragma unroll
  for (int v = 0; v < kVec; ++v) best[v] = lowest<A>();
  for (int64_t chunk = 0; chunk + 1 < chunks; ++chunk) {  // the maxima at the chunks' beginnings
    int64_t first;
    int segments;
    const int own = own_steps<kItems>(s, chunk * kChunk, first, segments), count = column < 0 ? 0 : own;
    A value[kItems][kVec] = {};
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (k < count) read(value[k], in + column + s.at(first + k) * s.inner);
    }
    scan_chunk(value, count, best, shared, segments);
    if (column >= 0 && threadIdx.y == 0) write<false>(out + column + s.at((chunk + 1) * kChunk) * s.inner, best);
  }
  A sum[kVec] = {};  // what the chunks after this one leave for it
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    int64_t first;
    int segments;
    const int own = own_steps<kItems>(s, chunk * kChunk, first, segments), count = column < 0 ? 0 : own;
    __syncthreads();  // the maxima are written, the shared memory is free
#pragma unroll
    for (int v = 0; v < kVec; ++v) best[v] = lowest<A>();
    if (chunk > 0 && column >= 0) read(best, static_cast<const T*>(out) + column + s.at(chunk * kChunk) * s.inner);
    A value[kItems][kVec] = {}, share[kItems][kVec] = {};
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (k < count) {
        read(value[k], in + column + s.at(first + k) * s.inner);
        read(share[k], grad + column + s.at(first + k) * s.inner);
      }
    }
    // Each thread compares with the running maximum before its own steps, so it scans copies.
    A running[kItems][kVec];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) running[k][v] = value[k][v];
    }
    A start[kVec];
#pragma unroll
    for (int v = 0; v < kVec; ++v) start[v] = best[v];
    scan_chunk(running, count, best, shared, segments);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kItems; ++k) {  // the segments' last running maxima
      if (k != count - 1) continue;
#pragma unroll
      for (int v = 0; v < kVec; ++v) shared[threadIdx.y][threadIdx.x].lane[v] = running[k][v];
    }
    __syncthreads();
    if (threadIdx.y > 0) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) start[v] = shared[threadIdx.y - 1][threadIdx.x].lane[v];
    }
    uint32_t mine = 0;  // where the maximum was replaced
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        const bool very_first = k == 0 && chunk == 0 && threadIdx.y == 0;
        const A before = k == 0 ? start[v] : running[k > 0 ? k - 1 : 0][v];
        if (k < count && (very_first || replaces(value[k][v], before))) mine |= 1u << (k * kVec + v);
      }
    }
    // What a segment leaves for those before it: its gradient up to the first such place.
    A head[kVec] = {};
    bool stop[kVec] = {};
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        stop[v] = stop[v] || (mine >> (k * kVec + v) & 1u);
        if (!stop[v]) head[v] += share[k][v];
      }
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
      shared[threadIdx.y][threadIdx.x].lane[v] = head[v];
      stops[threadIdx.y][threadIdx.x][v] = stop[v];
    }
    __syncthreads();
    A total[kVec];
#pragma unroll
    for (int v = 0; v < kVec; ++v) total[v] = sum[v];
    for (int y = segments - 1; y >= 0; --y) {
      if (y == static_cast<int>(threadIdx.y)) {
#pragma unroll
        for (int v = 0; v < kVec; ++v) total[v] = sum[v];
      }
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        sum[v] = shared[y][threadIdx.x].lane[v] + (stops[y][threadIdx.x][v] ? A(0) : sum[v]);
      }
    }
#pragma unroll
    for (int k = kItems - 1; k >= 0; --k) {
      if (k >= count) continue;
      A result[kVec];
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        const bool here = mine >> (k * kVec + v) & 1u;
        total[v] += share[k][v];
        result[v] = here ? total[v] : A(0);
        total[v] = here ? A(0) : total[v];
      }
      write<false>(out + column + s.at(first + k) * s.inner, result);
    }
  }
}

// ---- rows ----

// A row's vectors (of kVec) are scanned by `group` neighbouring lanes, a power of two.
struct RowPlace {
  int64_t offset;  // of the row in the map; negative past the last one
  int lane;        // within the group
};

__device__ __forceinline__ RowPlace row_of(const Scan& s, int group) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / group;
  return {row < s.outer ? row * s.length : -1, static_cast<int>(threadIdx.x) % group};
}

// Where the scan's vector `i` lies, and which of its lanes is the scan's `v`th.
template <int kVec>
__device__ __forceinline__ int64_t vector_at(const Scan& s, int64_t i) {
  return s.from_end ? s.length - (i + 1) * kVec : i * kVec;
}

// Turns a vector into the scan's order, or back.
template <typename A, int kVec>
__device__ __forceinline__ void orient(A (&value)[kVec], bool from_end) {
  if (!from_end) return;
#pragma unroll
  for (int v = 0; v < kVec / 2; ++v) {
    const A other = value[v];
    value[v] = value[kVec - 1 - v];
    value[kVec - 1 - v] = other;
  }
}

// The running maximum before this lane's vector, whose own maximum is `total` (minus infinity past the row's end).
// `best` is the maximum before the group's vectors and becomes that after them.
template <typename A>
__device__ __forceinline__ A before_lane(A total, int lane, int group, A& best) {
  for (int d = 1; d < group; d *= 2) {
    const A other = __shfl_up_sync(kAll, total, d, group);
    if (lane >= d) total = later(other, total);
  }
  const A previous = __shfl_up_sync(kAll, total, 1, group), all = __shfl_sync(kAll, total, group - 1, group);
  const A before = lane == 0 ? best : later(best, previous);
  best = later(best, all);
  return before;
}

template <typename T, typename A, int kVec, bool kAdd>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const T* __restrict__ in, T* __restrict__ out, Scan s, int group) {
  const RowPlace at = row_of(s, group);
  const int64_t vectors = s.length / kVec;
  A best = lowest<A>();
  for (int64_t chunk = 0; chunk < vectors; chunk += group) {
    const int64_t i = chunk + at.lane;
    const bool inside = at.offset >= 0 && i < vectors;
    A value[kVec] = {};
    if (inside) {
      read(value, in + at.offset + vector_at<kVec>(s, i));
      orient(value, s.from_end);
    }
#pragma unroll
    for (int v = 1; v < kVec; ++v) value[v] = later(value[v - 1], value[v]);
    const A before = before_lane(inside ? value[kVec - 1] : lowest<A>(), at.lane, group, best);
    if (!inside) continue;
#pragma unroll
    for (int v = 0; v < kVec; ++v) value[v] = later(before, value[v]);
    orient(value, s.from_end);
    write<kAdd>(out + at.offset + vector_at<kVec>(s, i), value);
  }
}

template <typename T, typename A, int kVec>
__global__ void __launch_bounds__(kThreads)
    rows_backward_kernel(const T* __restrict__ grad, const T* __restrict__ in, T* out, Scan s, int group) {
  const RowPlace at = row_of(s, group);
  const int64_t vectors = s.length / kVec, chunks = (vectors + group - 1) / group;
  A best = lowest<A>();
  // As with columns, the maximum before a chunk waits in the gradient; the group's first lane writes and reads it.
  for (int64_t chunk = 0; chunk + 1 < chunks; ++chunk) {
    const int64_t i = chunk * group + at.lane;
    A value[kVec] = {};
    if (at.offset >= 0) {
      read(value, in + at.offset + vector_at<kVec>(s, i));
      orient(value, s.from_end);
    }
#pragma unroll
    for (int v = 1; v < kVec; ++v) value[v] = later(value[v - 1], value[v]);
    before_lane(value[kVec - 1], at.lane, group, best);
    if (at.offset >= 0 && at.lane == 0) {
      out[at.offset + vector_at<kVec>(s, (chunk + 1) * group)] = static_cast<T>(best);
    }
  }
  A sum = A(0);
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t i = chunk * group + at.lane;
    const bool inside = at.offset >= 0 && i < vectors;
    best = lowest<A>();
    if (chunk > 0) {
      if (at.offset >= 0 && at.lane == 0) {
        best = static_cast<A>(out[at.offset + vector_at<kVec>(s, chunk * group)]);
      }
      best = __shfl_sync(kAll, best, 0, group);
    }
    A value[kVec] = {}, share[kVec] = {};
    if (inside) {
      read(value, in + at.offset + vector_at<kVec>(s, i));
      read(share, grad + at.offset + vector_at<kVec>(s, i));
      orient(value, s.from_end);
      orient(share, s.from_end);
    }
    A own = value[0];
#pragma unroll
    for (int v = 1; v < kVec; ++v) own = later(own, value[v]);
    A running = before_lane(inside ? own : lowest<A>(), at.lane, group, best);
    bool mine[kVec];
    A head = A(0);  // the gradient up to the first replacement, which belongs to a lane before
    bool stop = false;
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
      mine[v] = inside && ((i == 0 && v == 0) || replaces(value[v], running));
      if (mine[v]) running = value[v];
      stop = stop || mine[v];
      if (!stop) head += share[v];
    }
    // head + (stop ? 0 : what follows), combined over the lanes after this one.
    A tail = head;
    bool ended = stop;
    for (int d = 1; d < group; d *= 2) {
      const A other = __shfl_down_sync(kAll, tail, d, group);
      const bool other_ended = __shfl_down_sync(kAll, static_cast<int>(ended), d, group) != 0;
      if (at.lane + d < group && !ended) {
        tail += other;
        ended = other_ended;
      }
    }
    const A next_tail = __shfl_down_sync(kAll, tail, 1, group);
    const bool next_ended = __shfl_down_sync(kAll, static_cast<int>(ended), 1, group) != 0;
    A total = at.lane == group - 1 ? sum : next_tail + (next_ended ? A(0) : sum);
    const A all = __shfl_sync(kAll, tail, 0, group);
    const bool all_ended = __shfl_sync(kAll, static_cast<int>(ended), 0, group) != 0;
    sum = all + (all_ended ? A(0) : sum);
    if (!inside) continue;
    A result[kVec];
#pragma unroll
    for (int v = kVec - 1; v >= 0; --v) {
      total += share[v];
      result[v] = mine[v] ? total : A(0);
      total = mine[v] ? A(0) : total;
    }
    orient(result, s.from_end);
    write<false>(out + at.offset + vector_at<kVec>(s, i), result);
  }
}

// ---- launches ----

bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return false;
  }
  return true;
}

unsigned blocks(const char* op, int64_t count, int64_t each) {
  const int64_t needed = (count + each - 1) / each;
  check(needed <= std::numeric_limits<int32_t>::max(), op, "the map is too large for one launch");
  return static_cast<unsigned>(needed);
}

// Calls `body(std::integral_constant<int, kVec>{})` with the elements of 16 bytes if rows of `extent` split into them.
template <typename T, typename Body>
void with_vector(int64_t extent, bool is_aligned, const Body& body) {
  constexpr int kWide = 16 / sizeof(T);
  if (is_aligned && extent % kWide == 0) return body(std::integral_constant<int, kWide>{});
  body(std::integral_constant<int, 1>{});
}

int group_for(int64_t vectors) {
  int group = 1;
  while (group < 32 && group < vectors) group *= 2;
  return group;
}

template <bool kAdd, typename T>
void forward(const char* op, const T* in, T* out, const Scan& s, cudaStream_t stream) {
  using A = accumulate_t<T>;
  const bool by_rows = s.inner == 1;
  with_vector<T>(by_rows ? s.length : s.inner, aligned({in, out}), [&](auto width) {
    constexpr int kVec = decltype(width)::value;
    if (by_rows) {
      const int group = group_for(s.length / kVec);
      rows_kernel<T, A, kVec, kAdd><<<blocks(op, s.outer, kThreads / group), kThreads, 0, stream>>>(in, out, s, group);
    } else {
      columns_kernel<T, A, kVec, kAdd>
          <<<blocks(op, s.outer * (s.inner / kVec), kColumns), dim3(kColumns, kSegments), 0, stream>>>(in, out, s);
    }
  });
  check_cuda(op, cudaGetLastError());
}

template <typename T>
void backward(const char* op, const T* grad, const T* in, T* out, const Scan& s, cudaStream_t stream) {
  using A = accumulate_t<T>;
  const bool by_rows = s.inner == 1;
  with_vector<T>(by_rows ? s.length : s.inner, aligned({grad, in, out}), [&](auto width) {
    constexpr int kVec = decltype(width)::value;
    if (by_rows) {
      const int group = group_for(s.length / kVec);
      rows_backward_kernel<T, A, kVec>
          <<<blocks(op, s.outer, kThreads / group), kThreads, 0, stream>>>(grad, in, out, s, group);
    } else {
      columns_backward_kernel<T, A, kVec>
          <<<blocks(op, s.outer * (s.inner / kVec), kColumns), dim3(kColumns, kSegments), 0, stream>>>(grad, in, out,
                                                                                                       s);
    }
  });
  check_cuda(op, cudaGetLastError());
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

Tensor forward_cuda(const Tensor& input, int64_t dim, bool from_end) {
  constexpr const char* kOp = "corner_pool";
  check_input(kOp, "input", input);
  check_axis(kOp, dim);
  const CudaDevice device(input);
  const bool last = is_channels_last(input);
  Tensor out = empty_like(input, last);
  if (out.numel() == 0) return out;
  const Tensor in = dense(input, last);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    forward<false>(kOp, data<T>(in), static_cast<T*>(out.mutable_data_ptr()), scan_of(in, last, dim, from_end),
                   current_stream(input));
  });
  return out;
}

// The columns' maxima, then the rows' added to them.
Tensor forward_pair_cuda(const Tensor& input_a, const Tensor& input_b, bool from_end) {
  constexpr const char* kOp = "corner_pool_pair";
  check_input(kOp, "x_a", input_a);
  check_like(kOp, "x_b", input_b, "x_a", input_a);
  const CudaDevice device(input_a);
  const bool last = is_channels_last(input_a);
  Tensor out = empty_like(input_a, last);
  if (out.numel() == 0) return out;
  const Tensor a = dense(input_a, last), b = dense(input_b, last);
  const cudaStream_t stream = current_stream(input_a);
  dispatch_floating(out.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    T* to = static_cast<T*>(out.mutable_data_ptr());
    forward<false>(kOp, data<T>(a), to, scan_of(a, last, 2, from_end), stream);
    forward<true>(kOp, data<T>(b), to, scan_of(b, last, 3, from_end), stream);
  });
  return out;
}

Tensor backward_cuda(const Tensor& grad, const Tensor& input, int64_t dim, bool from_end) {
  constexpr const char* kOp = "_corner_pool_backward";
  check_input(kOp, "input", input);
  check_like(kOp, "grad", grad, "input", input);
  check_axis(kOp, dim);
  const CudaDevice device(input);
  const bool last = is_channels_last(input);
  Tensor out = empty_like(input, last);
  if (out.numel() == 0) return out;
  const Tensor g = dense(grad, last), in = dense(input, last);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    backward(kOp, data<T>(g), data<T>(in), static_cast<T*>(out.mutable_data_ptr()), scan_of(in, last, dim, from_end),
             current_stream(input));
  });
  return out;
}

std::tuple<Tensor, Tensor> backward_pair_cuda(const Tensor& grad, const Tensor& input_a, const Tensor& input_b,
                                              bool from_end) {
  constexpr const char* kOp = "_corner_pool_pair_backward";
  check_input(kOp, "x_a", input_a);
  check_like(kOp, "x_b", input_b, "x_a", input_a);
  check_like(kOp, "grad", grad, "x_a", input_a);
  const CudaDevice device(input_a);
  const bool last = is_channels_last(input_a);
  Tensor out_a = empty_like(input_a, last), out_b = empty_like(input_a, last);
  if (out_a.numel() == 0) return {out_a, out_b};
  const Tensor g = dense(grad, last), a = dense(input_a, last), b = dense(input_b, last);
  const cudaStream_t stream = current_stream(input_a);
  dispatch_floating(a.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    backward(kOp, data<T>(g), data<T>(a), static_cast<T*>(out_a.mutable_data_ptr()), scan_of(a, last, 2, from_end),
             stream);
    backward(kOp, data<T>(g), data<T>(b), static_cast<T*>(out_b.mutable_data_ptr()), scan_of(b, last, 3, from_end),
             stream);
  });
  return {out_a, out_b};
}

}  // namespace
}  // namespace corner_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("corner_pool", TORCH_BOX(&d2proj::corner_pool::forward_cuda));
  m.impl("_corner_pool_backward", TORCH_BOX(&d2proj::corner_pool::backward_cuda));
  m.impl("corner_pool_pair", TORCH_BOX(&d2proj::corner_pool::forward_pair_cuda));
  m.impl("_corner_pool_pair_backward", TORCH_BOX(&d2proj::corner_pool::backward_pair_cuda));
}
