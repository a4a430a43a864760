// RoIAlign on the CPU; roi_align_cpu.h says how.
#include "roi_align/roi_align_cpu.h"

namespace d2proj {
namespace roi_align {
namespace {

// Sums one box over kVectors * 64 bytes of channels; pixel (row, column) is at map + rows[row] + column * step. Bin b
// goes to out + b * out_step. `kTaps` is the number of taps of every bin along x, 0 if they differ or are many.
template <typename A, int kVectors, int kTaps>
D2_INLINE void pool_column(A* out, int64_t out_step, const A* map, const int64_t* rows, int64_t step,
                           const BoxTaps<A>& box, const Options& o, int64_t pw) {
  using V = typename Wide<A>::type;
  constexpr int kLanes = Wide<A>::kLanes;
  const Tap<A>* x = box.taps + box.x_begin[pw];
  const int64_t x_count = kTaps ? kTaps : box.x_begin[pw + 1] - box.x_begin[pw];
  for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
    V sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = V{};
    for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
      const A* row = map + rows[box.taps[i].at];
      V line[kVectors];
      for (int v = 0; v < kVectors; ++v) line[v] = V{};
#pragma GCC unroll 4
      for (int64_t j = 0; j < x_count; ++j) {
        for (int v = 0; v < kVectors; ++v) {
          V pixel;
          simd::load(pixel, row + x[j].at * step + v * kLanes);
          line[v] += x[j].weight * pixel;
        }
      }
      for (int v = 0; v < kVectors; ++v) sum[v] += box.taps[i].weight * line[v];
    }
    for (int v = 0; v < kVectors; ++v) simd::store(out + (ph * o.pooled_w + pw) * out_step + v * kLanes, sum[v]);
  }
}

template <typename A, int kVectors>
D2_INLINE void pool_box(A* out, int64_t out_step, const A* map, const int64_t* rows, int64_t step,
                        const BoxTaps<A>& box, const Options& o) {
  for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
    switch (box.x_begin[pw + 1] - box.x_begin[pw]) {
      case 2:
        pool_column<A, kVectors, 2>(out, out_step, map, rows, step, box, o, pw);
        break;
      case 3:
        pool_column<A, kVectors, 3>(out, out_step, map, rows, step, box, o, pw);
        break;
      case 4:
        pool_column<A, kVectors, 4>(out, out_step, map, rows, step, box, o, pw);
        break;
      default:
        pool_column<A, kVectors, 0>(out, out_step, map, rows, step, box, o, pw);
    }
  }
}

// The same for one channel (or `count` channels that lie `lane_step` apart), any storage type, no buffer.
template <typename T, typename A>
D2_INLINE void pool_box_direct(Map<T> out, Map<const T> map, int64_t channels, const BoxTaps<A>& box,
                               const Options& o) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
      for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
        A sum = A(0);
        for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
          const T* row = map.data + c * map.c + box.taps[i].at * map.h;
          A line = A(0);
          for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
            line += box.taps[j].weight * static_cast<A>(row[box.taps[j].at * map.w]);
          }
          sum += box.taps[i].weight * line;
        }
        out.data[c * out.c + ph * out.h + pw * out.w] = static_cast<T>(sum);
      }
    }
  }
}

// As above for channels that lie side by side: the channel loop is inside, where it vectorises.
template <typename T, typename A>
D2_INLINE void pool_box_last(Map<T> out, Map<const T> map, int64_t channels, const BoxTaps<A>& box, const Options& o) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
    for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
      for (int64_t c0 = 0; c0 < channels; c0 += kLanes) {
        const int64_t lanes = std::min(kLanes, channels - c0);
        A sum[kLanes] = {};
        for (int64_t i = box.y_begin[ph]; i < box.y_begin[ph + 1]; ++i) {
          const T* row = map.data + c0 + box.taps[i].at * map.h;
          A line[kLanes] = {};
          for (int64_t j = box.x_begin[pw]; j < box.x_begin[pw + 1]; ++j) {
            const A weight = box.taps[j].weight;
            const T* pixel = row + box.taps[j].at * map.w;
            for (int64_t c = 0; c < lanes; ++c) line[c] += weight * static_cast<A>(pixel[c]);
          }
          const A weight = box.taps[i].weight;
          for (int64_t c = 0; c < lanes; ++c) sum[c] += weight * line[c];
        }
        T* to = out.data + c0 * out.c + ph * out.h + pw * out.w;
        for (int64_t c = 0; c < lanes; ++c) to[c * out.c] = static_cast<T>(sum[c]);
      }
    }
  }
}

template <typename T, typename A>
struct Forward {
  Map<const T> in;
  Map<T> out;
  int64_t channels;
  const Plan<A>& plan;
  const Options& o;
};

// Boxes of `job` (all of one image), channels [c0, c0 + count), through a compact buffer.
struct PackedForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, const ImageBoxes& job, const Footprint& foot, int64_t c0,
                            A* buffer) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Options& o = f.o;
    const int64_t count = std::min(kLanes, f.channels - c0);
    const T* source = f.in.data + job.image * f.in.n + c0 * f.in.c;
    A* pixels = buffer;
    A* tile = pixels + foot.pixels() * kLanes;
    int64_t* rows = reinterpret_cast<int64_t*>(tile + o.pooled_h * o.pooled_w * kLanes);
    for (int64_t y = 0; y < o.height; ++y) {
      rows[y] = foot.offsets()[y] * kLanes;
      if (foot.empty(y)) continue;
      const int64_t first = foot.first(y);
      simd::gather_lanes<L>(pixels + rows[y] + first * kLanes, source + y * f.in.h + first * f.in.w, f.in.c, f.in.w,
                            count, foot.last(y) - first);
    }
    for (const int64_t k : job.boxes) {
      pool_box<A, 1>(tile, kLanes, pixels, rows, kLanes, f.plan.box(k), o);
      T* to = f.out.data + k * f.out.n + c0 * f.out.c;
      // Bins follow each other in both memory formats that an output can have.
      simd::scatter_lanes<L>(to, tile, f.out.c, f.out.w, count, o.pooled_h * o.pooled_w);
    }
  }
};

// One box, every channel, read where the map lies.
struct DirectForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, int64_t k, int64_t image) {
    const BoxTaps<A> box = f.plan.box(k);
    Map<const T> in = f.in;
    Map<T> out = f.out;
    in.data += image * in.n;
    out.data += k * out.n;
    int64_t done = 0;
    if constexpr (std::is_same_v<T, A>) {
      if (in.c == 1 && out.c == 1) {
        constexpr int64_t kLanes = Wide<A>::kLanes;
        std::vector<int64_t> rows(f.o.height);
        for (int64_t y = 0; y < f.o.height; ++y) rows[y] = y * in.h;
        for (; done + 4 * kLanes <= f.channels; done += 4 * kLanes) {
          pool_box<A, 4>(out.data + done, out.w, in.data + done, rows.data(), in.w, box, f.o);
        }
        for (; done + kLanes <= f.channels; done += kLanes) {
          pool_box<A, 1>(out.data + done, out.w, in.data + done, rows.data(), in.w, box, f.o);
        }
      }
    }
    in.data += done * in.c;
    out.data += done * out.c;
    if (in.c == 1 && f.channels > 1) {
      pool_box_last(out, in, f.channels - done, box, f.o);
    } else {
      pool_box_direct(out, in, f.channels - done, box, f.o);
    }
  }
};

// Cuts the images' boxes into jobs, enough of them to occupy every thread: a job's result does not depend on the cut.
inline std::vector<ImageBoxes> cut_jobs(const std::vector<ImageBoxes>& images, int64_t blocks) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t used = 0;
  for (const ImageBoxes& image : images) used += !image.boxes.empty();
  const int64_t parts = std::max<int64_t>(1, wanted / std::max<int64_t>(1, used * blocks));
  std::vector<ImageBoxes> jobs;
  for (const ImageBoxes& image : images) {
    const int64_t count = image.boxes.size();
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t begin = count * p / parts, end = count * (p + 1) / parts;
      if (begin == end) continue;
      jobs.push_back({image.image, {image.boxes.begin() + begin, image.boxes.begin() + end}});
    }
  }
  return jobs;
}

template <typename T, typename A>
void forward(const Forward<T, A>& f, const std::vector<ImageBoxes>& images) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Options& o = f.o;
  const int64_t blocks = (f.channels + kLanes - 1) / kLanes;
  const bool as_it_lies = std::is_same_v<T, A> && f.in.c == 1;
  std::vector<ImageBoxes> packed;
  std::vector<Footprint> feet;
  std::vector<std::pair<int64_t, int64_t>> direct;  // (image, box)
  int64_t direct_taps = 0, most_pixels = 0;
  for (const ImageBoxes& image : images) {
    Footprint whole(o.height, o.width);
    for (const int64_t k : image.boxes) whole.add(f.plan.box(k), o);
    whole.lay_out(0, o.height);
    // Decided for an image as a whole, so that it does not depend on the number of threads.
    if (as_it_lies || whole.taps() < kReadsPerPixel * whole.pixels() || whole.pixels() > kMaxPixels) {
      for (const int64_t k : image.boxes) direct.emplace_back(image.image, k);
      direct_taps += whole.taps();
      continue;
    }
    for (ImageBoxes& job : cut_jobs({image}, blocks)) {
      Footprint foot(o.height, o.width);
      for (const int64_t k : job.boxes) foot.add(f.plan.box(k), o);
      foot.lay_out(0, o.height);
      most_pixels = std::max(most_pixels, foot.pixels());
      feet.push_back(std::move(foot));
      packed.push_back(std::move(job));
    }
  }
  const int64_t jobs = packed.size();
  const int64_t buffer_size = (most_pixels + o.pooled_h * o.pooled_w) * kLanes + (o.height * 8 + 63) / sizeof(A);
  torch::stable::parallel_for(0, jobs * blocks, 1, [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(buffer_size);
    for (int64_t i = begin; i < end; ++i) {
      simd::dispatch<PackedForward>(f, packed[i % jobs], feet[i % jobs], i / jobs * kLanes, buffer.get());
    }
  });
  const int64_t count = direct.size();
  const int64_t box_cost = std::max<int64_t>(1, direct_taps * f.channels / std::max<int64_t>(1, count));
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / box_cost), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) simd::dispatch<DirectForward>(f, direct[i].second, direct[i].first);
  });
}

Tensor forward_cpu(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                   int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  constexpr const char* kOp = "roi_align";
  check_forward(kOp, input, boxes, pooled_height, pooled_width);
  const int64_t channels = input.size(1);
  const Options o{pooled_height, pooled_width, input.size(2), input.size(3), spatial_scale, sampling_ratio, aligned};
  Tensor out = empty_4d(input, boxes.size(0), channels, pooled_height, pooled_width, is_channels_last(input));
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  advise_huge_pages(out);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const A* data = static_cast<const A*>(rois.const_data_ptr());
    const auto images = group_by_image(kOp, data, rois.size(0), input.size(0));
    const Plan<A> plan(data, rois.size(0), o);
    forward<T, A>({read_map<T>(input), write_map<T>(out), channels, plan, o}, images);
  });
  return out;
}

}  // namespace
}  // namespace roi_align
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) { m.impl("roi_align", TORCH_BOX(&d2proj::roi_align::forward_cpu)); }
