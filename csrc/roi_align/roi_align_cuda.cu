// RoIAlign on CUDA.
//
// A thread makes one bin of kVec channels: one for a planar map (neighbouring threads take neighbouring bins), 16
// bytes' worth for a channels-last one (neighbouring threads take neighbouring channels, so that every access is a full
// line). The backward pass adds with atomics, into float32 for half types; the deterministic one turns the loops inside
// out: a thread owns a pixel and visits the boxes in order, which needs no memory and no atomics.
#include "roi_align/roi_align_args.h"
#include "roi_align/roi_align_kernels.cuh"

namespace d2proj {
namespace roi_align {
namespace {

struct Problem {
  int64_t boxes, channels, images, height, width, pooled_h, pooled_w;
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

// A box as a thread sees it. `inside` is false for a box that is not finite or whose image index is out of range: such
// a box pools to zero (raising an error would need a synchronisation).
template <typename A>
struct Box {
  Axis<A> y, x;
  int64_t image;
  A scale;  // 1 / number of samples
  bool inside;
};

template <typename A, typename B>
__device__ __forceinline__ Box<A> read_box(const B* boxes, int64_t k, const Problem& p) {
  const B* from = boxes + k * 5;
  const A spatial_scale = static_cast<A>(p.spatial_scale);
  Box<A> box;
  box.x = make_axis<A>(static_cast<A>(from[1]), static_cast<A>(from[3]), spatial_scale, p.pooled_w, p.sampling_ratio,
                       p.aligned);
  box.y = make_axis<A>(static_cast<A>(from[2]), static_cast<A>(from[4]), spatial_scale, p.pooled_h, p.sampling_ratio,
                       p.aligned);
  box.inside = box.x.valid && box.y.valid && from[0] >= B(0) && from[0] < static_cast<B>(p.images);
  box.image = box.inside ? static_cast<int64_t>(from[0]) : 0;
  box.scale = A(1) / sample_count(box.y, box.x);
  return box;
}

template <typename T, typename A, typename B, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ input, Strides in, const B* __restrict__ boxes, T* __restrict__ output,
                   Strides out, I total, Problem p) {
  using Lanes = Pack<T, kVec>;
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = place_of<I, kLast, kVec>(index, p.channels, p.pooled_h, p.pooled_w);
    const Box<A> box = read_box<A>(boxes, at.k, p);
    A sum[kVec] = {};
    if (box.inside) {
      const T* map = input + box.image * in.n + at.c * in.c;
      pool_bin<T, A, kVec>(map, in, box.y, box.x, at.ph, at.pw, p.height, p.width, sum);
    }
    Lanes result;
#pragma unroll
    for (int v = 0; v < kVec; ++v) result.lane[v] = static_cast<T>(sum[v] * box.scale);
    *reinterpret_cast<Lanes*>(output + at.k * out.n + at.c * out.c + at.ph * out.h + at.pw * out.w) = result;
  }
}

template <typename T, typename A, typename B, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad, Strides in, const B* __restrict__ boxes, A* __restrict__ output,
                    Strides out, I total, Problem p) {
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = place_of<I, kLast, kVec>(index, p.channels, p.pooled_h, p.pooled_w);
    const Box<A> box = read_box<A>(boxes, at.k, p);
    if (!box.inside) continue;
    A share[kVec];
    const T* from = grad + at.k * in.n + at.c * in.c + at.ph * in.h + at.pw * in.w;
#pragma unroll
    for (int v = 0; v < kVec; ++v) share[v] = static_cast<A>(from[v * in.c]) * box.scale;
    A* map = output + box.image * out.n + at.c * out.c;
    spread_bin<A, kVec>(map, out, box.y, box.x, at.ph, at.pw, p.height, p.width, share);
  }
}

// ---- deterministic backward ----

template <typename T, typename A, typename B>
__global__ void __launch_bounds__(kTile* kTile)
    deterministic_kernel(const T* __restrict__ grad, Strides in, const B* __restrict__ boxes, T* __restrict__ output,
                         Strides out, Problem p, int64_t tiles_x, int64_t tiles_y) {
  const int64_t tile = blockIdx.x;
  const int64_t left = tile % tiles_x * kTile, top = tile / tiles_x % tiles_y * kTile;
  const int64_t image = tile / (tiles_x * tiles_y);
  const int64_t x = left + threadIdx.x % kTile, y = top + threadIdx.x / kTile;
  if (x >= p.width || y >= p.height) return;
  for (int64_t c0 = static_cast<int64_t>(blockIdx.y) * kChannels; c0 < p.channels;
       c0 += static_cast<int64_t>(gridDim.y) * kChannels) {
    const int count = static_cast<int>(p.channels - c0 < kChannels ? p.channels - c0 : kChannels);
    A sum[kChannels] = {};
    for (int64_t k = 0; k < p.boxes; ++k) {
      const Box<A> box = read_box<A>(boxes, k, p);
      if (!box.inside || box.image != image) continue;
      if (!reaches(box.x, p.pooled_w, left) || !reaches(box.y, p.pooled_h, top)) continue;
      const T* from = grad + k * in.n + c0 * in.c;
      for (int64_t ph = 0; ph < p.pooled_h; ++ph) {
        const A wy = weight_of(box.y, ph, y, p.height) * box.scale;
        if (wy == A(0)) continue;
        for (int64_t pw = 0; pw < p.pooled_w; ++pw) {
          const A weight = wy * weight_of(box.x, pw, x, p.width);
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
      if (c < count) output[image * out.n + (c0 + c) * out.c + y * out.h + x * out.w] = static_cast<T>(sum[c]);
    }
  }
}

// ---- launches ----

Tensor forward_cuda(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                    int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  constexpr const char* kOp = "roi_align";
  check_forward(kOp, input, boxes, pooled_height, pooled_width);
  const CudaDevice device(input);
  const Problem p{boxes.size(0), input.size(1), input.size(0), input.size(2),  input.size(3),
                  pooled_height, pooled_width,  spatial_scale, sampling_ratio, aligned};
  const bool last = is_channels_last(input);
  Tensor out = empty_4d(input, p.boxes, p.channels, pooled_height, pooled_width, last);
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  const Tensor rois = torch::stable::contiguous(boxes);
  const cudaStream_t stream = current_stream(input);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    constexpr int kWide = 16 / sizeof(T);
    const T* from = static_cast<const T*>(input.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const bool wide = last && can_vectorise(input, kWide, sizeof(T)) && can_vectorise(out, kWide, sizeof(T));
    const int64_t total = out.numel() / (wide ? kWide : 1);
    with_box_type(rois, [&](auto box_tag) {
      using B = decltype(box_tag);
      const B* b = static_cast<const B*>(rois.const_data_ptr());
      with_index(total, [&](auto index_tag) {
        using I = decltype(index_tag);
        const auto launch = [&](auto kernel) {
          kernel<<<grid_for(total), kThreads, 0, stream>>>(from, strides_of(input), b, to, strides_of(out),
                                                           static_cast<I>(total), p);
        };
        if (wide) {
          launch(forward_kernel<T, A, B, I, true, kWide>);
        } else if (last) {
          launch(forward_kernel<T, A, B, I, true, 1>);
        } else {
          launch(forward_kernel<T, A, B, I, false, 1>);
        }
      });
    });
    check_cuda(kOp, cudaGetLastError());
  });
  return out;
}

template <typename T, typename A, typename B>
void launch_deterministic(const Tensor& grad, const B* boxes, Tensor& out, const Problem& p, cudaStream_t stream) {
  const int64_t tiles_x = (p.width + kTile - 1) / kTile, tiles_y = (p.height + kTile - 1) / kTile;
  const int64_t tiles = tiles_x * tiles_y * p.images;
  check(tiles <= std::numeric_limits<int32_t>::max(), "_roi_align_backward",
        "the map has too many pixels: ", p.images * p.height * p.width);
  const int64_t groups = std::min<int64_t>((p.channels + kChannels - 1) / kChannels, 65535);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(groups));
  deterministic_kernel<T, A, B><<<grid, kTile * kTile, 0, stream>>>(
      static_cast<const T*>(grad.const_data_ptr()), strides_of(grad), boxes, static_cast<T*>(out.mutable_data_ptr()),
      strides_of(out), p, tiles_x, tiles_y);
}

template <typename T, typename A, typename B>
void launch_atomic(const Tensor& grad, const B* boxes, Tensor& out, const Problem& p, bool last, cudaStream_t stream) {
  constexpr int kWide = 4;
  const bool wide = last && std::is_same_v<A, float> && can_vectorise(out, kWide, sizeof(A));
  const int64_t total = grad.numel() / (wide ? kWide : 1);
  with_index(total, [&](auto index_tag) {
    using I = decltype(index_tag);
    const auto launch = [&](auto kernel) {
      kernel<<<grid_for(total), kThreads, 0, stream>>>(static_cast<const T*>(grad.const_data_ptr()), strides_of(grad),
                                                       boxes, static_cast<A*>(out.mutable_data_ptr()), strides_of(out),
                                                       static_cast<I>(total), p);
    };
    if (wide) {
      launch(backward_kernel<T, A, B, I, true, kWide>);
    } else if (last) {
      launch(backward_kernel<T, A, B, I, true, 1>);
    } else {
      launch(backward_kernel<T, A, B, I, false, 1>);
    }
  });
}

Tensor backward_cuda(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                     int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                     int64_t sampling_ratio, bool aligned, bool channels_last, bool deterministic) {
  constexpr const char* kOp = "_roi_align_backward";
  check_backward(kOp, grad, boxes, channels, pooled_height, pooled_width);
  const CudaDevice device(grad);
  const Problem p{boxes.size(0), channels,     batch_size,    height,         width,
                  pooled_height, pooled_width, spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_4d(grad, batch_size, channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  if (grad.numel() == 0) return torch::stable::zero_(out);
  const Tensor rois = torch::stable::contiguous(boxes);
  const cudaStream_t stream = current_stream(grad);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    // Half types are summed in float32 and rounded once.
    Tensor sum = out;
    if (!deterministic) {
      if (!std::is_same_v<T, A>) {
        sum = torch::stable::empty(out.sizes(), ScalarType::Float, std::nullopt, out.device(), std::nullopt,
                                   format_of(channels_last));
      }
      torch::stable::zero_(sum);
    }
    with_box_type(rois, [&](auto box_tag) {
      using B = decltype(box_tag);
      const B* b = static_cast<const B*>(rois.const_data_ptr());
      if (deterministic) {
        launch_deterministic<T, A, B>(grad, b, out, p, stream);
      } else {
        launch_atomic<T, A, B>(grad, b, sum, p, channels_last, stream);
      }
    });
    check_cuda(kOp, cudaGetLastError());
    if (!deterministic && !std::is_same_v<T, A>) torch::stable::copy_(out, sum);
  });
  return out;
}

}  // namespace
}  // namespace roi_align
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&d2proj::roi_align::forward_cuda));
  m.impl("_roi_align_backward", TORCH_BOX(&d2proj::roi_align::backward_cuda));
}
