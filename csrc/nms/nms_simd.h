// The innermost loop of the CPU's NMS: one box against the kept boxes in a window of grid cells,
// compiled for each instruction set; the widest that the processor has is chosen at run time.
// All of them give the same bits.

#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own AVX-512 header trips this when inlined (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "common/simd.h"
#include "nms/nms.h"

namespace d2proj {
namespace nms {

// Slots past a cell's end that a scan may read.
constexpr int64_t kOverread = 16;

template <typename T>
struct KeptView {
  const T* data;   // x1 | y1 | x2 | y2 | area
  int64_t stride;  // slots of each
};

template <typename T, typename Criterion>
struct Query {
  Box<T> box;
  T area, exact, loose;
  Criterion criterion;

  // Of `lanes` kept boxes one at least has an IoU above `exact`: whether one of them suppresses.
  bool confirms(const KeptView<T>& kept, int64_t slot, int64_t lanes) const {
    if constexpr (std::is_same_v<Criterion, IouCriterion<T>>) return true;
    for (const T* x1 = kept.data + slot; lanes > 0; ++x1, --lanes) {
      const Box<T> other{x1[0], x1[kept.stride], x1[2 * kept.stride], x1[3 * kept.stride]};
      if (criterion(other, x1[4 * kept.stride], box, area)) return true;
    }
    return false;
  }
};

// Cells [left, right] x [top, bottom] of a grid of `columns`, and the cell to look into first.
struct Window {
  int32_t left, right, top, bottom, columns;
  int64_t home;
};

template <typename T, typename Criterion>
using Scan = bool (*)(const Query<T, Criterion>&, const KeptView<T>&, const uint32_t* from, const uint32_t* to,
                      const Window&);

// Keeps a product from being fused with the sum that follows it (see box_iou.h).
#if defined(__x86_64__)
#define D2PROJ_ROUND_NOW(value) asm("" : "+v"(value))
#elif defined(__aarch64__)
#define D2PROJ_ROUND_NOW(value) asm("" : "+w"(value))
#else
#define D2PROJ_ROUND_NOW(value)
#endif

#if defined(__x86_64__)

#define D2PROJ_LANES(Name, T, V, mm, suffix, greater)                                       \
  struct Name {                                                                             \
    using Vector = V;                                                                       \
    static constexpr int64_t count = sizeof(V) / sizeof(T);                                 \
    D2PROJ_TARGET static inline V load(const T* from) { return mm##_loadu_##suffix(from); } \
    D2PROJ_TARGET static inline V broadcast(T value) { return mm##_set1_##suffix(value); }  \
    D2PROJ_TARGET static inline V min(V a, V b) { return mm##_min_##suffix(a, b); }         \
    D2PROJ_TARGET static inline V max(V a, V b) { return mm##_max_##suffix(a, b); }         \
    D2PROJ_TARGET static inline bool any_greater(V a, V b) { return (greater) != 0; }       \
  };

namespace sse2 {
#define D2PROJ_TARGET __attribute__((target("sse2")))
D2PROJ_LANES(Floats, float, __m128, _mm, ps, _mm_movemask_ps(_mm_cmpgt_ps(a, b)))
D2PROJ_LANES(Doubles, double, __m128d, _mm, pd, _mm_movemask_pd(_mm_cmpgt_pd(a, b)))
#include "nms/nms_scan.inl"
#undef D2PROJ_TARGET
}  // namespace sse2

namespace avx2 {
#define D2PROJ_TARGET __attribute__((target("avx2")))
D2PROJ_LANES(Floats, float, __m256, _mm256, ps, _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)))
D2PROJ_LANES(Doubles, double, __m256d, _mm256, pd, _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)))
#include "nms/nms_scan.inl"
#undef D2PROJ_TARGET
}  // namespace avx2

namespace avx512 {
#define D2PROJ_TARGET __attribute__((target("avx512f")))
D2PROJ_LANES(Floats, float, __m512, _mm512, ps, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ))
D2PROJ_LANES(Doubles, double, __m512d, _mm512, pd, _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ))
#include "nms/nms_scan.inl"
#undef D2PROJ_TARGET
}  // namespace avx512

#undef D2PROJ_LANES

#else

namespace scalar {
template <typename T>
struct Lanes {
  using Vector = T;
  static constexpr int64_t count = 1;
  static inline T load(const T* from) { return *from; }
  static inline T broadcast(T value) { return value; }
  static inline T min(T a, T b) { return a < b ? a : b; }
  static inline T max(T a, T b) { return a > b ? a : b; }
  static inline bool any_greater(T a, T b) { return a > b; }
};
using Floats = Lanes<float>;
using Doubles = Lanes<double>;
#define D2PROJ_TARGET
#include "nms/nms_scan.inl"
#undef D2PROJ_TARGET
}  // namespace scalar

#endif

template <typename T, typename OfFloats, typename OfDoubles>
using Choose = std::conditional_t<sizeof(T) == sizeof(float), OfFloats, OfDoubles>;

template <typename T, typename Criterion>
inline Scan<T, Criterion> scan_function() {
#if defined(__x86_64__)
  switch (simd::level()) {
    case simd::Level::kAvx512:
      return &avx512::scan<Choose<T, avx512::Floats, avx512::Doubles>, T, Criterion>;
    case simd::Level::kAvx2:
      return &avx2::scan<Choose<T, avx2::Floats, avx2::Doubles>, T, Criterion>;
    default:
      return &sse2::scan<Choose<T, sse2::Floats, sse2::Doubles>, T, Criterion>;
  }
#else
  return &scalar::scan<Choose<T, scalar::Floats, scalar::Doubles>, T, Criterion>;
#endif
}

}  // namespace nms
}  // namespace d2proj
