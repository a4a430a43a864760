// The IoU family: similarity of a pair of boxes and its gradient, once for every kernel; no torch here.
//
// IoU; generalized (Rezatofighi et al., CVPR 2019); distance and complete (Zheng et al., AAAI 2020). `V` is a number or
// a SIMD vector, one pair a lane. Values are rounded as torchvision rounds them: no multiply-add is fused.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/box_iou.h"
#include "common/macros.h"
#include "common/simd_atan.h"

namespace d2proj {
namespace iou {

enum class Kind : int64_t { kIou, kGeneralized, kDistance, kComplete };

// How the four numbers of a box are meant: x1 y1 x2 y2, x1 y1 w h, or cx cy w h.
enum class Format : int64_t { kCorners, kCornerSize, kCenterSize };

// What is known of a box before it meets another; `angle` is atan(w / h), of use to kComplete alone.
template <typename V>
struct Fields {
  V x1, y1, x2, y2, area, angle;
};

// The four numbers of a box, or their gradients.
template <typename V>
struct Numbers {
  V a, b, c, d;
};

template <typename V>
D2_LANES V larger(const V& a, const V& b) {
  return a > b ? a : b;
}
template <typename V>
D2_LANES V smaller(const V& a, const V& b) {
  return a < b ? a : b;
}

// a / b, and 0 where b is 0: two boxes of no area have no overlap and no gradient.
template <typename V>
D2_LANES V ratio(const V& a, const V& b) {
  const V zero{};
  const V quotient = a / b;
  return b == zero ? zero : quotient;
}

// a * b, rounded once whatever follows it (see `product`, which takes plain numbers alone).
template <typename V>
D2_LANES V times(const V& a, const V& b) {
#if defined(__CUDA_ARCH__)
  return product<V>(a, b);
#else
  V result = a * b;
#if defined(__x86_64__)
  asm("" : "+x"(result));
#elif defined(__aarch64__)
  asm("" : "+w"(result));
#endif
  return result;
#endif
}

template <Kind K, typename V>
D2_LANES void make_fields(const Numbers<V>& box, Format format, Fields<V>& out) {
  using T = element_t<V>;
  V w = box.c, h = box.d;
  if (format == Format::kCorners) {
    w = box.c - box.a;
    h = box.d - box.b;
    out.x1 = box.a;
    out.y1 = box.b;
    out.x2 = box.c;
    out.y2 = box.d;
  } else {
    const bool center = format == Format::kCenterSize;
    out.x1 = center ? box.a - w * T(0.5) : box.a;
    out.y1 = center ? box.b - h * T(0.5) : box.b;
    out.x2 = center ? box.a + w * T(0.5) : box.a + w;
    out.y2 = center ? box.b + h * T(0.5) : box.b + h;
  }
  out.area = times<V>(w, h);
  if constexpr (K == Kind::kComplete) out.angle = atan_ratio<V>(w, h);
}

// Gradients of a box's four numbers from those of its fields.
template <Kind K, typename V>
D2_LANES void gradient_of_numbers(const Numbers<V>& box, Format format, const Fields<V>& grad, Numbers<V>& out) {
  using T = element_t<V>;
  V w = box.c, h = box.d;
  if (format == Format::kCorners) {
    w = box.c - box.a;
    h = box.d - box.b;
  }
  V to_w = grad.area * h, to_h = grad.area * w;
  if constexpr (K == Kind::kComplete) {
    // Of sides too short to square, the angle is noise: no gradient.
    const V squares = w * w + h * h, zero{};
    const V by_angle = squares < V{} + T(1e-30) ? zero : grad.angle / squares;
    to_w += by_angle * h;
    to_h -= by_angle * w;
  }
  if (format == Format::kCorners) {
    out.a = grad.x1 - to_w;
    out.b = grad.y1 - to_h;
    out.c = grad.x2 + to_w;
    out.d = grad.y2 + to_h;
  } else {
    const bool center = format == Format::kCenterSize;
    out.a = grad.x1 + grad.x2;
    out.b = grad.y1 + grad.y2;
    out.c = (center ? (grad.x2 - grad.x1) * T(0.5) : grad.x2) + to_w;
    out.d = (center ? (grad.y2 - grad.y1) * T(0.5) : grad.y2) + to_h;
  }
}

// A pair's common rectangle, smallest enclosing rectangle (hull) and what follows from them.
//
// kLoss tells the two forms of the field apart. The losses add eps to every divisor and let a hull be inverted; the
// pairwise functions add it to the squared diagonal and alpha's divisor alone, and clamp the hull's sides at 0.
template <Kind K, bool kLoss, typename V>
struct Pair {
  using T = element_t<V>;

  V w, h;                // of the common rectangle; negative where the boxes are apart
  V common_w, common_h;  // the same, 0 where negative
  V whole;               // area of the union
  V iou;
  V hull_w, hull_h;
  V hull;         // area of the hull, or its squared diagonal
  V penalty;      // share of the hull that is in neither box, or squared distance of centres / squared diagonal
  V dx, dy;       // distance of centres
  V turn, alpha;  // difference of angles and its weight

  D2_LANES void measure(const Fields<V>& a, const Fields<V>& b, T eps) {
    const V zero{};
    w = smaller<V>(a.x2, b.x2) - larger<V>(a.x1, b.x1);
    h = smaller<V>(a.y2, b.y2) - larger<V>(a.y1, b.y1);
    common_w = larger<V>(w, zero);
    common_h = larger<V>(h, zero);
    const V inter = times<V>(common_w, common_h);
    const V joined = a.area + b.area - inter;
    whole = kLoss ? joined + eps : joined;
    iou = ratio<V>(inter, whole);
    if constexpr (K != Kind::kIou) {
      hull_w = larger<V>(a.x2, b.x2) - smaller<V>(a.x1, b.x1);
      hull_h = larger<V>(a.y2, b.y2) - smaller<V>(a.y1, b.y1);
      const V side_w = hull_side(hull_w), side_h = hull_side(hull_h);
      if constexpr (K == Kind::kGeneralized) {
        const V area = times<V>(side_w, side_h);
        hull = kLoss ? area + eps : area;
        penalty = ratio<V>(area - joined, hull);
      } else {
        hull = times<V>(side_w, side_w) + times<V>(side_h, side_h) + eps;
        dx = (a.x1 + a.x2) * T(0.5) - (b.x1 + b.x2) * T(0.5);
        dy = (a.y1 + a.y2) * T(0.5) - (b.y1 + b.y2) * T(0.5);
        penalty = ratio<V>(times<V>(dx, dx) + times<V>(dy, dy), hull);
      }
    }
    if constexpr (K == Kind::kComplete) {
      turn = a.angle - b.angle;
      const V v = aspect();
      alpha = ratio<V>(v, T(1) - iou + v + eps);
    }
  }

  D2_LANES V similarity() const {
    if constexpr (K == Kind::kIou) return iou;
    if constexpr (K == Kind::kComplete) return iou - penalty - times<V>(alpha, aspect());
    return iou - penalty;
  }

  // 1 - similarity(), in torchvision's order of rounding.
  D2_LANES V distance() const {
    if constexpr (K == Kind::kIou) return T(1) - iou;
    if constexpr (K == Kind::kGeneralized) return T(1) - (iou - penalty);
    if constexpr (K == Kind::kComplete) return T(1) - iou + penalty + times<V>(alpha, aspect());
    return T(1) - iou + penalty;
  }

  // Gradients of the fields from that of the similarity. alpha is a constant (Zheng et al., section 3.3).
  D2_LANES void differentiate(const Fields<V>& a, const Fields<V>& b, const V& grad, Fields<V>& to_a,
                              Fields<V>& to_b) const {
    const V zero{};
    const V by_whole = ratio<V>(grad, whole);
    V to_inter = by_whole * (T(1) + iou), to_area = -(by_whole * iou);
    V to_hull_w = zero, to_hull_h = zero, to_x = zero, to_y = zero;
    if constexpr (K == Kind::kGeneralized) {
      const V by_hull = ratio<V>(grad, hull);
      to_inter -= by_hull;
      to_area += by_hull;
      const V to_hull = by_hull * (penalty - T(1));
      to_hull_w = to_hull * hull_side(hull_h);
      to_hull_h = to_hull * hull_side(hull_w);
    } else if constexpr (K != Kind::kIou) {
      const V by_hull = ratio<V>(grad, hull);
      to_x = -(by_hull * dx);
      to_y = -(by_hull * dy);
      to_hull_w = T(2) * by_hull * penalty * hull_side(hull_w);
      to_hull_h = T(2) * by_hull * penalty * hull_side(hull_h);
    }
    if constexpr (K != Kind::kIou && !kLoss) {
      to_hull_w = hull_w <= zero ? zero : to_hull_w;
      to_hull_h = hull_h <= zero ? zero : to_hull_h;
    }
    V to_w = to_inter * common_h, to_h = to_inter * common_w;
    // Boxes that only touch have no gradient through their overlap.
    to_w = w <= zero ? zero : to_w;
    to_h = h <= zero ? zero : to_h;
    split(a.x1, b.x1, -to_w, -to_hull_w, to_a.x1, to_b.x1);
    split(a.y1, b.y1, -to_h, -to_hull_h, to_a.y1, to_b.y1);
    split(a.x2, b.x2, to_hull_w, to_w, to_a.x2, to_b.x2);
    split(a.y2, b.y2, to_hull_h, to_h, to_a.y2, to_b.y2);
    if constexpr (K == Kind::kDistance || K == Kind::kComplete) {
      to_a.x1 += to_x;
      to_a.x2 += to_x;
      to_a.y1 += to_y;
      to_a.y2 += to_y;
      to_b.x1 -= to_x;
      to_b.x2 -= to_x;
      to_b.y1 -= to_y;
      to_b.y2 -= to_y;
    }
    to_a.area = to_area;
    to_b.area = to_area;
    if constexpr (K == Kind::kComplete) {
      to_a.angle = grad * alpha * turn * T(-2 * kAspect);
      to_b.angle = -to_a.angle;
    }
  }

 private:
  static constexpr double kAspect = 0.40528473456935108578;  // 4 / pi^2

  D2_LANES V aspect() const { return times<V>(times<V>(turn, turn), V{} + T(kAspect)); }

  D2_LANES static V hull_side(const V& side) {
    const V zero{};
    if constexpr (kLoss) return side;
    return larger<V>(side, zero);
  }

  // Hands the gradient of max(a, b) to the larger and that of min(a, b) to the smaller; equal ones share both, as in
  // torch's maximum and minimum.
  D2_LANES static void split(const V& a, const V& b, const V& to_larger, const V& to_smaller, V& to_a, V& to_b) {
    const V shared = T(0.5) * (to_larger + to_smaller);
    to_a = a > b ? to_larger : shared;
    to_a = a < b ? to_smaller : to_a;
    to_b = a > b ? to_smaller : shared;
    to_b = a < b ? to_larger : to_b;
  }
};

}  // namespace iou
}  // namespace d2proj
