// DIoU-NMS: the criterion that the greedy engines of nms/ take in place of the IoU alone.
#pragma once

#include "common/tensor.h"
#include "nms/nms.h"

namespace d2proj {
namespace diou_nms {

// (d^2 / c^2)^beta: d between the boxes' centres, c the diagonal of the smallest box around both. Never negative, so
// a pair beyond the threshold has an IoU beyond it too. Zero for boxes that are one and the same point.
template <typename T>
D2_HD T distance_penalty(const Box<T>& a, const Box<T>& b, T beta) {
  const T dx = (a.x1 + a.x2) * T(0.5) - (b.x1 + b.x2) * T(0.5);
  const T dy = (a.y1 + a.y2) * T(0.5) - (b.y1 + b.y2) * T(0.5);
  const T width = (a.x2 > b.x2 ? a.x2 : b.x2) - (a.x1 < b.x1 ? a.x1 : b.x1);
  const T height = (a.y2 > b.y2 ? a.y2 : b.y2) - (a.y1 < b.y1 ? a.y1 : b.y1);
  const T diagonal = product(width, width) + product(height, height);
  const T ratio = diagonal > T(0) ? (product(dx, dx) + product(dy, dy)) / diagonal : T(0);
  return beta == T(1) ? ratio : std::pow(ratio, beta);
}

template <typename T>
struct DiouCriterion {
  using Scalar = T;
  using Box = d2proj::Box<T>;

  T threshold, beta;

  DiouCriterion(double threshold, double beta) : threshold(nms::round_down<T>(threshold)), beta(static_cast<T>(beta)) {}

  D2_HD static T area(const Box& box) { return box_area(box); }

  D2_HD bool operator()(const Box& a, T area_a, const Box& b, T area_b) const {
    const T iou = box_iou(a, area_a, b, area_b);
    return iou > threshold && iou - distance_penalty(a, b, beta) > threshold;
  }
};

inline void check_beta(const char* op, double beta) { check(beta >= 0, op, "beta must be at least 0, got ", beta); }

inline auto diou_above(double threshold, double beta) {
  return [=](auto tag) { return DiouCriterion<decltype(tag)>(threshold, beta); };
}

}  // namespace diou_nms
}  // namespace d2proj
