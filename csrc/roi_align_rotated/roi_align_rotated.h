// Rotated RoIAlign's geometry (Detectron2's ROIAlignRotated; Ma et al., Arbitrary-Oriented Scene Text Detection via
// Rotation Proposals, 2018), shared by the CPU and the CUDA kernel; no torch here.
//
// The samples are roi_align's of a box of the same size about the origin, turned by the box's angle (counter-clockwise
// as one sees the image, whose y runs down) and moved to its centre.
#pragma once

#include "roi_align/roi_align.h"

namespace d2proj {
namespace roi_align_rotated {

using roi_align::Axis;
using roi_align::SampleRange;

template <typename T>
struct RotatedBox {
  Axis<T> y, x;  // in the box's own frame
  T center_y, center_x, cos, sin;
  T scale;  // 1 / samples of a bin
  int64_t image;
  bool inside;  // false for a box that pools to zero: not finite, or of negative size
};

// `roi`: image, centre x, centre y, width, height, degrees; the image index is checked by the caller.
template <typename T, typename B>
D2_HD RotatedBox<T> make_box(const B* roi, T spatial_scale, int64_t pooled_h, int64_t pooled_w,
                             int64_t sampling_ratio) {
  RotatedBox<T> box;
  const T width = static_cast<T>(roi[3]) * spatial_scale, height = static_cast<T>(roi[4]) * spatial_scale;
  const auto axis = [&](T length, int64_t pooled) {
    const T bin = length / static_cast<T>(pooled);
    return Axis<T>{-length / T(2), bin, sampling_ratio > 0 ? static_cast<T>(sampling_ratio) : std::ceil(bin), true};
  };
  box.x = axis(width, pooled_w);
  box.y = axis(height, pooled_h);
  box.center_x = static_cast<T>(roi[1]) * spatial_scale - T(0.5);
  box.center_y = static_cast<T>(roi[2]) * spatial_scale - T(0.5);
  const double angle = static_cast<double>(static_cast<T>(roi[5])) * (3.14159265358979323846 / 180.0);
  box.cos = static_cast<T>(std::cos(angle));
  box.sin = static_cast<T>(std::sin(angle));
  box.scale = T(1) / roi_align::sample_count(box.y, box.x);
  box.inside = width >= T(0) && height >= T(0) && roi_align::is_finite(width) && roi_align::is_finite(height) &&
               roi_align::is_finite(box.center_x) && roi_align::is_finite(box.center_y) && roi_align::is_finite(angle);
  box.image = 0;
  return box;
}

template <typename T>
D2_HD T sample_y(const RotatedBox<T>& box, T along_y, T along_x) {
  return along_y * box.cos - along_x * box.sin + box.center_y;
}
template <typename T>
D2_HD T sample_x(const RotatedBox<T>& box, T along_y, T along_x) {
  return along_y * box.sin + along_x * box.cos + box.center_x;
}

// The samples of a row or a column of bins that may lie in the map. A map's corners, turned back into the box's frame,
// bound them.
struct Extent {
  double low, high;
};

template <typename T>
D2_HD Extent extent(const RotatedBox<T>& box, bool along_y, int64_t height, int64_t width) {
  const double top = -1.0 - static_cast<double>(box.center_y), left = -1.0 - static_cast<double>(box.center_x);
  const double h = static_cast<double>(height) + 1.0, w = static_cast<double>(width) + 1.0;
  // The coordinate is y * a + x * b, so its bounds are those of the two terms.
  const double a = along_y ? box.cos : -box.sin, b = along_y ? box.sin : box.cos;
  const double base = top * a + left * b;
  const double ha = h * a, wb = w * b;
  return {base + (ha < 0 ? ha : 0.0) + (wb < 0 ? wb : 0.0), base + (ha > 0 ? ha : 0.0) + (wb > 0 ? wb : 0.0)};
}

}  // namespace roi_align_rotated
}  // namespace d2proj
