// RoIAlign's backward pass on the CPU. A task owns the part of the gradient that it adds to (an image, a band of rows,
// some channels) and takes boxes in order: no atomics, and the same bits whatever the number of threads.
#include "roi_align/roi_align_cpu.h"

namespace d2proj {
namespace roi_align {
namespace {

// Adds one box's gradient (bin b at grad + b * grad_step) to the rows [begin, end) of the map.
template <typename A, int kVectors>
D2_INLINE void spread_box(A* map, const int64_t* rows, int64_t step, int64_t begin, int64_t end, const A* grad,
                          int64_t grad_step, const BoxTaps<A>& box, const Options& o) {
  using V = typename Wide<A>::type;
  constexpr int kLanes = Wide<A>::kLanes;
  for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
    for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
      const int64_t y = box.taps[i].at;
      if (y < begin || y >= end) continue;
      A* row = map + rows[y];
      for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
        V share[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          simd::load(share[v], grad + (ph * o.pooled_w + pw) * grad_step + v * kLanes);
          share[v] *= box.taps[i].weight;
        }
        for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
          A* at = row + box.taps[j].at * step;
          for (int v = 0; v < kVectors; ++v) {
            V pixel;
            simd::load(pixel, at + v * kLanes);
            pixel += box.taps[j].weight * share[v];
            simd::store(at + v * kLanes, pixel);
          }
        }
      }
    }
  }
}

template <typename A>
D2_INLINE void spread_box_direct(Map<A> map, Map<const A> grad, int64_t channels, int64_t begin, int64_t end,
                                 const BoxTaps<A>& box, const Options& o) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
      for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
        const int64_t y = box.taps[i].at;
        if (y < begin || y >= end) continue;
        A* row = map.data + c * map.c + y * map.h;
        for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
          const A share = box.taps[i].weight * grad.data[c * grad.c + ph * grad.h + pw * grad.w];
          for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
            row[box.taps[j].at * map.w] += box.taps[j].weight * share;
          }
        }
      }
    }
  }
}

// What a backward task owns: rows [begin, end) of an image, channels [c0, c0 + count).
struct Part {
  int64_t image, begin, end, c0, count;
};

template <typename T, typename A>
struct Backward {
  Map<const T> grad;
  Map<T> out;
  const Plan<A>& plan;
  const Options& o;
};

template <typename T>
D2_INLINE void zero_run(T* data, int64_t step, int64_t planes, int64_t plane_stride, int64_t count) {
  if (step == 1) {
    for (int64_t p = 0; p < planes; ++p) std::memset(static_cast<void*>(data + p * plane_stride), 0, count * sizeof(T));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t p = 0; p < planes; ++p) data[p * plane_stride + i * step] = T(0.0f);
    }
  }
}

struct PackedBackward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Backward<T, A>& f, const Part& part, const std::vector<int64_t>& boxes,
                            const Footprint& foot, A* buffer) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Options& o = f.o;
    const int64_t bins = o.pooled_h * o.pooled_w;
    A* pixels = buffer;
    A* tile = pixels + foot.pixels() * kLanes;
    int64_t* rows = reinterpret_cast<int64_t*>(tile + bins * kLanes);
    for (int64_t y = 0; y < o.height; ++y) rows[y] = foot.offsets()[y] * kLanes;
    std::memset(pixels, 0, foot.pixels() * kLanes * sizeof(A));
    for (const int64_t k : boxes) {
      const BoxTaps<A> box = f.plan.box(k);
      const T* grad = f.grad.data + k * f.grad.n + part.c0 * f.grad.c;
      if (f.grad.h == f.grad.w * o.pooled_w) {
        simd::gather_lanes<L>(tile, grad, f.grad.c, f.grad.w, part.count, bins);
      } else {
        for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
          simd::gather_lanes<L>(tile + ph * o.pooled_w * kLanes, grad + ph * f.grad.h, f.grad.c, f.grad.w, part.count,
                                o.pooled_w);
        }
      }
      spread_box<A, 1>(pixels, rows, kLanes, part.begin, part.end, tile, kLanes, box, o);
    }
    T* out = f.out.data + part.image * f.out.n + part.c0 * f.out.c;
    for (int64_t y = part.begin; y < part.end; ++y) {
      T* row = out + y * f.out.h;
      const int64_t first = foot.empty(y) ? o.width : foot.first(y), last = foot.empty(y) ? o.width : foot.last(y);
      zero_run(row, f.out.w, part.count, f.out.c, first);
      if (first < last) {
        simd::scatter_lanes<L>(row + first * f.out.w, pixels + rows[y] + first * kLanes, f.out.c, f.out.w, part.count,
                               last - first);
      }
      zero_run(row + last * f.out.w, f.out.w, part.count, f.out.c, o.width - last);
    }
  }
};

struct DirectBackward {
  template <Level L, typename A>
  static D2_INLINE void run(const Backward<A, A>& f, const Part& part, const std::vector<int64_t>& boxes,
                            int64_t* rows) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Options& o = f.o;
    Map<A> out = f.out;
    out.data += part.image * out.n + part.c0 * out.c;
    for (int64_t y = 0; y < o.height; ++y) rows[y] = y * out.h;
    for (int64_t y = part.begin; y < part.end; ++y) zero_run(out.data + y * out.h, out.w, part.count, out.c, o.width);
    for (const int64_t k : boxes) {
      const BoxTaps<A> box = f.plan.box(k);
      Map<const A> grad = f.grad;
      grad.data += k * grad.n + part.c0 * grad.c;
      int64_t done = 0;
      if (out.c == 1 && grad.c == 1 && grad.h == grad.w * o.pooled_w) {
        for (; done + 4 * kLanes <= part.count; done += 4 * kLanes) {
          spread_box<A, 4>(out.data + done, rows, out.w, part.begin, part.end, grad.data + done, grad.w, box, o);
        }
        for (; done + kLanes <= part.count; done += kLanes) {
          spread_box<A, 1>(out.data + done, rows, out.w, part.begin, part.end, grad.data + done, grad.w, box, o);
        }
      }
      Map<A> rest = out;
      rest.data += done * out.c;
      grad.data += done * grad.c;
      spread_box_direct<A>(rest, grad, part.count - done, part.begin, part.end, box, o);
    }
  }
};

template <typename T, typename A>
void backward(const Backward<T, A>& f, const std::vector<ImageBoxes>& images, int64_t channels) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Options& o = f.o;
  const bool as_it_lies = std::is_same_v<T, A> && f.out.c == 1 && f.grad.c == 1;
  const int64_t block = as_it_lies ? 4 * kLanes : kLanes;  // channels of a task
  const int64_t blocks = (channels + block - 1) / block;
  const int64_t count = images.size();
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  // Bands of rows when images and channels alone do not occupy the threads.
  const int64_t bands = std::max<int64_t>(1, std::min(o.height, wanted / std::max<int64_t>(1, count * blocks)));
  std::vector<Footprint> feet;
  std::vector<char> packed(count);
  int64_t most_pixels = 0, work = 0;
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t b = 0; b < bands; ++b) {
      Footprint foot(o.height, o.width);
      for (const int64_t k : images[n].boxes) foot.add(f.plan.box(k), o);
      if (b == 0) {
        Footprint whole = foot;
        whole.lay_out(0, o.height);
        packed[n] = !std::is_same_v<T, A> ||
                    (!as_it_lies && whole.taps() >= kReadsPerPixel * whole.pixels() && whole.pixels() <= kMaxPixels);
        work += whole.taps() * channels;
      }
      foot.lay_out(o.height * b / bands, o.height * (b + 1) / bands);
      if (packed[n]) most_pixels = std::max(most_pixels, foot.pixels());
      feet.push_back(std::move(foot));
    }
  }
  const int64_t tasks = count * bands * blocks;
  const int64_t task_cost =
      std::max<int64_t>(1, (work + channels * count * o.height * o.width / 8) / std::max<int64_t>(1, tasks));
  const int64_t buffer_size = (most_pixels + o.pooled_h * o.pooled_w) * kLanes + (o.height * 8 + 63) / sizeof(A);
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / task_cost), [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(buffer_size);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i % (count * bands) / bands, b = i % bands, c0 = i / (count * bands) * block;
      const Part part{n, o.height * b / bands, o.height * (b + 1) / bands, c0, std::min(block, channels - c0)};
      if (packed[n]) {
        simd::dispatch<PackedBackward>(f, part, images[n].boxes, feet[n * bands + b], buffer.get());
      } else if constexpr (std::is_same_v<T, A>) {
        simd::dispatch<DirectBackward>(f, part, images[n].boxes, reinterpret_cast<int64_t*>(buffer.get()));
      }
    }
  });
}

Tensor backward_cpu(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                    int64_t pooled_width, int64_t batch_size, int64_t channels, int64_t height, int64_t width,
                    int64_t sampling_ratio, bool aligned, bool channels_last, bool /*deterministic: always*/) {
  constexpr const char* kOp = "_roi_align_backward";
  check_backward(kOp, grad, boxes, channels, pooled_height, pooled_width);
  const Options o{pooled_height, pooled_width, height, width, spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_4d(grad, batch_size, channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  dispatch_floating(grad.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const A* data = static_cast<const A*>(rois.const_data_ptr());
    const auto images = group_by_image(kOp, data, rois.size(0), batch_size);
    const Plan<A> plan(data, rois.size(0), o);
    backward<T, A>({read_map<T>(grad), write_map<T>(out), plan, o}, images, channels);
  });
  return out;
}

}  // namespace
}  // namespace roi_align
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("_roi_align_backward", TORCH_BOX(&d2proj::roi_align::backward_cpu));
}
