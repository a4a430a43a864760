// roi_pool and spatial_pyramid_pool on CUDA.
//
// A thread makes one bin of kVec channels: one for a planar map (neighbouring threads take neighbouring bins), 16
// bytes' worth for a channels-last one (neighbouring threads take neighbouring channels, so that every access is a full
// line). The backward pass adds with atomics, into float32 for half types; the deterministic one turns the loops inside
// out: a thread owns a pixel and visits the boxes in order, which needs no memory and no atomics.
#include <cuda_runtime.h>

#include <type_traits>

#include "common/launch.cuh"
#include "roi_pool/roi_launch.cuh"
#include "roi_pool/roi_pool_args.h"

namespace d2proj {
namespace roi_pool {
namespace {

struct Problem {
  int64_t boxes, channels, images, height, width;
  int64_t row;  // elements of the result per box
  double spatial_scale;
  int grid_count;
  Grid grids[kMaxGrids];
};

Problem make_problem(int64_t boxes, int64_t channels, int64_t images, int64_t height, int64_t width,
                     double spatial_scale, const std::vector<Grid>& grids) {
  Problem p{boxes, channels, images, height, width, 0, spatial_scale, static_cast<int>(grids.size()), {}};
  for (size_t i = 0; i < grids.size(); ++i) {
    p.grids[i] = grids[i];
    p.row += channels * grids[i].pooled_h * grids[i].pooled_w;
  }
  return p;
}

// Both axes of box k in one grid, and its image (-1 if the box pools to zero).
template <typename A>
struct Box {
  Axis<A> y, x;
  int64_t image;
};

template <typename A>
__device__ __forceinline__ Box<A> read_box(const A* boxes, int64_t k, const Grid& g, const Problem& p) {
  const A* from = boxes + k * 5;
  const A scale = static_cast<A>(p.spatial_scale);
  Box<A> box;
  box.x = make_axis<A>(from[1], from[3], scale, g.pooled_w, true);
  box.y = make_axis<A>(from[2], from[4], scale, g.pooled_h, true);
  box.image = box.x.valid && box.y.valid ? image_of(from, p.images) : -1;
  return box;
}

// Splits a thread's number into box, grid, first channel and bin.
struct Place {
  int64_t k, c, bin;
  int grid;
};

template <typename I, bool kLast, int kVec>
__device__ __forceinline__ Place place_of(I index, const Problem& p) {
  const I row = static_cast<I>(p.row / kVec);
  Place at;
  at.k = static_cast<int64_t>(index / row);
  index %= row;
  at.grid = 0;
  while (at.grid + 1 < p.grid_count && index >= static_cast<I>(p.grids[at.grid + 1].base / kVec)) ++at.grid;
  const Grid& g = p.grids[at.grid];
  index -= static_cast<I>(g.base / kVec);
  if (kLast) {
    const I groups = static_cast<I>(p.channels / kVec);
    at.c = static_cast<int64_t>(index % groups) * kVec;
    at.bin = static_cast<int64_t>(index / groups);
  } else {
    const I bins = static_cast<I>(g.pooled_h * g.pooled_w);
    at.c = static_cast<int64_t>(index / bins);
    at.bin = static_cast<int64_t>(index % bins);
  }
  return at;
}

template <typename T, typename A, typename I, bool kLast, int kVec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ input, Strides in, const A* __restrict__ boxes, T* __restrict__ values,
                   int32_t* __restrict__ argmax, I total, Problem p) {
  using Lanes = Pack<T, kVec>;
  const I step = static_cast<I>(gridDim.x) * kThreads;
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    const Place at = place_of<I, kLast, kVec>(index, p);
    const Grid& g = p.grids[at.grid];
    const Box<A> box = read_box<A>(boxes, at.k, g, p);
    Span y{0, 0}, x{0, 0};
    if (box.image >= 0) {
      y = bin_span(box.y, at.bin / g.pooled_w, p.height);
      x = bin_span(box.x, at.bin % g.pooled_w, p.width);
    }
    const bool empty = y.count() == 0 || x.count() == 0;
    A best[kVec];
    int32_t where[kVec];
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
      best[v] = empty ? A(0) : A(kLowest);
      where[v] = -1;
    }
    if (!empty) {
      const T* map = input + box.image * in.n + at.c * in.c;
      for (int32_t iy = y.begin; iy < y.end; ++iy) {
        const T* row = map + iy * in.h;
        const int32_t first = static_cast<int32_t>(iy * p.width);
        for (int32_t ix = x.begin; ix < x.end; ++ix) {
          const Lanes cell = *reinterpret_cast<const Lanes*>(row + ix * in.w);
#pragma unroll
          for (int v = 0; v < kVec; ++v) {
            const A value = static_cast<A>(cell.lane[v]);
            if (value > best[v]) {
              best[v] = value;
              where[v] = first + ix;
            }
          }
        }
      }
    }
    const int64_t to = at.k * p.row + g.base + at.c * g.channel + at.bin * g.bin;
    if (kVec > 1 && g.channel == 1) {
      Lanes result;
      Pack<int32_t, kVec <= 4 ? kVec : 4> cells;
#pragma unroll
      for (int v = 0; v < kVec; ++v) result.lane[v] = static_cast<T>(best[v]);
      *reinterpret_cast<Lanes*>(values + to) = result;
      if (argmax) {
        constexpr int kStore = kVec <= 4 ? kVec : 4;  // 16 bytes at a time
#pragma unroll
        for (int first = 0; first < kVec; first += kStore) {
#pragma unroll
          for (int v = 0; v < kStore; ++v) cells.lane[v] = where[first + v];
          *reinterpret_cast<decltype(cells)*>(argmax + to + first) = cells;
        }
      }
    } else {
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        values[to + v * g.channel] = static_cast<T>(best[v]);
        if (argmax) argmax[to + v * g.channel] = where[v];
      }
    }
  }
}

template <typename T, typename A, typename I, bool kLast>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad, const int32_t* __restrict__ argmax, const A* __restrict__ boxes,
                    A* __restrict__ output, int64_t image_stride, int64_t channel_stride, int64_t pixel_stride, I total,
                    Problem p) {
  const uint32_t cells = static_cast<uint32_t>(p.height * p.width);
  const I step = static_cast<I>(gridDim.x) * kThreads;
  // grad and argmax lie in the order of the threads.
  for (I index = static_cast<I>(blockIdx.x) * kThreads + threadIdx.x; index < total; index += step) {
    // -1 (nothing was pooled) is the largest of all when read unsigned.
    const uint32_t cell = static_cast<uint32_t>(argmax[index]);
    if (cell >= cells) continue;
    const Place at = place_of<I, kLast, 1>(index, p);
    const int64_t image = image_of(boxes + at.k * 5, p.images);
    if (image < 0) continue;
    atomicAdd(output + image * image_stride + at.c * channel_stride + cell * pixel_stride, static_cast<A>(grad[index]));
  }
}

// ---- deterministic backward ----

constexpr int kTile = 16;     // a block owns 16 x 16 pixels ...
constexpr int kChannels = 8;  // ... of 8 channels

// Whether a box can reach the pixels [first, first + kTile) along an axis.
template <typename A>
__device__ __forceinline__ bool reaches(const Axis<A>& axis, int64_t pooled, int64_t first) {
  const int64_t end = axis.start + static_cast<int64_t>(ceil(static_cast<A>(pooled) * axis.bin));
  return axis.start < first + kTile && end > first;
}

template <typename T, typename A>
__global__ void __launch_bounds__(kTile* kTile)
    deterministic_kernel(const T* __restrict__ grad, const int32_t* __restrict__ argmax, const A* __restrict__ boxes,
                         T* __restrict__ output, int64_t image_stride, int64_t channel_stride, int64_t pixel_stride,
                         Problem p, int64_t tiles_x, int64_t tiles_y) {
  const int64_t tile = blockIdx.x;
  const int64_t left = tile % tiles_x * kTile, top = tile / tiles_x % tiles_y * kTile;
  const int64_t image = tile / (tiles_x * tiles_y);
  const int64_t x = left + threadIdx.x % kTile, y = top + threadIdx.x / kTile;
  if (x >= p.width || y >= p.height) return;
  const int32_t cell = static_cast<int32_t>(y * p.width + x);
  for (int64_t c0 = static_cast<int64_t>(blockIdx.y) * kChannels; c0 < p.channels;
       c0 += static_cast<int64_t>(gridDim.y) * kChannels) {
    const int count = static_cast<int>(p.channels - c0 < kChannels ? p.channels - c0 : kChannels);
    A sum[kChannels] = {};
    for (int64_t k = 0; k < p.boxes; ++k) {
      if (image_of(boxes + k * 5, p.images) != image) continue;
      for (int i = 0; i < p.grid_count; ++i) {
        const Grid& g = p.grids[i];
        const Box<A> box = read_box<A>(boxes, k, g, p);
        if (box.image != image) break;
        if (!reaches(box.x, g.pooled_w, left) || !reaches(box.y, g.pooled_h, top)) continue;
        const int64_t from = k * p.row + g.base + c0 * g.channel;
        for (int64_t ph = 0; ph < g.pooled_h; ++ph) {
          const Span ys = bin_span(box.y, ph, p.height);
          if (y < ys.begin || y >= ys.end) continue;
          for (int64_t pw = 0; pw < g.pooled_w; ++pw) {
            const Span xs = bin_span(box.x, pw, p.width);
            if (x < xs.begin || x >= xs.end) continue;
            const int64_t bin = from + (ph * g.pooled_w + pw) * g.bin;
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              if (c < count && argmax[bin + c * g.channel] == cell) {
                sum[c] += static_cast<A>(grad[bin + c * g.channel]);
              }
            }
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < count) {
        output[image * image_stride + (c0 + c) * channel_stride + cell * pixel_stride] = static_cast<T>(sum[c]);
      }
    }
  }
}

// ---- launches ----

// Whether kVec channels can be moved at once: they lie side by side, and every address is aligned to their size.
bool can_vectorise(const Tensor& t, int64_t vec) {
  const bool strides = t.stride(1) == 1 && t.stride(0) % vec == 0 && t.stride(2) % vec == 0 && t.stride(3) % vec == 0;
  return strides && t.size(1) % vec == 0 &&
         reinterpret_cast<uintptr_t>(t.const_data_ptr()) % (vec * t.element_size()) == 0;
}

void pool(const char* op, const Tensor& input, const Tensor& boxes, double spatial_scale,
          const std::vector<Grid>& grids, Results& results) {
  if (results.values.numel() == 0) return;
  if (input.numel() == 0) return clear(results);
  const cudaStream_t stream = current_stream(input);
  const bool last = is_channels_last(input);
  const Problem p =
      make_problem(boxes.size(0), input.size(1), input.size(0), input.size(2), input.size(3), spatial_scale, grids);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    constexpr int kWide = 16 / sizeof(T);
    const Tensor rois = boxes_as<A>(boxes);
    const T* from = static_cast<const T*>(input.const_data_ptr());
    int32_t* argmax = nullptr;
    if (results.argmax.numel() > 0) argmax = static_cast<int32_t*>(results.argmax.mutable_data_ptr());
    // Results are fresh, so aligned; rows and grids start at multiples of the number of channels.
    const bool wide = last && can_vectorise(input, kWide);
    const int64_t total = results.values.numel() / (wide ? kWide : 1);
    with_index(total, [&](auto index_tag) {
      using I = decltype(index_tag);
      const auto launch = [&](auto kernel) {
        kernel<<<grid_for(total), kThreads, 0, stream>>>(
            from, strides_of(input), static_cast<const A*>(rois.const_data_ptr()),
            static_cast<T*>(results.values.mutable_data_ptr()), argmax, static_cast<I>(total), p);
      };
      if (wide) {
        launch(forward_kernel<T, A, I, true, kWide>);
      } else if (last) {
        launch(forward_kernel<T, A, I, true, 1>);
      } else {
        launch(forward_kernel<T, A, I, false, 1>);
      }
    });
    check_cuda(op, cudaGetLastError());
  });
}

Tensor spread_all(const char* op, const Tensor& any_grad, const Tensor& boxes, const Tensor& any_argmax,
                  const std::vector<Grid>& grids, bool grad_last, double spatial_scale, int64_t batch_size,
                  int64_t channels, int64_t height, int64_t width, bool channels_last, bool deterministic) {
  Tensor out = empty_4d(any_grad, batch_size, channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  if (any_grad.numel() == 0) return torch::stable::zero_(out);
  const MemoryFormat format = format_of(grad_last);
  const Tensor grad = in_format(any_grad, format), argmax = in_format(any_argmax, format);
  const cudaStream_t stream = current_stream(grad);
  const Problem p = make_problem(boxes.size(0), channels, batch_size, height, width, spatial_scale, grids);
  const int64_t image_stride = channels * height * width;
  const int64_t channel_stride = channels_last ? 1 : height * width, pixel_stride = channels_last ? channels : 1;
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const A* b = static_cast<const A*>(rois.const_data_ptr());
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    const int32_t* cells = static_cast<const int32_t*>(argmax.const_data_ptr());
    Tensor sum = sum_for<T, A>(out, channels_last, deterministic);
    if (deterministic) {
      const int64_t tiles_x = (width + kTile - 1) / kTile, tiles_y = (height + kTile - 1) / kTile;
      const int64_t tiles = tiles_x * tiles_y * batch_size;
      check(tiles <= std::numeric_limits<int32_t>::max(), op,
            "the map has too many pixels: ", batch_size * height * width);
      const int64_t groups = std::min<int64_t>((channels + kChannels - 1) / kChannels, 65535);
      const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(groups));
      deterministic_kernel<T, A>
          <<<grid, kTile * kTile, 0, stream>>>(from, cells, b, static_cast<T*>(out.mutable_data_ptr()), image_stride,
                                               channel_stride, pixel_stride, p, tiles_x, tiles_y);
    } else {
      const int64_t total = grad.numel();
      with_index(total, [&](auto index_tag) {
        using I = decltype(index_tag);
        const auto launch = [&](auto kernel) {
          kernel<<<grid_for(total), kThreads, 0, stream>>>(from, cells, b, static_cast<A*>(sum.mutable_data_ptr()),
                                                           image_stride, channel_stride, pixel_stride,
                                                           static_cast<I>(total), p);
        };
        if (grad_last) {
          launch(backward_kernel<T, A, I, true>);
        } else {
          launch(backward_kernel<T, A, I, false>);
        }
      });
    }
    check_cuda(op, cudaGetLastError());
    if (!deterministic && !std::is_same_v<T, A>) torch::stable::copy_(out, sum);
  });
  return out;
}

std::tuple<Tensor, Tensor> roi_pool_cuda(const Tensor& input, const Tensor& boxes, double spatial_scale,
                                         int64_t pooled_height, int64_t pooled_width, bool with_argmax) {
  constexpr const char* kOp = "roi_pool";
  check_input(kOp, input, boxes);
  check_output_size(kOp, pooled_height, pooled_width);
  const CudaDevice device(input);
  const int64_t channels = input.size(1);
  const bool last = is_channels_last(input);
  Results results = empty_results(input, {boxes.size(0), channels, pooled_height, pooled_width}, last, with_argmax);
  pool(kOp, input, boxes, spatial_scale, roi_pool_grids(channels, pooled_height, pooled_width, last), results);
  return {results.values, results.argmax};
}

std::tuple<Tensor, Tensor> pyramid_cuda(const Tensor& input, const Tensor& boxes, std::vector<int64_t> bins,
                                        double spatial_scale, bool with_argmax) {
  constexpr const char* kOp = "spatial_pyramid_pool";
  check_input(kOp, input, boxes);
  check_bins(kOp, bins);
  const CudaDevice device(input);
  const int64_t channels = input.size(1);
  Results results = empty_results(input, {boxes.size(0), channels * bins_of(bins)}, false, with_argmax);
  pool(kOp, input, boxes, spatial_scale, pyramid_grids(channels, bins), results);
  return {results.values, results.argmax};
}

Tensor roi_pool_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& argmax, double spatial_scale,
                              int64_t pooled_height, int64_t pooled_width, int64_t batch_size, int64_t channels,
                              int64_t height, int64_t width, bool channels_last, bool deterministic) {
  constexpr const char* kOp = "_roi_pool_backward";
  check_output_size(kOp, pooled_height, pooled_width);
  check_backward(kOp, grad, boxes, argmax, {boxes.size(0), channels, pooled_height, pooled_width}, height, width);
  const CudaDevice device(grad);
  const bool last = is_channels_last(argmax);
  return spread_all(kOp, grad, boxes, argmax, roi_pool_grids(channels, pooled_height, pooled_width, last), last,
                    spatial_scale, batch_size, channels, height, width, channels_last, deterministic);
}

Tensor pyramid_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& argmax, std::vector<int64_t> bins,
                             double spatial_scale, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                             bool channels_last, bool deterministic) {
  constexpr const char* kOp = "_spatial_pyramid_pool_backward";
  check_bins(kOp, bins);
  check_backward(kOp, grad, boxes, argmax, {boxes.size(0), channels * bins_of(bins)}, height, width);
  const CudaDevice device(grad);
  return spread_all(kOp, grad, boxes, argmax, pyramid_grids(channels, bins), false, spatial_scale, batch_size, channels,
                    height, width, channels_last, deterministic);
}

}  // namespace
}  // namespace roi_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CUDA, m) {
  m.impl("roi_pool", TORCH_BOX(&d2proj::roi_pool::roi_pool_cuda));
  m.impl("spatial_pyramid_pool", TORCH_BOX(&d2proj::roi_pool::pyramid_cuda));
  m.impl("_roi_pool_backward", TORCH_BOX(&d2proj::roi_pool::roi_pool_backward_cuda));
  m.impl("_spatial_pyramid_pool_backward", TORCH_BOX(&d2proj::roi_pool::pyramid_backward_cuda));
}
