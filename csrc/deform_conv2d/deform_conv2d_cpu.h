// What the forward and the backward pass on the CPU share.
//
// Everything is computed on pixels that hold all their channels side by side ("packed"): the channels of an offset
// group, then zeros up to whole 64 bytes, then the next group. After the last pixel stands one of zeros, which is what
// corners outside the map read. Images are packed a few at a time, columns are made for some pixels at a time and
// multiplied at once by a product of our own (gemm.h), so no buffer grows with the batch.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/map.h"
#include "deform_conv2d/deform_conv2d_args.h"
#include "deform_conv2d/gemm.h"

namespace d2proj {
namespace deform_conv2d {

constexpr int64_t kPackedBytes = int64_t(16) << 20;   // of packed images, unless one alone is larger
constexpr int64_t kColumnBytes = int64_t(256) << 10;  // of a forward task's columns, which stay in the L2 cache
constexpr int64_t kBlockBytes = int64_t(8) << 20;     // of the backward pass's block: larger, fewer waits of threads
constexpr int64_t kChunk = 96;                        // output pixels of a task
// Fewer multiplications than this are not worth a second thread.
constexpr int64_t kGrain = 500000;

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

template <typename A>
struct Layout {
  static constexpr int64_t kLanes = Wide<A>::kLanes;

  explicit Layout(const Shape& shape)
      : s(shape),
        group(round_up(shape.offset_channels(), kLanes)),
        channels(group * shape.offset_groups),
        outputs(round_up(shape.out_channels, kLanes)) {}

  // Where a channel stands in a packed pixel.
  int64_t at(int64_t channel) const { return channel / s.offset_channels() * group + channel % s.offset_channels(); }
  int64_t images_at_once() const {
    const int64_t bytes = (s.pixels() + 1) * channels * static_cast<int64_t>(sizeof(A));
    return std::max<int64_t>(1, std::min(s.images, kPackedBytes / bytes));
  }

  Shape s;
  int64_t group;     // packed channels of an offset group
  int64_t channels;  // of a packed pixel
  int64_t outputs;   // channels of a packed output pixel
};

// Output pixels [begin, begin + count) of an image, `first` pixels after the start of what they are a part of.
struct Chunk {
  int64_t image, begin, count, first;
};

// The corners of a sample, as packed pixels.
template <typename A>
struct Corners {
  int64_t at[4];
  A fraction_y, fraction_x, mask;
};

// What describes the samples: offsets and mask (or null), contiguous.
template <typename A>
struct Offsets {
  const A* offset;
  const A* mask;
};

// `image` counts from the first image of the batch, `slot` from the first packed one; `zero` is the packed zero pixel.
template <typename A>
D2_INLINE Corners<A> corners_of(const Shape& s, const Offsets<A>& o, int64_t image, int64_t slot, int64_t group,
                                int64_t tap, int64_t pixel, int64_t zero) {
  const int64_t i = offset_index(s, image, group, tap, pixel);
  const Place<A> place = place_of<A>(s, tap, pixel, o.offset[i], o.offset[i + s.out_pixels()]);
  Corners<A> c{{zero, zero, zero, zero}, place.fraction_y, place.fraction_x, A(1)};
  if (place.inside) {
    const int64_t base = slot * s.pixels();
    for (int k = 0; k < 4; ++k) {
      const int64_t pixel_of_corner = corner_pixel(s, place.y, place.x, k, -1);
      c.at[k] = pixel_of_corner < 0 ? zero : base + pixel_of_corner;
    }
  }
  if (o.mask) c.mask = o.mask[mask_index(s, image, group, tap, pixel)];
  return c;
}

// Samples `vectors` times 64 bytes of channels; `panel` elements from one to the next.
template <typename A>
D2_INLINE void sample(A* to, int64_t panel, const A* packed, int64_t channels, const Corners<A>& c, int64_t vectors) {
  using V = typename Wide<A>::type;
  constexpr int64_t kLanes = Wide<A>::kLanes;
  const A* from[4];
  A weight[4];
  for (int k = 0; k < 4; ++k) {
    from[k] = packed + c.at[k] * channels;
    weight[k] = weight_of(c.fraction_y, c.fraction_x, k);
  }
  for (int64_t v = 0; v < vectors; ++v) {
    V corner[4];
    for (int k = 0; k < 4; ++k) simd::load(corner[k], from[k] + v * kLanes);
    const V value = weight[0] * corner[0] + weight[1] * corner[1] + (weight[2] * corner[2] + weight[3] * corner[3]);
    const V masked = c.mask * value;
    simd::store(to + v * panel, masked);
  }
}

// What turns an image's rows into packed pixels at `to`.
template <typename T, typename A>
struct PackRows {
  Map<const T> from;
  A* to;
  const Layout<A>& layout;
};

struct Pack {
  template <Level L, typename T, typename A>
  static D2_INLINE void run(const PackRows<T, A>& f, int64_t image, int64_t slot, int64_t begin, int64_t end) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    const Shape& s = f.layout.s;
    const bool whole = f.from.h == f.from.w * s.width;  // rows follow each other as pixels do
    const int64_t count = whole ? (end - begin) * s.width : s.width;
    for (int64_t y = begin; y < (whole ? begin + 1 : end); ++y) {
      A* to = f.to + (slot * s.pixels() + y * s.width) * f.layout.channels;
      const T* from = f.from.data + image * f.from.n + y * f.from.h;
      for (int64_t g = 0; g < s.offset_groups; ++g) {
        for (int64_t c = 0; c < f.layout.group; c += kLanes) {
          simd::gather_lanes<L>(to + g * f.layout.group + c, from + (g * s.offset_channels() + c) * f.from.c, f.from.c,
                                f.from.w, std::min(kLanes, s.offset_channels() - c), count, f.layout.channels);
        }
      }
    }
  }
};

// Calls `body(begin, end)` for parts of [0, tasks) on torch's threads, on this one if the work is small.
template <typename Body>
void for_tasks(int64_t tasks, int64_t work_of_task, const Body& body) {
  if (tasks <= 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work_of_task));
  torch::stable::parallel_for(0, tasks, grain, body);
}

// Packs images [first, first + count).
template <typename T, typename A>
void pack_images(const PackRows<T, A>& f, int64_t first, int64_t count) {
  const Shape& s = f.layout.s;
  constexpr int64_t kRows = 16;
  const int64_t bands = (s.height + kRows - 1) / kRows;
  for_tasks(count * bands, kRows * s.width * f.layout.channels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slot = i / bands, row = i % bands * kRows;
      simd::dispatch<Pack>(f, first + slot, slot, row, std::min(s.height, row + kRows));
    }
  });
  std::fill_n(f.to + count * s.pixels() * f.layout.channels, f.layout.channels, A(0));
}

// The channels [begin, end) that 64 bytes of channels on the product's other side are connected to: with groups these
// may lie in several of them, and what does not belong together has zero weight.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

}  // namespace deform_conv2d
}  // namespace d2proj
