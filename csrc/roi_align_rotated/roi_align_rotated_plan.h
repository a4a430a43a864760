// A plan as roi_align's (roi_align_plan.h), for boxes whose axes do not separate: the pixels of each bin with their
// summed weights. Such a list grows with a box's area, so a plan is made for a round of boxes at a time.
#pragma once

#include "roi_align/roi_align_cpu.h"
#include "roi_align_rotated/roi_align_rotated.h"

namespace d2proj {
namespace roi_align_rotated {

using roi_align::Footprint;
using roi_align::Group;
using roi_align::Options;
using simd::Wide;

// Samples of a round, unless a single box has more: at most 4 taps of 16 bytes each, so 64 MB.
constexpr int64_t kRoundSamples = int64_t(1) << 20;

template <typename A>
struct RotatedTap {
  int32_t y, x;
  A weight;
};

// Columns [first, last) of a row that a box touches.
struct Span {
  int64_t row, first, last;
};

// The taps of one box; bin b's are [begin[b], begin[b + 1]). The mean's divisor is part of the weights.
template <typename A>
struct RotatedTaps {
  const RotatedTap<A>* taps;
  const int64_t* begin;
  const Span* spans;
  int64_t span_count;
};

template <typename A>
RotatedBox<A> read_box(const A* rois, int64_t k, const Options& o) {
  return make_box<A>(rois + k * 6, static_cast<A>(o.spatial_scale), o.pooled_h, o.pooled_w, o.sampling_ratio);
}

template <typename A>
class RotatedPlan {
 public:
  RotatedPlan(const A* rois, int64_t first, int64_t last, const Options& o) : first_(first) {
    boxes_.resize(last - first);
    torch::stable::parallel_for(0, last - first, 32, [&](int64_t begin, int64_t end) {
      Scratch scratch{std::vector<Span>(o.height, Span{0, o.width, 0}), {}, {}, {}};
      for (int64_t i = begin; i < end; ++i) fill(boxes_[i], read_box(rois, first + i, o), o, scratch);
    });
  }

  RotatedTaps<A> box(int64_t k) const {
    const Box& box = boxes_[k - first_];
    return {box.taps.data(), box.begin.data(), box.spans.data(), static_cast<int64_t>(box.spans.size())};
  }

 private:
  static constexpr uint64_t kWindow = 16;
  struct Box {
    std::vector<RotatedTap<A>> taps;
    std::vector<int64_t> begin;
    std::vector<Span> spans;
  };

  // What boxes of a task share. `rows` comes and goes with no columns. `recent` is the last tap of each pixel of a
  // window that repeats over the map: what it says is checked, so it is never cleared.
  struct Scratch {
    std::vector<Span> rows;
    std::vector<RotatedTap<A>> taps;
    std::vector<A> along_x;  // the samples of all bins of a row, of which bin b has those from x_begin[b] on
    std::vector<int64_t> x_begin;
    int64_t recent[kWindow * kWindow] = {};
  };

  static void touch(Span& row, const roi_align::Taps<A>& x) {
    row.first = std::min(row.first, x.low);
    row.last = std::max(row.last, x.high + 1);
  }

  static void fill(Box& out, const RotatedBox<A>& box, const Options& o, Scratch& s) {
    out.begin.reserve(o.pooled_h * o.pooled_w + 1);
    out.begin.push_back(0);
    if (!box.inside || o.height * o.width == 0) {
      out.begin.assign(o.pooled_h * o.pooled_w + 1, 0);
      return;
    }
    const Extent along_y = extent(box, true, o.height, o.width), along_x = extent(box, false, o.height, o.width);
    s.along_x.clear();
    s.x_begin.assign(1, 0);
    for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
      const SampleRange xs = sample_range(box.x, pw, along_x.low, along_x.high);
      for (int64_t ix = xs.first; ix < xs.last; ++ix) s.along_x.push_back(box.x.sample(pw, ix));
      s.x_begin.push_back(s.along_x.size());
    }
    int64_t top = o.height, bottom = 0, used = 0;  // of s.taps
    for (int64_t ph = 0; ph < o.pooled_h; ++ph) {
      const SampleRange ys = sample_range(box.y, ph, along_y.low, along_y.high);
      for (int64_t pw = 0; pw < o.pooled_w; ++pw) {
        const int64_t begin = used;
        const int64_t most = used + 4 * (ys.last - ys.first) * (s.x_begin[pw + 1] - s.x_begin[pw]);
        if (static_cast<int64_t>(s.taps.size()) < most) s.taps.resize(2 * most);
        RotatedTap<A>* taps = s.taps.data();
        const auto add = [&](int64_t y, int64_t x, A weight) {
          int64_t& at = s.recent[(static_cast<uint64_t>(y) % kWindow) * kWindow + static_cast<uint64_t>(x) % kWindow];
          if (at >= begin && at < used && taps[at].y == y && taps[at].x == x) {
            taps[at].weight += weight;
            return;
          }
          at = used;
          taps[used++] = {static_cast<int32_t>(y), static_cast<int32_t>(x), weight};
        };
        for (int64_t iy = ys.first; iy < ys.last; ++iy) {
          const A v = box.y.sample(ph, iy);
          for (int64_t i = s.x_begin[pw]; i < s.x_begin[pw + 1]; ++i) {
            roi_align::Taps<A> y, x;
            if (!taps_at(sample_y(box, v, s.along_x[i]), o.height, y)) continue;
            if (!taps_at(sample_x(box, v, s.along_x[i]), o.width, x)) continue;
            add(y.low, x.low, y.w_low * x.w_low);
            if (x.w_high != A(0)) add(y.low, x.high, y.w_low * x.w_high);
            top = std::min(top, y.low);
            bottom = std::max(bottom, y.high + 1);
            touch(s.rows[y.low], x);
            if (y.w_high == A(0)) continue;
            touch(s.rows[y.high], x);
            add(y.high, x.low, y.w_high * x.w_low);
            if (x.w_high != A(0)) add(y.high, x.high, y.w_high * x.w_high);
          }
        }
        for (int64_t i = begin; i < used; ++i) taps[i].weight *= box.scale;
        out.begin.push_back(used);
      }
    }
    out.taps.assign(s.taps.begin(), s.taps.begin() + used);
    for (int64_t y = top; y < bottom; ++y) {
      if (s.rows[y].first < s.rows[y].last) out.spans.push_back({y, s.rows[y].first, s.rows[y].last});
      s.rows[y] = {0, o.width, 0};
    }
  }

  int64_t first_;
  std::vector<Box> boxes_;
};

// Cuts [0, count) boxes into rounds [first, last) of bounded work; at least one.
template <typename A>
std::vector<std::pair<int64_t, int64_t>> rounds_of(const A* rois, int64_t count, const Options& o) {
  std::vector<std::pair<int64_t, int64_t>> rounds;
  double samples = 0;
  int64_t first = 0;
  for (int64_t k = 0; k < count; ++k) {
    const RotatedBox<A> box = read_box(rois, k, o);
    double along_y = 0, along_x = 0;
    if (box.inside) {
      const Extent ey = extent(box, true, o.height, o.width), ex = extent(box, false, o.height, o.width);
      const auto length = [](const SampleRange& r) { return static_cast<double>(r.last - r.first); };
      for (int64_t b = 0; b < o.pooled_h; ++b) along_y += length(sample_range(box.y, b, ey.low, ey.high));
      for (int64_t b = 0; b < o.pooled_w; ++b) along_x += length(sample_range(box.x, b, ex.low, ex.high));
    }
    if (k > first && samples + along_y * along_x > kRoundSamples) {
      rounds.emplace_back(first, k);
      first = k;
      samples = 0;
    }
    samples += along_y * along_x;
  }
  rounds.emplace_back(first, count);
  return rounds;
}

inline std::vector<Group> groups_of_round(const std::vector<ImageBoxes>& images, int64_t first, int64_t last) {
  std::vector<Group> groups;
  for (const ImageBoxes& image : images) {
    const auto begin = std::lower_bound(image.boxes.begin(), image.boxes.end(), first);
    groups.push_back({image.image, 0, {begin, std::lower_bound(begin, image.boxes.end(), last)}});
  }
  return groups;
}

template <typename A>
void add_box(Footprint& foot, const RotatedTaps<A>& box, const Options& o) {
  for (int64_t i = 0; i < box.span_count; ++i) foot.add(box.spans[i].row, box.spans[i].first, box.spans[i].last);
  foot.count_taps(box.begin[o.pooled_h * o.pooled_w]);
}

}  // namespace roi_align_rotated
}  // namespace d2proj
