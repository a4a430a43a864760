// Soft-NMS: what the CPU and the CUDA kernel share.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/tensor.h"
#include "nms/nms.h"
#include "nms/nms_decay.h"

namespace d2proj {
namespace soft_nms {

enum Method : int64_t { kLinear = 0, kGaussian = 1, kHard = 2 };

struct Options {
  double iou_threshold, sigma, min_score;
  int64_t method;
};

inline void check_options(const char* op, const Options& options) {
  check(options.method >= kLinear && options.method <= kHard, op, "method must be 0, 1 or 2, got ", options.method);
  check(options.method != kGaussian || options.sigma > 0, op, "sigma must be above 0, got ", options.sigma);
}

// The largest T below `threshold`, and at least 0: an IoU is above the one exactly when it is at least the other and
// not 0. Nothing is above NaN.
template <typename T>
inline T just_below(double threshold) {
  if (std::isnan(threshold)) return std::numeric_limits<T>::infinity();
  return std::max(T(0), nms::round_down<T>(std::nextafter(threshold, -INFINITY)));
}

// Method hard: greedy NMS that also drops at equality.
inline auto iou_at_least(double threshold) {
  return [=](auto tag) { return nms::IouCriterion<decltype(tag)>(just_below<decltype(tag)>(threshold)); };
}

// The factor of a score for an IoU > 0; V is a scalar or a vector, as in nms_decay.h, `inverse` is 1 / sigma.
template <typename T, typename V>
D2_HD_INLINE void gaussian_weight(V& weight, const V& iou, const V& inverse) {
  V square, exponent;
  nms::multiply(square, iou, iou);
  nms::multiply(exponent, square, inverse);
  nms::exp_nonpositive<T>(weight, V(-exponent));
}

template <typename V>
D2_HD_INLINE void linear_weight(V& weight, const V& iou, const V& above) {
  const V one = V{} + 1;
  weight = iou > above ? (iou < one ? one - iou : V{}) : one;
}

}  // namespace soft_nms
}  // namespace d2proj
