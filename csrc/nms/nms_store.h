// Boxes by cell of a grid, each with a value, for CPU ops that must look at every box that overlaps another one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/simd.h"
#include "nms/nms_decay.h"
#include "nms/nms_grid.h"

namespace d2proj {
namespace nms {

// The widest vectors of T at an instruction set.
template <simd::Level L, typename T>
struct Native {
#if defined(__x86_64__)
  static constexpr int kBytes = L == simd::Level::kAvx512 ? 64 : L == simd::Level::kAvx2 ? 32 : 16;
#else
  static constexpr int kBytes = 16;
#endif
  static constexpr int kLanes = kBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef typename BitsOf<T>::type Mask __attribute__((vector_size(kBytes)));
};

#if defined(__x86_64__)
// `of` is a mask in memory, which disappears once these are inlined.
D2_TARGET_AVX512 inline uint32_t lanes_avx512(const void* of, float) {
  return _mm512_movepi32_mask(_mm512_loadu_si512(of));
}
D2_TARGET_AVX512 inline uint32_t lanes_avx512(const void* of, double) {
  return _mm512_movepi64_mask(_mm512_loadu_si512(of));
}
D2_TARGET_AVX2 inline uint32_t lanes_avx2(const void* of, float) {
  return _mm256_movemask_ps(_mm256_loadu_ps(static_cast<const float*>(of)));
}
D2_TARGET_AVX2 inline uint32_t lanes_avx2(const void* of, double) {
  return _mm256_movemask_pd(_mm256_loadu_pd(static_cast<const double*>(of)));
}
inline uint32_t lanes_sse2(const void* of, float) {
  return _mm_movemask_ps(_mm_loadu_ps(static_cast<const float*>(of)));
}
inline uint32_t lanes_sse2(const void* of, double) {
  return _mm_movemask_pd(_mm_loadu_pd(static_cast<const double*>(of)));
}
#endif

// Bit i: lane i of a comparison of vectors of T.
template <simd::Level L, typename T>
D2_INLINE uint32_t lanes(const typename Native<L, T>::Mask& mask) {
#if defined(__x86_64__)
  if constexpr (L == simd::Level::kAvx512) return lanes_avx512(&mask, T{});
  if constexpr (L == simd::Level::kAvx2) return lanes_avx2(&mask, T{});
  return lanes_sse2(&mask, T{});
#else
  uint32_t result = 0;
  for (int i = 0; i < Native<L, T>::kLanes; ++i) result |= static_cast<uint32_t>(mask[i] & 1) << i;
  return result;
#endif
}

// The greatest lane; none of them is NaN.
template <simd::Level L, typename T>
D2_INLINE T highest(typename Native<L, T>::Vector best) {
#if !defined(__clang__)
  for (int step = Native<L, T>::kLanes / 2; step > 0; step /= 2) {
    typename Native<L, T>::Mask from;
    for (int i = 0; i < Native<L, T>::kLanes; ++i) from[i] = i ^ step;
    const typename Native<L, T>::Vector other = __builtin_shuffle(best, from);
    best = other > best ? other : best;
  }
  return best[0];
#else
  T result = best[0];
  for (int i = 1; i < Native<L, T>::kLanes; ++i) result = best[i] > result ? best[i] : result;
  return result;
#endif
}

// Boxes by cell. Every cell has room for all boxes at home in it and begins at a multiple of kLine slots, so that a
// vector never holds boxes of two cells; slots not (or no longer) in use hold empty boxes of value 0.
template <typename T>
class Store {
 public:
  static constexpr int64_t kLine = 64 / sizeof(T);

  explicit Store(T threshold) : cells_(Threshold<T>(threshold)) {}

  // Makes room for `count` boxes, none of them inert.
  void reset(const Box<T>* boxes, const T* areas, int64_t count) {
    cells_.lay_out(boxes, areas, count, kCellsPerReach);
    const int64_t cells = cells_.count();
    homes_.resize(count);
    begin_.assign(cells + 1, 0);
    for (int64_t i = 0; i < count; ++i) {
      homes_[i] = static_cast<uint32_t>(cells_.home(boxes[i]));
      ++begin_[homes_[i] + 1];
    }
    for (int64_t c = 0; c < cells; ++c) {
      begin_[c + 1] = begin_[c] + (begin_[c + 1] + kLine - 1) / kLine * kLine;
    }
    end_.assign(begin_.begin(), begin_.end() - 1);
    stride_ = begin_[cells];
    columns_.assign(6 * stride_, T(0));
    ids_.resize(stride_);
    constexpr T infinity = std::numeric_limits<T>::infinity();
    extents_.assign(cells, Box<T>{infinity, infinity, -infinity, -infinity});
  }

  // Adds box number `i` of those that `reset` was told of, under the name `id`.
  void add(int64_t i, const Box<T>& box, T area, T value, uint32_t id) {
    const int64_t cell = homes_[i], slot = end_[cell]++;
    T* const x1 = columns_.data() + slot;
    x1[0] = box.x1;
    x1[stride_] = box.y1;
    x1[2 * stride_] = box.x2;
    x1[3 * stride_] = box.y2;
    x1[4 * stride_] = area;
    x1[5 * stride_] = value;
    ids_[slot] = id;
    Box<T>& extent = extents_[cell];
    extent.x1 = std::min(extent.x1, box.x1);
    extent.y1 = std::min(extent.y1, box.y1);
    extent.x2 = std::max(extent.x2, box.x2);
    extent.y2 = std::max(extent.y2, box.y2);
  }

  // Packs a cell's boxes of non-zero value, in the order they have.
  void pack(int64_t cell) {
    int64_t to = begin_[cell];
    for (int64_t from = begin_[cell]; from < end_[cell]; ++from) {
      if (columns_[from + 5 * stride_] == T(0)) continue;
      for (int c = 0; c < 6; ++c) columns_[to + c * stride_] = columns_[from + c * stride_];
      ids_[to++] = ids_[from];
    }
    for (int64_t slot = to; slot < end_[cell]; ++slot) {
      for (int c = 0; c < 6; ++c) columns_[slot + c * stride_] = T(0);
    }
    end_[cell] = to;
  }

  void clear(int64_t cell) { end_[cell] = begin_[cell]; }

  const Cells<T>& cells() const { return cells_; }
  int64_t begin(int64_t cell) const { return begin_[cell]; }
  int64_t end(int64_t cell) const { return end_[cell]; }
  T* values() { return columns_.data() + 5 * stride_; }
  uint32_t id(int64_t slot) const { return ids_[slot]; }
  Box<T> box(int64_t slot) const {
    const T* const x1 = columns_.data() + slot;
    return {x1[0], x1[stride_], x1[2 * stride_], x1[3 * stride_]};
  }
  T area(int64_t slot) const { return columns_[slot + 4 * stride_]; }

  // Calls visit(slot, inter, both, hit) for each vector of slots in which a box overlaps `box` (by more than the
  // threshold, or nearly so), and done(cell) after each cell that had such a vector. The IoU is inter / both; in lanes
  // without a hit it may be anything.
  template <simd::Level L, typename Visit, typename Done>
  D2_INLINE void for_overlaps(const Box<T>& box, T area, Visit& visit, Done& done) const {
    const Window window = cells_.window(box);
    for (int32_t row = window.top; row <= window.bottom; ++row) {
      const int64_t first = int64_t(row) * window.columns;
      for (int64_t cell = first + window.left; cell <= first + window.right; ++cell) {
        const Box<T>& extent = extents_[cell];
        if (!(extent.x1 < box.x2 && extent.x2 > box.x1 && extent.y1 < box.y2 && extent.y2 > box.y1)) continue;
        if (scan<L>(box, area, begin_[cell], end_[cell], visit)) done(cell);
      }
    }
  }

 private:
  template <simd::Level L, typename Visit>
  D2_INLINE bool scan(const Box<T>& box, T area, int64_t slot, int64_t end, Visit& visit) const {
    using V = typename Native<L, T>::Vector;
    const V zero = V{}, loose = zero + cells_.loose(), query_area = zero + area;
    const V query_x1 = zero + box.x1, query_y1 = zero + box.y1, query_x2 = zero + box.x2, query_y2 = zero + box.y2;
    bool found = false;
    for (; slot < end; slot += Native<L, T>::kLanes) {
      const T* const first = columns_.data() + slot;
      V x1, y1, x2, y2, areas, inter, limit;
      simd::load(x1, first);
      simd::load(y1, first + stride_);
      simd::load(x2, first + 2 * stride_);
      simd::load(y2, first + 3 * stride_);
      simd::load(areas, first + 4 * stride_);
      x1 = x1 > query_x1 ? x1 : query_x1;
      y1 = y1 > query_y1 ? y1 : query_y1;
      x2 = x2 < query_x2 ? x2 : query_x2;
      y2 = y2 < query_y2 ? y2 : query_y2;
      const V width = x2 - x1, height = y2 - y1;
      multiply(inter, width > zero ? width : zero, height > zero ? height : zero);
      const V both = (areas + query_area) - inter;
      limit = loose * both;
      const auto hit = inter > limit;
      if (lanes<L, T>(hit) == 0) continue;
      found = true;
      visit(slot, inter, both, hit);
    }
    return found;
  }

  static constexpr double kCellsPerReach = 4.0;

  Cells<T> cells_;
  int64_t stride_ = 0;
  std::vector<uint32_t> homes_;       // of boxes
  std::vector<int64_t> begin_, end_;  // of cells: the first slot, and one past the last slot filled
  std::vector<Box<T>> extents_;       // of cells: around all their boxes
  std::vector<T> columns_;            // x1 | y1 | x2 | y2 | area | value, `stride_` slots each
  std::vector<uint32_t> ids_;         // of slots
};

}  // namespace nms
}  // namespace d2proj
