// Corner pooling on the CPU, what its passes share: vectors as wide as the registers of an instruction set.
//
// Two ways to scan: columns (inner > 1), where the running maxima of a stretch of columns lie in a small buffer and
// rows stream past it; and rows (inner == 1), each scanned a register at a time in log2(lanes) steps. All memory is
// walked in one direction, upwards or, for a scan from the end, downwards throughout: the hardware fetches either
// ahead, but not rows that are read upwards one below the other.
#pragma once

#include <algorithm>
#include <limits>

#include "common/lanes.h"
#include "common/map.h"
#include "corner_pool/corner_pool_args.h"

namespace d2proj {
namespace corner_pool {

using simd::Level;

constexpr int64_t kGrain = 1 << 15;  // elements worth a thread's while

template <Level L, typename A>
using Lanes = typename simd::Native<L, A>::Vector;
template <Level L, typename A>
constexpr int kLanes = simd::Native<L, A>::kLanes;

// One bit a lane.
using Bits = uint16_t;

template <typename A>
constexpr A kLowest = -std::numeric_limits<A>::infinity();

// Lane i of a vector that moves by kShift lanes comes from lane i - kShift; past an end, from the lane there. `kParts`
// indices a lane.
template <typename I, int kCount, int kParts, int kShift>
struct Moved {
  alignas(64) I from[kCount * kParts];
  constexpr Moved() : from() {
    for (int i = 0; i < kCount; ++i) {
      const int lane = i < kShift ? 0 : i - kShift >= kCount ? kCount - 1 : i - kShift;
      for (int p = 0; p < kParts; ++p) from[i * kParts + p] = static_cast<I>(lane * kParts + p);
    }
  }
};
template <typename I, int kCount, int kParts, int kShift>
constexpr Moved<I, kCount, kParts, kShift> kMoved{};

// Comparing, choosing and moving is in intrinsics: g++ takes GNU vectors apart for these, element by element, in code
// that is inlined into a function for a later instruction set.
#if defined(__x86_64__)
using Float16 = Lanes<Level::kAvx512, float>;
using Double8 = Lanes<Level::kAvx512, double>;
using Float8 = Lanes<Level::kAvx2, float>;
using Double4 = Lanes<Level::kAvx2, double>;
using Float4 = Lanes<Level::kBase, float>;
using Double2 = Lanes<Level::kBase, double>;

// g++ 12 warns of the unmasked intrinsics that these stand for (GCC bug 105593); the code is the same.
constexpr uint16_t kAll16 = 0xffff;
constexpr uint8_t kAll8 = 0xff;

D2_TARGET_AVX512 inline void larger_wide(Float16& best, const Float16& value) {
  best = (Float16)_mm512_maskz_max_ps(kAll16, (__m512)value, (__m512)best);
}
D2_TARGET_AVX512 inline void larger_wide(Double8& best, const Double8& value) {
  best = (Double8)_mm512_maskz_max_pd(kAll8, (__m512d)value, (__m512d)best);
}
D2_TARGET_AVX2 inline void larger_wide(Float8& best, const Float8& value) {
  best = (Float8)_mm256_max_ps((__m256)value, (__m256)best);
}
D2_TARGET_AVX2 inline void larger_wide(Double4& best, const Double4& value) {
  best = (Double4)_mm256_max_pd((__m256d)value, (__m256d)best);
}

D2_TARGET_AVX512 inline bool has_nan_wide(const Float16& v) {
  return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q) != 0;
}
D2_TARGET_AVX512 inline bool has_nan_wide(const Double8& v) {
  return _mm512_cmp_pd_mask((__m512d)v, (__m512d)v, _CMP_UNORD_Q) != 0;
}
D2_TARGET_AVX2 inline bool has_nan_wide(const Float8& v) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q)) != 0;
}
D2_TARGET_AVX2 inline bool has_nan_wide(const Double4& v) {
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, (__m256d)v, _CMP_UNORD_Q)) != 0;
}

// maxps keeps its second operand where they are equal or either is a NaN: `best`, wrong only for a NaN that is new.
D2_TARGET_AVX512 inline void take_wide(Float16& best, const Float16& value) {
  const __m512 v = (__m512)value, top = _mm512_maskz_max_ps(kAll16, v, (__m512)best);
  best = (Float16)_mm512_mask_mov_ps(top, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
}
D2_TARGET_AVX512 inline void take_wide(Double8& best, const Double8& value) {
  const __m512d v = (__m512d)value, top = _mm512_maskz_max_pd(kAll8, v, (__m512d)best);
  best = (Double8)_mm512_mask_mov_pd(top, _mm512_cmp_pd_mask(v, v, _CMP_UNORD_Q), v);
}
D2_TARGET_AVX2 inline void take_wide(Float8& best, const Float8& value) {
  const __m256 v = (__m256)value, top = _mm256_max_ps(v, (__m256)best);
  best = (Float8)_mm256_blendv_ps(top, v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
D2_TARGET_AVX2 inline void take_wide(Double4& best, const Double4& value) {
  const __m256d v = (__m256d)value, top = _mm256_max_pd(v, (__m256d)best);
  best = (Double4)_mm256_blendv_pd(top, v, _mm256_cmp_pd(v, v, _CMP_UNORD_Q));
}

D2_TARGET_AVX512 inline uint32_t replaced_wide(const Float16& value, const Float16& best) {
  const __m512 v = (__m512)value, b = (__m512)best;
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(b, b, _CMP_ORD_Q), v, b, _CMP_NLE_UQ);
}
D2_TARGET_AVX512 inline uint32_t replaced_wide(const Double8& value, const Double8& best) {
  const __m512d v = (__m512d)value, b = (__m512d)best;
  return _mm512_mask_cmp_pd_mask(_mm512_cmp_pd_mask(b, b, _CMP_ORD_Q), v, b, _CMP_NLE_UQ);
}
D2_TARGET_AVX2 inline uint32_t replaced_wide(const Float8& value, const Float8& best) {
  const __m256 v = (__m256)value, b = (__m256)best;
  return _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(v, b, _CMP_NLE_UQ), _mm256_cmp_ps(b, b, _CMP_ORD_Q)));
}
D2_TARGET_AVX2 inline uint32_t replaced_wide(const Double4& value, const Double4& best) {
  const __m256d v = (__m256d)value, b = (__m256d)best;
  return _mm256_movemask_pd(_mm256_and_pd(_mm256_cmp_pd(v, b, _CMP_NLE_UQ), _mm256_cmp_pd(b, b, _CMP_ORD_Q)));
}

template <int kShift>
D2_TARGET_AVX512 inline void move_wide(Float16& out, const Float16& v) {
  out = (Float16)_mm512_maskz_permutexvar_ps(kAll16, _mm512_load_si512(kMoved<int32_t, 16, 1, kShift>.from), (__m512)v);
}
template <int kShift>
D2_TARGET_AVX512 inline void move_wide(Double8& out, const Double8& v) {
  out = (Double8)_mm512_maskz_permutexvar_pd(kAll8, _mm512_load_si512(kMoved<int64_t, 8, 1, kShift>.from), (__m512d)v);
}
template <int kShift>
D2_TARGET_AVX2 inline void move_wide(Float8& out, const Float8& v) {
  const auto* from = reinterpret_cast<const __m256i*>(kMoved<int32_t, 8, 1, kShift>.from);
  out = (Float8)_mm256_permutevar8x32_ps((__m256)v, _mm256_load_si256(from));
}
template <int kShift>
D2_TARGET_AVX2 inline void move_wide(Double4& out, const Double4& v) {
  const auto* from = reinterpret_cast<const __m256i*>(kMoved<int32_t, 4, 2, kShift>.from);
  out = (Double4)_mm256_permutevar8x32_ps((__m256)v, _mm256_load_si256(from));
}

template <int kShift>
inline void move_wide(Float4& out, const Float4& v) {
  constexpr auto& from = kMoved<int32_t, 4, 1, kShift>.from;
  constexpr int kFrom = from[0] | from[1] << 2 | from[2] << 4 | from[3] << 6;
  out = (Float4)_mm_shuffle_ps((__m128)v, (__m128)v, kFrom);
}
template <int kShift>
inline void move_wide(Double2& out, const Double2& v) {
  constexpr auto& from = kMoved<int64_t, 2, 1, kShift>.from;
  out = (Double2)_mm_shuffle_pd((__m128d)v, (__m128d)v, static_cast<int>(from[0] | from[1] << 1));
}

D2_TARGET_AVX512 inline void choose_wide(Float16& out, const Float16& v, uint32_t bits) {
  out = (Float16)_mm512_mask_mov_ps((__m512)out, static_cast<__mmask16>(bits), (__m512)v);
}
D2_TARGET_AVX512 inline void choose_wide(Double8& out, const Double8& v, uint32_t bits) {
  out = (Double8)_mm512_mask_mov_pd((__m512d)out, static_cast<__mmask8>(bits), (__m512d)v);
}
D2_TARGET_AVX512 inline void add_wide(Float16& sum, const Float16& v, uint32_t bits) {
  sum = (Float16)_mm512_mask_add_ps((__m512)sum, static_cast<__mmask16>(bits), (__m512)sum, (__m512)v);
}
D2_TARGET_AVX512 inline void add_wide(Double8& sum, const Double8& v, uint32_t bits) {
  sum = (Double8)_mm512_mask_add_pd((__m512d)sum, static_cast<__mmask8>(bits), (__m512d)sum, (__m512d)v);
}
D2_TARGET_AVX2 inline __m256i spread_bits(uint32_t bits, float) {
  const __m256i one = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), one), one);
}
D2_TARGET_AVX2 inline __m256i spread_bits(uint32_t bits, double) {
  const __m256i one = _mm256_setr_epi64x(1, 2, 4, 8);
  return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), one), one);
}
D2_TARGET_AVX2 inline void choose_wide(Float8& out, const Float8& v, uint32_t bits) {
  out = (Float8)_mm256_blendv_ps((__m256)out, (__m256)v, (__m256)spread_bits(bits, 0.f));
}
D2_TARGET_AVX2 inline void choose_wide(Double4& out, const Double4& v, uint32_t bits) {
  out = (Double4)_mm256_blendv_pd((__m256d)out, (__m256d)v, (__m256d)spread_bits(bits, 0.));
}
D2_TARGET_AVX2 inline void add_wide(Float8& sum, const Float8& v, uint32_t bits) {
  sum += (Float8)_mm256_and_ps((__m256)v, (__m256)spread_bits(bits, 0.f));
}
D2_TARGET_AVX2 inline void add_wide(Double4& sum, const Double4& v, uint32_t bits) {
  sum += (Double4)_mm256_and_pd((__m256d)v, (__m256d)spread_bits(bits, 0.));
}

// Storage types. A maximum is a value that was read, so that it is stored without rounding.
D2_TARGET_AVX512 inline void read_wide(Float16& v, const c10::Half* from) {
  v = (Float16)_mm512_maskz_cvtph_ps(kAll16, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
D2_TARGET_AVX512 inline void read_wide(Float16& v, const c10::BFloat16* from) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  v = (Float16)_mm512_maskz_slli_epi32(kAll16, _mm512_maskz_cvtepu16_epi32(kAll16, raw), 16);
}
D2_TARGET_AVX2 inline void read_wide(Float8& v, const c10::Half* from) {
  v = (Float8)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
D2_TARGET_AVX2 inline void read_wide(Float8& v, const c10::BFloat16* from) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  v = (Float8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16);
}
template <bool kExact>
D2_TARGET_AVX512 inline void write_wide(c10::Half* to, const Float16& v) {
  const __m256i raw = _mm512_maskz_cvtps_ph(kAll16, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), raw);
}
template <bool kExact>
D2_TARGET_AVX512 inline void write_wide(c10::BFloat16* to, const Float16& v) {
  __m512i bits = (__m512i)v;
  if constexpr (!kExact) {
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(kAll16, bits, 16), _mm512_set1_epi32(1));
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    bits = _mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtepi32_epi16(kAll16, _mm512_maskz_srli_epi32(kAll16, bits, 16)));
}
template <bool kExact>
D2_TARGET_AVX2 inline void write_wide(c10::Half* to, const Float8& v) {
  simd::store8<Level::kAvx2>(to, v);
}
template <bool kExact>
D2_TARGET_AVX2 inline void write_wide(c10::BFloat16* to, const Float8& v) {
  __m256i bits = (__m256i)v;
  if constexpr (!kExact) {
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256 nan = _mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    bits = (__m256i)_mm256_blendv_ps((__m256)bits, (__m256)_mm256_set1_epi32(0x7fc00000), nan);
  }
  bits = _mm256_srli_epi32(bits, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

// The first `count` lanes, fewer than all.
D2_TARGET_AVX512 inline void read_part(Float16& v, const float* from, int64_t count, float fill) {
  v = (Float16)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), from);
}
D2_TARGET_AVX512 inline void read_part(Double8& v, const double* from, int64_t count, double fill) {
  v = (Double8)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>((1u << count) - 1), from);
}
D2_TARGET_AVX2 inline void read_part(Float8& v, const float* from, int64_t count, float fill) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  v = (Float8)_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(from, mask), (__m256)mask);
}
D2_TARGET_AVX2 inline void read_part(Double4& v, const double* from, int64_t count, double fill) {
  const __m256i mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
  v = (Double4)_mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(from, mask), (__m256d)mask);
}
// Not a masked store, which takes some CPUs dozens of steps.
D2_TARGET_AVX2 inline void write_part(float* to, const Float8& v, int64_t count) {
  __m128 low = _mm256_castps256_ps128((__m256)v);
  if (count & 4) {
    _mm_storeu_ps(to, low);
    to += 4;
    low = _mm256_extractf128_ps((__m256)v, 1);
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(to), low);
    to += 2;
    low = _mm_movehl_ps(low, low);
  }
  if (count & 1) _mm_store_ss(to, low);
}
D2_TARGET_AVX2 inline void write_part(double* to, const Double4& v, int64_t count) {
  __m128d low = _mm256_castpd256_pd128((__m256d)v);
  if (count & 2) {
    _mm_storeu_pd(to, low);
    to += 2;
    low = _mm256_extractf128_pd((__m256d)v, 1);
  }
  if (count & 1) _mm_store_sd(to, low);
}
D2_TARGET_AVX512 inline void write_part(float* to, const Float16& v, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
}
D2_TARGET_AVX512 inline void write_part(double* to, const Double8& v, int64_t count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), (__m512d)v);
}
#endif

// The running maximum after `value`.
template <Level L, typename V>
D2_INLINE void take(V& best, const V& value) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return take_wide(best, value);
#endif
  best = replaces(value, best) ? value : best;
}

// Bit i: whether lane i of `value` takes the place of that of `best`.
template <Level L, typename V>
D2_INLINE uint32_t replaced(const V& value, const V& best) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return replaced_wide(value, best);
#endif
  const auto mask = replaces(value, best);
  uint32_t bits = 0;
  for (size_t i = 0; i < sizeof(V) / sizeof(best[0]); ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
}

// out[i] = v[i - kShift], or the lane at the end that this is past.
template <Level L, int kShift, typename V>
D2_INLINE void move(V& out, const V& v) {
#if defined(__x86_64__)
  return move_wide<kShift>(out, v);
#else
  constexpr int kCount = sizeof(V) / sizeof(v[0]);
  const V from = v;
  for (int i = 0; i < kCount; ++i) out[i] = from[kMoved<int32_t, kCount, 1, kShift>.from[i]];
#endif
}

// All bits of the lanes that `bits` names.
template <typename V>
D2_INLINE auto mask_of(const V& like, uint32_t bits) {
  decltype(like == like) lane = {};
  for (size_t i = 0; i < sizeof(V) / sizeof(like[0]); ++i) lane[i] = 1 << i;
  return ((lane * 0 + bits) & lane) == lane;
}
// Lanes of `v` where `bits` says so.
template <Level L, typename V>
D2_INLINE void choose(V& out, const V& v, uint32_t bits) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return choose_wide(out, v, bits);
#endif
  out = mask_of(v, bits) ? v : out;
}
template <Level L, typename V>
D2_INLINE void add(V& sum, const V& v, uint32_t bits) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) return add_wide(sum, v, bits);
#endif
  sum = mask_of(v, bits) ? sum + v : sum;
}

template <Level L, typename T>
D2_INLINE void read_all(Lanes<L, accumulate_t<T>>& v, const T* from) {
  if constexpr (sizeof(T) != 2) {
    simd::load(v, from);
  } else {
#if defined(__x86_64__)
    if constexpr (L != Level::kBase) return read_wide(v, from);
#endif
    for (int i = 0; i < kLanes<L, accumulate_t<T>>; ++i) v[i] = static_cast<accumulate_t<T>>(from[i]);
  }
}
template <Level L, bool kExact, typename T>
D2_INLINE void write_all(T* to, const Lanes<L, accumulate_t<T>>& v) {
  if constexpr (sizeof(T) != 2) {
    simd::store(to, v);
  } else {
#if defined(__x86_64__)
    if constexpr (L != Level::kBase) return write_wide<kExact>(to, v);
#endif
    for (int i = 0; i < kLanes<L, accumulate_t<T>>; ++i) to[i] = static_cast<T>(v[i]);
  }
}

// The first `count` lanes; the others are read as `fill`.
template <Level L, typename T>
D2_INLINE void read(Lanes<L, accumulate_t<T>>& v, const T* from, int64_t count, accumulate_t<T> fill) {
  constexpr int kCount = kLanes<L, accumulate_t<T>>;
  if (count >= kCount) return read_all<L>(v, from);
#if defined(__x86_64__)
  if constexpr (L != Level::kBase && sizeof(T) > 2) return read_part(v, from, count, fill);
#endif
  if constexpr (L == Level::kBase) {
    v = Lanes<L, accumulate_t<T>>{} + fill;
    for (int i = 0; i < kCount - 1; ++i) {
      if (i < count) v[i] = static_cast<accumulate_t<T>>(from[i]);
    }
    return;
  }
  T padded[kCount];
  for (int i = 0; i < kCount; ++i) padded[i] = static_cast<T>(fill);
  for (int i = 0; i < count; ++i) padded[i] = from[i];
  read_all<L>(v, padded);
}
template <Level L, bool kExact, typename T>
D2_INLINE void write(T* to, const Lanes<L, accumulate_t<T>>& v, int64_t count) {
  constexpr int kCount = kLanes<L, accumulate_t<T>>;
  if (count >= kCount) return write_all<L, kExact>(to, v);
#if defined(__x86_64__)
  if constexpr (L != Level::kBase && sizeof(T) > 2) return write_part(to, v, count);
#endif
  if constexpr (L == Level::kBase) {
    for (int i = 0; i < kCount - 1; ++i) {
      if (i < count) to[i] = static_cast<T>(v[i]);
    }
    return;
  }
  T padded[kCount];
  write_all<L, kExact>(padded, v);
  for (int i = 0; i < count; ++i) to[i] = padded[i];
}

// The maxima of the lanes up to each, in scan order: from lane 0, or (kBack) from the last.
template <Level L, bool kBack, int kStep = 1, typename V>
D2_INLINE void scan_take(V& v) {
  if constexpr (kStep < static_cast<int>(sizeof(V) / sizeof(v[0]))) {
    V before;
    move<L, kBack ? -kStep : kStep>(before, v);
    take<L>(before, v);
    v = before;
    scan_take<L, kBack, 2 * kStep>(v);
  }
}
#if defined(__x86_64__)
template <Level L, bool kBack, int kStep = 1, typename V>
D2_INLINE void scan_larger(V& v) {
  if constexpr (kStep < static_cast<int>(sizeof(V) / sizeof(v[0]))) {
    V before;
    move<L, kBack ? -kStep : kStep>(before, v);
    larger_wide(before, v);
    v = before;
    scan_larger<L, kBack, 2 * kStep>(v);
  }
}
#endif
template <Level L, bool kBack, typename V>
D2_INLINE void scan_lanes(V& v) {
#if defined(__x86_64__)
  if constexpr (L != Level::kBase) {
    if (__builtin_expect(!has_nan_wide(v), 1)) return scan_larger<L, kBack>(v);
  }
#endif
  scan_take<L, kBack>(v);
}

// The next vector of a row: `v` becomes its running maxima, `carry` (of the row so far, in all lanes) goes on.
template <Level L, bool kBack, typename V>
D2_INLINE void step_row(V& v, V& carry) {
  constexpr int kCount = sizeof(V) / sizeof(v[0]);
  scan_lanes<L, kBack>(v);
  V last, whole = carry;
  move<L, kBack ? kCount : -kCount>(last, v);
  take<L>(whole, v);
  take<L>(carry, last);
  v = whole;
}

// Vectors of `count` columns.
template <Level L, typename A>
D2_INLINE int64_t vectors(int64_t count) {
  return (count + kLanes<L, A> - 1) / kLanes<L, A>;
}
// The first column of the k-th of them in scan order.
template <Level L, typename A, bool kBack>
D2_INLINE int64_t column(int64_t k, int64_t vectors) {
  return (kBack ? vectors - 1 - k : k) * kLanes<L, A>;
}

// Columns are padded to whole vectors in buffers; 64 bytes hold any.
inline int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

// Columns that a task takes at a time: at most `most`, few enough to occupy the threads. Changes no result.
inline int64_t columns_of_task(const Scan& s, int64_t most) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = std::max<int64_t>(1, wanted / std::max<int64_t>(1, s.outer));
  const int64_t columns = (s.inner + parts - 1) / parts;
  return std::max<int64_t>(64, std::min(most, (columns + 63) / 64 * 64));
}

// `Body<from_end>` at the running CPU's level: the direction is known when it is compiled.
template <template <bool> class Body, typename... Args>
void dispatch(bool from_end, const Args&... args) {
  if (from_end) return simd::dispatch<Body<true>>(args...);
  simd::dispatch<Body<false>>(args...);
}

}  // namespace corner_pool
}  // namespace d2proj
