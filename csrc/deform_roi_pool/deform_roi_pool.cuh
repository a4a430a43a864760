// Deformable RoI pooling on CUDA: the kernels of both ops (kPs: deform_ps_roi_pool).
//
// Forward, a thread makes one bin of kVec channels: one for a planar map (neighbouring threads take neighbouring bins),
// 16 bytes' worth for a channels-last one. The map's gradient adds with atomics, into float32 for half types; its
// deterministic form gives each thread a pixel, and a block visits the bins that reach its tile in order. The offsets'
// gradient is a warp a bin, which sums over the channels: no atomics, always the same bits.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <type_traits>

#include "common/cuda.h"
#include "common/launch.cuh"
#include "common/tensor.h"
#include "deform_roi_pool/deform_roi_pool.h"
#include "deform_roi_pool/deform_roi_pool_args.h"

namespace d2proj {
namespace deform_roi_pool {
namespace {

constexpr int kWarp = 32;

// A bin as a thread sees it. `inside` is false where box or offset is not finite or the image index is out of range:
// such a bin is zero (raising an error would need a synchronisation).
template <typename A, bool kPs>
struct Bin {
  BinAxis<A, kPs> y, x;
  int64_t image;
  bool inside;

  __device__ __forceinline__ A factor(const Problem& p) const {
    return mean_factor(counted(y, p.height), counted(x, p.width));
  }
};

template <bool kPs, typename A>
__device__ __forceinline__ Bin<A, kPs> read_bin(const A* boxes, const A* offset, int64_t k, int64_t cls, int64_t ph,
                                                int64_t pw, const Problem& p) {
  const A* box = boxes + k * 5;
  const A* shift = offset + p.offset_of(k, cls, ph, pw);
  Bin<A, kPs> bin;
  bin.x = BoxAxis<A, kPs>(box[1], box[3], p.pooled_w, p).bin(shift[0], pw, p);
  bin.y = BoxAxis<A, kPs>(box[2], box[4], p.pooled_h, p).bin(shift[p.parts()], ph, p);
  bin.inside = bin.x.valid && bin.y.valid && box[0] >= A(0) && box[0] < static_cast<A>(p.images);
  bin.image = bin.inside ? static_cast<int64_t>(box[0]) : 0;
  return bin;
}

// Splits a thread's number into box, bin and first channel, in the order in which the result lies in memory.
struct Place {
  int64_t k, c, ph, pw;
};

template <typename I, bool kLast, int kVec>
__device__ __forceinline__ Place place_of(I index, const Problem& p) {
  const I ph_count = static_cast<I>(p.pooled_h), pw_count = static_cast<I>(p.pooled_w);
  const I groups = static_cast<I>(p.channels / kVec);
  I c = 0;
  if (kLast) {
    c = index % groups;
    index /= groups;
  }
  const I pw = index % pw_count;
  index /= pw_count;
  const I ph = index % ph_count;
  index /= ph_count;
  if (!kLast) {
    c = index % groups;
    index /= groups;
  }
  return {static_cast<int64_t>(index), static_cast<int64_t>(c) * kVec, static_cast<int64_t>(ph),
          static_cast<int64_t>(pw)};
}

// The map's channel that an output channel reads in a bin.
__device__ __forceinline__ int64_t source_channel(const Place& at, const Problem& p) {
  return at.c * p.cells() + p.cell_of(at.ph, at.pw);
}

// kVec > 1 only where a pixel's channels lie side by side, there is one cell, and a class is a multiple of kVec.
template <typename T, typename A, bool kPs, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ input, Strides in, const A* __restrict__ boxes, const A* __restrict__ offset,
                   T* __restrict__ output, Strides out, I total, Problem p) {
  using Lanes = Pack<T, kVec>;
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = place_of<I, kLast, kVec>(index, p);
    const auto bin = read_bin<kPs>(boxes, offset, at.k, p.class_of(at.c), at.ph, at.pw, p);
    A sum[kVec] = {};
    int64_t inside_y = 0, inside_x = 0;
    if (bin.inside) {
      const T* map = input + bin.image * in.n + source_channel(at, p) * in.c;
      const SampleRange ys = bin.y.range(p.height), xs = bin.x.range(p.width);
      for (int64_t iy = ys.first; iy < ys.last; ++iy) {
        SlopedTaps<A> ty;
        if (!sloped_taps_at<kPs>(bin.y.sample(iy), p.height, ty)) continue;
        ++inside_y;
        inside_x = 0;
        const T* low = map + ty.low * in.h;
        const T* high = map + ty.high * in.h;
        for (int64_t ix = xs.first; ix < xs.last; ++ix) {
          SlopedTaps<A> tx;
          if (!sloped_taps_at<kPs>(bin.x.sample(ix), p.width, tx)) continue;
          ++inside_x;
          const Lanes v00 = *reinterpret_cast<const Lanes*>(low + tx.low * in.w);
          const Lanes v01 = *reinterpret_cast<const Lanes*>(low + tx.high * in.w);
          const Lanes v10 = *reinterpret_cast<const Lanes*>(high + tx.low * in.w);
          const Lanes v11 = *reinterpret_cast<const Lanes*>(high + tx.high * in.w);
#pragma unroll
          for (int v = 0; v < kVec; ++v) {
            sum[v] += ty.w_low * (tx.w_low * static_cast<A>(v00.lane[v]) + tx.w_high * static_cast<A>(v01.lane[v])) +
                      ty.w_high * (tx.w_low * static_cast<A>(v10.lane[v]) + tx.w_high * static_cast<A>(v11.lane[v]));
          }
        }
      }
    }
    const A factor =
        kPs ? mean_factor(static_cast<A>(inside_y), static_cast<A>(inside_x)) : mean_factor(bin.y.grid, bin.x.grid);
    Lanes result;
#pragma unroll
    for (int v = 0; v < kVec; ++v) result.lane[v] = static_cast<T>(sum[v] * factor);
    *reinterpret_cast<Lanes*>(output + at.k * out.n + at.c * out.c + at.ph * out.h + at.pw * out.w) = result;
  }
}

template <typename T, typename A, bool kPs, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    spread_kernel(const T* __restrict__ grad, Strides in, const A* __restrict__ boxes, const A* __restrict__ offset,
                  A* __restrict__ output, Strides out, I total, Problem p) {
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = place_of<I, kLast, kVec>(index, p);
    const auto bin = read_bin<kPs>(boxes, offset, at.k, p.class_of(at.c), at.ph, at.pw, p);
    if (!bin.inside) continue;
    const A factor = bin.factor(p);
    A share[kVec];
    const T* from = grad + at.k * in.n + at.c * in.c + at.ph * in.h + at.pw * in.w;
#pragma unroll
    for (int v = 0; v < kVec; ++v) share[v] = static_cast<A>(from[v * in.c]) * factor;
    A* map = output + bin.image * out.n + source_channel(at, p) * out.c;
    const SampleRange ys = bin.y.range(p.height), xs = bin.x.range(p.width);
    for (int64_t iy = ys.first; iy < ys.last; ++iy) {
      SlopedTaps<A> ty;
      if (!sloped_taps_at<kPs>(bin.y.sample(iy), p.height, ty)) continue;
      A* low = map + ty.low * out.h;
      A* high = map + ty.high * out.h;
      for (int64_t ix = xs.first; ix < xs.last; ++ix) {
        SlopedTaps<A> tx;
        if (!sloped_taps_at<kPs>(bin.x.sample(ix), p.width, tx)) continue;
        atomic_add<A, kVec>(low + tx.low * out.w, share, ty.w_low * tx.w_low);
        if (tx.w_high != A(0)) atomic_add<A, kVec>(low + tx.high * out.w, share, ty.w_low * tx.w_high);
        if (ty.w_high == A(0)) continue;
        atomic_add<A, kVec>(high + tx.low * out.w, share, ty.w_high * tx.w_low);
        if (tx.w_high != A(0)) atomic_add<A, kVec>(high + tx.high * out.w, share, ty.w_high * tx.w_high);
      }
    }
  }
}

// ---- deterministic gradient of the map ----

constexpr int kTile = 16;     // a block owns 16 x 16 pixels ...
constexpr int kChannels = 8;  // ... of 8 channels
static_assert(kTile * kTile == kThreads);

// The weight of a pixel in a bin along one axis.
template <bool kPs, typename A>
__device__ __forceinline__ A weight_of(const BinAxis<A, kPs>& axis, int64_t pixel, int64_t size) {
  const SampleRange range = axis.range(size);
  A weight = A(0);
  for (int64_t i = range.first; i < range.last; ++i) {
    SlopedTaps<A> taps;
    if (!sloped_taps_at<kPs>(axis.sample(i), size, taps)) continue;
    if (taps.low == pixel) weight += taps.w_low;
    if (taps.high == pixel && taps.high != taps.low) weight += taps.w_high;
  }
  return weight;
}

// Whether the bin can reach the pixels [first, first + kTile) along an axis.
template <bool kPs, typename A>
__device__ __forceinline__ bool reaches(const BinAxis<A, kPs>& axis, int64_t first) {
  const A end = axis.start + axis.length;
  const A low = axis.start < end ? axis.start : end, high = axis.start < end ? end : axis.start;
  // Samples as far as a pixel outside the map count for its border, hence the wider margin.
  return high >= static_cast<A>(first) - A(2) && low <= static_cast<A>(first + kTile) + A(2);
}

template <typename T, typename A, bool kPs>
__global__ void __launch_bounds__(kThreads)
    deterministic_kernel(const T* __restrict__ grad, Strides in, const A* __restrict__ boxes,
                         const A* __restrict__ offset, T* __restrict__ output, Strides out, Problem p, int64_t tiles_x,
                         int64_t tiles_y) {
  __shared__ int hits_of_warp[kThreads / kWarp];
  __shared__ int hits[kThreads];
  const int64_t tile = blockIdx.x;
  const int64_t left = tile % tiles_x * kTile, top = tile / tiles_x % tiles_y * kTile;
  const int64_t image = tile / (tiles_x * tiles_y);
  const int64_t x = left + threadIdx.x % kTile, y = top + threadIdx.x / kTile;
  const bool in_map = x < p.width && y < p.height;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t per_class = p.class_channels();
  const int64_t blocks = (per_class + kChannels - 1) / kChannels;
  const int64_t jobs = p.cells() * p.classes * blocks;
  for (int64_t job = blockIdx.y; job < jobs; job += gridDim.y) {
    const int64_t cell = job % p.cells(), cls = job / p.cells() % p.classes;
    const int64_t c0 = job / (p.cells() * p.classes) * kChannels;
    const int count = static_cast<int>(per_class - c0 < kChannels ? per_class - c0 : kChannels);
    const CellBins rectangle(p, cell);
    const int64_t bins = rectangle.count(), total = p.boxes * bins;
    const auto bin_at = [&](int64_t index, int64_t& k, int64_t& ph, int64_t& pw) {
      k = index / bins;
      ph = rectangle.top + index % bins / rectangle.width();
      pw = rectangle.left + index % rectangle.width();
      return read_bin<kPs>(boxes, offset, k, cls, ph, pw, p);
    };
    A sum[kChannels] = {};
    int64_t k, ph, pw;
    for (int64_t base = 0; base < total; base += kThreads) {
      // The block tests as many bins as it has threads, and lists those that reach its tile in order.
      bool hit = false;
      if (base + threadIdx.x < total) {
        const auto bin = bin_at(base + threadIdx.x, k, ph, pw);
        hit = bin.inside && bin.image == image && reaches(bin.x, left) && reaches(bin.y, top);
      }
      const unsigned ballot = __ballot_sync(0xffffffffu, hit);
      if (lane == 0) hits_of_warp[warp] = __popc(ballot);
      __syncthreads();
      int before = 0, found = 0;
      for (int w = 0; w < kThreads / kWarp; ++w) {
        if (w < warp) before += hits_of_warp[w];
        found += hits_of_warp[w];
      }
      if (hit) hits[before + __popc(ballot & ((1u << lane) - 1u))] = threadIdx.x;
      __syncthreads();
      for (int h = 0; in_map && h < found; ++h) {
        const auto bin = bin_at(base + hits[h], k, ph, pw);
        const A wy = weight_of(bin.y, y, p.height);
        if (wy == A(0)) continue;
        const A weight = wy * weight_of(bin.x, x, p.width);
        if (weight == A(0)) continue;
        const A scaled = weight * bin.factor(p);
        const T* from = grad + k * in.n + (cls * per_class + c0) * in.c + ph * in.h + pw * in.w;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if (c < count) sum[c] += scaled * static_cast<A>(from[c * in.c]);
        }
      }
      __syncthreads();  // before the lists are written again
    }
    if (!in_map) continue;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c >= count) continue;
      const int64_t channel = (cls * per_class + c0 + c) * p.cells() + cell;
      output[image * out.n + channel * out.c + y * out.h + x * out.w] = static_cast<T>(sum[c]);
    }
  }
}

// ---- the offsets' gradient ----

// A warp a bin; a lane takes every 32nd channel. Writes every element of (boxes, classes, 2, pooled_h, pooled_w).
template <typename T, typename A, bool kPs>
__global__ void __launch_bounds__(kThreads)
    slope_kernel(const T* __restrict__ grad, Strides up, const T* __restrict__ input, Strides in,
                 const A* __restrict__ boxes, const A* __restrict__ offset, A* __restrict__ bin_grads, int64_t total,
                 Problem p) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t per_class = p.class_channels();
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; index < total;
       index += warps) {
    const int64_t pw = index % p.pooled_w, ph = index / p.pooled_w % p.pooled_h;
    const int64_t cls = index / p.bins() % p.classes, k = index / (p.bins() * p.classes);
    const auto bin = read_bin<kPs>(boxes, offset, k, cls, ph, pw, p);
    A dx = A(0), dy = A(0);
    if (bin.inside) {
      const T* map = input + bin.image * in.n + (cls * per_class * p.cells() + p.cell_of(ph, pw)) * in.c;
      const T* from = grad + k * up.n + cls * per_class * up.c + ph * up.h + pw * up.w;
      const int64_t channel_step = p.cells() * in.c;
      const SampleRange ys = bin.y.range(p.height), xs = bin.x.range(p.width);
      for (int64_t iy = ys.first; iy < ys.last; ++iy) {
        SlopedTaps<A> ty;
        if (!sloped_taps_at<kPs>(bin.y.sample(iy), p.height, ty)) continue;
        for (int64_t ix = xs.first; ix < xs.last; ++ix) {
          SlopedTaps<A> tx;
          if (!sloped_taps_at<kPs>(bin.x.sample(ix), p.width, tx)) continue;
          const T* v00 = map + ty.low * in.h + tx.low * in.w;
          const T* v01 = map + ty.low * in.h + tx.high * in.w;
          const T* v10 = map + ty.high * in.h + tx.low * in.w;
          const T* v11 = map + ty.high * in.h + tx.high * in.w;
          for (int64_t c = lane; c < per_class; c += kWarp) {
            const A share = static_cast<A>(from[c * up.c]);
            const int64_t at = c * channel_step;
            const A a = static_cast<A>(v00[at]), b = static_cast<A>(v01[at]);
            const A d = static_cast<A>(v10[at]), e = static_cast<A>(v11[at]);
            dx += share * tx.slope * (ty.w_low * (b - a) + ty.w_high * (e - d));
            dy += share * ty.slope * (tx.w_low * (d - a) + tx.w_high * (e - b));
          }
        }
      }
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      dx += __shfl_down_sync(0xffffffffu, dx, step);
      dy += __shfl_down_sync(0xffffffffu, dy, step);
    }
    if (lane == 0) {
      const A factor = bin.inside ? bin.factor(p) : A(0);
      A* to = bin_grads + p.bin_grad_of(k, cls, ph, pw);
      to[0] = bin.inside ? dx * factor * bin.x.extent : A(0);
      to[p.bins()] = bin.inside ? dy * factor * bin.y.extent : A(0);
    }
  }
}

// Several bins may share one offset: a thread an offset sums its bins in order.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    parts_kernel(const A* __restrict__ bin_grads, A* __restrict__ offset_grads, int64_t total, Problem p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const int64_t part_x = index % p.part_w, part_y = index / p.part_w % p.part_h;
    const A* from = bin_grads + index / p.parts() * p.bins();  // index / parts: (box, class, x or y)
    A sum = A(0);
    for (int64_t ph = 0; ph < p.pooled_h; ++ph) {
      if (ph * p.part_h / p.pooled_h != part_y) continue;
      for (int64_t pw = 0; pw < p.pooled_w; ++pw) {
        if (pw * p.part_w / p.pooled_w == part_x) sum += from[ph * p.pooled_w + pw];
      }
    }
    offset_grads[index] = sum;
  }
}

// ---- launches ----

unsigned grid_for(int64_t total, int64_t per_block) {
  return static_cast<unsigned>(std::min<int64_t>((total + per_block - 1) / per_block, int64_t(1) << 22));
}

template <bool kPs>
Tensor pool(const char* op, const Tensor& input, const Tensor& boxes, const Tensor& offset, const Sizes& sizes) {
  const Problem p = check_arguments(op, input, boxes, offset, sizes, kPs);
  const CudaDevice device(input);
  const bool last = is_channels_last(input);
  Tensor out = empty_4d(input, p.boxes, p.channels, p.pooled_h, p.pooled_w, last);
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  const cudaStream_t stream = current_stream(input);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    constexpr int kWide = 16 / sizeof(T);
    const Tensor rois = contiguous_as<A>(boxes), shifts = contiguous_as<A>(offset);
    const bool wide = last && p.cells() == 1 && p.class_channels() % kWide == 0 &&
                      can_vectorise(input, kWide, sizeof(T)) && can_vectorise(out, kWide, sizeof(T));
    const int64_t total = out.numel() / (wide ? kWide : 1);
    with_index(total, [&](auto index_tag) {
      using I = decltype(index_tag);
      const auto launch = [&](auto kernel) {
        kernel<<<grid_for(total, kThreads), kThreads, 0, stream>>>(
            static_cast<const T*>(input.const_data_ptr()), strides_of(input),
            static_cast<const A*>(rois.const_data_ptr()), static_cast<const A*>(shifts.const_data_ptr()),
            static_cast<T*>(out.mutable_data_ptr()), strides_of(out), static_cast<I>(total), p);
      };
      if (wide) {
        launch(forward_kernel<T, A, kPs, I, true, kWide>);
      } else if (last) {
        launch(forward_kernel<T, A, kPs, I, true, 1>);
      } else {
        launch(forward_kernel<T, A, kPs, I, false, 1>);
      }
    });
    check_cuda(op, cudaGetLastError());
  });
  return out;
}

template <typename T, typename A, bool kPs>
void spread_deterministic(const char* op, const Tensor& grad, const A* boxes, const A* offset, Tensor& out,
                          const Problem& p, cudaStream_t stream) {
  const int64_t tiles_x = (p.width + kTile - 1) / kTile, tiles_y = (p.height + kTile - 1) / kTile;
  const int64_t tiles = tiles_x * tiles_y * p.images;
  check(tiles <= std::numeric_limits<int32_t>::max(), op,
        "the map has too many pixels: ", p.images * p.height * p.width);
  const int64_t jobs = p.cells() * p.classes * ((p.class_channels() + kChannels - 1) / kChannels);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(std::min<int64_t>(jobs, 65535)));
  deterministic_kernel<T, A, kPs>
      <<<grid, kThreads, 0, stream>>>(static_cast<const T*>(grad.const_data_ptr()), strides_of(grad), boxes, offset,
                                      static_cast<T*>(out.mutable_data_ptr()), strides_of(out), p, tiles_x, tiles_y);
}

template <typename T, typename A, bool kPs>
void spread_atomic(const Tensor& grad, const A* boxes, const A* offset, Tensor& out, const Problem& p, bool last,
                   cudaStream_t stream) {
  constexpr int kWide = 4;
  const bool wide = last && std::is_same_v<A, float> && p.cells() == 1 && p.class_channels() % kWide == 0 &&
                    can_vectorise(out, kWide, sizeof(A));
  const int64_t total = grad.numel() / (wide ? kWide : 1);
  with_index(total, [&](auto index_tag) {
    using I = decltype(index_tag);
    const auto launch = [&](auto kernel) {
      kernel<<<grid_for(total, kThreads), kThreads, 0, stream>>>(
          static_cast<const T*>(grad.const_data_ptr()), strides_of(grad), boxes, offset,
          static_cast<A*>(out.mutable_data_ptr()), strides_of(out), static_cast<I>(total), p);
    };
    if (wide) {
      launch(spread_kernel<T, A, kPs, I, true, kWide>);
    } else if (last) {
      launch(spread_kernel<T, A, kPs, I, true, 1>);
    } else {
      launch(spread_kernel<T, A, kPs, I, false, 1>);
    }
  });
}

Tensor empty_like_in(const Tensor& like, ScalarType type) {
  return torch::stable::empty(like.sizes(), type, std::nullopt, like.device(), std::nullopt, MemoryFormat::Contiguous);
}

template <bool kPs>
std::tuple<Tensor, Tensor> backward(const char* op, const Tensor& grad, const Tensor& input, const Tensor& boxes,
                                    const Tensor& offset, const Sizes& sizes, bool channels_last, bool deterministic) {
  const Problem p = check_arguments(op, input, boxes, offset, sizes, kPs);
  check_grad(op, grad, input, p);
  const CudaDevice device(input);
  Tensor grad_input = empty_4d(input, p.images, input.size(1), p.height, p.width, channels_last);
  const ScalarType sum_type = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor grad_offset = empty_like_in(offset, sum_type);
  const auto offset_result = [&] {
    return grad_offset.scalar_type() == offset.scalar_type() ? grad_offset
                                                             : torch::stable::to(grad_offset, offset.scalar_type());
  };
  if (grad_input.numel() == 0 || grad.numel() == 0) {
    torch::stable::zero_(grad_input);
    torch::stable::zero_(grad_offset);
    return {grad_input, offset_result()};
  }
  const cudaStream_t stream = current_stream(input);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = contiguous_as<A>(boxes), shifts = contiguous_as<A>(offset);
    const A* box_data = static_cast<const A*>(rois.const_data_ptr());
    const A* shift_data = static_cast<const A*>(shifts.const_data_ptr());
    if (deterministic) {
      spread_deterministic<T, A, kPs>(op, grad, box_data, shift_data, grad_input, p, stream);
      check_cuda(op, cudaGetLastError());
    } else {
      // Half types are summed in float32 and rounded once.
      Tensor sum = grad_input;
      if (!std::is_same_v<T, A>) {
        sum = torch::stable::empty(grad_input.sizes(), ScalarType::Float, std::nullopt, grad_input.device(),
                                   std::nullopt, format_of(channels_last));
      }
      torch::stable::zero_(sum);
      spread_atomic<T, A, kPs>(grad, box_data, shift_data, sum, p, channels_last, stream);
      check_cuda(op, cudaGetLastError());
      if (!std::is_same_v<T, A>) torch::stable::copy_(grad_input, sum);
    }
    const bool own_offsets = p.part_h == p.pooled_h && p.part_w == p.pooled_w;
    const int64_t bins = p.boxes * p.classes * p.bins();
    const int64_t bin_grad_sizes[2] = {bins, 2};
    Tensor bin_grads = own_offsets ? grad_offset
                                   : torch::stable::empty({bin_grad_sizes, 2}, sum_type, std::nullopt, input.device(),
                                                          std::nullopt, MemoryFormat::Contiguous);
    A* bin_data = static_cast<A*>(bin_grads.mutable_data_ptr());
    slope_kernel<T, A, kPs><<<grid_for(bins, kThreads / kWarp), kThreads, 0, stream>>>(
        static_cast<const T*>(grad.const_data_ptr()), strides_of(grad), static_cast<const T*>(input.const_data_ptr()),
        strides_of(input), box_data, shift_data, bin_data, bins, p);
    check_cuda(op, cudaGetLastError());
    if (!own_offsets) {
      const int64_t total = grad_offset.numel();
      parts_kernel<A><<<grid_for(total, kThreads), kThreads, 0, stream>>>(
          bin_data, static_cast<A*>(grad_offset.mutable_data_ptr()), total, p);
      check_cuda(op, cudaGetLastError());
    }
  });
  return {grad_input, offset_result()};
}

}  // namespace
}  // namespace deform_roi_pool
}  // namespace d2proj
