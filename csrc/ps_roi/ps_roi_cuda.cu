// ps_roi_pool and ps_roi_align on CUDA, forward and backward.
//
// A thread makes one bin of one channel of the result. Neighbouring threads take neighbouring bins, which are
// neighbouring channels of the map: full lines where it is channels-last. The backward pass adds with atomics, into
// float32 for half types; the deterministic one gives each thread a pixel of the map, which belongs to one bin, and
// lets it visit the boxes in order: no memory, no atomics.
#include <cuda_runtime.h>

#include <type_traits>

#include "ps_roi/ps_roi_args.h"
#include "roi_pool/roi_launch.cuh"

namespace d2proj {
namespace ps_roi {
namespace {

using roi_pool::image_of;
using roi_pool::Span;
using roi_pool::sum_for;

struct Problem {
  int64_t boxes, channels, images;  // channels of the result
  Options o;
};

// A bin as the sum over its pixels (y, x) of weight * value, times `scale`. `visit` calls `body(y, x, weight)` for each
// of them, `weight` tells that of one; `valid` is false for a box that pools to zero.
template <typename A>
struct PoolBin {
  Span y, x;
  A scale;
  bool valid;

  __device__ __forceinline__ PoolBin(const A* box, int64_t ph, int64_t pw, const Options& o) {
    const A spatial_scale = static_cast<A>(o.spatial_scale);
    const auto x_axis = make_pool_axis<A>(box[1], box[3], spatial_scale, o.pooled_w);
    const auto y_axis = make_pool_axis<A>(box[2], box[4], spatial_scale, o.pooled_h);
    y = pool_span(y_axis, ph, o.height);
    x = pool_span(x_axis, pw, o.width);
    const A area = static_cast<A>(y.count()) * static_cast<A>(x.count());
    valid = x_axis.valid && y_axis.valid && area > A(0);
    scale = valid ? A(1) / area : A(0);
  }

  template <typename Body>
  __device__ __forceinline__ void visit(const Options&, const Body& body) const {
    for (int32_t iy = y.begin; iy < y.end; ++iy) {
      for (int32_t ix = x.begin; ix < x.end; ++ix) body(iy, ix, A(1));
    }
  }

  __device__ __forceinline__ A weight(int64_t iy, int64_t ix, const Options&) const {
    return iy >= y.begin && iy < y.end && ix >= x.begin && ix < x.end ? A(1) : A(0);
  }
};

template <typename A>
struct AlignBin {
  roi_align::Axis<A> y, x;
  int64_t ph, pw;
  A scale;
  bool valid;

  __device__ __forceinline__ AlignBin(const A* box, int64_t ph, int64_t pw, const Options& o) : ph(ph), pw(pw) {
    const A spatial_scale = static_cast<A>(o.spatial_scale);
    x = roi_align::make_axis<A>(box[1], box[3], spatial_scale, o.pooled_w, o.sampling_ratio, true);
    y = roi_align::make_axis<A>(box[2], box[4], spatial_scale, o.pooled_h, o.sampling_ratio, true);
    valid = x.valid && y.valid;
    scale = A(1) / roi_align::sample_count(y, x);
  }

  template <typename Body>
  __device__ __forceinline__ void visit(const Options& o, const Body& body) const {
    const auto ys = roi_align::sample_range(y, ph, o.height), xs = roi_align::sample_range(x, pw, o.width);
    for (int64_t iy = ys.first; iy < ys.last; ++iy) {
      roi_align::Taps<A> ty;
      if (!roi_align::taps_at(y.sample(ph, iy), o.height, ty)) continue;
      for (int64_t ix = xs.first; ix < xs.last; ++ix) {
        roi_align::Taps<A> tx;
        if (!roi_align::taps_at(x.sample(pw, ix), o.width, tx)) continue;
        body(ty.low, tx.low, ty.w_low * tx.w_low);
        if (tx.w_high != A(0)) body(ty.low, tx.high, ty.w_low * tx.w_high);
        if (ty.w_high == A(0)) continue;
        body(ty.high, tx.low, ty.w_high * tx.w_low);
        if (tx.w_high != A(0)) body(ty.high, tx.high, ty.w_high * tx.w_high);
      }
    }
  }

  __device__ __forceinline__ A weight(int64_t iy, int64_t ix, const Options& o) const {
    const A along_y = along(y, ph, iy, o.height);
    return along_y == A(0) ? A(0) : along_y * along(x, pw, ix, o.width);
  }

  // The weight of a pixel along one axis: the sum over the samples that read it.
  __device__ __forceinline__ static A along(const roi_align::Axis<A>& axis, int64_t b, int64_t pixel, int64_t size) {
    // Samples lie between the bin's ends, but for rounding; those up to a pixel outside the map count for its border.
    const A from = axis.start + static_cast<A>(b) * axis.bin, to = from + axis.bin;
    const A low = from < to ? from : to, high = from < to ? to : from;
    const A margin = A(2) + A(1e-6) * (std::fabs(axis.start) + high - low);
    if (static_cast<A>(pixel) < low - margin || static_cast<A>(pixel) > high + margin) return A(0);
    const auto range = roi_align::sample_range(axis, b, size);
    A weight = A(0);
    for (int64_t i = range.first; i < range.last; ++i) {
      roi_align::Taps<A> taps;
      if (!roi_align::taps_at(axis.sample(b, i), size, taps)) continue;
      if (taps.low == pixel) weight += taps.w_low;
      if (taps.high == pixel && taps.high != taps.low) weight += taps.w_high;
    }
    return weight;
  }
};

// Element `index` of the result in its usual order.
struct Place {
  int64_t k, c, ph, pw;
};

template <typename I>
__device__ __forceinline__ Place place_of(I index, const Problem& p) {
  const I pooled_h = static_cast<I>(p.o.pooled_h), pooled_w = static_cast<I>(p.o.pooled_w);
  const I channels = static_cast<I>(p.channels);
  Place at;
  at.pw = static_cast<int64_t>(index % pooled_w);
  index /= pooled_w;
  at.ph = static_cast<int64_t>(index % pooled_h);
  index /= pooled_h;
  at.c = static_cast<int64_t>(index % channels);
  at.k = static_cast<int64_t>(index / channels);
  return at;
}

__device__ __forceinline__ int64_t offset_of(const Place& at, const Strides& s) {
  return at.k * s.n + at.c * s.c + at.ph * s.h + at.pw * s.w;
}

// The channel of the map that a place reads.
__device__ __forceinline__ int64_t source_of(const Place& at, const Options& o) {
  return channel_of(at.c, at.ph * o.pooled_w + at.pw, o.pooled_h * o.pooled_w);
}

template <typename Bin, typename T, typename A, typename I>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ input, Strides in, const A* __restrict__ boxes, T* __restrict__ output,
                   Strides out, I total, Problem p) {
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = place_of<I>(index, p);
    const int64_t image = image_of(boxes + at.k * 5, p.images);
    const Bin bin(boxes + at.k * 5, at.ph, at.pw, p.o);
    A sum = A(0);
    if (image >= 0 && bin.valid) {
      const T* map = input + image * in.n + source_of(at, p.o) * in.c;
      bin.visit(p.o, [&](int64_t y, int64_t x, A weight) { sum += weight * static_cast<A>(map[y * in.h + x * in.w]); });
      sum *= bin.scale;
    }
    output[offset_of(at, out)] = static_cast<T>(sum);
  }
}

template <typename Bin, typename T, typename A, typename I>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad, Strides in, const A* __restrict__ boxes, A* __restrict__ output,
                    Strides out, I total, Problem p) {
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = place_of<I>(index, p);
    const int64_t image = image_of(boxes + at.k * 5, p.images);
    const Bin bin(boxes + at.k * 5, at.ph, at.pw, p.o);
    if (image < 0 || !bin.valid) continue;
    const A share = static_cast<A>(grad[offset_of(at, in)]) * bin.scale;
    A* map = output + image * out.n + source_of(at, p.o) * out.c;
    bin.visit(p.o, [&](int64_t y, int64_t x, A weight) { atomicAdd(map + y * out.h + x * out.w, weight * share); });
  }
}

// One thread a pixel of one channel of the map, so of one bin of one channel of the result.
template <typename Bin, typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    deterministic_kernel(const T* __restrict__ grad, Strides in, const A* __restrict__ boxes, T* __restrict__ output,
                         Strides out, int64_t total, Problem p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t bins = p.o.pooled_h * p.o.pooled_w, planes = p.channels * bins;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const int64_t x = index % p.o.width, y = index / p.o.width % p.o.height;
    const int64_t plane = index / (p.o.width * p.o.height) % planes;
    const int64_t image = index / (p.o.width * p.o.height) / planes;
    Place at{0, plane / bins, plane % bins / p.o.pooled_w, plane % p.o.pooled_w};
    A sum = A(0);
    for (; at.k < p.boxes; ++at.k) {
      if (image_of(boxes + at.k * 5, p.images) != image) continue;
      const Bin bin(boxes + at.k * 5, at.ph, at.pw, p.o);
      if (!bin.valid) continue;
      const A weight = bin.weight(y, x, p.o) * bin.scale;
      if (weight != A(0)) sum += weight * static_cast<A>(grad[offset_of(at, in)]);
    }
    output[image * out.n + plane * out.c + y * out.h + x * out.w] = static_cast<T>(sum);
  }
}

template <template <typename> class Bin>
Tensor forward(const char* op, const Tensor& input, const Tensor& boxes, Options o) {
  check_forward(op, input, boxes, o.pooled_h, o.pooled_w);
  const CudaDevice device(input);
  o.height = input.size(2);
  o.width = input.size(3);
  const int64_t channels = input.size(1) / (o.pooled_h * o.pooled_w);
  Tensor out = empty_4d(input, boxes.size(0), channels, o.pooled_h, o.pooled_w, is_channels_last(input));
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  const cudaStream_t stream = current_stream(input);
  const Problem p{boxes.size(0), channels, input.size(0), o};
  const int64_t total = out.numel();
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    with_index(total, [&](auto index_tag) {
      using I = decltype(index_tag);
      forward_kernel<Bin<A>, T, A, I><<<grid_for(total), kThreads, 0, stream>>>(
          static_cast<const T*>(input.const_data_ptr()), strides_of(input),
          static_cast<const A*>(rois.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()), strides_of(out),
          static_cast<I>(total), p);
    });
    check_cuda(op, cudaGetLastError());
  });
  return out;
}

template <template <typename> class Bin>
Tensor backward(const char* op, const Tensor& grad, const Tensor& boxes, const Options& o, int64_t batch_size,
                int64_t channels, bool channels_last, bool deterministic) {
  check_backward(op, grad, boxes, channels, o.height, o.width, o.pooled_h, o.pooled_w);
  const CudaDevice device(grad);
  Tensor out = empty_4d(grad, batch_size, channels, o.height, o.width, channels_last);
  if (out.numel() == 0) return out;
  if (grad.numel() == 0) return torch::stable::zero_(out);
  const cudaStream_t stream = current_stream(grad);
  const Problem p{boxes.size(0), grad.size(1), batch_size, o};
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const A* b = static_cast<const A*>(rois.const_data_ptr());
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    Tensor sum = sum_for<T, A>(out, channels_last, deterministic);
    if (deterministic) {
      const int64_t total = out.numel();
      deterministic_kernel<Bin<A>, T, A><<<grid_for(total), kThreads, 0, stream>>>(
          from, strides_of(grad), b, static_cast<T*>(out.mutable_data_ptr()), strides_of(out), total, p);
    } else {
      const int64_t total = grad.numel();
      with_index(total, [&](auto index_tag) {
        using I = decltype(index_tag);
        backward_kernel<Bin<A>, T, A, I><<<grid_for(total), kThreads, 0, stream>>>(
            from, strides_of(grad), b, static_cast<A*>(sum.mutable_data_ptr()), strides_of(sum), static_cast<I>(total),
            p);
      });
    }
    check_cuda(op, cudaGetLastError());
    if (!deterministic && !std::is_same_v<T, A>) torch::stable::copy_(out, sum);
  });
  return out;
}

Tensor pool_cuda(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                 int64_t pooled_width) {
  return forward<PoolBin>("ps_roi_pool", input, boxes, {pooled_height, pooled_width, 0, 0, spatial_scale, 0});
}

Tensor pool_backward_cuda(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                          int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                          bool channels_last, bool deterministic) {
  return backward<PoolBin>("_ps_roi_pool_backward", grad, boxes,
                           {pooled_height, pooled_width, height, width, spatial_scale, 0}, batch_size, channels,
                           channels_last, deterministic);
}

Tensor align_cuda(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                  int64_t pooled_width, int64_t sampling_ratio) {
  return forward<AlignBin>("ps_roi_align", input, boxes,
                           {pooled_height, pooled_width, 0, 0, spatial_scale, sampling_ratio});
}

Tensor align_backward_cuda(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                           int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                           int64_t sampling_ratio, bool channels_last, bool deterministic) {
  return backward<AlignBin>("_ps_roi_align_backward", grad, boxes,
                            {pooled_height, pooled_width, height, width, spatial_scale, sampling_ratio}, batch_size,
                            channels, channels_last, deterministic);
}

}  // namespace
}  // namespace ps_roi
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("ps_roi_pool", TORCH_BOX(&d2proj::ps_roi::pool_cuda));
  m.impl("_ps_roi_pool_backward", TORCH_BOX(&d2proj::ps_roi::pool_backward_cuda));
  m.impl("ps_roi_align", TORCH_BOX(&d2proj::ps_roi::align_cuda));
  m.impl("_ps_roi_align_backward", TORCH_BOX(&d2proj::ps_roi::align_backward_cuda));
}
