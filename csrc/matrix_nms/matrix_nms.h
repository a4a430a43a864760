// Matrix NMS: what the CPU and the CUDA kernel share.
#pragma once

#include "common/tensor.h"
#include "nms/nms.h"
#include "nms/nms_decay.h"

namespace d2proj {
namespace matrix_nms {

// Where a box's decay stands, as the least of what the boxes seen so far do to it: for the Gaussian the exponent,
// max(iou^2 - most^2), so that one exp at the end does; else min((1 - iou) / (1 - most)). `most` is the highest IoU
// that the other box has with one of a better score. V is a scalar or a vector.
template <typename V>
D2_HD_INLINE void gaussian_step(V& worst, const V& iou, const V& most) {
  V square, compensation;
  nms::multiply(square, iou, iou);
  nms::multiply(compensation, most, most);
  const V exponent = square - compensation;
  worst = exponent > worst ? exponent : worst;
}

template <typename V>
D2_HD_INLINE void linear_step(V& worst, const V& iou, const V& most) {
  const V one = V{} + 1;
  const V factor = (one - iou) / (one - most);  // NaN or infinite where `most` is 1: that box does nothing here
  worst = factor < worst ? factor : worst;
}

// The decayed score. Scores that are not above zero stay: a factor below 1 would raise them.
template <typename T>
D2_HD T decayed(T score, T worst, bool gaussian, T sigma) {
  if (!(score > T(0))) return score;
  return score * (gaussian ? nms::exp_nonpositive(-product(sigma, worst)) : worst);
}

inline void check_sigma(const char* op, double sigma) {
  check(sigma > 0 && sigma <= 1e30, op, "sigma must be above 0 and finite (at most 1e30), got ", sigma);
}

}  // namespace matrix_nms
}  // namespace d2proj
