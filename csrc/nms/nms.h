// Non-maximum suppression: what the CPU and the CUDA kernel share.
//
// Both sort by a key of the score (highest first, NaN last, equal scores in the order given) and
// suppress a box when its IoU with a box kept before it is strictly above the threshold.

#pragma once

#include <cstdint>
#include <cstring>

#include "common/box_iou.h"

namespace d2proj {
namespace nms {

template <typename T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};
template <typename T>
using Key = typename KeyOf<T>::type;

// An unsigned integer that sorts upwards as scores sort downwards. NaN comes last, and -0 equals 0.
template <typename T>
D2_HD Key<T> descending_key(T score) {
  using K = Key<T>;
  if (score != score) {
    return ~K(0);
  }
  const T canonical = score + T(0);  // -0 + 0 = +0
  K bits;
  memcpy(&bits, &canonical, sizeof(bits));
  const K sign = K(1) << (8 * sizeof(K) - 1);
  const K ascending = bits & sign ? ~bits : bits | sign;
  return ~ascending;
}

// Class ids sort as unsigned integers once their sign bit is flipped.
D2_HD uint64_t ascending_key(int64_t id) { return static_cast<uint64_t>(id) ^ (uint64_t(1) << 63); }

// The largest T that is not above `threshold`: an IoU of type T exceeds the one exactly when it
// exceeds the other, so kernels never need to widen to double to compare as torchvision does.
template <typename T>
inline T round_down(double threshold) {
  const T nearest = static_cast<T>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, static_cast<T>(-INFINITY)) : nearest;
}

// A box that neither suppresses nor is suppressed (thresholds >= 0): NaN, infinite, empty or inverted.
template <typename T>
D2_HD bool inert(const Box<T>& box, T area) {
  return !(box.x2 > box.x1 && box.y2 > box.y1 && area > T(0) && area - area == T(0));
}

// Whether `a`, kept, removes `b`: what the greedy engines of both devices are templates of. Another criterion has
// the same members, with its own type of box on CUDA.
template <typename T>
struct IouCriterion {
  using Scalar = T;
  using Box = d2proj::Box<T>;

  T threshold;

  explicit IouCriterion(double threshold) : threshold(round_down<T>(threshold)) {}

  D2_HD static T area(const Box& box) { return box_area(box); }

  D2_HD bool operator()(const Box& a, T area_a, const Box& b, T area_b) const {
    return box_iou(a, area_a, b, area_b) > threshold;
  }
};

// What `select` takes: makes the criterion for boxes of the type of `tag`.
inline auto iou_above(double threshold) {
  return [=](auto tag) { return IouCriterion<decltype(tag)>(threshold); };
}

}  // namespace nms
}  // namespace d2proj
