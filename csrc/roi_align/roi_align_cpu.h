// What the forward and the backward pass on the CPU share, and what the RoIAlign ops call: roi_align pools from one
// map, multilevel_roi_align from several, roi_align_rotated brings a plan of its own.
//
// The channels of a pixel are summed together, 64 bytes at a time. A channels-last map is read as it lies. Of a planar
// one, a task (one image, 16 channels) first turns the pixels that its boxes touch into a small channels-last buffer
// that stays in the cache; where boxes are so few that this would cost more than it saves, they are summed plane by
// plane. The backward pass is the same in mirror image.
#pragma once

#include "common/map.h"
#include "common/rois.h"
#include "common/simd.h"
#include "roi_align/roi_align_args.h"
#include "roi_align/roi_align_plan.h"

namespace d2proj {
namespace roi_align {

using simd::Level;
using simd::Wide;

// A compact buffer is worth its making when boxes read a pixel of it this often, on average.
constexpr double kReadsPerPixel = 0.4;
// Bounds a task's buffer: 64 bytes a pixel, so 128 MB.
constexpr int64_t kMaxPixels = int64_t(1) << 21;
// Fewer multiplications than this are not worth a second thread.
constexpr int64_t kGrain = 262144;

// Rows of the result that one image's boxes make: from one level or, where levels are reduced, from all of them.
struct Group {
  int64_t image, level;
  std::vector<int64_t> rows;
};

// (N, C, H, W) maps and how boxes are pooled from them; (K, 5) `boxes`; `box_levels` for Reduce::kAssigned alone, one
// for each box, null for level 0.
struct Pooling {
  const char* op;
  const Tensor& boxes;
  const int64_t* box_levels;
  std::vector<Options> levels;
  int64_t images;
  Reduce reduce;
};

// `winner`, for Reduce::kMax alone: the level that each value comes from, int8, laid out as `out`.
void pool_levels(const Pooling& p, const std::vector<Tensor>& inputs, Tensor& out, Tensor* winner);
void spread_levels(const Pooling& p, const Tensor& grad, const Tensor* winner, std::vector<Tensor>& outs);

// The views of each row in order, and the rows by image and, unless they are reduced, level. Levels are in range.
template <typename A>
void lay_out_views(const Pooling& p, const A* boxes, std::vector<View>& views, std::vector<Group>& groups) {
  const int64_t count = p.boxes.size(0), levels = p.levels.size();
  const bool reduced = views_per_row(p.reduce, 2) > 1;
  for (int64_t level = 0; level < (reduced ? 1 : levels); ++level) {
    for (int64_t image = 0; image < p.images; ++image) groups.push_back({image, level, {}});
  }
  const bool assigned = p.reduce == Reduce::kAssigned;
  views.reserve(assigned ? count : count * levels);
  for (const ImageBoxes& image : group_by_image(p.op, boxes, count, p.images)) {
    for (const int64_t k : image.boxes) {
      if (assigned) {
        groups[(p.box_levels ? p.box_levels[k] * p.images : 0) + image.image].rows.push_back(k);
      } else if (reduced) {
        groups[image.image].rows.push_back(k);
      } else {
        for (int64_t l = 0; l < levels; ++l) groups[l * p.images + image.image].rows.push_back(k * levels + l);
      }
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    if (assigned) {
      views.push_back({k, p.box_levels ? p.box_levels[k] : 0});
    } else {
      for (int64_t l = 0; l < levels; ++l) views.push_back({k, l});
    }
  }
}

}  // namespace roi_align
}  // namespace d2proj
