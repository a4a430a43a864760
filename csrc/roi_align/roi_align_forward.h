// The forward pass on the CPU; roi_align_cpu.h says how. A plan `P` has `box(view)`, its taps, for which this file (or,
// found by the taps' namespace, another) has add_box, pool_box, pool_box_direct and pool_box_last.
#pragma once

#include "roi_align/roi_align_cpu.h"

namespace d2proj {
namespace roi_align {

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

template <typename T, typename A, typename P>
struct Forward {
  std::vector<Map<const T>> in;  // one for each level
  Map<T> out;
  int64_t channels;
  const P& plan;
  const std::vector<Options>& levels;
  int64_t views;        // of a row: view `row * views + j` is of level `group.level + j`
  bool maximum;         // of several views: their maximum, not their sum
  signed char* winner;  // null, or the level that each maximum is from, strides as `out`
};

// Adds, or takes the maximum of, `count` values.
template <typename A>
D2_INLINE void reduce_values(A* D2_RESTRICT best, const A* D2_RESTRICT value, signed char* D2_RESTRICT winner,
                             int level, int64_t count, bool maximum) {
  if (!maximum) {
    for (int64_t i = 0; i < count; ++i) best[i] += value[i];
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const bool takes = takes_over(value[i], best[i]);
      best[i] = takes ? value[i] : best[i];
      winner[i] = takes ? static_cast<signed char>(level) : winner[i];
    }
  }
}

// The rows of `group`, channels [c0, c0 + count), through a compact buffer; `feet` are those of the row's views.
struct PackedForward {
  template <Level L, typename F, typename A>
  static D2_INLINE void run(const F& f, const Group& group, const Footprint* feet, int64_t c0, A* buffer) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const int64_t count = std::min(kLanes, f.channels - c0);
    const int64_t bins = f.levels[0].pooled_h * f.levels[0].pooled_w;
    A* tile = buffer;
    A* other = tile + bins * kLanes;
    signed char* winner = reinterpret_cast<signed char*>(other + bins * kLanes);
    A* pixels = other + bins * kLanes * 2;
    int64_t begin[kMaxLevels];  // of each level's row offsets, which stand behind the pixels
    int64_t pixel_count = 0, row_count = 0;
    for (int64_t j = 0; j < f.views; ++j) {
      begin[j] = row_count;
      row_count += f.levels[group.level + j].height;
      pixel_count += feet[j].pixels();
    }
    int64_t* rows = reinterpret_cast<int64_t*>(pixels + pixel_count * kLanes);
    pixel_count = 0;
    for (int64_t j = 0; j < f.views; ++j) {
      const auto& in = f.in[group.level + j];
      const auto* source = in.data + group.image * in.n + c0 * in.c;
      for (int64_t y = 0; y < f.levels[group.level + j].height; ++y) {
        const int64_t at = rows[begin[j] + y] = (pixel_count + feet[j].offsets()[y]) * kLanes;
        if (feet[j].empty(y)) continue;
        const int64_t first = feet[j].first(y);
        simd::gather_lanes<L>(pixels + at + first * kLanes, source + y * in.h + first * in.w, in.c, in.w, count,
                              feet[j].last(y) - first);
      }
      pixel_count += feet[j].pixels();
    }
    for (const int64_t row : group.rows) {
      pool_box<A, 1>(tile, kLanes, pixels, rows, kLanes, f.plan.box(row * f.views), f.levels[group.level]);
      if (f.winner) std::memset(winner, 0, bins * kLanes);
      for (int64_t j = 1; j < f.views; ++j) {
        pool_box<A, 1>(other, kLanes, pixels, rows + begin[j], kLanes, f.plan.box(row * f.views + j), f.levels[j]);
        reduce_values(tile, other, winner, static_cast<int>(j), bins * kLanes, f.maximum);
      }
      // Bins follow each other in both memory formats that an output can have.
      const int64_t to = row * f.out.n + c0 * f.out.c;
      simd::scatter_lanes<L>(f.out.data + to, tile, f.out.c, f.out.w, count, bins);
      if (!f.winner) continue;
      for (int64_t c = 0; c < count; ++c) {
        for (int64_t b = 0; b < bins; ++b) f.winner[to + c * f.out.c + b * f.out.w] = winner[b * kLanes + c];
      }
    }
  }
};

// One view of one box, every channel, read where the map lies.
struct DirectForward {
  template <Level L, typename T, typename P>
  static D2_INLINE void run(const P& plan, int64_t view, const Map<const T>& from, const Map<T>& to, int64_t channels,
                            const Options& o) {
    using A = accumulate_t<T>;
    const auto box = plan.box(view);
    Map<const T> in = from;
    Map<T> out = to;
    int64_t done = 0;
    if constexpr (std::is_same_v<T, A>) {
      if (in.c == 1 && out.c == 1) {
        constexpr int64_t kLanes = Wide<A>::kLanes;
        std::vector<int64_t> rows(o.height);
        for (int64_t y = 0; y < o.height; ++y) rows[y] = y * in.h;
        for (; done + 4 * kLanes <= channels; done += 4 * kLanes) {
          pool_box<A, 4>(out.data + done, out.w, in.data + done, rows.data(), in.w, box, o);
        }
        for (; done + kLanes <= channels; done += kLanes) {
          pool_box<A, 1>(out.data + done, out.w, in.data + done, rows.data(), in.w, box, o);
        }
      }
    }
    in.data += done * in.c;
    out.data += done * out.c;
    if (in.c == 1 && channels > 1) {
      pool_box_last(out, in, channels - done, box, o);
    } else {
      pool_box_direct(out, in, channels - done, box, o);
    }
  }
};

struct ReduceValues {
  template <Level L, typename A>
  static D2_INLINE void run(A* const& best, const A* const& value, signed char* const& winner, int level, int64_t count,
                            bool maximum) {
    reduce_values(best, value, winner, level, count, maximum);
  }
};

// One row of the result without a compact buffer. `other` has room for a row.
template <typename T, typename A, typename P>
void pool_direct(const Forward<T, A, P>& f, const Group& group, int64_t row, T* other) {
  const auto pool = [&](int64_t j, T* to) {
    Map<const T> in = f.in[group.level + j];
    Map<T> out = f.out;
    in.data += group.image * in.n;
    out.data = to;
    simd::dispatch<DirectForward>(f.plan, row * f.views + j, in, out, f.channels, f.levels[group.level + j]);
  };
  T* to = f.out.data + row * f.out.n;
  pool(0, to);
  // A row of the result is dense, whatever its format.
  const int64_t count = f.out.n;
  signed char* winner = f.winner ? f.winner + row * count : nullptr;
  if (winner) std::memset(winner, 0, count);
  if constexpr (std::is_same_v<T, A>) {  // others come here with one view alone
    for (int64_t j = 1; j < f.views; ++j) {
      pool(j, other);
      simd::dispatch<ReduceValues>(to, static_cast<const T*>(other), winner, static_cast<int>(j), count, f.maximum);
    }
  }
}

// Cuts a group's rows into jobs, enough of them to occupy every thread: a job's result does not depend on the cut.
inline std::vector<Group> cut_jobs(const Group& group, int64_t blocks) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = std::max<int64_t>(1, wanted / std::max<int64_t>(1, blocks));
  const int64_t count = group.rows.size();
  std::vector<Group> jobs;
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t begin = count * p / parts, end = count * (p + 1) / parts;
    if (begin == end) continue;
    jobs.push_back({group.image, group.level, {group.rows.begin() + begin, group.rows.begin() + end}});
  }
  return jobs;
}

template <typename T, typename A, typename P>
void forward(const Forward<T, A, P>& f, const std::vector<Group>& groups) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const int64_t bins = f.levels[0].pooled_h * f.levels[0].pooled_w;
  const int64_t blocks = (f.channels + kLanes - 1) / kLanes;
  const auto footprint = [&](const Group& group, int64_t j) {
    const Options& o = f.levels[group.level + j];
    Footprint foot(o.height, o.width);
    for (const int64_t row : group.rows) add_box(foot, f.plan.box(row * f.views + j), o);
    foot.lay_out(0, o.height);
    return foot;
  };
  std::vector<Group> packed;
  std::vector<Footprint> feet;
  std::vector<std::pair<const Group*, int64_t>> direct;  // a group and one of its rows
  int64_t direct_taps = 0, packed_work = 0, most_pixels = 0;
  for (const Group& group : groups) {
    if (group.rows.empty()) continue;
    std::vector<Footprint> whole;
    int64_t taps = 0, pixels = 0;
    bool as_it_lies = std::is_same_v<T, A>;
    for (int64_t j = 0; j < f.views; ++j) {
      whole.push_back(footprint(group, j));
      taps += whole[j].taps();
      pixels += whole[j].pixels();
      as_it_lies &= f.in[group.level + j].c == 1;
    }
    // Decided for a group as a whole, so that it does not depend on the number of threads. Half types are not reduced
    // in place: that would round every sum.
    const bool in_place = std::is_same_v<T, A> || f.views == 1;
    if (in_place && (as_it_lies || taps < kReadsPerPixel * pixels || pixels > kMaxPixels)) {
      for (const int64_t row : group.rows) direct.emplace_back(&group, row);
      direct_taps += taps;
      continue;
    }
    packed_work += taps + pixels;
    std::vector<Group> jobs = cut_jobs(group, blocks);
    for (Group& job : jobs) {
      int64_t job_pixels = 0;
      for (int64_t j = 0; j < f.views; ++j) {
        feet.push_back(jobs.size() == 1 ? std::move(whole[j]) : footprint(job, j));
        job_pixels += feet.back().pixels();
      }
      most_pixels = std::max(most_pixels, job_pixels);
      packed.push_back(std::move(job));
    }
  }
  int64_t most_rows = 0;
  for (const Options& o : f.levels) most_rows = f.views > 1 ? most_rows + o.height : std::max(most_rows, o.height);
  const int64_t jobs = packed.size();
  const int64_t buffer_size = (most_pixels + bins * 3) * kLanes + (most_rows * 8 + 63) / sizeof(A);
  const int64_t job_cost = std::max<int64_t>(1, packed_work * kLanes / std::max<int64_t>(1, jobs));
  torch::stable::parallel_for(0, jobs * blocks, std::max<int64_t>(1, kGrain / job_cost),
                              [&](int64_t begin, int64_t end) {
                                const auto buffer = aligned_buffer<A>(buffer_size);
                                for (int64_t i = begin; i < end; ++i) {
                                  simd::dispatch<PackedForward>(f, packed[i % jobs], feet.data() + i % jobs * f.views,
                                                                i / jobs * kLanes, buffer.get());
                                }
                              });
  const int64_t count = direct.size();
  const int64_t box_cost = std::max<int64_t>(1, direct_taps * f.channels / std::max<int64_t>(1, count));
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / box_cost), [&](int64_t begin, int64_t end) {
    const auto other = aligned_buffer<T>(f.views > 1 ? bins * f.channels : 0);
    for (int64_t i = begin; i < end; ++i) pool_direct(f, *direct[i].first, direct[i].second, other.get());
  });
}

}  // namespace roi_align
}  // namespace d2proj
