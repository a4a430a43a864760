// Overlap of rotated boxes: the one definition that every kernel shares.
//
// The common area is an integral over the border of one box, in the frame of the other (where that one is the
// rectangle |x| <= w, |y| <= h): a vertical line at x meets the convex box A between y0 and y1, and the rectangle
// between clamp(y0) and clamp(y1), so
//
//     area = integral over |x| <= w of clamp(y1(x)) - clamp(y0(x)) dx = -(loop integral of clamp(y) dx along A's
//     border),
//
// four edges, each in closed form. Nothing is collected, sorted or tested for being inside: the value is a continuous
// function of the boxes whatever coincides (edges, corners, whole boxes), it has no epsilons, and every lane of a
// vector takes the same path.
//
// Templates over V: a float or a double, or a vector of them. No multiply-add is fused, so all instruction sets and
// the GPU give the same bits.
#pragma once

#include <cmath>

#include "common/macros.h"

#if defined(__CUDACC__)
#define D2_LANES D2_HD
#else
#define D2_LANES inline __attribute__((always_inline))
#endif

namespace d2proj {
namespace rotated {

// A box as the kernels read it: centre, half sides, direction, half sides of the upright box around it, area. One that
// overlaps nothing has ex = ey = -infinity.
template <typename V>
struct Box {
  V cx, cy, w, h, cos, sin, ex, ey, area;
};
constexpr int kFields = 9;

// a * b, rounded once, whatever follows it.
template <typename V>
D2_LANES V mul(V a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(V) == sizeof(float)) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
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

template <typename V>
D2_LANES V least(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
D2_LANES V greatest(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
D2_LANES V magnitude(V a) {
  return a < V{} ? -a : a;
}
template <typename V>
D2_LANES V clamp(V a, V limit) {
  return least(greatest(a, -limit), limit);
}

// Of an angle in degrees that is finite; exact at multiples of 90, for angles of any size.
D2_HD void sincos_degrees(double angle, double& sin, double& cos) {
  if (!(fabs(angle) < 1e6)) angle = fmod(angle, 360.0);
  const double quarters = rint(angle * (1.0 / 90.0));
  const double x = (angle - 90.0 * quarters) * 0.017453292519943295769;  // the difference is exact; |x| <= pi / 4
  const double z = mul(x, x);
  // Taylor's series; the first term left out is below 1e-16.
  double s = -1.0 / 1307674368000.0;
  s = 1.0 / 6227020800.0 + mul(s, z);
  s = -1.0 / 39916800.0 + mul(s, z);
  s = 1.0 / 362880.0 + mul(s, z);
  s = -1.0 / 5040.0 + mul(s, z);
  s = 1.0 / 120.0 + mul(s, z);
  s = -1.0 / 6.0 + mul(s, z);
  s = x + mul(mul(s, z), x);
  double c = 1.0 / 20922789888000.0;
  c = -1.0 / 87178291200.0 + mul(c, z);
  c = 1.0 / 479001600.0 + mul(c, z);
  c = -1.0 / 3628800.0 + mul(c, z);
  c = 1.0 / 40320.0 + mul(c, z);
  c = -1.0 / 720.0 + mul(c, z);
  c = 1.0 / 24.0 + mul(c, z);
  c = -0.5 + mul(c, z);
  c = 1.0 + mul(c, z);
  const int quarter = static_cast<int>(quarters) & 3;
  sin = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
  cos = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
}

template <typename T>
D2_HD Box<T> nothing() {
  const T infinity = static_cast<T>(INFINITY);
  return {T(0), T(0), T(0), T(0), T(1), T(0), -infinity, -infinity, T(0)};
}

// From a row of centre x, centre y, width, height, degrees. A box that is empty, inverted, infinite or NaN overlaps
// nothing.
template <typename T>
D2_HD Box<T> prepare(const T* row) {
  const T largest = sizeof(T) == sizeof(float) ? T(3.4028234663852886e38) : T(1.7976931348623157e308);
  const T w = row[2] * T(0.5), h = row[3] * T(0.5), area = mul(row[2], row[3]);
  // Comparisons that a NaN fails.
  const bool finite = magnitude(row[0]) <= largest && magnitude(row[1]) <= largest && magnitude(row[4]) <= largest;
  if (!(finite && w > T(0) && h > T(0) && area > T(0) && area <= largest)) return nothing<T>();
  double sin, cos;
  sincos_degrees(static_cast<double>(row[4]), sin, cos);
  const T c = static_cast<T>(cos), s = static_cast<T>(sin);
  const T ex = mul(w, magnitude(c)) + mul(h, magnitude(s)), ey = mul(w, magnitude(s)) + mul(h, magnitude(c));
  if (!(ex <= largest && ey <= largest)) return nothing<T>();
  return {row[0], row[1], w, h, c, s, ex, ey, area};
}

// Whether the upright boxes around two boxes are disjoint; their IoU is zero then.
template <typename V>
D2_LANES auto apart(const Box<V>& a, const Box<V>& b) {
  return (magnitude(a.cx - b.cx) > a.ex + b.ex) | (magnitude(a.cy - b.cy) > a.ey + b.ey);
}

// Twice the integral of clamp(y, -h, h) dx over the part of an edge within |x| <= w.
template <typename V>
D2_LANES V along_edge(V x0, V y0, V x1, V y1, V slope, V w, V h) {
  const V xa = clamp(x0, w), xb = clamp(x1, w);
  const V ya = y0 + mul(xa - x0, slope), yb = y1 + mul(xb - x1, slope);
  const V ca = clamp(ya, h), cb = clamp(yb, h);
  // The mean of clamp(y) is that of its ends, less what the stretches outside take away.
  const V rise = yb - ya, run = xb - xa;
  const V outside = mul((ca - ya) + (cb - yb), (cb - ca) / rise);
  const V twice_mean = (ca + cb) - (rise != V{} ? outside : V{});
  return run != V{} ? mul(run, twice_mean) : V{};
}

// Common area of boxes that are not apart.
template <typename V>
D2_LANES V intersection(const Box<V>& a, const Box<V>& b) {
  const V dx = a.cx - b.cx, dy = a.cy - b.cy;
  const V px = mul(b.cos, dx) - mul(b.sin, dy), py = mul(b.sin, dx) + mul(b.cos, dy);
  const V c = mul(a.cos, b.cos) + mul(a.sin, b.sin), s = mul(a.sin, b.cos) - mul(a.cos, b.sin);
  const V ux = mul(a.w, c), uy = -mul(a.w, s), vx = mul(a.h, s), vy = mul(a.h, c);
  const V slope_u = -s / c, slope_v = c / s;
  const V rx = px + ux, ry = py + uy, lx = px - ux, ly = py - uy;
  const V x0 = rx + vx, y0 = ry + vy, x1 = lx + vx, y1 = ly + vy;
  const V x2 = lx - vx, y2 = ly - vy, x3 = rx - vx, y3 = ry - vy;
  const V loop = (along_edge(x0, y0, x1, y1, slope_u, b.w, b.h) + along_edge(x2, y2, x3, y3, slope_u, b.w, b.h)) +
                 (along_edge(x1, y1, x2, y2, slope_v, b.w, b.h) + along_edge(x3, y3, x0, y0, slope_v, b.w, b.h));
  const V area = loop * (V{} - 0.5f);
  // Also what a NaN (an overflow on the way) becomes.
  return area > V{} ? least(area, least(a.area, b.area)) : V{};
}

// In [0, 1], never NaN.
template <typename V>
D2_LANES V iou(const Box<V>& a, const Box<V>& b) {
  const V inter = intersection(a, b);
  const V result = inter / ((a.area + b.area) - inter);
  return apart(a, b) ? V{} : result > V{} ? result : V{};
}

// A threshold t >= 0, and cheaper conditions that an IoU above it implies.
//
// Reach: let ex, ex' be the half extents of boxes A, A' along any axis and d the distance of their centres along it.
// The common area is at most the part of A beyond ex' from the centre of A', a fraction (1 - (d - ex') / ex) / 2 of A
// at most, as sections of a box shrink away from its centre. It is above t times A, the larger of the two or not, since
// it is above t times the union: so d < ex' + (1 - 2 t) ex, or d < ex' if t > 1/2; and the same with A and A'
// exchanged.
template <typename T>
struct Threshold {
  T exact;
  T reach;
  T ratio;  // of the areas, smaller to larger
  T share;  // of the sum of the areas, that the upright boxes around the two have in common

  // The slack outweighs the rounding.
  D2_HD explicit Threshold(T threshold)
      : exact(threshold),
        reach((threshold < T(0.5) ? T(1) - T(2) * threshold : T(0)) + T(0.002)),
        ratio(threshold * T(0.999)),
        share(threshold / (T(1) + threshold) * T(0.999)) {}
};

// Whether the IoU of two boxes may be above the threshold.
template <typename T, typename V>
D2_LANES auto may_suppress(const Box<V>& a, const Box<V>& b, const Threshold<T>& threshold) {
  const V dx = magnitude(a.cx - b.cx), dy = magnitude(a.cy - b.cy);
  const V less_x = least(a.ex, b.ex), less_y = least(a.ey, b.ey);
  const V more_x = greatest(a.ex, b.ex), more_y = greatest(a.ey, b.ey);
  const V common_x = least((less_x + more_x) - dx, less_x * (V{} + 2));
  const V common_y = least((less_y + more_y) - dy, less_y * (V{} + 2));
  return (dx < less_x + mul(more_x, V{} + threshold.reach)) & (dy < less_y + mul(more_y, V{} + threshold.reach)) &
         (common_x * common_y >= (a.area + b.area) * (V{} + threshold.share)) &
         (least(a.area, b.area) >= greatest(a.area, b.area) * (V{} + threshold.ratio));
}

}  // namespace rotated
}  // namespace d2proj
