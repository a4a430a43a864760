// What the forward and the backward passes of both ops on the CPU share. The plan (deform_roi_pool_plan.h) is all that
// differs between the ops.
//
// Work is cut into groups: the bins of one image that read the same channels (one position-sensitive cell, one class).
// The channels of a pixel are summed together, 64 bytes at a time. A channels-last map is read as it lies. Of a planar
// one, a task (a group, 64 bytes of channels) first turns the pixels that its bins touch into a small channels-last
// buffer that stays in the cache; where bins are so few that this would cost more than it saves, they are summed plane
// by plane.
#pragma once

#include "common/map.h"
#include "common/rois.h"
#include "common/simd.h"
#include "deform_roi_pool/deform_roi_pool_args.h"
#include "deform_roi_pool/deform_roi_pool_plan.h"

namespace d2proj {
namespace deform_roi_pool {

using roi_align::Footprint;
using simd::Level;
using simd::Wide;

// A compact buffer is worth its making when bins read a pixel of it this often, on average.
constexpr double kReadsPerPixel = 0.4;
// Fewer channels than this are not worth turning.
constexpr int64_t kFewChannels = 4;
// Bounds a task's buffer: 64 bytes a pixel, so 128 MB.
constexpr int64_t kMaxPixels = int64_t(1) << 21;
// Fewer multiplications than this are not worth a second thread.
constexpr int64_t kGrain = 262144;

struct Group {
  int64_t image, cell, cls;
};

inline int64_t group_count(const Problem& p) { return p.images * p.cells() * p.classes; }
inline int64_t group_index(const Problem& p, const Group& g) {
  return (g.image * p.cells() + g.cell) * p.classes + g.cls;
}
inline Group group_at(const Problem& p, int64_t i) {
  return {i / (p.cells() * p.classes), i / p.classes % p.cells(), i % p.classes};
}

inline int64_t bin_index(const Problem& p, int64_t k, int64_t cls, int64_t ph, int64_t pw) {
  return ((k * p.classes + cls) * p.pooled_h + ph) * p.pooled_w + pw;
}

template <typename A>
inline void add_bin(Footprint& foot, const BinTaps<A>& bin, int64_t width) {
  int64_t first = width, last = 0;
  for (int64_t i = bin.x_begin[0]; i < bin.x_begin[1]; ++i) {
    first = std::min<int64_t>(first, bin.taps[i].at);
    last = std::max<int64_t>(last, bin.taps[i].at + 1);
  }
  for (int64_t i = bin.y_begin[0]; first < last && i < bin.y_begin[1]; ++i) foot.add(bin.taps[i].at, first, last);
  foot.count_taps((bin.x_begin[1] - bin.x_begin[0]) * (bin.y_begin[1] - bin.y_begin[0]));
}

// The pixels that the group's bins of these boxes touch; not laid out yet.
template <typename A>
Footprint footprint(const Problem& p, const Plan<A>& plan, const Group& group, const std::vector<int64_t>& boxes) {
  Footprint foot(p.height, p.width);
  const CellBins bins(p, group.cell);
  for (const int64_t k : boxes) {
    for (int64_t ph = bins.top; ph < bins.bottom; ++ph) {
      for (int64_t pw = bins.left; pw < bins.right; ++pw) {
        add_bin(foot, plan.bin(bin_index(p, k, group.cls, ph, pw)), p.width);
      }
    }
  }
  return foot;
}

// The footprint of every group over all boxes of its image, not laid out yet.
template <typename A>
std::vector<Footprint> all_footprints(const Problem& p, const Plan<A>& plan, const std::vector<ImageBoxes>& images) {
  std::vector<Footprint> feet(group_count(p), Footprint(0, 0));
  torch::stable::parallel_for(0, group_count(p), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Group group = group_at(p, i);
      feet[i] = footprint(p, plan, group, images[group.image].boxes);
    }
  });
  return feet;
}

// For each image whether its groups go through compact buffers; and all reads of pixels, per channel. Decided from an
// image as a whole, so that it does not depend on the number of threads.
struct Choice {
  std::vector<char> packed;
  int64_t taps = 0;
};

inline Choice choose(const Problem& p, const std::vector<Footprint>& feet, bool as_it_lies) {
  Choice choice{std::vector<char>(p.images, 0)};
  const int64_t groups = p.cells() * p.classes;
  for (int64_t n = 0; n < p.images; ++n) {
    int64_t taps = 0, pixels = 0, most = 0;
    for (int64_t i = n * groups; i < (n + 1) * groups; ++i) {
      Footprint foot = feet[i];
      foot.lay_out(0, p.height);
      taps += foot.taps();
      pixels += foot.pixels();
      most = std::max(most, foot.pixels());
    }
    choice.taps += taps;
    choice.packed[n] = !as_it_lies && p.class_channels() >= kFewChannels && taps >= kReadsPerPixel * pixels &&
                       taps > 0 && most <= kMaxPixels;
  }
  return choice;
}

// The group's pixels inside the footprint, lane by lane, and where each row of the map begins among them.
template <Level L, typename T, typename A>
D2_INLINE void gather_pixels(A* pixels, int64_t* rows, Map<const T> in, const Problem& p, const Group& group,
                             const Footprint& foot, int64_t c0, int64_t count) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const int64_t channel = (group.cls * p.class_channels() + c0) * p.cells() + group.cell;
  const T* source = in.data + group.image * in.n + channel * in.c;
  for (int64_t y = 0; y < p.height; ++y) {
    rows[y] = foot.offsets()[y] * kLanes;
    if (foot.empty(y)) continue;
    const int64_t first = foot.first(y);
    simd::gather_lanes<L>(pixels + rows[y] + first * kLanes, source + y * in.h + first * in.w, in.c * p.cells(), in.w,
                          count, foot.last(y) - first);
  }
}

// A cell's bins of one box between a (K, C, pooled_h, pooled_w) tensor and a tile of lanes, bin after bin.
template <Level L, typename T, typename A>
D2_INLINE void gather_bins(A* tile, const T* from, const Map<const T>& map, const CellBins& bins, int64_t count) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  if (map.h == map.w * bins.width()) {
    simd::gather_lanes<L>(tile, from + bins.top * map.h + bins.left * map.w, map.c, map.w, count, bins.count());
    return;
  }
  for (int64_t ph = bins.top; ph < bins.bottom; ++ph) {
    simd::gather_lanes<L>(tile + (ph - bins.top) * bins.width() * kLanes, from + ph * map.h + bins.left * map.w, map.c,
                          map.w, count, bins.width());
  }
}

template <Level L, typename T, typename A>
D2_INLINE void scatter_bins(T* to, const A* tile, const Map<T>& map, const CellBins& bins, int64_t count) {
  constexpr int64_t kLanes = Wide<A>::kLanes;
  if (map.h == map.w * bins.width()) {
    simd::scatter_lanes<L>(to + bins.top * map.h + bins.left * map.w, tile, map.c, map.w, count, bins.count());
    return;
  }
  for (int64_t ph = bins.top; ph < bins.bottom; ++ph) {
    simd::scatter_lanes<L>(to + ph * map.h + bins.left * map.w, tile + (ph - bins.top) * bins.width() * kLanes, map.c,
                           map.w, count, bins.width());
  }
}

// 64 bytes of A from and to any storage type.
template <Level L, typename A, typename T>
D2_INLINE void load_lanes(typename Wide<A>::type& value, const T* from) {
  if constexpr (std::is_same_v<T, A>) {
    simd::load(value, from);
  } else {
    simd::Float8 half[2];
    simd::load8<L>(half[0], from);
    simd::load8<L>(half[1], from + 8);
    __builtin_memcpy(&value, half, sizeof(value));
  }
}
template <Level L, typename A, typename T>
D2_INLINE void store_lanes(T* to, const typename Wide<A>::type& value) {
  if constexpr (std::is_same_v<T, A>) {
    simd::store(to, value);
  } else {
    simd::Float8 half[2];
    __builtin_memcpy(half, &value, sizeof(value));
    simd::store8<L>(to, half[0]);
    simd::store8<L>(to + 8, half[1]);
  }
}

// Cuts an image's boxes into parts, enough of them to occupy every thread with `tasks` per part; a box's result does
// not depend on the cut.
inline std::vector<ImageBoxes> cut(const ImageBoxes& image, int64_t tasks) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t count = image.boxes.size(), parts = std::max<int64_t>(1, wanted / std::max<int64_t>(1, tasks));
  std::vector<ImageBoxes> cuts;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t begin = count * i / parts, end = count * (i + 1) / parts;
    if (begin < end) cuts.push_back({image.image, {image.boxes.begin() + begin, image.boxes.begin() + end}});
  }
  return cuts;
}

// A part of an image's boxes, with what one group of them touches.
struct Job {
  Group group;
  std::vector<int64_t> boxes;
  Footprint foot;
};

// The jobs of the images that go through buffers. `blocks`: tasks that each job is cut into again.
template <typename A>
std::vector<Job> make_jobs(const Problem& p, const Plan<A>& plan, const std::vector<ImageBoxes>& images,
                           const std::vector<Footprint>& feet, const std::vector<char>& packed, int64_t blocks) {
  int64_t used = 0;
  for (const ImageBoxes& image : images) used += packed[image.image] && !image.boxes.empty();
  std::vector<Job> jobs;
  for (const ImageBoxes& image : images) {
    if (!packed[image.image]) continue;
    for (ImageBoxes& part : cut(image, used * p.cells() * p.classes * blocks)) {
      for (int64_t cell = 0; cell < p.cells(); ++cell) {
        for (int64_t cls = 0; cls < p.classes; ++cls) {
          if (CellBins(p, cell).count()) jobs.push_back({{image.image, cell, cls}, part.boxes, Footprint(0, 0)});
        }
      }
    }
  }
  torch::stable::parallel_for(0, static_cast<int64_t>(jobs.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Group& group = jobs[i].group;
      const bool whole = jobs[i].boxes.size() == images[group.image].boxes.size();
      jobs[i].foot = whole ? feet[group_index(p, group)] : footprint(p, plan, group, jobs[i].boxes);
      jobs[i].foot.lay_out(0, p.height);
    }
  });
  return jobs;
}

inline int64_t most_pixels(const std::vector<Job>& jobs) {
  int64_t most = 0;
  for (const Job& job : jobs) most = std::max(most, job.foot.pixels());
  return most;
}

// (image, box) of the images that are read as they lie.
inline std::vector<std::pair<int64_t, int64_t>> direct_boxes(const std::vector<ImageBoxes>& images,
                                                             const std::vector<char>& packed) {
  std::vector<std::pair<int64_t, int64_t>> direct;
  for (const ImageBoxes& image : images) {
    if (packed[image.image]) continue;
    for (const int64_t k : image.boxes) direct.emplace_back(image.image, k);
  }
  return direct;
}

}  // namespace deform_roi_pool
}  // namespace d2proj
