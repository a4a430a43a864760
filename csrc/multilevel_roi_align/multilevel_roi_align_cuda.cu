// RoIAlign from the levels of a pyramid on CUDA.
//
// One small kernel works out every view (a box on a level: its axes, image and scale), then one launch pools all
// levels, with roi_align's bins and layout of threads; a reduction over levels happens in a thread's registers. The
// backward pass adds with atomics, or, deterministic, gives each thread a pixel of a level (a launch for each level).
#include <tuple>

#include "multilevel_roi_align/multilevel_roi_align_args.h"
#include "roi_align/roi_align_kernels.cuh"

namespace d2proj {
namespace multilevel_roi_align {
namespace {

using roi_align::Axis;
using roi_align::kChannels;
using roi_align::kTile;
using roi_align::Place;

struct Problem {
  int64_t boxes, rows, channels, images, levels, pooled_h, pooled_w;
  int64_t views;  // of a row of the result
  int64_t sampling_ratio;
  bool aligned;
  Reduce reduce;
};

// The maps of all levels, passed by value: the addresses need no copy to the device.
template <typename T>
struct Pyramid {
  T* data[kMaxLevels];
  Strides strides[kMaxLevels];
  int64_t height[kMaxLevels], width[kMaxLevels];
};

struct Scales {
  double scale[kMaxLevels];
  int64_t height[kMaxLevels], width[kMaxLevels];
};

// A box on a level. `inside` is false where it pools to zero: not finite, image or level out of range, or no pixels.
template <typename A>
struct View {
  Axis<A> y, x;
  A scale;  // 1 / number of samples
  int32_t level;
  int64_t image;
  bool inside;
};

template <typename A, typename B>
__global__ void __launch_bounds__(kThreads)
    view_kernel(const B* __restrict__ boxes, const int64_t* __restrict__ levels, View<A>* __restrict__ views,
                int64_t count, Problem p, Scales s, Assignment assignment) {
  const int64_t v = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (v >= count) return;
  const bool assigned = p.reduce == Reduce::kAssigned;
  const B* from = boxes + (assigned ? v : v / p.levels) * 5;
  int64_t level = v % p.levels;
  if (assigned) level = levels ? levels[v] : assign_level(from + 1, assignment);
  View<A> view;
  view.inside = level >= 0 && level < p.levels && from[0] >= B(0) && from[0] < static_cast<B>(p.images);
  view.level = view.inside ? static_cast<int32_t>(level) : 0;
  view.image = view.inside ? static_cast<int64_t>(from[0]) : 0;
  const A scale = static_cast<A>(s.scale[view.level]);
  view.x = roi_align::make_axis<A>(static_cast<A>(from[1]), static_cast<A>(from[3]), scale, p.pooled_w,
                                   p.sampling_ratio, p.aligned);
  view.y = roi_align::make_axis<A>(static_cast<A>(from[2]), static_cast<A>(from[4]), scale, p.pooled_h,
                                   p.sampling_ratio, p.aligned);
  view.inside = view.inside && view.x.valid && view.y.valid && s.height[view.level] > 0 && s.width[view.level] > 0;
  view.scale = A(1) / roi_align::sample_count(view.y, view.x);
  views[v] = view;
}

template <typename T, typename A, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Pyramid<const T> maps, const View<A>* __restrict__ views, T* __restrict__ output,
                   int8_t* __restrict__ winners, Strides out, I total, Problem p) {
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = roi_align::place_of<I, kLast, kVec>(index, p.channels, p.pooled_h, p.pooled_w);
    A best[kVec] = {};
    Pack<int8_t, kVec> winner = {};
    for (int64_t j = 0; j < p.views; ++j) {
      const View<A> view = views[at.k * p.views + j];
      A sum[kVec] = {};
      if (view.inside) {
        const Strides& in = maps.strides[view.level];
        const T* map = maps.data[view.level] + view.image * in.n + at.c * in.c;
        roi_align::pool_bin<T, A, kVec>(map, in, view.y, view.x, at.ph, at.pw, maps.height[view.level],
                                        maps.width[view.level], sum);
      }
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        const A value = sum[v] * view.scale;
        if (j == 0) {
          best[v] = value;
        } else if (p.reduce == Reduce::kSum) {
          best[v] += value;
        } else if (roi_align::takes_over(value, best[v])) {
          best[v] = value;
          winner.lane[v] = static_cast<int8_t>(j);
        }
      }
    }
    Pack<T, kVec> result;
#pragma unroll
    for (int v = 0; v < kVec; ++v) result.lane[v] = static_cast<T>(best[v]);
    const int64_t to = at.k * out.n + at.c * out.c + at.ph * out.h + at.pw * out.w;
    *reinterpret_cast<Pack<T, kVec>*>(output + to) = result;
    // Laid out as the result, and aligned to kVec bytes where that is to kVec elements.
    if (winners) *reinterpret_cast<Pack<int8_t, kVec>*>(winners + to) = winner;
  }
}

template <typename T, typename A, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad, Strides in, const int8_t* __restrict__ winners, Strides win,
                    const View<A>* __restrict__ views, Pyramid<A> maps, I total, Problem p) {
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = roi_align::place_of<I, kLast, kVec>(index, p.channels, p.pooled_h, p.pooled_w);
    const T* from = grad + at.k * in.n + at.c * in.c + at.ph * in.h + at.pw * in.w;
    const int8_t* winner = winners ? winners + at.k * win.n + at.c * win.c + at.ph * win.h + at.pw * win.w : nullptr;
    for (int64_t j = 0; j < p.views; ++j) {
      const View<A> view = views[at.k * p.views + j];
      if (!view.inside) continue;
      A share[kVec];
      bool any = false;
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        const bool takes = !winner || winner[v * win.c] == j;
        share[v] = takes ? static_cast<A>(from[v * in.c]) * view.scale : A(0);
        any |= takes;
      }
      if (!any) continue;
      const Strides& out = maps.strides[view.level];
      A* map = maps.data[view.level] + view.image * out.n + at.c * out.c;
      roi_align::spread_bin<A, kVec>(map, out, view.y, view.x, at.ph, at.pw, maps.height[view.level],
                                     maps.width[view.level], share);
    }
  }
}

template <typename T, typename A>
__global__ void __launch_bounds__(kTile* kTile)
    deterministic_kernel(const T* __restrict__ grad, Strides in, const int8_t* __restrict__ winners, Strides win,
                         const View<A>* __restrict__ views, T* __restrict__ output, Strides out, int64_t level,
                         int64_t height, int64_t width, Problem p, int64_t tiles_x, int64_t tiles_y) {
  const int64_t tile = blockIdx.x;
  const int64_t left = tile % tiles_x * kTile, top = tile / tiles_x % tiles_y * kTile;
  const int64_t image = tile / (tiles_x * tiles_y);
  const int64_t x = left + threadIdx.x % kTile, y = top + threadIdx.x / kTile;
  if (x >= width || y >= height) return;
  for (int64_t c0 = static_cast<int64_t>(blockIdx.y) * kChannels; c0 < p.channels;
       c0 += static_cast<int64_t>(gridDim.y) * kChannels) {
    const int count = static_cast<int>(p.channels - c0 < kChannels ? p.channels - c0 : kChannels);
    A sum[kChannels] = {};
    for (int64_t k = 0; k < p.rows; ++k) {
      const View<A> view = views[p.views > 1 ? k * p.views + level : k];
      if (!view.inside || view.level != level || view.image != image) continue;
      if (!roi_align::reaches(view.x, p.pooled_w, left) || !roi_align::reaches(view.y, p.pooled_h, top)) continue;
      const T* from = grad + k * in.n + c0 * in.c;
      const int8_t* winner = winners ? winners + k * win.n + c0 * win.c : nullptr;
      for (int64_t ph = 0; ph < p.pooled_h; ++ph) {
        const A wy = roi_align::weight_of(view.y, ph, y, height) * view.scale;
        if (wy == A(0)) continue;
        for (int64_t pw = 0; pw < p.pooled_w; ++pw) {
          const A weight = wy * roi_align::weight_of(view.x, pw, x, width);
          if (weight == A(0)) continue;
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            if (c >= count || (winner && winner[c * win.c + ph * win.h + pw * win.w] != level)) continue;
            sum[c] += weight * static_cast<A>(from[c * in.c + ph * in.h + pw * in.w]);
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

template <typename T>
Pyramid<T> pyramid_of(const std::vector<Tensor>& maps) {
  Pyramid<T> result = {};
  for (size_t l = 0; l < maps.size(); ++l) {
    // Backward passes write through it; forward ones have a const T.
    result.data[l] = static_cast<T*>(const_cast<void*>(maps[l].const_data_ptr()));
    result.strides[l] = strides_of(maps[l]);
    result.height[l] = maps[l].size(2);
    result.width[l] = maps[l].size(3);
  }
  return result;
}

// Every view of every row, in device memory that the tensor owns.
template <typename A>
Tensor make_views(const Tensor& boxes, const Levels& levels, const std::vector<double>& scales,
                  const std::vector<Tensor>& maps, const Problem& p, const Assignment& assignment,
                  cudaStream_t stream) {
  const int64_t count = p.rows * p.views;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(View<A>));
  Tensor views = torch::stable::new_empty(boxes, {&bytes, 1}, ScalarType::Byte);
  Scales s = {};
  for (size_t l = 0; l < maps.size(); ++l) {
    s.scale[l] = scales[l];
    s.height[l] = maps[l].size(2);
    s.width[l] = maps[l].size(3);
  }
  const Tensor dense = torch::stable::contiguous(boxes);
  const std::optional<Tensor> dense_levels =
      levels ? std::optional<Tensor>(torch::stable::contiguous(*levels)) : std::nullopt;
  const int64_t* given = dense_levels ? static_cast<const int64_t*>(dense_levels->const_data_ptr()) : nullptr;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  check(blocks <= std::numeric_limits<int32_t>::max(), "multilevel_roi_align", "too many boxes: ", p.boxes);
  roi_align::with_box_type(dense, [&](auto tag) {
    using B = decltype(tag);
    view_kernel<A, B><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        static_cast<const B*>(dense.const_data_ptr()), given, static_cast<View<A>*>(views.mutable_data_ptr()), count, p,
        s, assignment);
  });
  return views;
}

bool can_vectorise(const std::vector<Tensor>& maps, int64_t vec, size_t element_size) {
  for (const Tensor& map : maps) {
    if (!d2proj::can_vectorise(map, vec, element_size)) return false;
  }
  return true;
}

std::tuple<Tensor, Tensor> forward_cuda(std::vector<Tensor> inputs, const Tensor& boxes, Levels levels,
                                        std::vector<double> scales, int64_t pooled_height, int64_t pooled_width,
                                        int64_t sampling_ratio, bool aligned, int64_t reduce, double canonical_size,
                                        int64_t canonical_level) {
  constexpr const char* kOp = "multilevel_roi_align";
  const Assignment assignment = check_forward(kOp, inputs, boxes, levels, scales, pooled_height, pooled_width, reduce,
                                              canonical_size, canonical_level);
  const CudaDevice device(boxes);
  const int64_t count = inputs.size();
  const Problem p{boxes.size(0),
                  row_count(boxes, reduce, scales.size()),
                  inputs[0].size(1),
                  inputs[0].size(0),
                  count,
                  pooled_height,
                  pooled_width,
                  roi_align::views_per_row(static_cast<Reduce>(reduce), count),
                  sampling_ratio,
                  aligned,
                  static_cast<Reduce>(reduce)};
  const bool last = is_channels_last(inputs[0]);
  Tensor out = empty_4d(inputs[0], p.rows, p.channels, pooled_height, pooled_width, last);
  Tensor winner = empty_winner(out, reduce, last);
  if (out.numel() == 0) return {out, winner};
  const cudaStream_t stream = current_stream(boxes);
  int8_t* winners = winner.numel() ? static_cast<int8_t*>(winner.mutable_data_ptr()) : nullptr;
  dispatch_floating(inputs[0].scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    constexpr int kWide = 16 / sizeof(T);
    const Tensor views = make_views<A>(boxes, levels, scales, inputs, p, assignment, stream);
    const bool wide = last && can_vectorise(inputs, kWide, sizeof(T)) && d2proj::can_vectorise(out, kWide, sizeof(T));
    const int64_t total = out.numel() / (wide ? kWide : 1);
    with_index(total, [&](auto index_tag) {
      using I = decltype(index_tag);
      const auto launch = [&](auto kernel) {
        kernel<<<grid_for(total), kThreads, 0, stream>>>(
            pyramid_of<const T>(inputs), static_cast<const View<A>*>(views.const_data_ptr()),
            static_cast<T*>(out.mutable_data_ptr()), winners, strides_of(out), static_cast<I>(total), p);
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
  return {out, winner};
}

template <typename T, typename A>
void launch_deterministic(const Tensor& grad, const int8_t* winners, Strides win, const Tensor& views,
                          std::vector<Tensor>& outs, const Problem& p, cudaStream_t stream) {
  const int64_t groups = std::min<int64_t>((p.channels + kChannels - 1) / kChannels, 65535);
  for (size_t l = 0; l < outs.size(); ++l) {
    const int64_t height = outs[l].size(2), width = outs[l].size(3);
    const int64_t tiles_x = (width + kTile - 1) / kTile, tiles_y = (height + kTile - 1) / kTile;
    const int64_t tiles = tiles_x * tiles_y * p.images;
    check(tiles <= std::numeric_limits<int32_t>::max(), "_multilevel_roi_align_backward",
          "a map has too many pixels: ", p.images * height * width);
    if (tiles == 0) continue;
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(groups));
    deterministic_kernel<T, A><<<grid, kTile * kTile, 0, stream>>>(
        static_cast<const T*>(grad.const_data_ptr()), strides_of(grad), winners, win,
        static_cast<const View<A>*>(views.const_data_ptr()), static_cast<T*>(outs[l].mutable_data_ptr()),
        strides_of(outs[l]), static_cast<int64_t>(l), height, width, p, tiles_x, tiles_y);
  }
}

template <typename T, typename A>
void launch_atomic(const Tensor& grad, const int8_t* winners, Strides win, const Tensor& views,
                   std::vector<Tensor>& sums, const Problem& p, bool last, cudaStream_t stream) {
  constexpr int kWide = 4;
  const bool wide = last && std::is_same_v<A, float> && can_vectorise(sums, kWide, sizeof(A));
  const int64_t total = grad.numel() / (wide ? kWide : 1);
  with_index(total, [&](auto index_tag) {
    using I = decltype(index_tag);
    const auto launch = [&](auto kernel) {
      kernel<<<grid_for(total), kThreads, 0, stream>>>(
          static_cast<const T*>(grad.const_data_ptr()), strides_of(grad), winners, win,
          static_cast<const View<A>*>(views.const_data_ptr()), pyramid_of<A>(sums), static_cast<I>(total), p);
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

std::vector<Tensor> backward_cuda(const Tensor& grad, const Tensor& winner, const Tensor& boxes, Levels levels,
                                  std::vector<double> scales, int64_t pooled_height, int64_t pooled_width,
                                  int64_t batch_size, int64_t channels, std::vector<int64_t> heights,
                                  std::vector<int64_t> widths, int64_t sampling_ratio, bool aligned, int64_t reduce,
                                  double canonical_size, int64_t canonical_level, std::vector<int64_t> channels_last,
                                  bool deterministic) {
  constexpr const char* kOp = "_multilevel_roi_align_backward";
  const Assignment assignment =
      check_backward(kOp, grad, winner, boxes, levels, scales, channels, pooled_height, pooled_width, heights, widths,
                     channels_last, reduce, canonical_size, canonical_level);
  const CudaDevice device(boxes);
  const int64_t count = scales.size();
  const Problem p{boxes.size(0),
                  grad.size(0),
                  channels,
                  batch_size,
                  count,
                  pooled_height,
                  pooled_width,
                  roi_align::views_per_row(static_cast<Reduce>(reduce), count),
                  sampling_ratio,
                  aligned,
                  static_cast<Reduce>(reduce)};
  std::vector<Tensor> outs;
  bool last = true;
  for (int64_t l = 0; l < count; ++l) {
    outs.push_back(empty_4d(grad, batch_size, channels, heights[l], widths[l], channels_last[l] != 0));
    last = last && channels_last[l] != 0;
  }
  if (grad.numel() == 0 || batch_size == 0) {
    for (Tensor& out : outs) torch::stable::zero_(out);
    return outs;
  }
  const cudaStream_t stream = current_stream(boxes);
  const bool max = p.reduce == Reduce::kMax;
  const int8_t* winners = max ? static_cast<const int8_t*>(winner.const_data_ptr()) : nullptr;
  const Strides win = max ? strides_of(winner) : Strides{};
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor views = make_views<A>(boxes, levels, scales, outs, p, assignment, stream);
    if (deterministic) {
      launch_deterministic<T, A>(grad, winners, win, views, outs, p, stream);
    } else {
      // Half types are summed in float32 and rounded once.
      std::vector<Tensor> sums;
      for (int64_t l = 0; l < count; ++l) {
        sums.push_back(std::is_same_v<T, A>
                           ? outs[l]
                           : torch::stable::empty(outs[l].sizes(), ScalarType::Float, std::nullopt, outs[l].device(),
                                                  std::nullopt, format_of(channels_last[l] != 0)));
        torch::stable::zero_(sums[l]);
      }
      launch_atomic<T, A>(grad, winners, win, views, sums, p, last, stream);
      for (int64_t l = 0; l < count && !std::is_same_v<T, A>; ++l) torch::stable::copy_(outs[l], sums[l]);
    }
    check_cuda(kOp, cudaGetLastError());
  });
  return outs;
}

}  // namespace
}  // namespace multilevel_roi_align
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("multilevel_roi_align", TORCH_BOX(&d2proj::multilevel_roi_align::forward_cuda));
  m.impl("_multilevel_roi_align_backward", TORCH_BOX(&d2proj::multilevel_roi_align::backward_cuda));
}
