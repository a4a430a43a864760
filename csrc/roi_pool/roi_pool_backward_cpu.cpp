// The backward pass of roi_pool and spatial_pyramid_pool on the CPU; roi_pool_cpu.h says how.
#include "roi_pool/roi_pool_cpu.h"

namespace d2proj {
namespace roi_pool {
namespace {

template <typename T, typename A>
struct Backward {
  const T* grad;
  const int32_t* argmax;  // laid out as grad
  T* out;
  int64_t n, c, pixel;  // strides of out
  int64_t cells, row;   // of a map; elements of grad per box
  const std::vector<Grid>& grids;
};

// Adds `bins` gradients of kPlanes channels to their planes, at map + channel * c_stride + cell * step. Neighbouring
// bins often hold the same cell, and then each sum waits for the last: several channels at once hide that.
template <int kPlanes, typename T, typename A>
D2_INLINE void add_planes(A* map, int64_t c_stride, int64_t step, uint32_t cells, const T* grad, const int32_t* argmax,
                          int64_t bins, int64_t channel) {
  for (int64_t j = 0; j < bins; ++j) {
#pragma GCC unroll 8
    for (int p = 0; p < kPlanes; ++p) {
      // -1 (nothing was pooled) is the largest of all when read unsigned.
      const uint32_t cell = static_cast<uint32_t>(argmax[p * channel + j]);
      if (cell < cells) map[p * c_stride + cell * step] += static_cast<A>(grad[p * channel + j]);
    }
  }
}

// Adds the gradients of the boxes to channels [c0, c0 + count) of their image: channel c, cell i of it is at
// map + c * c_stride + i * step.
template <typename T, typename A>
void spread(const Backward<T, A>& f, const std::vector<int64_t>& boxes, int64_t c0, int64_t count, A* map,
            int64_t c_stride, int64_t step) {
  constexpr int kPlanes = 4;
  const uint32_t cells = static_cast<uint32_t>(f.cells);
  for (size_t b = 0; b < boxes.size(); ++b) {
    for (const Grid& g : f.grids) {
      const int64_t first = g.base + c0 * g.channel, bins = g.pooled_h * g.pooled_w;
      const T* grad = f.grad + boxes[b] * f.row + first;
      const int32_t* argmax = f.argmax + boxes[b] * f.row + first;
      if (g.bin == 1) {
        if (b + 1 < boxes.size()) {
          // A short run of each box, far from the last one's: the hardware does not foresee it.
          const int64_t ahead = (boxes[b + 1] - boxes[b]) * f.row;
          for (int64_t i = 0; i < count * bins; i += 64 / sizeof(T)) __builtin_prefetch(grad + ahead + i);
          for (int64_t i = 0; i < count * bins; i += 16) __builtin_prefetch(argmax + ahead + i);
        }
        int64_t c = 0;
        for (; c + kPlanes <= count; c += kPlanes) {
          add_planes<kPlanes>(map + c * c_stride, c_stride, step, cells, grad + c * g.channel, argmax + c * g.channel,
                              bins, g.channel);
        }
        for (; c < count; ++c) {
          add_planes<1>(map + c * c_stride, c_stride, step, cells, grad + c * g.channel, argmax + c * g.channel, bins,
                        g.channel);
        }
        continue;
      }
      for (int64_t bin = 0; bin < bins; ++bin, grad += g.bin, argmax += g.bin) {
        for (int64_t c = 0; c < count; ++c) {
          const uint32_t cell = static_cast<uint32_t>(argmax[c]);
          if (cell < cells) map[c * c_stride + cell * step] += static_cast<A>(grad[c]);
        }
      }
    }
  }
}

template <typename T, typename A>
void backward(const Backward<T, A>& f, const std::vector<ImageBoxes>& images, int64_t channels) {
  const int64_t count = images.size();
  const bool planar = f.pixel == 1;
  const bool direct = std::is_same_v<T, A>;
  // Enough tasks to occupy every thread, each with as many planes as a cache holds; of a channels-last map, where a
  // bin's cells lie close together, with all the channels that this leaves it, in whole cache lines.
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t block = std::max<int64_t>(1, count * channels / wanted);
  if (planar || !direct) {
    block = std::min(block, std::clamp<int64_t>((1 << 17) / f.cells, 1, 16));
  } else {
    block = (std::min(block, channels) + 15) / 16 * 16;
  }
  const int64_t blocks = (channels + block - 1) / block;
  int64_t boxes = 0;
  for (const ImageBoxes& image : images) boxes += image.boxes.size();
  const int64_t cost = 1 + (boxes * f.row / channels + count * f.cells / 8) * block / count;
  torch::stable::parallel_for(0, count * blocks, std::max<int64_t>(1, kGrain / cost), [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(direct ? 0 : block * f.cells);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i % count, c0 = i / count * block, planes = std::min(block, channels - c0);
      T* out = f.out + n * f.n + c0 * f.c;
      if constexpr (std::is_same_v<T, A>) {
        if (planar) {
          for (int64_t p = 0; p < planes; ++p) std::memset(out + p * f.c, 0, f.cells * sizeof(T));
        } else {
          for (int64_t cell = 0; cell < f.cells; ++cell) {
            std::memset(out + cell * f.pixel, 0, planes * sizeof(T));
          }
        }
        spread(f, images[n].boxes, c0, planes, out, f.c, f.pixel);
      } else {
        std::memset(buffer.get(), 0, planes * f.cells * sizeof(A));
        spread(f, images[n].boxes, c0, planes, buffer.get(), f.cells, int64_t(1));
        for (int64_t p = 0; p < planes; ++p) {
          const A* from = buffer.get() + p * f.cells;
          for (int64_t cell = 0; cell < f.cells; ++cell) {
            out[cell * f.pixel + p * f.c] = static_cast<T>(from[cell]);
          }
        }
      }
    }
  });
}

Tensor spread_all(const char* op, const Tensor& any_grad, const Tensor& boxes, const Tensor& any_argmax,
                  const std::vector<Grid>& grids, MemoryFormat format, int64_t batch_size, int64_t channels,
                  int64_t height, int64_t width, bool channels_last) {
  Tensor out = empty_4d(any_grad, batch_size, channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  if (any_grad.numel() == 0) return torch::stable::zero_(out);
  const Tensor grad = in_format(any_grad, format), argmax = in_format(any_argmax, format);
  advise_huge_pages(out);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const auto images = group_by_image(op, static_cast<const A*>(rois.const_data_ptr()), rois.size(0), batch_size);
    const Backward<T, A> f{static_cast<const T*>(grad.const_data_ptr()),
                           static_cast<const int32_t*>(argmax.const_data_ptr()),
                           static_cast<T*>(out.mutable_data_ptr()),
                           channels * height * width,
                           channels_last ? 1 : height * width,
                           channels_last ? channels : 1,
                           height * width,
                           grad.numel() / grad.size(0),
                           grids};
    backward<T, A>(f, images, channels);
  });
  return out;
}

Tensor roi_pool_backward_cpu(const Tensor& grad, const Tensor& boxes, const Tensor& argmax, double /*spatial_scale*/,
                             int64_t pooled_height, int64_t pooled_width, int64_t batch_size, int64_t channels,
                             int64_t height, int64_t width, bool channels_last, bool /*deterministic: always*/) {
  constexpr const char* kOp = "_roi_pool_backward";
  check_output_size(kOp, pooled_height, pooled_width);
  check_backward(kOp, grad, boxes, argmax, {boxes.size(0), channels, pooled_height, pooled_width}, height, width);
  const bool last = is_channels_last(argmax);
  return spread_all(kOp, grad, boxes, argmax, roi_pool_grids(channels, pooled_height, pooled_width, last),
                    format_of(last), batch_size, channels, height, width, channels_last);
}

Tensor pyramid_backward_cpu(const Tensor& grad, const Tensor& boxes, const Tensor& argmax, std::vector<int64_t> bins,
                            double /*spatial_scale*/, int64_t batch_size, int64_t channels, int64_t height,
                            int64_t width, bool channels_last, bool /*deterministic: always*/) {
  constexpr const char* kOp = "_spatial_pyramid_pool_backward";
  check_bins(kOp, bins);
  check_backward(kOp, grad, boxes, argmax, {boxes.size(0), channels * bins_of(bins)}, height, width);
  return spread_all(kOp, grad, boxes, argmax, pyramid_grids(channels, bins), MemoryFormat::Contiguous, batch_size,
                    channels, height, width, channels_last);
}

}  // namespace
}  // namespace roi_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("_roi_pool_backward", TORCH_BOX(&d2proj::roi_pool::roi_pool_backward_cpu));
  m.impl("_spatial_pyramid_pool_backward", TORCH_BOX(&d2proj::roi_pool::pyramid_backward_cpu));
}
