// Corner pooling on the CPU, what its passes share. Two ways to scan, both with a vector of neighbours at a time:
//
// - columns (inner > 1): the running maximum of a stretch of columns lies in a small buffer, rows stream past it;
// - rows (inner == 1): as many rows as a vector has lanes are turned on their side, in a buffer, and back.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/map.h"
#include "common/simd.h"
#include "corner_pool/corner_pool_args.h"

namespace d2proj {
namespace corner_pool {

using simd::Level;

constexpr int64_t kGrain = 1 << 15;  // elements worth a thread's while

// 32 bytes of accumulators. Comparing and choosing is in intrinsics: g++ takes GNU vectors apart for these, element by
// element, in code that is inlined into a function for a later instruction set.
template <typename A>
struct Vector;
template <>
struct Vector<float> {
  using type = simd::Float8;
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(32)));
};
template <typename A>
using vector_t = typename Vector<A>::type;
template <typename A>
constexpr int64_t kWidth = 32 / sizeof(A);

#if defined(__x86_64__)
D2_TARGET_AVX2 inline __m256 greater_avx2(__m256 value, __m256 best) {
  return _mm256_and_ps(_mm256_cmp_ps(value, best, _CMP_NLE_UQ), _mm256_cmp_ps(best, best, _CMP_ORD_Q));
}
D2_TARGET_AVX2 inline __m256d greater_avx2(__m256d value, __m256d best) {
  return _mm256_and_pd(_mm256_cmp_pd(value, best, _CMP_NLE_UQ), _mm256_cmp_pd(best, best, _CMP_ORD_Q));
}
D2_TARGET_AVX2 inline void take_avx2(simd::Float8& best, const simd::Float8& value) {
  const __m256 b = reinterpret_cast<const __m256&>(best), v = reinterpret_cast<const __m256&>(value);
  reinterpret_cast<__m256&>(best) = _mm256_blendv_ps(b, v, greater_avx2(v, b));
}
D2_TARGET_AVX2 inline void take_avx2(vector_t<double>& best, const vector_t<double>& value) {
  const __m256d b = reinterpret_cast<const __m256d&>(best), v = reinterpret_cast<const __m256d&>(value);
  reinterpret_cast<__m256d&>(best) = _mm256_blendv_pd(b, v, greater_avx2(v, b));
}
D2_TARGET_AVX2 inline void settle_avx2(simd::Float8& out, simd::Float8& sum, const simd::Float8& value,
                                       const simd::Float8& best) {
  const __m256 s = reinterpret_cast<const __m256&>(sum);
  const __m256 mine = greater_avx2(reinterpret_cast<const __m256&>(value), reinterpret_cast<const __m256&>(best));
  reinterpret_cast<__m256&>(out) = _mm256_and_ps(mine, s);
  reinterpret_cast<__m256&>(sum) = _mm256_andnot_ps(mine, s);
}
D2_TARGET_AVX2 inline void settle_avx2(vector_t<double>& out, vector_t<double>& sum, const vector_t<double>& value,
                                       const vector_t<double>& best) {
  const __m256d s = reinterpret_cast<const __m256d&>(sum);
  const __m256d mine = greater_avx2(reinterpret_cast<const __m256d&>(value), reinterpret_cast<const __m256d&>(best));
  reinterpret_cast<__m256d&>(out) = _mm256_and_pd(mine, s);
  reinterpret_cast<__m256d&>(sum) = _mm256_andnot_pd(mine, s);
}
#endif

// The running maximum after `value`.
template <Level L, typename V>
D2_INLINE void take(V& best, const V& value) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return take_avx2(best, value);
#endif
  for (size_t i = 0; i < sizeof(V) / sizeof(best[0]); ++i) best[i] = replaces(value[i], best[i]) ? value[i] : best[i];
}

// Where `value` replaced `best`, the gradient summed so far is its own: it leaves `sum` for `out`, which is else zero.
template <Level L, typename V>
D2_INLINE void settle(V& out, V& sum, const V& value, const V& best) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return settle_avx2(out, sum, value, best);
#endif
  for (size_t i = 0; i < sizeof(V) / sizeof(best[0]); ++i) {
    const bool mine = replaces(value[i], best[i]);
    out[i] = mine ? sum[i] : 0;
    sum[i] = mine ? 0 : sum[i];
  }
}

template <Level L, typename T>
D2_INLINE void load_vector(vector_t<accumulate_t<T>>& value, const T* from) {
  if constexpr (sizeof(T) == 2) {
    simd::load8<L>(value, from);
  } else {
    simd::load(value, from);
  }
}
template <Level L, typename T>
D2_INLINE void store_vector(T* to, const vector_t<accumulate_t<T>>& value) {
  if constexpr (sizeof(T) == 2) {
    simd::store8<L>(to, value);
  } else {
    simd::store(to, value);
  }
}

// Asks for memory that is soon read or written. The hardware does so by itself only for what is walked upwards.
template <bool kWrite, typename T>
D2_INLINE void fetch(const T* at, int64_t count) {
  const char* begin = reinterpret_cast<const char*>(at);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64) {
    __builtin_prefetch(begin + byte, kWrite, 3);
  }
}

// Steps that lie about 4 kB ahead when each touches `count` elements.
template <typename T>
D2_INLINE int64_t steps_ahead(int64_t count) {
  return 1 + 4096 / (count * static_cast<int64_t>(sizeof(T)));
}

// One step of a scan for `count` columns; `best` is their running maximum. Writes it to `out`, or adds it there.
template <Level L, bool kFirst, bool kAdd, typename T, typename A>
D2_INLINE void step_columns(T* D2_RESTRICT out, const T* D2_RESTRICT in, A* D2_RESTRICT best, int64_t count) {
  int64_t j = 0;
  for (; j + kWidth<A> <= count; j += kWidth<A>) {
    vector_t<A> value, top, sum;
    load_vector<L>(value, in + j);
    if constexpr (kFirst) {
      top = value;
    } else {
      simd::load(top, best + j);
      take<L>(top, value);
    }
    simd::store(best + j, top);
    if constexpr (kAdd) {
      load_vector<L>(sum, out + j);
      top += sum;
    }
    store_vector<L>(out + j, top);
  }
  for (; j < count; ++j) {
    const A value = static_cast<A>(in[j]);
    if (kFirst || replaces(value, best[j])) best[j] = value;
    out[j] = static_cast<T>(kAdd ? static_cast<A>(out[j]) + best[j] : best[j]);
  }
}

// A whole scan for `count` columns; steps lie `stride` apart.
template <Level L, typename T, typename A>
D2_INLINE void scan_columns(T* out, const T* in, A* best, const Scan& s, int64_t stride, int64_t count) {
  step_columns<L, true, false>(out + s.at(0) * stride, in + s.at(0) * stride, best, count);
  const int64_t ahead = steps_ahead<T>(count);
  for (int64_t i = 1; i < s.length; ++i) {
    if (i + ahead < s.length) {
      fetch<false>(in + s.at(i + ahead) * stride, count);
      fetch<true>(out + s.at(i + ahead) * stride, count);
    }
    step_columns<L, false, false>(out + s.at(i) * stride, in + s.at(i) * stride, best, count);
  }
}

// `rows` (at most a vector's lanes of accumulators) rows of `count`, one after another in memory `stride` apart, into
// and out of buf[count][lanes]. The last few columns of a row overlap those before, so that none go one by one.
template <Level L, typename T, typename A>
D2_INLINE void turn_in(A* buf, const T* in, int64_t stride, int64_t rows, int64_t count) {
  constexpr int64_t kRows = simd::Wide<A>::kLanes;
  const int64_t even = count < 8 ? count : count & ~int64_t(7);
  simd::gather_lanes<L>(buf, in, stride, 1, rows, even);
  if (even < count) simd::gather_lanes<L>(buf + (count - 8) * kRows, in + count - 8, stride, 1, rows, 8);
}
template <Level L, typename T, typename A>
D2_INLINE void turn_out(T* out, const A* buf, int64_t stride, int64_t rows, int64_t count) {
  constexpr int64_t kRows = simd::Wide<A>::kLanes;
  const int64_t even = count < 8 ? count : count & ~int64_t(7);
  simd::scatter_lanes<L>(out, buf, stride, 1, rows, even);
  if (even < count) simd::scatter_lanes<L>(out + count - 8, buf + (count - 8) * kRows, stride, 1, rows, 8);
}

constexpr int64_t kRowChunk = 256;  // columns that are turned at a time

// Scans up to a vector's lanes of rows. `buf` holds kRowChunk vectors.
template <Level L, typename T, typename A>
D2_INLINE void scan_rows(T* out, const T* in, A* buf, const Scan& s, int64_t rows) {
  constexpr int64_t kRows = simd::Wide<A>::kLanes;
  vector_t<A> best[2] = {};
  for (int64_t done = 0; done < s.length; done += kRowChunk) {
    const int64_t count = std::min(kRowChunk, s.length - done);
    const int64_t begin = s.from_end ? s.length - done - count : done;
    turn_in<L>(buf, in + begin, s.length, rows, count);
    for (int64_t r = 0; r < rows; ++r) {  // the rows after these
      fetch<false>(in + begin + (rows + r) * s.length, count);
      fetch<true>(out + begin + (rows + r) * s.length, count);
    }
    const int64_t step = s.from_end ? -kRows : kRows;
    A* at = buf + (s.from_end ? count - 1 : 0) * kRows;
    if (done == 0) simd::load(best, at);
    for (int64_t i = 0; i < count; ++i, at += step) {
      for (int half = 0; half < 2; ++half) {
        vector_t<A> value;
        simd::load(value, at + half * kWidth<A>);
        take<L>(best[half], value);
        simd::store(at + half * kWidth<A>, best[half]);
      }
    }
    turn_out<L>(out + begin, buf, s.length, rows, count);
  }
}

// Columns that a task takes at a time: at most `most`, few enough to occupy the threads. Changes no result.
inline int64_t columns_of_task(const Scan& s, int64_t most) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = std::max<int64_t>(1, wanted / std::max<int64_t>(1, s.outer));
  const int64_t columns = (s.inner + parts - 1) / parts;
  return std::max<int64_t>(64, std::min(most, (columns + 63) / 64 * 64));
}

}  // namespace corner_pool
}  // namespace d2proj
