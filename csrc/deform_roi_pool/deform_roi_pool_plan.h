// What the CPU kernels work out once per call, before they touch a channel: for every bin the pixels along y and along
// x with their summed weights and, for the backward pass, the derivatives of these weights by the bin's position.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "deform_roi_pool/deform_roi_pool.h"
#include "roi_align/roi_align_plan.h"

namespace d2proj {
namespace deform_roi_pool {

// A pixel along one axis. 32 bits: a call has many bins (check_arguments bounds the map's sides).
template <typename A>
struct Tap {
  int32_t at;
  A weight;
};

// One bin: y's taps are [y_begin[0], y_begin[1]), x's [x_begin[0], x_begin[1]). The mean's divisor is part of y's
// weights.
template <typename A>
struct BinTaps {
  const Tap<A>* taps;
  const A* slopes;  // the weights' derivatives by the bin's position; backward only
  const int64_t* y_begin;
  const int64_t* x_begin;
};

template <typename A>
class Plan {
 public:
  // `boxes` (K, 5) and `offset` (K, 2 * classes, part_h, part_w) are contiguous.
  template <bool kPs>
  void make(const A* boxes, const A* offset, const Problem& p, bool slopes) {
    const int64_t count = p.boxes * p.classes * p.bins();
    chunks_.resize((count + kChunk - 1) / kChunk);
    extents_.resize(p.boxes * 2);
    for (int64_t k = 0; k < p.boxes; ++k) {
      const A* box = boxes + k * 5;
      const A x = static_cast<A>(p.gamma) * BoxAxis<A, kPs>(box[1], box[3], p.pooled_w, p).side;
      const A y = static_cast<A>(p.gamma) * BoxAxis<A, kPs>(box[2], box[4], p.pooled_h, p).side;
      // Zero, as the bins of such a box are: 0 * NaN would not be.
      extents_[k * 2] = is_finite(x) ? x : A(0);
      extents_[k * 2 + 1] = is_finite(y) ? y : A(0);
    }
    // Chunks are independent, so the result does not depend on how many threads make them.
    torch::stable::parallel_for(0, static_cast<int64_t>(chunks_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        fill<kPs>(chunks_[i], boxes, offset, p, slopes, i * kChunk, std::min(count, (i + 1) * kChunk));
      }
    });
  }

  // Bins are numbered as (box, class, ph, pw).
  BinTaps<A> bin(int64_t index) const {
    const Chunk& chunk = chunks_[index / kChunk];
    const int64_t* begin = chunk.begins.data() + index % kChunk * 2;
    return {chunk.taps.get(), chunk.slopes.get(), begin, begin + 1};
  }

  A extent_x(int64_t k) const { return extents_[k * 2]; }
  A extent_y(int64_t k) const { return extents_[k * 2 + 1]; }

 private:
  static constexpr int64_t kChunk = 2048;
  struct Chunk {
    std::unique_ptr<Tap<A>[]> taps;  // not vectors: a check and a zero for every element would show
    std::unique_ptr<A[]> slopes;
    std::vector<int64_t> begins;
    int64_t size = 0, capacity = 0;

    void make_room(int64_t more, bool with_slopes) {
      if (size + more <= capacity) return;
      capacity = std::max(2 * capacity, size + more);
      grow(taps);
      if (with_slopes) grow(slopes);
    }

   private:
    template <typename E>
    void grow(std::unique_ptr<E[]>& data) {
      std::unique_ptr<E[]> larger(new E[capacity]);
      if (size) std::memcpy(larger.get(), data.get(), size * sizeof(E));
      data = std::move(larger);
    }
  };

  template <bool kPs>
  static void fill(Chunk& chunk, const A* boxes, const A* offset, const Problem& p, bool slopes, int64_t first,
                   int64_t last) {
    chunk.begins.reserve((last - first) * 2 + 1);
    chunk.make_room((last - first) * 6, slopes);
    chunk.begins.push_back(0);
    for (int64_t i = first; i < last;) {  // plane by plane: one box, one class
      const int64_t plane = i / p.bins(), k = plane / p.classes, cls = plane % p.classes;
      const A* box = boxes + k * 5;
      const BoxAxis<A, kPs> box_x(box[1], box[3], p.pooled_w, p), box_y(box[2], box[4], p.pooled_h, p);
      int64_t ph = i % p.bins() / p.pooled_w, pw = i % p.pooled_w;
      for (const int64_t end = std::min(last, (plane + 1) * p.bins()); i < end; ++i) {
        const A* shift = offset + p.offset_of(k, cls, ph, pw);
        add_bin(chunk, box_y.bin(shift[p.parts()], ph, p), box_x.bin(shift[0], pw, p), p, slopes);
        if (++pw == p.pooled_w) {
          pw = 0;
          ++ph;
        }
      }
    }
  }

  template <bool kPs>
  static void add_bin(Chunk& chunk, BinAxis<A, kPs> y, BinAxis<A, kPs> x, const Problem& p, bool slopes) {
    if (!(x.valid && y.valid)) x.grid = y.grid = A(0);
    const int64_t begin = chunk.size;
    const A count_y = slopes ? add_axis<true>(chunk, y, p.height) : add_axis<false>(chunk, y, p.height);
    const int64_t middle = chunk.size;
    const A count_x = slopes ? add_axis<true>(chunk, x, p.width) : add_axis<false>(chunk, x, p.width);
    const A factor = mean_factor(count_y, count_x);
    for (int64_t t = begin; t < middle; ++t) chunk.taps[t].weight *= factor;
    for (int64_t t = begin; slopes && t < middle; ++t) chunk.slopes[t] *= factor;
    chunk.begins.push_back(middle);
    chunk.begins.push_back(chunk.size);
  }

  // Returns how many samples count.
  template <bool kSlopes, bool kPs>
  static A add_axis(Chunk& chunk, const BinAxis<A, kPs>& axis, int64_t size) {
    const SampleRange range = axis.range(size);
    chunk.make_room(2 * (range.last - range.first), kSlopes);
    const int64_t begin = chunk.size;
    int64_t end = begin, inside = 0;
    Tap<A>* taps = chunk.taps.get();
    A* slopes = chunk.slopes.get();
    // Adds to one of the bin's last two taps if that is the same pixel: samples come in order, so no other can be.
    const auto add_tap = [&](int64_t at, A weight, A slope) {
      int64_t t = end - 1;
      if (t < begin || taps[t].at != at) --t;
      if (t < begin || taps[t].at != at) {
        t = end++;
        taps[t] = {static_cast<int32_t>(at), A(0)};
        if (kSlopes) slopes[t] = A(0);
      }
      taps[t].weight += weight;
      if (kSlopes) slopes[t] += slope;
    };
    for (int64_t i = range.first; i < range.last; ++i) {
      SlopedTaps<A> sample;
      if (!sloped_taps_at<kPs>(axis.sample(i), size, sample)) continue;
      ++inside;
      add_tap(sample.low, sample.w_low, -sample.slope);
      if (sample.w_high != A(0) || (kSlopes && sample.slope != A(0))) {
        add_tap(sample.high, sample.w_high, sample.slope);
      }
    }
    chunk.size = end;
    return kPs ? static_cast<A>(inside) : axis.grid;
  }

  std::vector<Chunk> chunks_;
  std::vector<A> extents_;
};

}  // namespace deform_roi_pool
}  // namespace d2proj
