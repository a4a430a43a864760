// The focal loss of independent binary classifications (Lin et al., 2017, eq. 5), shared by the CPU and the CUDA
// kernel; no torch here. With p = sigmoid(x), target t and s = 1 - p_t = p (1 - t) + (1 - p) t:
//
//   loss = weight * s^gamma * ce,  ce = max(x, 0) (1 - t) + max(-x, 0) t + log(1 + exp(-|x|))
//   d loss / d x = weight * s^gamma * (p (1 - t) - (1 - p) t + gamma * ce * (1 - 2 t) * p (1 - p) / s)
//
// All of it comes from e = exp(-|x|), which cannot overflow; nothing is subtracted from one.
#pragma once

#include <cstdint>

#include "common/macros.h"

#define D2_ALWAYS D2_HD __attribute__((always_inline))

namespace d2proj {
namespace sigmoid_focal_loss {

enum Reduction { kNone = 0, kMean = 1, kSum = 2 };

template <typename A>
struct Focus {
  A positive, negative;  // weights of targets 1 and 0
  A gamma;

  static Focus make(double alpha, double gamma) {
    return alpha >= 0 ? Focus{A(alpha), A(1 - alpha), A(gamma)} : Focus{A(1), A(1), A(gamma)};
  }
};

// What a logit gives: its probability, one less that, and log(1 + exp(-|x|)).
template <typename A>
struct Odds {
  A p, q, tail;
};

// `e` is exp(-|x|) and `tail` log(1 + e).
template <typename A>
D2_ALWAYS Odds<A> odds_of(A x, A e, A tail) {
  const A large = A(1) / (A(1) + e), small = e * large;
  const bool above = x >= A(0);
  return {above ? large : small, above ? small : large, x != x ? x : tail};
}

// s^gamma; kGamma is gamma where it is a small whole number, -1 otherwise.
template <int kGamma, typename Math, typename A>
D2_ALWAYS A muted(A s, A gamma) {
  if (kGamma == 0) return A(1);
  if (kGamma == 1) return s;
  if (kGamma == 2) return s * s;
  return Math::power(s, gamma);
}

template <typename A>
D2_ALWAYS A cross_entropy(A x, A t, A tail) {
  const A up = x > A(0) ? x : A(0), minus = -x, down = x < A(0) ? minus : A(0);
  // An infinite logit that is right costs nothing: no infinity times zero.
  return (A(1) - t) * (t != A(1) ? up : A(0)) + t * (t != A(0) ? down : A(0)) + tail;
}

template <int kGamma, typename Math, typename A>
D2_ALWAYS A loss_of(A x, A t, const Focus<A>& focus) {
  const A minus = -x, e = Math::exp_negative(x < A(0) ? x : minus);
  const Odds<A> odds = odds_of(x, e, Math::log1p_unit(e));
  const A s = odds.p * (A(1) - t) + odds.q * t;
  const A weight = focus.positive * t + focus.negative * (A(1) - t);
  const A easy = muted<kGamma, Math>(s, focus.gamma);
  return weight * easy * cross_entropy(x, t, odds.tail);
}

template <int kGamma, typename Math, typename A>
D2_ALWAYS A gradient_of(A x, A t, const Focus<A>& focus) {
  const A minus = -x, e = Math::exp_negative(x < A(0) ? x : minus);
  const Odds<A> odds = odds_of(x, e, Math::log1p_unit(e));
  const A s = odds.p * (A(1) - t) + odds.q * t;
  const A weight = focus.positive * t + focus.negative * (A(1) - t);
  const A easy = muted<kGamma, Math>(s, focus.gamma);
  const A tiny = sizeof(A) == 4 ? A(1.1754943508222875e-38) : A(2.2250738585072014e-308);
  const A huge = sizeof(A) == 4 ? A(3.4028234663852886e38) : A(1.7976931348623157e308);
  A ce = cross_entropy(x, t, odds.tail);
  ce = ce > huge ? huge : ce;
  const A slope = (A(1) - t - t) * (odds.p * odds.q / (s + tiny));
  return weight * easy * (odds.p * (A(1) - t) - odds.q * t + focus.gamma * ce * slope);
}

}  // namespace sigmoid_focal_loss
}  // namespace d2proj
