// The backward pass on the CPU. A task owns the part of a gradient that it adds to (an image of a level, a band of
// rows, some channels) and takes boxes in order: no atomics, and the same bits whatever the number of threads. A plan
// `P` is as in roi_align_forward.h, with spread_box and spread_box_direct for its taps.
#pragma once

#include "roi_align/roi_align_cpu.h"

namespace d2proj {
namespace roi_align {

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

// What a backward task owns: rows [begin, end) of one image of one level, channels [c0, c0 + count).
struct Part {
  int64_t image, level, begin, end, c0, count;
};

template <typename T, typename A, typename P>
struct Backward {
  Map<const T> grad;
  std::vector<Map<T>> out;  // one for each level
  const P& plan;
  const std::vector<Options>& levels;
  int64_t views;                   // of a row of `grad`, as in Forward
  Map<const signed char> winners;  // no data, or the one level of each value that takes its gradient
  bool add;                        // to what the result holds already

  int64_t view(int64_t row, int64_t level) const { return views > 1 ? row * views + level : row; }
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
  template <Level L, typename F, typename A>
  static D2_INLINE void run(const F& f, const Part& part, const std::vector<int64_t>& grads, const Footprint& foot,
                            A* buffer) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Options& o = f.levels[part.level];
    const auto& map = f.out[part.level];
    const int64_t bins = o.pooled_h * o.pooled_w;
    A* pixels = buffer;
    A* tile = pixels + foot.pixels() * kLanes;
    int64_t* rows = reinterpret_cast<int64_t*>(tile + bins * kLanes);
    for (int64_t y = 0; y < o.height; ++y) rows[y] = foot.offsets()[y] * kLanes;
    auto* out = map.data + part.image * map.n + part.c0 * map.c;
    if (f.add) {
      for (int64_t y = part.begin; y < part.end; ++y) {
        if (foot.empty(y)) continue;
        simd::gather_lanes<L>(pixels + rows[y] + foot.first(y) * kLanes, out + y * map.h + foot.first(y) * map.w, map.c,
                              map.w, part.count, foot.last(y) - foot.first(y));
      }
    } else {
      std::memset(pixels, 0, foot.pixels() * kLanes * sizeof(A));
    }
    for (const int64_t k : grads) {
      const auto* grad = f.grad.data + k * f.grad.n + part.c0 * f.grad.c;
      if (f.grad.h == f.grad.w * o.pooled_w) {
        simd::gather_lanes<L>(tile, grad, f.grad.c, f.grad.w, part.count, bins);
      } else {
        for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
          simd::gather_lanes<L>(tile + ph * o.pooled_w * kLanes, grad + ph * f.grad.h, f.grad.c, f.grad.w, part.count,
                                o.pooled_w);
        }
      }
      if (f.winners.data) {
        const signed char* winner = f.winners.data + k * f.winners.n + part.c0 * f.winners.c;
        for (int64_t c = 0; c < part.count; ++c) {
          for (int64_t b = 0; b < bins; ++b) {
            if (winner[c * f.winners.c + b * f.winners.w] != part.level) tile[b * kLanes + c] = A(0);
          }
        }
      }
      spread_box<A, 1>(pixels, rows, kLanes, part.begin, part.end, tile, kLanes, f.plan.box(f.view(k, part.level)), o);
    }
    for (int64_t y = part.begin; y < part.end; ++y) {
      auto* row = out + y * map.h;
      const int64_t first = foot.empty(y) ? o.width : foot.first(y), last = foot.empty(y) ? o.width : foot.last(y);
      if (!f.add) zero_run(row, map.w, part.count, map.c, first);
      if (first < last) {
        simd::scatter_lanes<L>(row + first * map.w, pixels + rows[y] + first * kLanes, map.c, map.w, part.count,
                               last - first);
      }
      if (!f.add) zero_run(row + last * map.w, map.w, part.count, map.c, o.width - last);
    }
  }
};

struct DirectBackward {
  template <Level L, typename F>
  static D2_INLINE void run(const F& f, const Part& part, const std::vector<int64_t>& grads, int64_t* rows) {
    using A = std::remove_reference_t<decltype(*f.out[0].data)>;
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Options& o = f.levels[part.level];
    Map<A> out = f.out[part.level];
    out.data += part.image * out.n + part.c0 * out.c;
    for (int64_t y = 0; y < o.height; ++y) rows[y] = y * out.h;
    for (int64_t y = part.begin; !f.add && y < part.end; ++y) {
      zero_run(out.data + y * out.h, out.w, part.count, out.c, o.width);
    }
    for (const int64_t k : grads) {
      const auto box = f.plan.box(f.view(k, part.level));
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
      spread_box_direct(rest, grad, part.count - done, part.begin, part.end, box, o);
    }
  }
};

// `groups` are of one level each, and name every image of every level, or its gradient stays unwritten.
template <typename T, typename A, typename P>
void backward(const Backward<T, A, P>& f, const std::vector<Group>& groups, int64_t channels) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const int64_t bins = f.levels[0].pooled_h * f.levels[0].pooled_w;
  bool as_it_lies = std::is_same_v<T, A> && f.grad.c == 1 && !f.winners.data;
  for (const Map<T>& out : f.out) as_it_lies &= out.c == 1;
  const int64_t block = as_it_lies ? 4 * kLanes : kLanes;  // channels of a task
  const int64_t blocks = (channels + block - 1) / block;
  const int64_t count = groups.size();
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  // Bands of rows when images and channels alone do not occupy the threads.
  const int64_t bands = std::max<int64_t>(1, wanted / std::max<int64_t>(1, count * blocks));
  std::vector<Footprint> feet;
  std::vector<char> packed(count);
  int64_t most_pixels = 0, most_rows = 0, work = 0;
  for (int64_t n = 0; n < count; ++n) {
    const Options& o = f.levels[groups[n].level];
    most_rows = std::max(most_rows, o.height);
    Footprint whole(o.height, o.width);
    for (const int64_t k : groups[n].rows) add_box(whole, f.plan.box(f.view(k, groups[n].level)), o);
    work += whole.taps() * channels + channels * o.height * o.width / 8;
    Footprint laid = whole;
    laid.lay_out(0, o.height);
    packed[n] = !std::is_same_v<T, A> || f.winners.data ||
                (!as_it_lies && laid.taps() >= kReadsPerPixel * laid.pixels() && laid.pixels() <= kMaxPixels);
    for (int64_t b = 0; b < bands; ++b) {
      Footprint foot = whole;
      foot.lay_out(o.height * b / bands, o.height * (b + 1) / bands);
      if (packed[n]) most_pixels = std::max(most_pixels, foot.pixels());
      feet.push_back(std::move(foot));
    }
  }
  const int64_t tasks = count * bands * blocks;
  const int64_t task_cost = std::max<int64_t>(1, work / std::max<int64_t>(1, tasks));
  const int64_t buffer_size = (most_pixels + bins) * kLanes + (most_rows * 8 + 63) / sizeof(A);
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / task_cost), [&](int64_t begin, int64_t end) {
    const auto buffer = aligned_buffer<A>(buffer_size);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i % (count * bands) / bands, b = i % bands, c0 = i / (count * bands) * block;
      const Group& group = groups[n];
      const int64_t height = f.levels[group.level].height;
      const Part part{
          group.image, group.level, height * b / bands, height * (b + 1) / bands, c0, std::min(block, channels - c0)};
      if (packed[n]) {
        simd::dispatch<PackedBackward>(f, part, group.rows, feet[n * bands + b], buffer.get());
      } else if constexpr (std::is_same_v<T, A>) {
        simd::dispatch<DirectBackward>(f, part, group.rows, reinterpret_cast<int64_t*>(buffer.get()));
      }
    }
  });
}

}  // namespace roi_align
}  // namespace d2proj
