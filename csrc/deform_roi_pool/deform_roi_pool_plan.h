// What the CPU kernels work out once per call, before they touch a channel: for every bin the pixels along y and along
// x with their summed weights and, for the backward pass, the derivatives of these weights by the bin's position.
#pragma once

#include <vector>

#include "deform_roi_pool/deform_roi_pool.h"
#include "roi_align/roi_align_plan.h"

namespace d2proj {
namespace deform_roi_pool {

using roi_align::Tap;

// One bin: y's taps are [begin[0], begin[1]), x's [begin[1], begin[2]). The mean's divisor is part of y's weights.
template <typename A>
struct BinTaps {
  const Tap<A>* taps;
  const A* slopes;  // beside the taps; backward only
  const int64_t* begin;
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
      extents_[k * 2] = make_bin_axis<A, kPs>(box[1], box[3], A(0), 0, p.pooled_w, p).extent;
      extents_[k * 2 + 1] = make_bin_axis<A, kPs>(box[2], box[4], A(0), 0, p.pooled_h, p).extent;
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
    return {chunk.taps.data(), chunk.slopes.data(), chunk.begins.data() + index % kChunk * 2};
  }

  A extent_x(int64_t k) const { return extents_[k * 2]; }
  A extent_y(int64_t k) const { return extents_[k * 2 + 1]; }

 private:
  static constexpr int64_t kChunk = 2048;
  struct Chunk {
    std::vector<Tap<A>> taps;
    std::vector<A> slopes;
    std::vector<int64_t> begins;
  };

  template <bool kPs>
  static void fill(Chunk& chunk, const A* boxes, const A* offset, const Problem& p, bool slopes, int64_t first,
                   int64_t last) {
    chunk.begins.reserve((last - first) * 2 + 1);
    chunk.taps.reserve((last - first) * 8);
    if (slopes) chunk.slopes.reserve((last - first) * 8);
    chunk.begins.push_back(0);
    for (int64_t i = first; i < last; ++i) {
      const int64_t pw = i % p.pooled_w, ph = i / p.pooled_w % p.pooled_h;
      const int64_t cls = i / p.bins() % p.classes, k = i / (p.bins() * p.classes);
      const A* box = boxes + k * 5;
      const A* shift = offset + p.offset_of(k, cls, ph, pw);
      auto x = make_bin_axis<A, kPs>(box[1], box[3], shift[0], pw, p.pooled_w, p);
      auto y = make_bin_axis<A, kPs>(box[2], box[4], shift[p.parts()], ph, p.pooled_h, p);
      if (!(x.valid && y.valid)) x.grid = y.grid = A(0);
      const size_t begin = chunk.taps.size();
      const A count_y = add_axis(chunk, y, p.height, slopes);
      const size_t middle = chunk.taps.size();
      const A count_x = add_axis(chunk, x, p.width, slopes);
      const A factor = mean_factor(count_y, count_x);
      for (size_t t = begin; t < middle; ++t) chunk.taps[t].weight *= factor;
      for (size_t t = begin; slopes && t < middle; ++t) chunk.slopes[t] *= factor;
      chunk.begins.push_back(static_cast<int64_t>(middle));
      chunk.begins.push_back(static_cast<int64_t>(chunk.taps.size()));
    }
  }

  // Returns how many samples count.
  template <bool kPs>
  static A add_axis(Chunk& chunk, const BinAxis<A, kPs>& axis, int64_t size, bool slopes) {
    const size_t begin = chunk.taps.size();
    const SampleRange range = axis.range(size);
    int64_t inside = 0;
    for (int64_t i = range.first; i < range.last; ++i) {
      SlopedTaps<A> taps;
      if (!sloped_taps_at<kPs>(axis.sample(i), size, taps)) continue;
      ++inside;
      const bool sloped = slopes && taps.slope != A(0);
      add_tap(chunk, begin, taps.low, taps.w_low, -taps.slope, slopes);
      if (taps.w_high != A(0) || sloped) add_tap(chunk, begin, taps.high, taps.w_high, taps.slope, slopes);
    }
    return kPs ? static_cast<A>(inside) : axis.grid;
  }

  // Adds to one of the bin's last two taps if that is the same pixel: samples come in order, so no other can be.
  static void add_tap(Chunk& chunk, size_t begin, int64_t at, A weight, A slope, bool slopes) {
    for (size_t back = 1; back <= 2 && chunk.taps.size() >= begin + back; ++back) {
      const size_t last = chunk.taps.size() - back;
      if (chunk.taps[last].at == at) {
        chunk.taps[last].weight += weight;
        if (slopes) chunk.slopes[last] += slope;
        return;
      }
    }
    chunk.taps.push_back({at, weight});
    if (slopes) chunk.slopes.push_back(slope);
  }

  std::vector<Chunk> chunks_;
  std::vector<A> extents_;
};

}  // namespace deform_roi_pool
}  // namespace d2proj
