// What the CPU kernels work out once per call, before they touch a channel: for every box and bin, the pixels along y
// and along x with their summed weights. Neighbouring samples share pixels, so the merged lists are shorter than the
// samples' own (grid + 1 instead of 2 * grid pixels once samples lie less than a pixel apart).
#pragma once

#include <algorithm>
#include <vector>

#include "roi_align/roi_align.h"

namespace d2proj {
namespace roi_align {

// How boxes are pooled from one map (one level of a pyramid).
struct Options {
  int64_t pooled_h, pooled_w;
  int64_t height, width;  // of the map
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

template <typename A>
struct Tap {
  int64_t at;
  A weight;
};

// A box on a level of a pyramid.
struct View {
  int64_t box, level;
};

// The taps of one view; bin b's are [begin[b], begin[b + 1]). The mean's divisor is part of the y weights.
template <typename A>
struct BoxTaps {
  const Tap<A>* taps;
  const int64_t* y_begin;  // pooled_h + 1 offsets into taps
  const int64_t* x_begin;  // pooled_w + 1
};

template <typename A>
class Plan {
 public:
  // `boxes` has 5 columns; `levels` are those that views name.
  Plan(const A* boxes, const std::vector<View>& views, const std::vector<Options>& levels)
      : pooled_h_(levels[0].pooled_h), pooled_w_(levels[0].pooled_w) {
    const int64_t count = views.size();
    chunks_.resize((count + kChunk - 1) / kChunk);
    // Chunks are independent, so the result does not depend on how many threads make them.
    torch::stable::parallel_for(0, static_cast<int64_t>(chunks_.size()), 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        fill(chunks_[i], boxes, views.data() + i * kChunk, std::min(count - i * kChunk, kChunk), levels);
      }
    });
  }

  BoxTaps<A> box(int64_t k) const {
    const Chunk& chunk = chunks_[k / kChunk];
    const int64_t* begins = chunk.begins.data() + (k % kChunk) * begins_per_box();
    return {chunk.taps.data(), begins, begins + pooled_h_ + 1};
  }

 private:
  static constexpr int64_t kChunk = 64;
  struct Chunk {
    std::vector<Tap<A>> taps;
    std::vector<int64_t> begins;
  };

  int64_t begins_per_box() const { return pooled_h_ + pooled_w_ + 2; }

  void fill(Chunk& chunk, const A* boxes, const View* views, int64_t count, const std::vector<Options>& levels) const {
    chunk.begins.reserve(count * begins_per_box());
    chunk.taps.reserve(count * (pooled_h_ + pooled_w_) * 4);
    for (int64_t i = 0; i < count; ++i) {
      const A* box = boxes + views[i].box * 5;
      const Options& o = levels[views[i].level];
      const A scale = static_cast<A>(o.spatial_scale);
      Axis<A> x = make_axis<A>(box[1], box[3], scale, o.pooled_w, o.sampling_ratio, o.aligned);
      Axis<A> y = make_axis<A>(box[2], box[4], scale, o.pooled_h, o.sampling_ratio, o.aligned);
      if (!(x.valid && y.valid) || o.height * o.width == 0) x.grid = y.grid = A(0);
      add_axis(chunk, y, o.pooled_h, o.height, A(1) / sample_count(y, x));
      add_axis(chunk, x, o.pooled_w, o.width, A(1));
    }
  }

  static void add_axis(Chunk& chunk, const Axis<A>& axis, int64_t pooled, int64_t size, A factor) {
    chunk.begins.push_back(static_cast<int64_t>(chunk.taps.size()));
    for (int64_t b = 0; b < pooled; ++b) {
      const size_t bin_begin = chunk.taps.size();
      const SampleRange range = sample_range(axis, b, size);
      for (int64_t i = range.first; i < range.last; ++i) {
        Taps<A> taps;
        if (!taps_at(axis.sample(b, i), size, taps)) continue;
        add_tap(chunk.taps, bin_begin, taps.low, taps.w_low);
        if (taps.w_high != A(0)) add_tap(chunk.taps, bin_begin, taps.high, taps.w_high);
      }
      for (size_t i = bin_begin; i < chunk.taps.size(); ++i) chunk.taps[i].weight *= factor;
      chunk.begins.push_back(static_cast<int64_t>(chunk.taps.size()));
    }
  }

  // Adds to one of the bin's last two taps if that is the same pixel: samples come in order, so no other can be.
  static void add_tap(std::vector<Tap<A>>& taps, size_t bin_begin, int64_t at, A weight) {
    for (size_t back = 1; back <= 2 && taps.size() >= bin_begin + back; ++back) {
      Tap<A>& last = taps[taps.size() - back];
      if (last.at == at) {
        last.weight += weight;
        return;
      }
    }
    taps.push_back({at, weight});
  }

  int64_t pooled_h_, pooled_w_;
  std::vector<Chunk> chunks_;
};

// Which columns of each row of a map some boxes touch, and where these pixels stand in a compact buffer.
class Footprint {
 public:
  Footprint(int64_t height, int64_t width) : width_(width), first_(height, width), last_(height, 0) {}

  // Pixels [first, last) of a row are read.
  void add(int64_t row, int64_t first, int64_t last) {
    first_[row] = std::min(first_[row], first);
    last_[row] = std::max(last_[row], last);
  }
  void count_taps(int64_t taps) { taps_ += taps; }

  // A whole rectangle, each of its pixels read once.
  void add(int64_t y_begin, int64_t y_end, int64_t x_begin, int64_t x_end) {
    for (int64_t row = y_begin; row < y_end; ++row) {
      first_[row] = std::min(first_[row], x_begin);
      last_[row] = std::max(last_[row], x_end);
    }
    taps_ += (y_end - y_begin) * (x_end - x_begin);
  }

  // Lays the rows [begin, end) one after the other, widened to whole vectors of eight pixels where the map allows it.
  void lay_out(int64_t begin, int64_t end) {
    offset_.assign(first_.size(), 0);
    pixels_ = 0;
    for (int64_t row = begin; row < end; ++row) {
      if (empty(row)) continue;
      last_[row] = std::min(width_, first_[row] + (last_[row] - first_[row] + 7) / 8 * 8);
      first_[row] = std::max<int64_t>(0, last_[row] - (last_[row] - first_[row] + 7) / 8 * 8);
      offset_[row] = pixels_ - first_[row];
      pixels_ += last_[row] - first_[row];
    }
  }

  bool empty(int64_t row) const { return first_[row] >= last_[row]; }
  int64_t first(int64_t row) const { return first_[row]; }
  int64_t last(int64_t row) const { return last_[row]; }
  int64_t pixels() const { return pixels_; }  // in the compact buffer
  int64_t taps() const { return taps_; }      // reads (or writes) of a pixel that the boxes make, per channel
  // Pixel (row, column) stands at offset(row) + column of the compact buffer.
  const int64_t* offsets() const { return offset_.data(); }

 private:
  int64_t width_;
  std::vector<int64_t> first_, last_, offset_;
  int64_t pixels_ = 0, taps_ = 0;
};

template <typename A>
void add_box(Footprint& foot, const BoxTaps<A>& box, const Options& o) {
  int64_t first = o.width, last = 0;
  for (int64_t i = box.x_begin[0]; i < box.x_begin[o.pooled_w]; ++i) {
    first = std::min(first, box.taps[i].at);
    last = std::max(last, box.taps[i].at + 1);
  }
  for (int64_t i = box.y_begin[0]; first < last && i < box.y_begin[o.pooled_h]; ++i) {
    foot.add(box.taps[i].at, first, last);
  }
  foot.count_taps((box.x_begin[o.pooled_w] - box.x_begin[0]) * (box.y_begin[o.pooled_h] - box.y_begin[0]));
}

}  // namespace roi_align
}  // namespace d2proj
