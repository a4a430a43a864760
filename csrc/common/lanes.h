// Vectors as wide as the registers of an instruction set, for kernels that work on structures of arrays.
#pragma once

#include "common/simd.h"

namespace d2proj {
namespace simd {

template <Level L, typename T>
struct Native {
#if defined(__x86_64__)
  static constexpr int kBytes = L == Level::kAvx512 ? 64 : L == Level::kAvx2 ? 32 : 16;
#else
  static constexpr int kBytes = 16;
#endif
  static constexpr int kLanes = kBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(kBytes)));
};

#if defined(__x86_64__)
D2_TARGET_AVX512 inline uint32_t bits_avx512(const void* mask, float) {
  return _mm512_movepi32_mask(_mm512_loadu_si512(mask));
}
D2_TARGET_AVX512 inline uint32_t bits_avx512(const void* mask, double) {
  return _mm512_movepi64_mask(_mm512_loadu_si512(mask));
}
D2_TARGET_AVX2 inline uint32_t bits_avx2(const void* mask, float) {
  return _mm256_movemask_ps(_mm256_loadu_ps(static_cast<const float*>(mask)));
}
D2_TARGET_AVX2 inline uint32_t bits_avx2(const void* mask, double) {
  return _mm256_movemask_pd(_mm256_loadu_pd(static_cast<const double*>(mask)));
}
#endif

// Bit i: whether lane i of a comparison's result is true. `T` is the type that was compared.
template <Level L, typename T, typename Mask>
D2_INLINE uint32_t bits(const Mask& mask) {
#if defined(__x86_64__)
  if constexpr (L == Level::kAvx512) return bits_avx512(&mask, T{});
  if constexpr (L == Level::kAvx2) return bits_avx2(&mask, T{});
#endif
  uint32_t result = 0;
  for (int i = 0; i < Native<L, T>::kLanes; ++i) result |= static_cast<uint32_t>(mask[i] & 1) << i;
  return result;
}

}  // namespace simd
}  // namespace d2proj
