// Rotated RoIAlign on CUDA.
//
// A small kernel works out every box once (its sine and cosine above all); then threads are laid over the result as in
// roi_align. The backward pass adds with atomics; the deterministic one gives each thread a pixel, which it turns into
// the box's frame to find the samples that can reach it.
#include "roi_align/roi_align_kernels.cuh"
#include "roi_align_rotated/roi_align_rotated.h"
#include "roi_align_rotated/roi_align_rotated_args.h"

namespace d2proj {
namespace roi_align_rotated {
namespace {

using roi_align::kChannels;
using roi_align::kTile;
using roi_align::Place;
using roi_align::Taps;

struct Problem {
  int64_t boxes, channels, images, height, width, pooled_h, pooled_w;
  double spatial_scale;
  int64_t sampling_ratio;
};

template <typename A>
struct PlacedBox {
  RotatedBox<A> box;
  Extent along_y, along_x;  // of the map, in the box's frame
};

template <typename A, typename B>
__global__ void __launch_bounds__(kThreads)
    place_kernel(const B* __restrict__ rois, PlacedBox<A>* __restrict__ placed, Problem p) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= p.boxes) return;
  const B* roi = rois + k * 6;
  PlacedBox<A> result;
  result.box = make_box<A>(roi, static_cast<A>(p.spatial_scale), p.pooled_h, p.pooled_w, p.sampling_ratio);
  const bool known = roi[0] >= B(0) && roi[0] < static_cast<B>(p.images);
  result.box.inside = result.box.inside && known;
  result.box.image = known ? static_cast<int64_t>(roi[0]) : 0;
  result.along_y = extent(result.box, true, p.height, p.width);
  result.along_x = extent(result.box, false, p.height, p.width);
  placed[k] = result;
}

// Calls `body(y taps, x taps)` for every sample of a bin that reads the map.
template <typename A, typename Body>
__device__ __forceinline__ void for_each_sample(const PlacedBox<A>& placed, int64_t ph, int64_t pw, const Problem& p,
                                                const Body& body) {
  const RotatedBox<A>& box = placed.box;
  const SampleRange ys = sample_range(box.y, ph, placed.along_y.low, placed.along_y.high);
  const SampleRange xs = sample_range(box.x, pw, placed.along_x.low, placed.along_x.high);
  for (int64_t iy = ys.first; iy < ys.last; ++iy) {
    const A v = box.y.sample(ph, iy);
    for (int64_t ix = xs.first; ix < xs.last; ++ix) {
      const A u = box.x.sample(pw, ix);
      Taps<A> y, x;
      if (taps_at(sample_y(box, v, u), p.height, y) && taps_at(sample_x(box, v, u), p.width, x)) body(y, x);
    }
  }
}

template <typename T, typename A, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ input, Strides in, const PlacedBox<A>* __restrict__ boxes,
                   T* __restrict__ output, Strides out, I total, Problem p) {
  using Lanes = Pack<T, kVec>;
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = roi_align::place_of<I, kLast, kVec>(index, p.channels, p.pooled_h, p.pooled_w);
    const PlacedBox<A> placed = boxes[at.k];
    A sum[kVec] = {};
    if (placed.box.inside) {
      const T* map = input + placed.box.image * in.n + at.c * in.c;
      for_each_sample(placed, at.ph, at.pw, p, [&](const Taps<A>& y, const Taps<A>& x) {
        const T* low = map + y.low * in.h;
        const T* high = map + y.high * in.h;
        const Lanes v00 = *reinterpret_cast<const Lanes*>(low + x.low * in.w);
        const Lanes v01 = *reinterpret_cast<const Lanes*>(low + x.high * in.w);
        const Lanes v10 = *reinterpret_cast<const Lanes*>(high + x.low * in.w);
        const Lanes v11 = *reinterpret_cast<const Lanes*>(high + x.high * in.w);
#pragma unroll
        for (int v = 0; v < kVec; ++v) {
          sum[v] += y.w_low * (x.w_low * static_cast<A>(v00.lane[v]) + x.w_high * static_cast<A>(v01.lane[v])) +
                    y.w_high * (x.w_low * static_cast<A>(v10.lane[v]) + x.w_high * static_cast<A>(v11.lane[v]));
        }
      });
    }
    Lanes result;
#pragma unroll
    for (int v = 0; v < kVec; ++v)
      result.lane[v] = static_cast<T>(placed.box.inside ? sum[v] * placed.box.scale : A(0));
    *reinterpret_cast<Lanes*>(output + at.k * out.n + at.c * out.c + at.ph * out.h + at.pw * out.w) = result;
  }
}

template <typename T, typename A, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad, Strides in, const PlacedBox<A>* __restrict__ boxes,
                    A* __restrict__ output, Strides out, I total, Problem p) {
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = roi_align::place_of<I, kLast, kVec>(index, p.channels, p.pooled_h, p.pooled_w);
    const PlacedBox<A> placed = boxes[at.k];
    if (!placed.box.inside) continue;
    A share[kVec];
    const T* from = grad + at.k * in.n + at.c * in.c + at.ph * in.h + at.pw * in.w;
#pragma unroll
    for (int v = 0; v < kVec; ++v) share[v] = static_cast<A>(from[v * in.c]) * placed.box.scale;
    A* map = output + placed.box.image * out.n + at.c * out.c;
    for_each_sample(placed, at.ph, at.pw, p, [&](const Taps<A>& y, const Taps<A>& x) {
      A* low = map + y.low * out.h;
      A* high = map + y.high * out.h;
      atomic_add<A, kVec>(low + x.low * out.w, share, y.w_low * x.w_low);
      if (x.w_high != A(0)) atomic_add<A, kVec>(low + x.high * out.w, share, y.w_low * x.w_high);
      if (y.w_high == A(0)) return;
      atomic_add<A, kVec>(high + x.low * out.w, share, y.w_high * x.w_low);
      if (x.w_high != A(0)) atomic_add<A, kVec>(high + x.high * out.w, share, y.w_high * x.w_high);
    });
  }
}

// ---- deterministic backward ----

// Samples per bin, of a bin of any size.
template <typename A>
__device__ __forceinline__ int64_t grid_of(const Axis<A>& axis) {
  return static_cast<int64_t>(axis.grid < A(9e15) ? axis.grid : A(9e15));
}

// A box's samples along one axis, numbered through its bins, that lie within `reach` of `at`. As in sample_range, those
// of long grids that are certain to lie outside the map are left out.
template <typename A>
__device__ __forceinline__ SampleRange near_samples(const Axis<A>& axis, int64_t pooled, A at, double reach,
                                                    const Extent& map) {
  const double count = static_cast<double>(grid_of(axis)) * static_cast<double>(pooled);
  if (!(axis.bin > A(0))) return {0, static_cast<int64_t>(count)};
  const double step = static_cast<double>(axis.bin) / static_cast<double>(axis.grid);
  double low = static_cast<double>(at) - reach, high = static_cast<double>(at) + reach;
  if (axis.grid > A(64)) {
    low = low > map.low ? low : map.low;
    high = high < map.high ? high : map.high;
  }
  double first = std::floor((low - static_cast<double>(axis.start)) / step) - 2.0;
  double last = std::ceil((high - static_cast<double>(axis.start)) / step) + 2.0;
  first = first > 0.0 ? (first < count ? first : count) : 0.0;
  last = last > first ? (last < count ? last : count) : first;
  return {static_cast<int64_t>(first), static_cast<int64_t>(last)};
}

template <typename A>
__device__ __forceinline__ A weight_at(const Taps<A>& taps, int64_t pixel) {
  return (taps.low == pixel ? taps.w_low : A(0)) + (taps.high == pixel && taps.high != taps.low ? taps.w_high : A(0));
}

template <typename T, typename A>
__global__ void __launch_bounds__(kTile* kTile)
    deterministic_kernel(const T* __restrict__ grad, Strides in, const PlacedBox<A>* __restrict__ boxes,
                         T* __restrict__ output, Strides out, Problem p, int64_t tiles_x, int64_t tiles_y) {
  const int64_t tile = blockIdx.x;
  const int64_t left = tile % tiles_x * kTile, top = tile / tiles_x % tiles_y * kTile;
  const int64_t image = tile / (tiles_x * tiles_y);
  const int64_t px = left + threadIdx.x % kTile, py = top + threadIdx.x / kTile;
  if (px >= p.width || py >= p.height) return;
  for (int64_t c0 = static_cast<int64_t>(blockIdx.y) * kChannels; c0 < p.channels;
       c0 += static_cast<int64_t>(gridDim.y) * kChannels) {
    const int count = static_cast<int>(p.channels - c0 < kChannels ? p.channels - c0 : kChannels);
    A sum[kChannels] = {};
    for (int64_t k = 0; k < p.boxes; ++k) {
      const PlacedBox<A>& placed = boxes[k];
      if (!placed.box.inside || placed.box.image != image) continue;
      const RotatedBox<A> box = placed.box;
      const A dy = static_cast<A>(py) - box.center_y, dx = static_cast<A>(px) - box.center_x;
      // A pixel is read by samples closer than a pixel along both axes of the map, so closer than its diagonal along
      // those of the box; but those of a box far larger than the map are rounded by more than what is left of 1.5.
      const double reach = 1.5 + 2e-6 * static_cast<double>(std::fabs(dy) + std::fabs(dx) + std::fabs(box.y.start) +
                                                            std::fabs(box.x.start));
      const SampleRange vs = near_samples(box.y, p.pooled_h, dy * box.cos + dx * box.sin, reach, placed.along_y);
      const SampleRange us = near_samples(box.x, p.pooled_w, dx * box.cos - dy * box.sin, reach, placed.along_x);
      if (vs.first == vs.last || us.first == us.last) continue;
      const int64_t grid_h = grid_of(box.y), grid_w = grid_of(box.x);
      const T* from = grad + k * in.n + c0 * in.c;
      for (int64_t j = vs.first; j < vs.last; ++j) {
        const int64_t ph = j / grid_h;
        const A v = box.y.sample(ph, j % grid_h);
        for (int64_t i = us.first; i < us.last; ++i) {
          const int64_t pw = i / grid_w;
          const A u = box.x.sample(pw, i % grid_w);
          Taps<A> y, x;
          if (!taps_at(sample_y(box, v, u), p.height, y) || !taps_at(sample_x(box, v, u), p.width, x)) continue;
          const A weight = weight_at(y, py) * weight_at(x, px) * box.scale;
          if (weight == A(0)) continue;
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            if (c < count) sum[c] += weight * static_cast<A>(from[c * in.c + ph * in.h + pw * in.w]);
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < count) output[image * out.n + (c0 + c) * out.c + py * out.h + px * out.w] = static_cast<T>(sum[c]);
    }
  }
}

// ---- launches ----

// Every box, in device memory that the tensor owns.
template <typename A>
Tensor place_boxes(const Tensor& rois, const Problem& p, cudaStream_t stream) {
  const int64_t bytes = p.boxes * static_cast<int64_t>(sizeof(PlacedBox<A>));
  Tensor placed = torch::stable::new_empty(rois, {&bytes, 1}, ScalarType::Byte);
  const Tensor dense = torch::stable::contiguous(rois);
  const int64_t blocks = (p.boxes + kThreads - 1) / kThreads;
  check(blocks <= std::numeric_limits<int32_t>::max(), "roi_align_rotated", "too many boxes: ", p.boxes);
  roi_align::with_box_type(dense, [&](auto tag) {
    using B = decltype(tag);
    place_kernel<A, B><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        static_cast<const B*>(dense.const_data_ptr()), static_cast<PlacedBox<A>*>(placed.mutable_data_ptr()), p);
  });
  return placed;
}

Tensor forward_cuda(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t pooled_height,
                    int64_t pooled_width, int64_t sampling_ratio) {
  constexpr const char* kOp = "roi_align_rotated";
  check_forward(kOp, input, rois, pooled_height, pooled_width);
  const CudaDevice device(input);
  const Problem p{rois.size(0),  input.size(1), input.size(0), input.size(2), input.size(3),
                  pooled_height, pooled_width,  spatial_scale, sampling_ratio};
  const bool last = is_channels_last(input);
  Tensor out = empty_4d(input, p.boxes, p.channels, pooled_height, pooled_width, last);
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  const cudaStream_t stream = current_stream(input);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    constexpr int kWide = 16 / sizeof(T);
    const Tensor placed = place_boxes<A>(rois, p, stream);
    const bool wide =
        last && d2proj::can_vectorise(input, kWide, sizeof(T)) && d2proj::can_vectorise(out, kWide, sizeof(T));
    const int64_t total = out.numel() / (wide ? kWide : 1);
    with_index(total, [&](auto index_tag) {
      using I = decltype(index_tag);
      const auto launch = [&](auto kernel) {
        kernel<<<grid_for(total), kThreads, 0, stream>>>(
            static_cast<const T*>(input.const_data_ptr()), strides_of(input),
            static_cast<const PlacedBox<A>*>(placed.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
            strides_of(out), static_cast<I>(total), p);
      };
      if (wide) {
        launch(forward_kernel<T, A, I, true, kWide>);
      } else if (last) {
        launch(forward_kernel<T, A, I, true, 1>);
      } else {
        launch(forward_kernel<T, A, I, false, 1>);
      }
    });
    check_cuda(kOp, cudaGetLastError());
  });
  return out;
}

template <typename T, typename A>
void launch_deterministic(const Tensor& grad, const Tensor& placed, Tensor& out, const Problem& p,
                          cudaStream_t stream) {
  const int64_t tiles_x = (p.width + kTile - 1) / kTile, tiles_y = (p.height + kTile - 1) / kTile;
  const int64_t tiles = tiles_x * tiles_y * p.images;
  check(tiles <= std::numeric_limits<int32_t>::max(), "_roi_align_rotated_backward",
        "the map has too many pixels: ", p.images * p.height * p.width);
  const int64_t groups = std::min<int64_t>((p.channels + kChannels - 1) / kChannels, 65535);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(groups));
  deterministic_kernel<T, A><<<grid, kTile * kTile, 0, stream>>>(
      static_cast<const T*>(grad.const_data_ptr()), strides_of(grad),
      static_cast<const PlacedBox<A>*>(placed.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
      strides_of(out), p, tiles_x, tiles_y);
}

template <typename T, typename A>
void launch_atomic(const Tensor& grad, const Tensor& placed, Tensor& sum, const Problem& p, bool last,
                   cudaStream_t stream) {
  constexpr int kWide = 4;
  const bool wide = last && std::is_same_v<A, float> && d2proj::can_vectorise(sum, kWide, sizeof(A));
  const int64_t total = grad.numel() / (wide ? kWide : 1);
  with_index(total, [&](auto index_tag) {
    using I = decltype(index_tag);
    const auto launch = [&](auto kernel) {
      kernel<<<grid_for(total), kThreads, 0, stream>>>(static_cast<const T*>(grad.const_data_ptr()), strides_of(grad),
                                                       static_cast<const PlacedBox<A>*>(placed.const_data_ptr()),
                                                       static_cast<A*>(sum.mutable_data_ptr()), strides_of(sum),
                                                       static_cast<I>(total), p);
    };
    if (wide) {
      launch(backward_kernel<T, A, I, true, kWide>);
    } else if (last) {
      launch(backward_kernel<T, A, I, true, 1>);
    } else {
      launch(backward_kernel<T, A, I, false, 1>);
    }
  });
}

Tensor backward_cuda(const Tensor& grad, const Tensor& rois, double spatial_scale, int64_t pooled_height,
                     int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                     int64_t sampling_ratio, bool channels_last, bool deterministic) {
  constexpr const char* kOp = "_roi_align_rotated_backward";
  check_backward(kOp, grad, rois, channels, pooled_height, pooled_width);
  const CudaDevice device(grad);
  const Problem p{rois.size(0),  channels,     batch_size,    height,        width,
                  pooled_height, pooled_width, spatial_scale, sampling_ratio};
  Tensor out = empty_4d(grad, batch_size, channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  if (grad.numel() == 0) return torch::stable::zero_(out);
  const cudaStream_t stream = current_stream(grad);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor placed = place_boxes<A>(rois, p, stream);
    if (deterministic) {
      launch_deterministic<T, A>(grad, placed, out, p, stream);
    } else {
      // Half types are summed in float32 and rounded once.
      Tensor sum = std::is_same_v<T, A> ? out
                                        : torch::stable::empty(out.sizes(), ScalarType::Float, std::nullopt,
                                                               out.device(), std::nullopt, format_of(channels_last));
      torch::stable::zero_(sum);
      launch_atomic<T, A>(grad, placed, sum, p, channels_last, stream);
      if (!std::is_same_v<T, A>) torch::stable::copy_(out, sum);
    }
    check_cuda(kOp, cudaGetLastError());
  });
  return out;
}

}  // namespace
}  // namespace roi_align_rotated
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("roi_align_rotated", TORCH_BOX(&d2proj::roi_align_rotated::forward_cuda));
  m.impl("_roi_align_rotated_backward", TORCH_BOX(&d2proj::roi_align_rotated::backward_cuda));
}
