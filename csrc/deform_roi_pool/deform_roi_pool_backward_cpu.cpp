// Deformable RoI pooling's backward pass on the CPU: the map's gradient, then the offsets'. A task owns what it adds to
// and takes boxes in order: no atomics, and the same bits whatever the number of threads.
#include "deform_roi_pool/deform_roi_pool_cpu.h"

namespace d2proj {
namespace deform_roi_pool {
namespace {

// ---- the map's gradient ----

template <typename T, typename A>
struct SpreadTo {
  Map<const T> grad;
  Map<T> out;
  const Plan<A>& plan;
  const Problem& p;
};

// What a task owns: rows [begin, end) of a group, channels [c0, c0 + count) of its class.
struct Part {
  Group group;
  int64_t begin, end, c0, count;
};

// Adds one bin's gradient, kVectors * 64 bytes of channels, to the rows [begin, end) of the map.
template <typename A, int kVectors>
D2_INLINE void spread_bin(A* map, const int64_t* rows, int64_t step, const Part& part, const A* grad,
                          const BinTaps<A>& bin) {
  using V = typename Wide<A>::type;
  constexpr int kLanes = Wide<A>::kLanes;
  for (int64_t i = bin.y_begin[0]; i < bin.y_begin[1]; ++i) {
    const int64_t y = bin.taps[i].at;
    if (y < part.begin || y >= part.end) continue;
    V share[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      simd::load(share[v], grad + v * kLanes);
      share[v] *= bin.taps[i].weight;
    }
    for (int64_t j = bin.x_begin[0]; j < bin.x_begin[1]; ++j) {
      A* at = map + rows[y] + bin.taps[j].at * step;
      for (int v = 0; v < kVectors; ++v) {
        V pixel;
        simd::load(pixel, at + v * kLanes);
        pixel += bin.taps[j].weight * share[v];
        simd::store(at + v * kLanes, pixel);
      }
    }
  }
}

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

template <typename T, typename A>
D2_INLINE T* part_data(const SpreadTo<T, A>& f, const Part& part) {
  const int64_t channel = (part.group.cls * f.p.class_channels() + part.c0) * f.p.cells() + part.group.cell;
  return f.out.data + part.group.image * f.out.n + channel * f.out.c;
}

struct PackedSpread {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const SpreadTo<T, A>& f, const Part& part, const std::vector<int64_t>& boxes,
                            const Footprint& foot, A* buffer, int64_t* rows) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Problem& p = f.p;
    const CellBins bins(p, part.group.cell);
    A* pixels = buffer;
    A* tile = pixels + foot.pixels() * kLanes;
    for (int64_t y = 0; y < p.height; ++y) rows[y] = foot.offsets()[y] * kLanes;
    std::memset(pixels, 0, foot.pixels() * kLanes * sizeof(A));
    for (const int64_t k : boxes) {
      const int64_t channel = part.group.cls * p.class_channels() + part.c0;
      gather_bins<L>(tile, f.grad.data + k * f.grad.n + channel * f.grad.c, f.grad, bins, part.count);
      const A* at = tile;
      for (int64_t ph = bins.top; ph < bins.bottom; ++ph) {
        for (int64_t pw = bins.left; pw < bins.right; ++pw, at += kLanes) {
          spread_bin<A, 1>(pixels, rows, kLanes, part, at, f.plan.bin(bin_index(p, k, part.group.cls, ph, pw)));
        }
      }
    }
    T* out = part_data(f, part);
    const int64_t planes = f.out.c * p.cells();
    for (int64_t y = part.begin; y < part.end; ++y) {
      T* row = out + y * f.out.h;
      const int64_t first = foot.empty(y) ? p.width : foot.first(y), last = foot.empty(y) ? p.width : foot.last(y);
      zero_run(row, f.out.w, part.count, planes, first);
      if (first < last) {
        simd::scatter_lanes<L>(row + first * f.out.w, pixels + rows[y] + first * kLanes, planes, f.out.w, part.count,
                               last - first);
      }
      zero_run(row + last * f.out.w, f.out.w, part.count, planes, p.width - last);
    }
  }
};

struct DirectSpread {
  template <Level L, typename A>
  static D2_INLINE void run(const SpreadTo<A, A>& f, const Part& part, const std::vector<int64_t>& boxes,
                            const int64_t* rows) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Problem& p = f.p;
    const CellBins bins(p, part.group.cell);
    A* out = part_data(f, part);
    const int64_t planes = f.out.c * p.cells();
    for (int64_t y = part.begin; y < part.end; ++y) zero_run(out + y * f.out.h, f.out.w, part.count, planes, p.width);
    const bool side_by_side = planes == 1 && f.grad.c == 1;
    const int64_t channel = part.group.cls * p.class_channels() + part.c0;
    for (const int64_t k : boxes) {
      for (int64_t ph = bins.top; ph < bins.bottom; ++ph) {
        for (int64_t pw = bins.left; pw < bins.right; ++pw) {
          const BinTaps<A> bin = f.plan.bin(bin_index(p, k, part.group.cls, ph, pw));
          const A* grad = f.grad.data + k * f.grad.n + channel * f.grad.c + ph * f.grad.h + pw * f.grad.w;
          int64_t c = 0;
          if (side_by_side) {
            for (; c + 4 * kLanes <= part.count; c += 4 * kLanes) {
              spread_bin<A, 4>(out + c, rows, f.out.w, part, grad + c, bin);
            }
            for (; c + kLanes <= part.count; c += kLanes) {
              spread_bin<A, 1>(out + c, rows, f.out.w, part, grad + c, bin);
            }
          }
          for (; c < part.count; ++c) {
            for (int64_t i = bin.y_begin[0]; i < bin.y_begin[1]; ++i) {
              const int64_t y = bin.taps[i].at;
              if (y < part.begin || y >= part.end) continue;
              A* row = out + c * planes + rows[y];
              const A share = bin.taps[i].weight * grad[c * f.grad.c];
              for (int64_t j = bin.x_begin[0]; j < bin.x_begin[1]; ++j) {
                row[bin.taps[j].at * f.out.w] += bin.taps[j].weight * share;
              }
            }
          }
        }
      }
    }
  }
};

template <typename T, typename A>
void spread(const SpreadTo<T, A>& f, const std::vector<ImageBoxes>& images, const std::vector<Footprint>& whole) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Problem& p = f.p;
  // The map's gradient has a layout of its own; half types must be summed in float32.
  const bool side_by_side = std::is_same_v<T, A> && f.out.c == 1 && f.grad.c == 1 && p.cells() == 1;
  std::vector<char> packed = choose(p, whole, side_by_side).packed;
  if (!std::is_same_v<T, A>) packed.assign(p.images, 1);
  const int64_t block = side_by_side ? 4 * kLanes : kLanes;  // channels of a task
  const int64_t blocks = (p.class_channels() + block - 1) / block;
  const int64_t groups = group_count(p);
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  // Bands of rows when groups and channels alone do not occupy the threads.
  const int64_t bands = std::max<int64_t>(1, std::min(p.height, wanted / std::max<int64_t>(1, groups * blocks)));
  std::vector<Footprint> feet;
  feet.reserve(groups * bands);
  int64_t most = 0, work = 0;
  for (int64_t g = 0; g < groups; ++g) {
    work += whole[g].taps() * p.class_channels();
    for (int64_t b = 0; b < bands; ++b) {
      feet.push_back(whole[g]);
      feet.back().lay_out(p.height * b / bands, p.height * (b + 1) / bands);
      if (packed[group_at(p, g).image]) most = std::max(most, feet.back().pixels());
    }
  }
  const int64_t tasks = groups * bands * blocks;
  const int64_t task_work = std::max<int64_t>(
      1, (work + p.images * p.channels * p.cells() * p.height * p.width) / std::max<int64_t>(1, tasks));
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / task_work), [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>((most + p.bins()) * kLanes);
    std::vector<int64_t> rows(p.height), map_rows(p.height);
    for (int64_t y = 0; y < p.height; ++y) map_rows[y] = y * f.out.h;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i % (groups * bands) / bands, b = i % bands, c0 = i / (groups * bands) * block;
      const Group group = group_at(p, g);
      const Part part{group, p.height * b / bands, p.height * (b + 1) / bands, c0,
                      std::min(block, p.class_channels() - c0)};
      const std::vector<int64_t>& boxes = images[group.image].boxes;
      if (packed[group.image]) {
        simd::dispatch<PackedSpread>(f, part, boxes, feet[g * bands + b], buffer.get(), rows.data());
      } else if constexpr (std::is_same_v<T, A>) {
        simd::dispatch<DirectSpread>(f, part, boxes, map_rows.data());
      }
    }
  });
}

// ---- the offsets' gradient ----

template <typename T, typename A>
struct OffsetsFrom {
  Map<const T> grad, in;
  A* bin_grads;  // (boxes, classes, 2, pooled_h, pooled_w)
  const Plan<A>& plan;
  const Problem& p;
};

template <typename V, typename A>
D2_INLINE A sum_of_lanes(const V& value) {
  constexpr int kLanes = sizeof(V) / sizeof(A);
  if constexpr (kLanes == 1) {
    A sum;
    __builtin_memcpy(&sum, &value, sizeof(sum));
    return sum;
  } else {
    typedef A Half __attribute__((vector_size(sizeof(V) / 2)));
    Half low, high;
    __builtin_memcpy(&low, &value, sizeof(Half));
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof(Half), sizeof(Half));
    return sum_of_lanes<Half, A>(low + high);
  }
}

// The derivatives of one bin by its position along x and y, times `grad`, summed over 64 bytes of channels.
template <Level L, typename A, typename T, typename G>
D2_INLINE void slope_bin(typename Wide<A>::type& dx, typename Wide<A>::type& dy, const T* map, const int64_t* rows,
                         int64_t step, const G* grad, const BinTaps<A>& bin) {
  using V = typename Wide<A>::type;
  V sum_x{}, sum_y{};
  for (int64_t i = bin.y_begin[0]; i < bin.y_begin[1]; ++i) {
    const T* row = map + rows[bin.taps[i].at];
    V line{}, slope{};
    for (int64_t j = bin.x_begin[0]; j < bin.x_begin[1]; ++j) {
      V pixel;
      load_lanes<L, A>(pixel, row + bin.taps[j].at * step);
      line += bin.taps[j].weight * pixel;
      slope += bin.slopes[j] * pixel;
    }
    sum_x += bin.taps[i].weight * slope;
    sum_y += bin.slopes[i] * line;
  }
  V share;
  load_lanes<L, A>(share, grad);
  dx += share * sum_x;
  dy += share * sum_y;
}

template <typename T, typename A>
D2_INLINE void add_bin_grad(const OffsetsFrom<T, A>& f, int64_t k, int64_t cls, int64_t ph, int64_t pw, A dx, A dy) {
  A* to = f.bin_grads + f.p.bin_grad_of(k, cls, ph, pw);
  to[0] += dx * f.plan.extent_x(k);
  to[f.p.bins()] += dy * f.plan.extent_y(k);
}

struct PackedOffsets {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const OffsetsFrom<T, A>& f, const Job& job, A* buffer, int64_t* rows) {
    using V = typename Wide<A>::type;
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Problem& p = f.p;
    const CellBins bins(p, job.group.cell);
    A* pixels = buffer;
    A* tile = pixels + job.foot.pixels() * kLanes;
    for (int64_t c0 = 0; c0 < p.class_channels(); c0 += kLanes) {
      const int64_t count = std::min(kLanes, p.class_channels() - c0);
      gather_pixels<L>(pixels, rows, f.in, p, job.group, job.foot, c0, count);
      for (const int64_t k : job.boxes) {
        const int64_t channel = job.group.cls * p.class_channels() + c0;
        gather_bins<L>(tile, f.grad.data + k * f.grad.n + channel * f.grad.c, f.grad, bins, count);
        const A* at = tile;
        for (int64_t ph = bins.top; ph < bins.bottom; ++ph) {
          for (int64_t pw = bins.left; pw < bins.right; ++pw, at += kLanes) {
            V dx{}, dy{};
            slope_bin<L, A>(dx, dy, pixels, rows, kLanes, at, f.plan.bin(bin_index(p, k, job.group.cls, ph, pw)));
            add_bin_grad(f, k, job.group.cls, ph, pw, sum_of_lanes<V, A>(dx), sum_of_lanes<V, A>(dy));
          }
        }
      }
    }
  }
};

struct DirectOffsets {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const OffsetsFrom<T, A>& f, int64_t image, int64_t k, const int64_t* rows) {
    using V = typename Wide<A>::type;
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Problem& p = f.p;
    const int64_t per_class = p.class_channels();
    const bool side_by_side = f.in.c == 1 && f.grad.c == 1 && p.cells() == 1;
    for (int64_t cls = 0; cls < p.classes; ++cls) {
      for (int64_t ph = 0; ph < p.pooled_h; ++ph) {
        for (int64_t pw = 0; pw < p.pooled_w; ++pw) {
          const BinTaps<A> bin = f.plan.bin(bin_index(p, k, cls, ph, pw));
          const T* grad = f.grad.data + k * f.grad.n + cls * per_class * f.grad.c + ph * f.grad.h + pw * f.grad.w;
          const T* from = f.in.data + image * f.in.n + (cls * per_class * p.cells() + p.cell_of(ph, pw)) * f.in.c;
          V wide_x{}, wide_y{};
          int64_t c = 0;
          for (; side_by_side && c + kLanes <= per_class; c += kLanes) {
            slope_bin<L, A>(wide_x, wide_y, from + c, rows, f.in.w, grad + c, bin);
          }
          A dx = sum_of_lanes<V, A>(wide_x), dy = sum_of_lanes<V, A>(wide_y);
          for (; c < per_class; ++c) {
            const T* plane = from + c * p.cells() * f.in.c;
            A sum_x = A(0), sum_y = A(0);
            for (int64_t i = bin.y_begin[0]; i < bin.y_begin[1]; ++i) {
              const T* row = plane + bin.taps[i].at * f.in.h;
              A line = A(0), slope = A(0);
              for (int64_t j = bin.x_begin[0]; j < bin.x_begin[1]; ++j) {
                const A pixel = static_cast<A>(row[bin.taps[j].at * f.in.w]);
                line += bin.taps[j].weight * pixel;
                slope += bin.slopes[j] * pixel;
              }
              sum_x += bin.taps[i].weight * slope;
              sum_y += bin.slopes[i] * line;
            }
            dx += static_cast<A>(grad[c * f.grad.c]) * sum_x;
            dy += static_cast<A>(grad[c * f.grad.c]) * sum_y;
          }
          add_bin_grad(f, k, cls, ph, pw, dx, dy);
        }
      }
    }
  }
};

template <typename T, typename A>
void slope(const OffsetsFrom<T, A>& f, const std::vector<ImageBoxes>& images, const std::vector<Footprint>& feet) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const Problem& p = f.p;
  const Choice choice = choose(p, feet, f.in.c == 1 && p.cells() == 1);
  const std::vector<Job> jobs = make_jobs(p, f.plan, images, feet, choice.packed, 1);
  const int64_t buffer_size = (most_pixels(jobs) + p.bins()) * kLanes;
  torch::stable::parallel_for(0, static_cast<int64_t>(jobs.size()), 1, [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(buffer_size);
    std::vector<int64_t> rows(p.height);
    for (int64_t i = begin; i < end; ++i) simd::dispatch<PackedOffsets>(f, jobs[i], buffer.get(), rows.data());
  });
  const auto direct = direct_boxes(images, choice.packed);
  const int64_t box_cost = std::max<int64_t>(1, choice.taps * p.class_channels() / std::max<int64_t>(1, p.boxes));
  std::vector<int64_t> rows(p.height);
  for (int64_t y = 0; y < p.height; ++y) rows[y] = y * f.in.h;
  torch::stable::parallel_for(0, static_cast<int64_t>(direct.size()), std::max<int64_t>(1, kGrain / box_cost),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  simd::dispatch<DirectOffsets>(f, direct[i].first, direct[i].second, rows.data());
                                }
                              });
}

// Several bins may share one offset: sums them in order.
template <typename A>
void add_up_parts(A* offset_grads, const A* bin_grads, const Problem& p) {
  for (int64_t k = 0; k < p.boxes; ++k) {
    for (int64_t cls = 0; cls < p.classes; ++cls) {
      for (int64_t ph = 0; ph < p.pooled_h; ++ph) {
        for (int64_t pw = 0; pw < p.pooled_w; ++pw) {
          const A* from = bin_grads + p.bin_grad_of(k, cls, ph, pw);
          A* to = offset_grads + p.offset_of(k, cls, ph, pw);
          to[0] += from[0];
          to[p.parts()] += from[p.bins()];
        }
      }
    }
  }
}

template <bool kPs>
std::tuple<Tensor, Tensor> backward(const char* op, const Tensor& grad, const Tensor& input, const Tensor& boxes,
                                    const Tensor& offset, const Sizes& sizes, bool channels_last) {
  const Problem p = check_arguments(op, input, boxes, offset, sizes, kPs);
  check_grad(op, grad, input, p);
  Tensor grad_input = empty_4d(input, p.images, input.size(1), p.height, p.width, channels_last);
  const ScalarType sum_type = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor grad_offset =
      torch::stable::empty(offset.sizes(), sum_type, std::nullopt, offset.device(), std::nullopt, std::nullopt);
  torch::stable::zero_(grad_offset);
  const auto offset_result = [&] {
    return grad_offset.scalar_type() == offset.scalar_type() ? grad_offset
                                                             : torch::stable::to(grad_offset, offset.scalar_type());
  };
  if (grad_input.numel() == 0 || grad.numel() == 0) {
    torch::stable::zero_(grad_input);
    return {grad_input, offset_result()};
  }
  advise_huge_pages(grad_input);
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes), shifts = contiguous_as<A>(offset);
    const A* data = static_cast<const A*>(rois.const_data_ptr());
    const auto images = group_by_image(op, data, p.boxes, p.images);
    Plan<A> plan;
    plan.template make<kPs>(data, static_cast<const A*>(shifts.const_data_ptr()), p, true);
    const Map<const T> in = read_map<T>(input), up = read_map<T>(grad);
    const std::vector<Footprint> feet = all_footprints(p, plan, images);
    spread<T, A>({up, write_map<T>(grad_input), plan, p}, images, feet);
    A* sums = static_cast<A*>(grad_offset.mutable_data_ptr());
    const bool own_offsets = p.part_h == p.pooled_h && p.part_w == p.pooled_w;
    std::vector<A> bin_grads(own_offsets ? 0 : p.boxes * p.classes * 2 * p.bins());
    slope<T, A>({up, in, own_offsets ? sums : bin_grads.data(), plan, p}, images, feet);
    if (!own_offsets) add_up_parts(sums, bin_grads.data(), p);
  });
  return {grad_input, offset_result()};
}

std::tuple<Tensor, Tensor> deform_roi_pool_backward_cpu(const Tensor& grad, const Tensor& input, const Tensor& boxes,
                                                        const Tensor& offset, double spatial_scale,
                                                        int64_t pooled_height, int64_t pooled_width,
                                                        int64_t sampling_ratio, double gamma, bool channels_last,
                                                        bool /*deterministic: always*/) {
  return backward<false>(
      "_deform_roi_pool_backward", grad, input, boxes, offset,
      {pooled_height, pooled_width, 1, 1, pooled_height, pooled_width, sampling_ratio, spatial_scale, gamma},
      channels_last);
}

std::tuple<Tensor, Tensor> deform_ps_roi_pool_backward_cpu(
    const Tensor& grad, const Tensor& input, const Tensor& boxes, const Tensor& offset, double spatial_scale,
    int64_t pooled_height, int64_t pooled_width, int64_t group_height, int64_t group_width, int64_t part_height,
    int64_t part_width, int64_t sample_per_part, double gamma, bool channels_last, bool /*deterministic: always*/) {
  return backward<true>("_deform_ps_roi_pool_backward", grad, input, boxes, offset,
                        {pooled_height, pooled_width, group_height, group_width, part_height, part_width,
                         sample_per_part, spatial_scale, gamma},
                        channels_last);
}

}  // namespace
}  // namespace deform_roi_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("_deform_roi_pool_backward", TORCH_BOX(&d2proj::deform_roi_pool::deform_roi_pool_backward_cpu));
  m.impl("_deform_ps_roi_pool_backward", TORCH_BOX(&d2proj::deform_roi_pool::deform_ps_roi_pool_backward_cpu));
}
