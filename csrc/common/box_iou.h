// Intersection over union of axis-aligned boxes: the one definition that every kernel shares.
//
// No multiply-add is ever fused here. Whether one box suppresses another is a comparison against a
// threshold, and a fused product moves the last bit of the ratio: the CPU's instruction sets, the
// GPU and torchvision's CPU kernel would then disagree on boxes that sit on the threshold.

#pragma once

#include <cmath>

#include "common/macros.h"

namespace d2proj {

// Corners in any one unit; x2 >= x1 and y2 >= y1 for a box that has an area.
template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// a * b, rounded once, whatever follows it.
template <typename T>
D2_HD T product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#else
  T result = a * b;
  // GCC contracts across statements by default; a value that passes through a register cannot be.
#if defined(__x86_64__)
  asm("" : "+x"(result));
#elif defined(__aarch64__)
  asm("" : "+w"(result));
#endif
  return result;
#endif
}

// Negative for a box inverted in one direction, NaN if a coordinate is NaN.
template <typename T>
D2_HD T box_area(const Box<T>& box) {
  return product<T>(box.x2 - box.x1, box.y2 - box.y1);
}

// Area of the common rectangle; zero for boxes that only touch.
template <typename T>
D2_HD T box_intersection(const Box<T>& a, const Box<T>& b) {
  const T left = a.x1 > b.x1 ? a.x1 : b.x1;
  const T top = a.y1 > b.y1 ? a.y1 : b.y1;
  const T right = a.x2 < b.x2 ? a.x2 : b.x2;
  const T bottom = a.y2 < b.y2 ? a.y2 : b.y2;
  const T width = right - left;
  const T height = bottom - top;
  return product<T>(width > T(0) ? width : T(0), height > T(0) ? height : T(0));
}

// NaN (so never above a threshold) where the union is zero or a coordinate is NaN.
template <typename T>
D2_HD T box_iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T inter = box_intersection(a, b);
  return inter / (area_a + area_b - inter);
}

}  // namespace d2proj
