// Elementary functions of single numbers, without branches, so that a loop over them vectorises in whatever function it
// is inlined into: only constants are chosen between (g++ moves arithmetic into the branches of a choice, and then
// gives the loop up). Polynomials
// carried on until what is left out is below rounding; the losses made of them are tested to a relative error of 2e-6
// in float32 and 1e-13 in float64 (tests/ops/test_sigmoid_focal_loss.py).
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/simd.h"

namespace d2proj {
namespace simd {

template <typename A>
struct FloatBits;
template <>
struct FloatBits<float> {
  using type = int32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  static constexpr float kTiny = 1.1754943508222875e-38f;
  static constexpr float kExpLowest = -104.0f;  // e^x of less is zero
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723212e-6f;
  static constexpr int kExpTerms = 7, kAtanhTerms = 5;
};
template <>
struct FloatBits<double> {
  using type = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kTiny = 2.2250738585072014e-308;
  static constexpr double kExpLowest = -746.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kExpTerms = 13, kAtanhTerms = 11;
};

template <typename To, typename From>
D2_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

constexpr double kInverseFactorial[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

// The bits of 2^power. Unsigned: what a NaN leads to here may be anything, and must not be undefined.
template <typename A>
D2_INLINE auto exponent_bits(typename FloatBits<A>::type power) {
  using U = std::make_unsigned_t<typename FloatBits<A>::type>;
  return (static_cast<U>(power) + U(FloatBits<A>::kBias)) << FloatBits<A>::kMantissa;
}

// e^x for x <= 0 (and a little above).
template <typename A>
D2_INLINE A exp_negative(A x) {
  using F = FloatBits<A>;
  using B = typename F::type;
  x = x < F::kExpLowest ? F::kExpLowest : x;  // a NaN stays
  const A shifted = x * A(1.4426950408889634074) + F::kRound;
  const A n = shifted - F::kRound;
  const A r = (x - n * F::kLn2High) - n * F::kLn2Low;
  A sum = A(kInverseFactorial[F::kExpTerms]);
#pragma GCC unroll 16
  for (int k = F::kExpTerms - 1; k >= 0; --k) sum = sum * r + A(kInverseFactorial[k]);
  // 2^n in two factors: neither leaves the normal range.
  using U = std::make_unsigned_t<B>;
  const B power = static_cast<B>(bits_as<U>(shifted) - bits_as<U>(F::kRound)), half = power >> 1;
  const A a = bits_as<A>(exponent_bits<A>(half));
  const A b = bits_as<A>(exponent_bits<A>(static_cast<B>(static_cast<U>(power) - static_cast<U>(half))));
  return sum * a * b;
}

// 2 atanh(z), the logarithm of (1 + z) / (1 - z), for |z| up to 0.172.
template <typename A>
D2_INLINE A twice_atanh(A z) {
  const A square = z * z;
  A sum = A(1.0 / (2 * FloatBits<A>::kAtanhTerms + 1));
#pragma GCC unroll 16
  for (int k = FloatBits<A>::kAtanhTerms - 1; k > 0; --k) sum = sum * square + A(1.0 / (2 * k + 1));
  return A(2) * (z + z * square * sum);
}

// log(1 + e) for e from 0 to 1.
template <typename A>
D2_INLINE A log1p_unit(A e) {
  // The larger ones as log((1 + e) / 2) + log(2).
  const bool large = e > A(0.41421356237309515);
  const A result = twice_atanh((e - (large ? A(1) : A(0))) / (e + (large ? A(3) : A(2))));
  return result + (large ? A(0.69314718055994530942) : A(0));
}

// log(s) for s >= 0; a NaN for less.
template <typename A>
D2_INLINE A log_positive(A s) {
  using F = FloatBits<A>;
  using B = typename F::type;
  using U = std::make_unsigned_t<B>;
  const bool small = s < F::kTiny;  // below the normal range: times 2^24 or 2^54
  const U bits = bits_as<U>(s * (small ? A(sizeof(A) == 4 ? 16777216.0 : 18014398509481984.0) : A(1)));
  // Without its exponent the number lies between sqrt(1/2) and sqrt(2).
  const B exponent = static_cast<B>(bits - bits_as<U>(A(0.70710678118654752440))) >> F::kMantissa;
  const A rest = bits_as<A>(bits - (static_cast<U>(exponent) << F::kMantissa));
  const A n = static_cast<A>(exponent - (small ? F::kMantissa + (sizeof(A) == 4 ? 1 : 2) : 0));
  const A result = n * F::kLn2High + (twice_atanh((rest - A(1)) / (rest + A(1))) + n * F::kLn2Low);
  const A at_zero = s == A(0) ? A(-__builtin_inf()) : A(__builtin_nan(""));
  return result + (s > A(0) ? A(0) : at_zero);
}

}  // namespace simd
}  // namespace d2proj
