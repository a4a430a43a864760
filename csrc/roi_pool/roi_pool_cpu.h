// What the CPU kernels of roi_pool and spatial_pyramid_pool share.
//
// Forward: the maxima of 64 bytes of channels are taken together. Per row of a box, each bin column is reduced once,
// then merged into the one or two bin rows that hold the row. A planar map is turned into channels-last first: where
// boxes overlap much, a task (an image, 64 bytes of channels) turns the part of the map that its boxes cover, once;
// else it turns one row of one box at a time, in the cache. A channels-last map is read as it lies.
//
// Backward: a task owns the planes that it adds to (an image, some channels) and takes boxes in order: no atomics, and
// the same bits whatever the number of threads.
#pragma once

#include "common/map.h"
#include "common/rois.h"
#include "common/simd.h"
#include "roi_align/roi_align_plan.h"
#include "roi_pool/roi_pool_args.h"

namespace d2proj {
namespace roi_pool {

using simd::Level;
using simd::Wide;

// Bounds a task's buffer: 64 bytes a pixel, so 128 MB.
constexpr int64_t kMaxPixels = int64_t(1) << 21;
// Fewer comparisons than this are not worth a second thread.
constexpr int64_t kGrain = 262144;
// Up to so many channels are taken one by one.
constexpr int64_t kFewChannels = 2;

// The cells of every bin of every box, worked out once per call.
class Plan {
 public:
  template <typename A>
  Plan(const A* boxes, int64_t count, const std::vector<Grid>& grids, double spatial_scale, int64_t height,
       int64_t width)
      : grids_(grids) {
    for (const Grid& g : grids) per_box_ += g.pooled_h + g.pooled_w;
    spans_.resize(count * per_box_);
    const A scale = static_cast<A>(spatial_scale);
    for (int64_t k = 0; k < count; ++k) {
      const A* box = boxes + k * 5;
      Span* to = spans_.data() + k * per_box_;
      for (const Grid& g : grids) {
        Axis<A> y = make_axis<A>(box[2], box[4], scale, g.pooled_h, true);
        Axis<A> x = make_axis<A>(box[1], box[3], scale, g.pooled_w, true);
        y.valid = x.valid = y.valid && x.valid;
        for (int64_t b = 0; b < g.pooled_h; ++b) *to++ = bin_span(y, b, height);
        for (int64_t b = 0; b < g.pooled_w; ++b) *to++ = bin_span(x, b, width);
      }
    }
  }

  const std::vector<Grid>& grids() const { return grids_; }

  // The spans of box `k`: for each grid its rows of bins, then its columns.
  const Span* box(int64_t k) const { return spans_.data() + k * per_box_; }

  // The rows and columns that a box covers.
  struct Cover {
    Span y, x;
    int64_t cells() const { return static_cast<int64_t>(y.count()) * x.count(); }
  };
  Cover cover(int64_t k) const {
    Cover c{{INT32_MAX, 0}, {INT32_MAX, 0}};
    const Span* from = box(k);
    for (const Grid& g : grids_) {
      for (int64_t b = 0; b < g.pooled_h; ++b) widen(c.y, *from++);
      for (int64_t b = 0; b < g.pooled_w; ++b) widen(c.x, *from++);
    }
    if (c.y.count() <= 0 || c.x.count() <= 0) return {{0, 0}, {0, 0}};
    return c;
  }

 private:
  static void widen(Span& sum, const Span& part) {
    if (part.count() == 0) return;
    sum = {std::min(sum.begin, part.begin), std::max(sum.end, part.end)};
  }

  const std::vector<Grid>& grids_;
  int64_t per_box_ = 0;
  std::vector<Span> spans_;
};

}  // namespace roi_pool
}  // namespace d2proj
