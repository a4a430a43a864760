// Deformable RoI pooling on the CPU, forward; deform_roi_pool_cpu.h says how.
#include "deform_roi_pool/deform_roi_pool_cpu.h"

namespace d2proj {
namespace deform_roi_pool {
namespace {

// Sums one bin over kVectors * 64 bytes of channels; pixel (row, column) is at map + rows[row] + column * step.
// `kTaps` is the number of taps along x, 0 if they are many.
template <Level L, typename A, int kVectors, int kTaps, typename T>
D2_INLINE void sum_taps(typename Wide<A>::type (&sum)[kVectors], const T* map, const int64_t* rows, int64_t step,
                        const BinTaps<A>& bin) {
  using V = typename Wide<A>::type;
  constexpr int kLanes = Wide<A>::kLanes;
  const Tap<A>* x = bin.taps + bin.x_begin[0];
  const int64_t x_count = kTaps ? kTaps : bin.x_begin[1] - bin.x_begin[0];
  for (int v = 0; v < kVectors; ++v) sum[v] = V{};
  for (int64_t i = bin.y_begin[0]; i < bin.y_begin[1]; ++i) {
    const T* row = map + rows[bin.taps[i].at];
    V line[kVectors];
    for (int v = 0; v < kVectors; ++v) line[v] = V{};
#pragma GCC unroll 5
    for (int64_t j = 0; j < x_count; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        V pixel;
        load_lanes<L, A>(pixel, row + x[j].at * step + v * kLanes);
        line[v] += x[j].weight * pixel;
      }
    }
    for (int v = 0; v < kVectors; ++v) sum[v] += bin.taps[i].weight * line[v];
  }
}

template <Level L, typename A, int kVectors, typename T>
D2_INLINE void sum_bin(typename Wide<A>::type (&sum)[kVectors], const T* map, const int64_t* rows, int64_t step,
                       const BinTaps<A>& bin) {
  switch (bin.x_begin[1] - bin.x_begin[0]) {
    case 2:
      return sum_taps<L, A, kVectors, 2>(sum, map, rows, step, bin);
    case 3:
      return sum_taps<L, A, kVectors, 3>(sum, map, rows, step, bin);
    case 4:
      return sum_taps<L, A, kVectors, 4>(sum, map, rows, step, bin);
    default:
      return sum_taps<L, A, kVectors, 0>(sum, map, rows, step, bin);
  }
}

template <typename T, typename A>
struct Forward {
  Map<const T> in;
  Map<T> out;
  const Plan<A>& plan;
  const Problem& p;
};

// The job's bins, channels [c0, c0 + count) of its class, through a compact buffer.
struct PackedForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, const Job& job, int64_t c0, A* buffer, int64_t* rows) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Problem& p = f.p;
    const int64_t count = std::min(kLanes, p.class_channels() - c0);
    const CellBins bins(p, job.group.cell);
    A* pixels = buffer;
    A* tile = pixels + job.foot.pixels() * kLanes;
    gather_pixels<L>(pixels, rows, f.in, p, job.group, job.foot, c0, count);
    for (const int64_t k : job.boxes) {
      A* at = tile;
      for (int64_t ph = bins.top; ph < bins.bottom; ++ph) {
        for (int64_t pw = bins.left; pw < bins.right; ++pw, at += kLanes) {
          typename Wide<A>::type sum[1];
          sum_bin<L, A, 1>(sum, pixels, rows, kLanes, f.plan.bin(bin_index(p, k, job.group.cls, ph, pw)));
          simd::store(at, sum[0]);
        }
      }
      T* to = f.out.data + k * f.out.n + (job.group.cls * p.class_channels() + c0) * f.out.c;
      scatter_bins<L>(to, tile, f.out, bins, count);
    }
  }
};

// One box, every channel, read where the map lies.
struct DirectForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, int64_t image, int64_t k, const int64_t* rows) {
    using V = typename Wide<A>::type;
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Problem& p = f.p;
    const T* map = f.in.data + image * f.in.n;
    const int64_t per_class = p.class_channels();
    const bool side_by_side = f.in.c == 1 && f.out.c == 1 && p.cells() == 1;
    for (int64_t cls = 0; cls < p.classes; ++cls) {
      for (int64_t ph = 0; ph < p.pooled_h; ++ph) {
        for (int64_t pw = 0; pw < p.pooled_w; ++pw) {
          const BinTaps<A> bin = f.plan.bin(bin_index(p, k, cls, ph, pw));
          const int64_t cell = p.cell_of(ph, pw);
          T* to = f.out.data + k * f.out.n + cls * per_class * f.out.c + ph * f.out.h + pw * f.out.w;
          const T* from = map + (cls * per_class * p.cells() + cell) * f.in.c;
          int64_t c = 0;
          if (side_by_side) {
            V sum[4];
            for (; c + 4 * kLanes <= per_class; c += 4 * kLanes) {
              sum_bin<L, A, 4>(sum, from + c, rows, f.in.w, bin);
              for (int v = 0; v < 4; ++v) store_lanes<L, A>(to + c + v * kLanes, sum[v]);
            }
            V one[1];
            for (; c + kLanes <= per_class; c += kLanes) {
              sum_bin<L, A, 1>(one, from + c, rows, f.in.w, bin);
              store_lanes<L, A>(to + c, one[0]);
            }
          }
          for (; c < per_class; ++c) {
            const T* plane = from + c * p.cells() * f.in.c;
            A sum = A(0);
            for (int64_t i = bin.y_begin[0]; i < bin.y_begin[1]; ++i) {
              const T* row = plane + bin.taps[i].at * f.in.h;
              A line = A(0);
              for (int64_t j = bin.x_begin[0]; j < bin.x_begin[1]; ++j) {
                line += bin.taps[j].weight * static_cast<A>(row[bin.taps[j].at * f.in.w]);
              }
              sum += bin.taps[i].weight * line;
            }
            to[c * f.out.c] = static_cast<T>(sum);
          }
        }
      }
    }
  }
};

template <typename T, typename A>
void forward(const Forward<T, A>& f, const std::vector<ImageBoxes>& images) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Problem& p = f.p;
  const int64_t blocks = (p.class_channels() + kLanes - 1) / kLanes;
  const std::vector<Footprint> feet = all_footprints(p, f.plan, images);
  const Choice choice = choose(p, feet, f.in.c == 1 && p.cells() == 1);
  const std::vector<Job> jobs = make_jobs(p, f.plan, images, feet, choice.packed, blocks);
  const int64_t count = jobs.size(), buffer_size = (most_pixels(jobs) + p.bins()) * kLanes;
  torch::stable::parallel_for(0, count * blocks, 1, [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(buffer_size);
    std::vector<int64_t> rows(p.height);
    for (int64_t i = begin; i < end; ++i) {
      simd::dispatch<PackedForward>(f, jobs[i % count], i / count * kLanes, buffer.get(), rows.data());
    }
  });
  const auto direct = direct_boxes(images, choice.packed);
  const int64_t boxes = direct.size();
  const int64_t box_cost = std::max<int64_t>(1, choice.taps * p.class_channels() / std::max<int64_t>(1, p.boxes));
  std::vector<int64_t> rows(p.height);
  for (int64_t y = 0; y < p.height; ++y) rows[y] = y * f.in.h;
  torch::stable::parallel_for(0, boxes, std::max<int64_t>(1, kGrain / box_cost), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      simd::dispatch<DirectForward>(f, direct[i].first, direct[i].second, rows.data());
    }
  });
}

template <bool kPs>
Tensor pool(const char* op, const Tensor& input, const Tensor& boxes, const Tensor& offset, const Sizes& sizes) {
  const Problem p = check_arguments(op, input, boxes, offset, sizes, kPs);
  Tensor out = empty_4d(input, p.boxes, p.channels, p.pooled_h, p.pooled_w, is_channels_last(input));
  if (out.numel() == 0) return out;
  if (input.numel() == 0) return torch::stable::zero_(out);
  advise_huge_pages(out);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes), shifts = contiguous_as<A>(offset);
    const A* data = static_cast<const A*>(rois.const_data_ptr());
    const auto images = group_by_image(op, data, p.boxes, p.images);
    Plan<A> plan;
    plan.template make<kPs>(data, static_cast<const A*>(shifts.const_data_ptr()), p, false);
    forward<T, A>({read_map<T>(input), write_map<T>(out), plan, p}, images);
  });
  return out;
}

Tensor deform_roi_pool_cpu(const Tensor& input, const Tensor& boxes, const Tensor& offset, double spatial_scale,
                           int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, double gamma) {
  return pool<false>(
      "deform_roi_pool", input, boxes, offset,
      {pooled_height, pooled_width, 1, 1, pooled_height, pooled_width, sampling_ratio, spatial_scale, gamma});
}

Tensor deform_ps_roi_pool_cpu(const Tensor& input, const Tensor& boxes, const Tensor& offset, double spatial_scale,
                              int64_t pooled_height, int64_t pooled_width, int64_t group_height, int64_t group_width,
                              int64_t part_height, int64_t part_width, int64_t sample_per_part, double gamma) {
  return pool<true>("deform_ps_roi_pool", input, boxes, offset,
                    {pooled_height, pooled_width, group_height, group_width, part_height, part_width, sample_per_part,
                     spatial_scale, gamma});
}

}  // namespace
}  // namespace deform_roi_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&d2proj::deform_roi_pool::deform_roi_pool_cpu));
  m.impl("deform_ps_roi_pool", TORCH_BOX(&d2proj::deform_roi_pool::deform_ps_roi_pool_cpu));
}
