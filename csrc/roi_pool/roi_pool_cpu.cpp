// roi_pool and spatial_pyramid_pool on the CPU; roi_pool_cpu.h says how.
#include "roi_pool/roi_pool_cpu.h"

namespace d2proj {
namespace roi_pool {
namespace {

// One register of a level: its lanes are compared at once. (Wider vectors are not: g++ takes comparisons of vectors
// that are no register apart, lane by lane.)
template <Level L, typename A>
struct Register {
#if defined(__x86_64__)
  static constexpr int kBytes = L == Level::kAvx512 ? 64 : L == Level::kAvx2 ? 32 : 16;
#else
  static constexpr int kBytes = 16;
#endif
  static constexpr int kLanes = kBytes / sizeof(A);
  static constexpr int kParts = 64 / kBytes;  // registers per 64 bytes of channels
  typedef A Value __attribute__((vector_size(kBytes)));
  using Int = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef Int Index __attribute__((vector_size(kBytes)));
};

template <typename A>
using index_t = typename Register<Level::kBase, A>::Int;

// How many times 64 bytes of channels that lie side by side are taken at once: what the registers hold.
template <Level L>
constexpr int kSideBySide = L == Level::kAvx512 ? 4
                            : L == Level::kAvx2 ? 2
                                                : 1;
constexpr int kMostGroups = 4;

// The bins of one box and 64 bytes of channels: maxima and, if wanted, where they are. Grids follow each other. Further
// 64 bytes of channels (a group) are `group` elements on.
template <typename A>
struct Tile {
  A* value;
  index_t<A>* index;
  int64_t group;
};

// Where a row of a box continues its scan of a grid's bins: rows [low, high) of bins hold it.
struct Rows {
  int64_t low, high;
};

// Reduces one row of the map, columns `x`, and merges it into the bins of the rows [rows.low, rows.high). Pixel x is at
// row + x * step. A later cell wins only if it is greater: the first maximum in scan order stays, NaN never wins.
template <Level L, bool kIndex, int kGroups, typename A>
D2_INLINE void merge_row(const Tile<A>& tile, const A* row, int64_t step, const Span* x, const Rows& rows,
                         int64_t pooled_w, index_t<A> row_index) {
  using R = Register<L, A>;
  using V = typename R::Value;
  using I = typename R::Index;
  constexpr int64_t kLanes = Wide<A>::kLanes;
  constexpr int kParts = kGroups * R::kParts;
  for (int64_t pw = 0; pw < pooled_w; ++pw) {
    const Span span = x[pw];
    if (span.count() <= 0) continue;
    const A* at = row + span.begin * step;
    V best[kParts];
    I where[kParts], here = I{} + (row_index + span.begin);
    for (int p = 0; p < kParts; ++p) {
      best[p] = V{} + A(kLowest);
      where[p] = I{} - 1;
    }
    for (int32_t i = span.count(); i > 0; --i, at += step) {
      for (int p = 0; p < kParts; ++p) {
        V cell;
        simd::load(cell, at + p * R::kLanes);
        if constexpr (kIndex) where[p] = cell > best[p] ? here : where[p];
        best[p] = cell > best[p] ? cell : best[p];
      }
      if constexpr (kIndex) here += 1;
    }
    for (int64_t ph = rows.low; ph < rows.high; ++ph) {
      for (int p = 0; p < kParts; ++p) {
        const int64_t at_bin = p / R::kParts * tile.group + (ph * pooled_w + pw) * kLanes + p % R::kParts * R::kLanes;
        V old;
        simd::load(old, tile.value + at_bin);
        if constexpr (kIndex) {
          I old_where;
          simd::load(old_where, tile.index + at_bin);
          old_where = best[p] > old ? where[p] : old_where;
          simd::store(tile.index + at_bin, old_where);
        }
        old = best[p] > old ? best[p] : old;
        simd::store(tile.value + at_bin, old);
      }
    }
  }
}

template <typename T, typename A>
struct Forward {
  Map<const T> in;
  T* values;
  int32_t* argmax;               // null if not wanted
  int64_t channels, width, row;  // row: elements of the result per box
  int64_t bins;                  // of all grids, per channel
  const Plan& plan;
};

// Pools box k over channels [c0, c0 + count), count at most kGroups times 64 bytes. `row_at(y, columns)` is the address
// of column 0 of a row, channel c0 first.
template <Level L, bool kIndex, int kGroups, typename T, typename A, typename RowAt>
D2_INLINE void pool_box(const Forward<T, A>& f, int64_t k, int64_t c0, int64_t count, const Tile<A>& tile,
                        const RowAt& row_at, int64_t step) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const std::vector<Grid>& grids = f.plan.grids();
  const Span* const spans = f.plan.box(k);
  const Span* from;
  for (int v = 0; v < kGroups; ++v) {
    A* value = tile.value + v * tile.group;
    index_t<A>* index = tile.index + v * tile.group;
    from = spans;
    for (const Grid& g : grids) {
      for (int64_t ph = 0; ph < g.pooled_h; ++ph) {
        for (int64_t pw = 0; pw < g.pooled_w; ++pw, value += kLanes, index += kLanes) {
          const bool empty = from[ph].count() == 0 || from[g.pooled_h + pw].count() == 0;
          for (int64_t i = 0; i < kLanes; ++i) value[i] = empty ? A(0) : A(kLowest);
          if constexpr (kIndex) {
            for (int64_t i = 0; i < kLanes; ++i) index[i] = -1;
          }
        }
      }
      from += g.pooled_h + g.pooled_w;
    }
  }
  const Plan::Cover cover = f.plan.cover(k);
  Rows rows[kMaxGrids] = {};
  for (int64_t y = cover.y.begin; y < cover.y.end; ++y) {
    const A* row = row_at(y, cover.x);
    Tile<A> to = tile;
    from = spans;
    Rows* r = rows;
    for (const Grid& g : grids) {
      while (r->low < g.pooled_h && from[r->low].end <= y) ++r->low;
      while (r->high < g.pooled_h && from[r->high].begin <= y) ++r->high;
      merge_row<L, kIndex, kGroups>(to, row, step, from + g.pooled_h, *r, g.pooled_w,
                                    static_cast<index_t<A>>(y * f.width));
      to.value += g.pooled_h * g.pooled_w * kLanes;
      to.index += g.pooled_h * g.pooled_w * kLanes;
      from += g.pooled_h + g.pooled_w;
      ++r;
    }
  }
  for (int v = 0; v < kGroups; ++v) {
    const A* value = tile.value + v * tile.group;
    const index_t<A>* index = tile.index + v * tile.group;
    const int64_t planes = std::min(kLanes, count - v * kLanes);
    for (const Grid& g : grids) {
      const int64_t bins = g.pooled_h * g.pooled_w, at = k * f.row + g.base + (c0 + v * kLanes) * g.channel;
      simd::scatter_lanes<L>(f.values + at, value, g.channel, g.bin, planes, bins);
      if constexpr (kIndex && sizeof(A) == 4) {
        // Indices are moved as the bits of floats: moved, never computed with.
        simd::scatter_lanes<L>(reinterpret_cast<float*>(f.argmax + at), reinterpret_cast<const float*>(index),
                               g.channel, g.bin, planes, bins);
      } else if constexpr (kIndex) {
        simd::scatter_lanes<L>(f.argmax + at, index, g.channel, g.bin, planes, bins);
      }
      value += bins * kLanes;
      index += bins * kLanes;
    }
  }
}

template <Level L, int kGroups, typename T, typename A, typename RowAt>
D2_INLINE void pool_box(const Forward<T, A>& f, int64_t k, int64_t c0, int64_t count, const Tile<A>& tile,
                        const RowAt& row_at, int64_t step) {
  if (f.argmax) {
    pool_box<L, true, kGroups>(f, k, c0, count, tile, row_at, step);
  } else {
    pool_box<L, false, kGroups>(f, k, c0, count, tile, row_at, step);
  }
}

// The boxes of `job` (all of one image) over 64 bytes of channels, through a compact buffer of what they cover.
struct PackedForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, const ImageBoxes& job, const roi_align::Footprint& foot,
                            int64_t height, int64_t c0, const Tile<A>& tile, A* pixels) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const int64_t count = std::min(kLanes, f.channels - c0);
    const T* source = f.in.data + job.image * f.in.n + c0 * f.in.c;
    const int64_t* rows = foot.offsets();
    for (int64_t y = 0; y < height; ++y) {
      if (foot.empty(y)) continue;
      const int64_t first = foot.first(y);
      simd::gather_lanes<L>(pixels + (rows[y] + first) * kLanes, source + y * f.in.h + first * f.in.w, f.in.c, f.in.w,
                            count, foot.last(y) - first);
    }
    const auto row_at = [pixels, rows](int64_t y, const Span&)
                            __attribute__((always_inline)) { return static_cast<const A*>(pixels + rows[y] * kLanes); };
    for (const int64_t k : job.boxes) pool_box<L, 1>(f, k, c0, count, tile, row_at, kLanes);
  }
};

// One box over channels [c0, c0 + count): read where the map lies, or through a buffer of one row.
struct SingleForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, int64_t image, int64_t k, int64_t c0, int64_t count,
                            const Tile<A>& tile, A* buffer) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const int64_t last_channel = c0 + count;
    if constexpr (std::is_same_v<T, A>) {
      if (f.in.c == 1) {
        constexpr int64_t kMany = kSideBySide<L> * kLanes;
        for (; c0 + kMany <= last_channel; c0 += kMany) as_it_lies<L, kSideBySide<L>>(f, image, k, c0, tile);
        for (; c0 + kLanes <= last_channel; c0 += kLanes) as_it_lies<L, 1>(f, image, k, c0, tile);
      }
    }
    for (; c0 < last_channel; c0 += kLanes) {
      const int64_t planes = std::min(kLanes, last_channel - c0);
      const T* source = f.in.data + image * f.in.n + c0 * f.in.c;
      const auto row_at = [source, buffer, planes, &f](int64_t y, const Span& x) __attribute__((always_inline)) {
        // Whole vectors of eight pixels where the map allows it.
        const int64_t last = std::min<int64_t>(f.width, x.begin + (x.count() + 7) / 8 * 8);
        const int64_t first = std::max<int64_t>(0, last - (x.count() + 7) / 8 * 8);
        simd::gather_lanes<L>(buffer, source + y * f.in.h + first * f.in.w, f.in.c, f.in.w, planes, last - first);
        return static_cast<const A*>(buffer - first * kLanes);
      };
      pool_box<L, 1>(f, k, c0, planes, tile, row_at, kLanes);
    }
  }

  template <Level L, int kGroups, typename A>
  static D2_INLINE void as_it_lies(const Forward<A, A>& f, int64_t image, int64_t k, int64_t c0, const Tile<A>& tile) {
    const A* source = f.in.data + image * f.in.n + c0;
    const auto row_at = [source, &f](int64_t y, const Span&)
                            __attribute__((always_inline)) { return source + y * f.in.h; };
    pool_box<L, kGroups>(f, k, c0, kGroups * Wide<A>::kLanes, tile, row_at, f.in.w);
  }
};

// One box, few channels: lanes would be empty, so one cell after the other.
struct ScalarForward {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const Forward<T, A>& f, int64_t image, int64_t k) {
    const Span* y = f.plan.box(k);
    for (const Grid& g : f.plan.grids()) {
      const Span* x = y + g.pooled_h;
      for (int64_t c = 0; c < f.channels; ++c) {
        const T* map = f.in.data + image * f.in.n + c * f.in.c;
        int64_t at = k * f.row + g.base + c * g.channel;
        for (int64_t ph = 0; ph < g.pooled_h; ++ph) {
          for (int64_t pw = 0; pw < g.pooled_w; ++pw, at += g.bin) {
            const bool empty = y[ph].count() == 0 || x[pw].count() == 0;
            A best = empty ? A(0) : A(kLowest);
            int64_t where = -1;
            for (int64_t iy = y[ph].begin; iy < y[ph].end; ++iy) {
              const T* row = map + iy * f.in.h;
              for (int64_t ix = x[pw].begin; ix < x[pw].end; ++ix) {
                const A cell = static_cast<A>(row[ix * f.in.w]);
                where = cell > best ? iy * f.width + ix : where;
                best = cell > best ? cell : best;
              }
            }
            f.values[at] = static_cast<T>(best);
            if (f.argmax) f.argmax[at] = static_cast<int32_t>(where);
          }
        }
      }
      y += g.pooled_h + g.pooled_w;
    }
  }
};

// Cuts an image's boxes into jobs, enough of them to occupy every thread: the result does not depend on the cut.
void cut_jobs(const ImageBoxes& image, int64_t blocks, std::vector<ImageBoxes>& jobs) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t count = image.boxes.size();
  const int64_t parts = std::clamp<int64_t>(wanted / blocks, 1, std::max<int64_t>(count, 1));
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t begin = count * p / parts, end = count * (p + 1) / parts;
    if (begin < end) jobs.push_back({image.image, {image.boxes.begin() + begin, image.boxes.begin() + end}});
  }
}

template <typename T, typename A>
void forward(const Forward<T, A>& f, const std::vector<ImageBoxes>& images, int64_t height) {
  using roi_align::Footprint;
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const int64_t blocks = (f.channels + kLanes - 1) / kLanes;
  const bool as_it_lies = std::is_same_v<T, A> && f.in.c == 1;
  std::vector<ImageBoxes> packed;
  std::vector<Footprint> feet;
  std::vector<std::pair<int64_t, int64_t>> single;  // (image, box)
  int64_t single_cells = 0, most_pixels = 0;
  const auto footprint = [&](const std::vector<int64_t>& boxes) {
    Footprint foot(height, f.width);
    for (const int64_t k : boxes) {
      const Plan::Cover c = f.plan.cover(k);
      foot.add(c.y.begin, c.y.end, c.x.begin, c.x.end);
    }
    foot.lay_out(0, height);
    return foot;
  };
  const bool scalar = f.channels <= kFewChannels;
  for (const ImageBoxes& image : images) {
    if (image.boxes.empty()) continue;
    if (scalar) {
      for (const int64_t k : image.boxes) {
        single.emplace_back(image.image, k);
        single_cells += f.plan.cover(k).cells();
      }
      continue;
    }
    const Footprint whole = footprint(image.boxes);
    if (as_it_lies || whole.taps() < whole.pixels() || whole.pixels() > kMaxPixels) {
      for (const int64_t k : image.boxes) single.emplace_back(image.image, k);
      single_cells += whole.taps();
      continue;
    }
    const size_t first = packed.size();
    cut_jobs(image, blocks, packed);
    for (size_t i = first; i < packed.size(); ++i) {
      feet.push_back(footprint(packed[i].boxes));
      most_pixels = std::max(most_pixels, feet.back().pixels());
    }
  }
  const int64_t tile_size = f.bins * kLanes;
  const auto with_tile = [&](int64_t groups, int64_t pixels, const auto& body) {
    const auto values = aligned_buffer<A>(groups * tile_size + pixels * kLanes);
    const auto indices = aligned_buffer<index_t<A>>(groups * tile_size);
    body(Tile<A>{values.get(), indices.get(), tile_size}, values.get() + groups * tile_size);
  };
  const int64_t jobs = packed.size();
  torch::stable::parallel_for(0, jobs * blocks, 1, [&](int64_t begin, int64_t end) {
    with_tile(1, most_pixels, [&](const Tile<A>& tile, A* pixels) {
      for (int64_t i = begin; i < end; ++i) {
        simd::dispatch<PackedForward>(f, packed[i % jobs], feet[i % jobs], height, i / jobs * kLanes, tile, pixels);
      }
    });
  });
  if (scalar) {
    const int64_t count = single.size(), cost = 1 + single_cells * f.channels / std::max<int64_t>(1, count) + f.row;
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / cost), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) simd::dispatch<ScalarForward>(f, single[i].first, single[i].second);
    });
    return;
  }
  const int64_t strip = kMostGroups * kLanes, strips = (f.channels + strip - 1) / strip;
  const int64_t tasks = single.size() * strips;
  const int64_t cost = tasks ? 1 + single_cells * f.channels / tasks : 1;
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / cost), [&](int64_t begin, int64_t end) {
    with_tile(kMostGroups, f.width + 8, [&](const Tile<A>& tile, A* buffer) {
      for (int64_t i = begin; i < end; ++i) {
        const auto& [image, k] = single[i / strips];
        const int64_t c0 = i % strips * strip;
        simd::dispatch<SingleForward>(f, image, k, c0, std::min(strip, f.channels - c0), tile, buffer);
      }
    });
  });
}

void pool(const char* op, const Tensor& input, const Tensor& boxes, double spatial_scale,
          const std::vector<Grid>& grids, Results& results) {
  if (results.values.numel() == 0) return;
  if (input.numel() == 0) return clear(results);
  advise_huge_pages(results.values);
  advise_huge_pages(results.argmax);
  const int64_t height = input.size(2), width = input.size(3);
  const bool with_argmax = results.argmax.numel() > 0;
  int64_t bins = 0;
  for (const Grid& g : grids) bins += g.pooled_h * g.pooled_w;
  dispatch_floating(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = accumulate_t<T>;
    const Tensor rois = boxes_as<A>(boxes);
    const A* data = static_cast<const A*>(rois.const_data_ptr());
    const auto images = group_by_image(op, data, rois.size(0), input.size(0));
    const Plan plan(data, rois.size(0), grids, spatial_scale, height, width);
    const Forward<T, A> f{read_map<T>(input),
                          static_cast<T*>(results.values.mutable_data_ptr()),
                          with_argmax ? static_cast<int32_t*>(results.argmax.mutable_data_ptr()) : nullptr,
                          input.size(1),
                          width,
                          bins * input.size(1),
                          bins,
                          plan};
    forward<T, A>(f, images, height);
  });
}

std::tuple<Tensor, Tensor> roi_pool_cpu(const Tensor& input, const Tensor& boxes, double spatial_scale,
                                        int64_t pooled_height, int64_t pooled_width, bool with_argmax) {
  constexpr const char* kOp = "roi_pool";
  check_input(kOp, input, boxes);
  check_output_size(kOp, pooled_height, pooled_width);
  const int64_t channels = input.size(1);
  const bool last = is_channels_last(input);
  Results results = empty_results(input, {boxes.size(0), channels, pooled_height, pooled_width}, last, with_argmax);
  pool(kOp, input, boxes, spatial_scale, roi_pool_grids(channels, pooled_height, pooled_width, last), results);
  return {results.values, results.argmax};
}

std::tuple<Tensor, Tensor> pyramid_cpu(const Tensor& input, const Tensor& boxes, std::vector<int64_t> bins,
                                       double spatial_scale, bool with_argmax) {
  constexpr const char* kOp = "spatial_pyramid_pool";
  check_input(kOp, input, boxes);
  check_bins(kOp, bins);
  const int64_t channels = input.size(1);
  Results results = empty_results(input, {boxes.size(0), channels * bins_of(bins)}, false, with_argmax);
  pool(kOp, input, boxes, spatial_scale, pyramid_grids(channels, bins), results);
  return {results.values, results.argmax};
}

}  // namespace
}  // namespace roi_pool
}  // namespace d2proj

STABLE_TORCH_LIBRARY_IMPL(d2proj, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&d2proj::roi_pool::roi_pool_cpu));
  m.impl("spatial_pyramid_pool", TORCH_BOX(&d2proj::roi_pool::pyramid_cpu));
}
