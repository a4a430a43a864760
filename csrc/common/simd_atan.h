// The arctangent for SIMD lanes, plain numbers and CUDA threads: one polynomial, no branch.
//
// atan(t) = t * P(t^2) on 0 <= t <= 1, P interpolated at Chebyshev nodes: its relative error is 3e-9 for float (10
// coefficients) and 4e-17 for double (20). What remains is rounding: within 3 ulp of the exact value.
#pragma once

#include <type_traits>

#include "common/macros.h"

#ifdef __CUDACC__
#define D2_LANES D2_HD
#else
// Forced, because a function that takes vectors wider than the base instruction set's has no usable calling convention.
#define D2_LANES inline __attribute__((always_inline))
#endif

namespace d2proj {

// The number type of a SIMD vector, or of a plain number.
template <typename V, bool kPlain = std::is_floating_point_v<V>>
struct ElementOf {
  using type = V;
};
template <typename V>
struct ElementOf<V, false> {
  using type = std::decay_t<decltype(V{}[0])>;
};
template <typename V>
using element_t = typename ElementOf<V>::type;

// atan(t) for 0 <= t <= 1; NaN for NaN.
template <typename V>
D2_LANES V atan_unit(const V& t) {
  using T = element_t<V>;
  const V z = t * t;
  if constexpr (sizeof(T) == sizeof(float)) {
    V p = z * T(-0.00170117006407) + T(0.0104876492549);
    p = p * z + T(-0.0303518647858);
    p = p * z + T(0.0570895559303);
    p = p * z + T(-0.083497249683);
    p = p * z + T(0.109323415013);
    p = p * z + T(-0.142600160828);
    p = p * z + T(0.199980752811);
    p = p * z + T(-0.33333276292);
    p = p * z + T(0.999999997161);
    return p * t;
  } else {
    V p = z * T(-0.0000193423475928922986) + T(0.000214238107386039468);
    p = p * z + T(-0.00112525443022346454);
    p = p * z + T(0.00375113848396514119);
    p = p * z + T(-0.00899108054265826073);
    p = p * z + T(0.0167195960635073887);
    p = p * z + T(-0.0255686236443717393);
    p = p * z + T(0.0338712670270067489);
    p = p * z + T(-0.0408112475031788523);
    p = p * z + T(0.0466874530484852871);
    p = p * z + T(-0.0523742347191881684);
    p = p * z + T(0.0587682811448727217);
    p = p * z + T(-0.0666576491068972235);
    p = p * z + T(0.0769219899745829418);
    p = p * z + T(-0.0909089979321734102);
    p = p * z + T(0.111111105780020824);
    p = p * z + T(-0.14285714266926734);
    p = p * z + T(0.199999999996479603);
    p = p * z + T(-0.333333333333307019);
    p = p * z + T(0.999999999999999967);
    return p * t;
  }
}

// The angle whose tangent is w / h, between -pi/2 and pi/2; 0 where both are 0. One division.
template <typename V>
D2_LANES V atan_ratio(const V& w, const V& h) {
  using T = element_t<V>;
  const V zero{};
  const V abs_w = w < zero ? -w : w, abs_h = h < zero ? -h : h;
  const V large = abs_w > abs_h ? abs_w : abs_h;
  const V small = abs_w > abs_h ? abs_h : abs_w;
  const V quotient = small / large;
  const V first = atan_unit<V>(large == zero ? zero : quotient);
  const V angle = abs_w > abs_h ? T(1.57079632679489661923) - first : first;
  // The sign of w / h; an exact zero keeps h's side.
  const V flipped = (w < zero ? -angle : angle);
  return h < zero ? -flipped : flipped;
}

}  // namespace d2proj
