// The arithmetic of NMS that lowers scores instead of dropping boxes; the same bits on every instruction set and
// device.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/box_iou.h"

// D2_HD that is inlined into its caller without fail, and so compiled for the caller's instruction set.
#ifdef __CUDACC__
#define D2_HD_INLINE D2_HD
#else
#define D2_HD_INLINE inline __attribute__((always_inline))
#endif

namespace d2proj {
namespace nms {

// Whether a box with this score stays; NaN does.
template <typename T>
D2_HD bool stays(T score, T min_score) {
  return !(score < min_score);
}

template <typename T>
struct ExpTraits;
template <>
struct ExpTraits<float> {
  static constexpr int kMantissa = 23, kDegree = 7;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kLowest = -86.0f;  // exp of less is taken to be zero
};
template <>
struct ExpTraits<double> {
  static constexpr int kMantissa = 52, kDegree = 13;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -707.0;
};

// A vector's lanes as integers; of a scalar, its bits.
template <typename V>
struct BitsOf {
  using type = decltype(V{} < V{});
};
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};

// Bits that are shifted: of a signed number that overflows it would be undefined (of GCC's vectors it is not).
template <typename V>
struct ShiftedOf : BitsOf<V> {};
template <>
struct ShiftedOf<float> {
  using type = uint32_t;
};
template <>
struct ShiftedOf<double> {
  using type = uint64_t;
};

// a * b, rounded before anything is added to it (see box_iou.h); V is a scalar or a vector that fits a register.
template <typename V>
D2_HD_INLINE void multiply(V& out, const V& a, const V& b) {
  if constexpr (std::is_floating_point_v<V>) {
    out = product(a, b);
  } else {
    out = a * b;
#if !defined(__CUDACC__) && defined(__x86_64__)
    asm("" : "+v"(out));
#elif !defined(__CUDACC__) && defined(__aarch64__)
    asm("" : "+w"(out));
#endif
  }
}

constexpr double inverse_factorial(int k) { return k < 2 ? 1.0 : inverse_factorial(k - 1) / k; }

// sum over k >= K of r^(k - K) / k!
template <typename T, int K, typename V>
D2_HD_INLINE void exp_series(V& sum, const V& r) {
  constexpr T first = T(inverse_factorial(K));
  sum = V{} + first;
  if constexpr (K < ExpTraits<T>::kDegree) {
    V rest;
    exp_series<T, K + 1>(rest, r);
    multiply(rest, rest, r);
    sum += rest;
  }
}

// exp(x) for x <= 0, to about a unit in the last place: x = n ln 2 + r, |r| <= ln(2) / 2, a series for exp(r). Library
// functions differ from one to the next; this one takes the same steps everywhere.
template <typename T, typename V>
D2_HD_INLINE void exp_nonpositive(V& out, const V& x) {
  using Traits = ExpTraits<T>;
  using Bits = typename ShiftedOf<V>::type;
  const V one = V{} + T(1);
  V shifted, high, low, power;
  multiply(shifted, x, one * T(1.4426950408889634));
  shifted += Traits::kRound;
  const V n = shifted - Traits::kRound;
  multiply(high, n, one * Traits::kLn2High);
  multiply(low, n, one * Traits::kLn2Low);
  const V r = (x - high) - low;
  exp_series<T, 0>(power, r);
  Bits exponent, bits;
  __builtin_memcpy(&exponent, &shifted, sizeof(V));  // its lowest bits are n
  __builtin_memcpy(&bits, &power, sizeof(V));
  bits += exponent << Traits::kMantissa;
  __builtin_memcpy(&power, &bits, sizeof(V));
  out = x < V{} + Traits::kLowest ? V{} : power;
}

template <typename T>
D2_HD_INLINE T exp_nonpositive(T x) {
  T result;
  exp_nonpositive<T, T>(result, x);
  return result;
}

}  // namespace nms
}  // namespace d2proj
